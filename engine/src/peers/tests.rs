//! Ranks with a device each, what they sum, and what happens when one of them does not come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;
use parallel::{
    CollectiveError, DeviceElement, DeviceSlice, PoolConfig, RankPool, RankWorker, Seat, World,
};

use super::*;
use crate::device::cuda::testing::TestDevice;
use crate::rank::StepError;

/// Long enough never to pass on a busy machine.
const PATIENT: Duration = Duration::from_secs(60);

/// Long enough for every rank to get a turn, short enough to wait for.
const IMPATIENT: Duration = Duration::from_secs(2);

/// A rank with a device.
struct Member {
    // Dropped before the device that its collectives run on.
    communicator: Communicator,
    peers: Peers,
    device: TestDevice,
}

type Script = Arc<dyn Fn(&mut Member) -> Result<Vec<f32>, StepError> + Send + Sync>;

impl RankWorker for Member {
    type Command = Script;
    type Reply = Vec<f32>;
    type Error = StepError;

    fn handle(&mut self, script: Script) -> Result<Vec<f32>, StepError> {
        script(self)
    }
}

impl Member {
    fn build(seat: Seat, deadline: Duration) -> Result<Member, StepError> {
        let device = TestDevice::open(seat.rank.idx());
        let mut communicator = seat.communicator.connect_devices(deadline)?;
        let peers = Peers::connect(&device.exec, &mut communicator, deadline)?;
        Ok(Member { communicator, peers, device })
    }

    fn rank_idx(&self) -> usize {
        self.communicator.rank().idx()
    }

    /// Waits for what was submitted as a step does.
    fn wait(&mut self) -> Result<(), StepError> {
        let event = self.device.exec.new_event()?;
        self.device.exec.stream().record(&event)?;
        self.peers.wait(&event, &mut self.communicator)
    }
}

fn pool(n_ranks: usize, deadline: Duration) -> RankPool<Member> {
    let world = World::new(n_ranks);
    let config = PoolConfig { world, n_floats_max: 64, build_deadline: PATIENT, deadline: PATIENT };
    RankPool::spawn(config, move |seat| Member::build(seat, deadline)).expect("ranks are built")
}

/// Has `n` bf16 at `partial` replaced by their sum over all ranks.
fn sum_bf16(
    exec: &CudaExec,
    communicator: &mut Communicator,
    partial: DevicePtr,
    n: usize,
) -> Result<(), StepError> {
    let slice = DeviceSlice { address: partial.0, n_elements: n, element: DeviceElement::Bf16 };
    Ok(communicator.all_reduce_sum_on_device(slice, exec.stream().for_collectives())?)
}

/// What rank `rank_idx` has at `i`: no two ranks and no two neighbours have the same.
fn number(rank_idx: usize, i: usize) -> bf16 {
    bf16::from_f32(rank_idx as f32 + i as f32 / 16.0 - 3.0)
}

/// In rank order, rounded after each addition, as bf16 sums of few small numbers are: exact here.
fn sum(n_ranks: usize, i: usize) -> f32 {
    (0..n_ranks).map(|rank_idx| number(rank_idx, i).to_f32()).sum()
}

#[test]
fn nccl_sums_over_devices_at_once_and_from_a_graph() {
    for n_ranks in [2, 8] {
        let mut pool = pool(n_ranks, PATIENT);
        let script: Script = Arc::new(|member| {
            let Member { communicator, device, .. } = member;
            let exec = &device.exec;
            let n = 24;
            let mine: Vec<bf16> = (0..n).map(|i| number(communicator.rank().idx(), i)).collect();
            let (source, partial) = (device.upload(&mine), device.poisoned::<bf16>(n));
            exec.stream().copy_within(partial, source, 2 * n)?;
            sum_bf16(exec, communicator, partial, n)?;
            let mut sums = device.download::<bf16>(partial, n);
            exec.stream().begin_capture()?;
            exec.stream().copy_within(partial, source, 2 * n)?;
            sum_bf16(exec, communicator, partial, n)?;
            let graph = exec.stream().end_capture()?;
            for _ in 0..3 {
                exec.stream().fill(partial, 0xFF, 2 * n)?;
                exec.stream().launch(&graph)?;
                sums.extend(device.download::<bf16>(partial, n));
            }
            Ok(sums.iter().map(|x| x.to_f32()).collect())
        });
        let replies = pool.broadcast(script).expect("no rank fails");
        let once: Vec<f32> = (0..24).map(|i| sum(n_ranks, i)).collect();
        for reply in replies {
            assert_eq!(reply, once.repeat(4), "{n_ranks} ranks");
        }
        pool.shutdown().expect("ranks stop");
    }
}

#[test]
fn every_rank_knows_every_address() {
    let mut pool = pool(3, PATIENT);
    let script: Script = Arc::new(|member| {
        let own = member.device.upload(&[member.rank_idx() as u32; 4]);
        let of_ranks = member.peers.share(&mut member.communicator, own)?;
        assert_eq!(of_ranks[member.rank_idx()], own);
        assert_eq!(of_ranks[3..], [DevicePtr::NULL; 5]);
        let here = member.device.poisoned::<u32>(4);
        let mut seen = Vec::new();
        for theirs in &of_ranks[..3] {
            member.device.exec.stream().copy_within(here, *theirs, 16)?;
            seen.extend(member.device.download::<u32>(here, 4).iter().map(|&x| x as f32));
        }
        // Nobody leaves while another may still read.
        member.communicator.all_gather_word(0)?;
        Ok(seen)
    });
    for seen in pool.broadcast(script).expect("no rank fails") {
        assert_eq!(seen, [[0.0; 4], [1.0; 4], [2.0; 4]].concat());
    }
}

#[test]
fn a_rank_alone_has_nothing_to_sum() {
    let mut pool = pool(1, PATIENT);
    let script: Script = Arc::new(|member| {
        let partial = member.device.upload(&[bf16::ONE; 8]);
        let Member { communicator, device, .. } = member;
        sum_bf16(&device.exec, communicator, partial, 8)?;
        member.wait()?;
        let exchange = member.peers.exchange();
        assert_eq!((exchange.n_ranks, exchange.rank), (1, 0));
        Ok(member.device.download::<bf16>(partial, 8).iter().map(|x| x.to_f32()).collect())
    });
    assert_eq!(pool.broadcast(script).expect("no rank fails"), [[1.0; 8]]);
}

#[test]
fn a_rank_that_does_not_come_is_not_waited_for_for_ever() {
    let mut pool = pool(4, IMPATIENT);
    let script: Script = Arc::new(|member| {
        let partial = member.device.upload(&[bf16::ONE; 8]);
        if member.rank_idx() != 2 {
            let Member { communicator, device, .. } = member;
            sum_bf16(&device.exec, communicator, partial, 8)?;
        }
        member.wait()?;
        Ok(Vec::new())
    });
    let begin = Instant::now();
    let error = pool.broadcast(script).expect_err("a rank is missing");
    let text = error.to_string();
    assert!(text.contains("ncclAllReduce, call 0"), "{text}");
    assert!(text.contains("a peer is missing"), "{text}");
    assert_ne!(error.rank.idx(), 2, "who waited says so: {text}");
    assert!(begin.elapsed() < PATIENT, "{:?}", begin.elapsed());
    // The devices can be closed: nothing on them still waits.
    pool.shutdown().expect_err("the pool has failed");
    assert!(begin.elapsed() < PATIENT, "{:?}", begin.elapsed());
}

#[test]
fn a_rank_that_fails_releases_those_who_wait_for_its_device() {
    let mut pool = pool(3, PATIENT);
    let script: Script = Arc::new(|member| {
        if member.rank_idx() == 1 {
            return Err(CollectiveError::DeviceStands { waited: Duration::ZERO }.into());
        }
        let partial = member.device.upload(&[bf16::ONE; 8]);
        let Member { communicator, device, .. } = member;
        sum_bf16(&device.exec, communicator, partial, 8)?;
        member.wait()?;
        Ok(Vec::new())
    });
    let begin = Instant::now();
    let error = pool.broadcast(script).expect_err("a rank fails");
    assert_eq!(error.rank.idx(), 1, "{error}");
    pool.shutdown().expect_err("the pool has failed");
    assert!(begin.elapsed() < PATIENT, "{:?}", begin.elapsed());
}

#[test]
fn small_sums_take_one_shot_and_large_ones_the_library() {
    let of_ultra = |n_tokens: usize, n_ranks| carrier(n_tokens * 16_384 * 2, n_ranks);
    assert_eq!([1, 8, 16].map(|n| of_ultra(n, 8)), [Carrier::OneShot; 3]);
    assert_eq!([17, 32, 8192].map(|n| of_ultra(n, 8)), [Carrier::Nccl; 3]);
    assert_eq!([32, 33].map(|n| of_ultra(n, 4)), [Carrier::OneShot, Carrier::Nccl]);
    assert_eq!([128, 129].map(|n| of_ultra(n, 2)), [Carrier::OneShot, Carrier::Nccl]);
    // More ranks read more bytes: nothing gets easier with them.
    for n_bytes in (0..8 << 20).step_by(64 << 10) {
        let ways = [2, 4, 8].map(|n_ranks| carrier(n_bytes, n_ranks) == Carrier::OneShot);
        assert!(ways.is_sorted_by(|a, b| a >= b), "{n_bytes} bytes: {ways:?}");
    }
}
