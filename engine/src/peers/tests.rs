//! Ranks with a device each, what they sum, and what happens when one of them does not come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;
use parallel::{
    CollectiveError, DeviceElement, DeviceSlice, PoolConfig, RankError, RankPool, RankWorker, Seat,
    World,
};
use weights::InputScale;

use super::*;
use crate::device::cuda::Plain;
use crate::device::{
    Array, ArrayMut, DeviceArray, DeviceView, Element, Exec, Gpu, Laps, SharedMemory, ViewMut,
};
use crate::kernels::linear::cuda::{Choice, Gemms};
use crate::kernels::reduce_norm::{Args, Pending, reduce_norm};

/// Long enough never to pass on a busy machine.
const PATIENT: Duration = Duration::from_secs(600);

/// For what never comes: only ranks that wait for a missing one wait.
const IMPATIENT: Duration = Duration::from_millis(200);

/// Columns of the residual stream.
const HIDDEN: usize = 24;

/// Rows and columns of a sum that five ranks make in two shots: one is not good for so much.
const LARGE: (usize, usize) = (33, 8192);

/// A rank with a device.
struct Member {
    // Dropped before the device that its collectives run on.
    communicator: Communicator,
    peers: Peers,
    /// bf16 `[HIDDEN]` twice, in memory that all ranks' kernels reach.
    partials: [DevicePtr; 2],
    /// bf16 `LARGE` for a partial result and for an output, f32 for each of its rows: in memory
    /// that all ranks' kernels reach.
    large: [DevicePtr; 3],
    /// f32 `[LARGE.1]`, bf16 `[HIDDEN]`, f32 `[1]`: what a norm reads and writes.
    norm: [DevicePtr; 3],
    /// Taken only when the rank is gone.
    exec: Option<Exec>,
    /// Whether its memory stays when it is gone.
    leaves_memory: bool,
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
    /// `deadline` is for whatever runs on the device.
    fn build(seat: Seat, deadline: Duration, leaves_memory: bool) -> Result<Member, StepError> {
        let exec = CudaExec::open_guarded(seat.rank.idx())?;
        let mut communicator = seat.communicator.connect_devices(PATIENT)?;
        let peers = Peers::connect(&exec, &mut communicator, deadline)?;
        let n_large = LARGE.0 * LARGE.1;
        let n_bytes = 2 * (HIDDEN + n_large) * size_of::<bf16>() + LARGE.0 * size_of::<f32>();
        let own = exec.alloc(n_bytes)?;
        let pieces = peers.share(&mut communicator, own)?;
        let exchange = peers.exchange();
        let shared = Some(SharedMemory { pieces, n_bytes, exchange, is_deterministic: false });
        let partials = [own, own.elements::<bf16>(HIDDEN)];
        let large = [2 * HIDDEN, 2 * HIDDEN + n_large, 2 * (HIDDEN + n_large)]
            .map(|n_before| own.elements::<bf16>(n_before));
        let norm = [exec.alloc(4 * LARGE.1)?, exec.alloc(2 * HIDDEN)?, exec.alloc(4)?];
        exec.upload(norm[0], &[1.0f32; LARGE.1])?;
        let gemms = Gemms::new(1, Choice::PerBucket);
        let laps = Laps::new(&exec, 1)?;
        let gpu = Gpu { exec, gemms, magnitudes: DevicePtr::NULL, shared, laps };
        let exec = Some(Exec::Cuda(Box::new(gpu)));
        Ok(Member { communicator, peers, partials, large, norm, exec, leaves_memory })
    }

    fn gpu(&self) -> &Gpu {
        match &self.exec {
            Some(Exec::Cuda(gpu)) => gpu,
            _ => panic!("a device was opened"),
        }
    }

    fn cuda(&self) -> &CudaExec {
        &self.gpu().exec
    }

    fn laps(&self) -> &Laps {
        &self.gpu().laps
    }

    fn rank_idx(&self) -> usize {
        self.communicator.rank().idx()
    }

    fn upload<T: Plain>(&self, values: &[T]) -> Result<DevicePtr, StepError> {
        let ptr = self.cuda().alloc(size_of_val(values))?;
        self.cuda().upload(ptr, values)?;
        Ok(ptr)
    }

    fn download<T: Plain + Default>(&self, ptr: DevicePtr, n: usize) -> Result<Vec<T>, StepError> {
        let mut values = vec![T::default(); n];
        self.cuda().download(ptr, &mut values)?;
        Ok(values)
    }

    /// Waits for what was submitted as a step does. If that fails, nothing waits any more.
    fn wait(&mut self) -> Result<(), StepError> {
        let event = self.cuda().new_event()?;
        self.cuda().stream().record(&event)?;
        let waited = self.peers.wait(&event, &mut self.communicator);
        self.cuda().synchronize()?;
        waited
    }

    /// Has a partial result at `partial` summed over the ranks and added to `residual`, one token.
    /// Does not wait for it.
    fn reduce(&mut self, partial: DevicePtr, residual: DevicePtr) -> Result<(), StepError> {
        let [_, out, scales] = self.norm;
        self.normalise((1, HIDDEN), [partial, residual, out, scales])
    }

    /// The same of `LARGE` tokens, from `partial` into this rank's memory for the output.
    fn reduce_large(&mut self, partial: DevicePtr, residual: DevicePtr) -> Result<(), StepError> {
        let [_, out, scales] = self.large;
        self.normalise(LARGE, [partial, residual, out, scales])
    }

    fn normalise(
        &mut self,
        (n_rows, n_cols): (usize, usize),
        [partial, residual, out, scales]: [DevicePtr; 4],
    ) -> Result<(), StepError> {
        let rows = |first, element| {
            ViewMut::Device(DeviceView { first, element, n_rows, n_cols, stride: n_cols })
        };
        let args = Args {
            communicator: &mut self.communicator,
            partial: rows(partial, Element::Bf16),
            pending: Pending::default(),
            residual: rows(residual, Element::F32),
            weight: Array::Device(DeviceArray { first: self.norm[0], n: n_cols }),
            eps: 1e-5,
            rows: None,
            next: None,
            input: InputScale::None,
            out: rows(out, Element::Bf16),
            out_scales: ArrayMut::Device(DeviceArray { first: scales, n: n_rows }),
        };
        reduce_norm(self.exec.as_mut().expect("the rank is there"), args)
    }
}

impl Drop for Member {
    /// Ranks that fail go at different times: kernels that read a rank's memory after it is gone
    /// fault, and with them the tests that share the process and its devices.
    fn drop(&mut self) {
        if self.leaves_memory {
            std::mem::forget(self.exec.take());
        }
    }
}

fn pool(n_ranks: usize) -> RankPool<Member> {
    spawn(n_ranks, PATIENT, false)
}

/// Ranks of which one will be missing. A rank may be gone before it has begun its script, so it
/// is told now to leave its memory.
fn doomed_pool(n_ranks: usize, deadline: Duration) -> RankPool<Member> {
    spawn(n_ranks, deadline, true)
}

fn spawn(n_ranks: usize, deadline: Duration, leaves_memory: bool) -> RankPool<Member> {
    let world = World::new(n_ranks);
    let config = PoolConfig { world, n_floats_max: 64, build_deadline: PATIENT, deadline: PATIENT };
    RankPool::spawn(config, move |seat| Member::build(seat, deadline, leaves_memory))
        .expect("ranks are built")
}

/// Has `n` bf16 at `partial` replaced by their sum over all ranks.
fn sum_bf16(member: &mut Member, partial: DevicePtr, n: usize) -> Result<(), StepError> {
    let stream = member.cuda().stream().for_collectives();
    let slice = DeviceSlice { address: partial.0, n_elements: n, element: DeviceElement::Bf16 };
    Ok(member.communicator.all_reduce_sum_on_device(slice, stream)?)
}

/// What rank `rank_idx` has at `i`: no two ranks and no two neighbours have the same, and sums of
/// them are bf16 too.
fn number(rank_idx: usize, i: usize) -> bf16 {
    bf16::from_f32(rank_idx as f32 + i as f32 / 4.0 - 3.0)
}

fn numbers(rank_idx: usize) -> [bf16; HIDDEN] {
    std::array::from_fn(|i| number(rank_idx, i))
}

fn sums(n_ranks: usize) -> Vec<f32> {
    let sum = |i| (0..n_ranks).map(|rank_idx| number(rank_idx, i).to_f32()).sum();
    (0..HIDDEN).map(sum).collect()
}

#[test]
fn nccl_sums_over_devices_at_once_and_from_a_graph() {
    for n_ranks in [2, 8] {
        let mut pool = pool(n_ranks);
        let script: Script = Arc::new(|member| {
            let n_bytes = HIDDEN * size_of::<bf16>();
            let source = member.upload(&numbers(member.rank_idx()))?;
            let partial = member.upload(&[bf16::NAN; HIDDEN])?;
            member.cuda().stream().copy_within(partial, source, n_bytes)?;
            sum_bf16(member, partial, HIDDEN)?;
            let mut sums = member.download::<bf16>(partial, HIDDEN)?;
            member.cuda().stream().begin_capture()?;
            member.cuda().stream().copy_within(partial, source, n_bytes)?;
            sum_bf16(member, partial, HIDDEN)?;
            let graph = member.cuda().stream().end_capture()?;
            for _ in 0..3 {
                member.cuda().stream().fill(partial, 0xFF, n_bytes)?;
                member.cuda().stream().launch(&graph)?;
                sums.extend(member.download::<bf16>(partial, HIDDEN)?);
            }
            Ok(sums.iter().map(|x| x.to_f32()).collect())
        });
        for reply in pool.broadcast(script).expect("no rank fails") {
            assert_eq!(reply, sums(n_ranks).repeat(4), "{n_ranks} ranks");
        }
        pool.shutdown().expect("ranks stop");
    }
}

#[test]
fn one_shot_and_nccl_add_the_same_to_the_residual() {
    for n_ranks in [2, 8] {
        let mut pool = pool(n_ranks);
        let script: Script = Arc::new(|member| {
            let mine = numbers(member.rank_idx());
            let residuals = [member.upload(&[1.0f32; HIDDEN])?, member.upload(&[1.0f32; HIDDEN])?];
            let own = member.upload(&mine)?;
            let partials = member.partials;
            for partial in partials {
                member.cuda().upload(partial, &mine)?;
            }
            member.laps().begin(0);
            for partial in [partials, partials].concat() {
                member.reduce(partial, residuals[0])?;
            }
            member.laps().begin(1);
            // Memory that the others cannot reach is NCCL's, which leaves the sum in it.
            member.reduce(own, residuals[1])?;
            member.wait()?;
            let [of_kernels, of_library] = [0, 1].map(|turn| member.laps().took(turn));
            assert_eq!(of_kernels?, Duration::ZERO, "kernels tell what they take themselves");
            assert!(!of_library?.is_zero(), "NCCL takes time");
            let of_one_shot = member.download::<f32>(residuals[0], HIDDEN)?;
            let of_nccl = member.download::<f32>(residuals[1], HIDDEN)?;
            Ok([of_one_shot, of_nccl].concat())
        });
        let added = |n_times: f32| sums(n_ranks).into_iter().map(move |sum| 1.0 + n_times * sum);
        let expected: Vec<f32> = added(4.0).chain(added(1.0)).collect();
        for reply in pool.broadcast(script).expect("no rank fails") {
            assert_eq!(reply, expected, "{n_ranks} ranks");
        }
        pool.shutdown().expect("ranks stop");
    }
}

/// What rank `rank_idx` has of a large partial result. Sums over five are bf16, too.
fn large_numbers(rank_idx: usize) -> Vec<bf16> {
    let number = |i: usize| ((i * 7 + rank_idx * 5) % 23) as f32 / 4.0 - 2.5;
    (0..LARGE.0 * LARGE.1).map(|i| bf16::from_f32(number(i))).collect()
}

#[test]
fn two_shots_and_nccl_yield_the_same_rows_on_all_ranks() {
    let mut pool = pool(5);
    assert_eq!(carrier(LARGE.0 * LARGE.1 * 2, 5), Carrier::TwoShot);
    let script: Script = Arc::new(|member| {
        let (n_tokens, hidden) = LARGE;
        let n = n_tokens * hidden;
        let mine = large_numbers(member.rank_idx());
        let before: Vec<f32> = (0..n).map(|i| (i % 29) as f32).collect();
        let [shared, out, _] = member.large;
        let mut results = Vec::new();
        // Memory that the others cannot reach is NCCL's.
        for partial in [shared, member.upload(&mine)?] {
            member.cuda().upload(partial, &mine)?;
            member.cuda().upload(out, &vec![bf16::NAN; n])?;
            let residual = member.upload(&before)?;
            // Nobody writes to a rank that has not come so far.
            member.communicator.all_gather_word(0)?;
            for _ in 0..2 {
                member.reduce_large(partial, residual)?;
                member.wait()?;
                member.cuda().upload(partial, &mine)?;
                member.communicator.all_gather_word(0)?;
            }
            let residual = member.download::<f32>(residual, n)?;
            results.push((member.download::<bf16>(out, n)?, residual));
        }
        let [(rows, residual), (rows_of_nccl, residual_of_nccl)] = &results[..] else {
            panic!("two ways");
        };
        assert!(rows == rows_of_nccl && rows.iter().all(|x| !x.is_nan()), "rows differ");
        for token in 0..n_tokens {
            let at = token * hidden..(token + 1) * hidden;
            let is_own = token % 5 == member.rank_idx();
            let expected = if is_own { &residual_of_nccl[at.clone()] } else { &before[at.clone()] };
            assert!(residual[at] == *expected, "the residual of token {token}");
        }
        Ok(vec![residual_of_nccl[0]])
    });
    let sum: f32 = (0..5).map(|rank_idx| large_numbers(rank_idx)[0].to_f32()).sum();
    for reply in pool.broadcast(script).expect("no rank fails") {
        assert_eq!(reply, [2.0 * sum], "both sums were added");
    }
    pool.shutdown().expect("ranks stop");
}

#[test]
fn every_rank_knows_every_address() {
    let mut pool = pool(3);
    let script: Script = Arc::new(|member| {
        let own = member.upload(&[member.rank_idx() as u32; 4])?;
        let of_ranks = member.peers.share(&mut member.communicator, own)?;
        assert_eq!(of_ranks[member.rank_idx()], own);
        assert_eq!(of_ranks[3..], [DevicePtr::NULL; 5]);
        let here = member.upload(&[u32::MAX; 4])?;
        let mut seen = Vec::new();
        for theirs in &of_ranks[..3] {
            member.cuda().stream().copy_within(here, *theirs, 16)?;
            seen.extend(member.download::<u32>(here, 4)?.iter().map(|&x| x as f32));
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
    let mut pool = pool(1);
    let script: Script = Arc::new(|member| {
        let partial = member.upload(&[bf16::ONE; 8])?;
        sum_bf16(member, partial, 8)?;
        member.wait()?;
        let exchange = member.peers.exchange();
        assert_eq!((exchange.n_ranks, exchange.rank), (1, 0));
        Ok(member.download::<bf16>(partial, 8)?.iter().map(|x| x.to_f32()).collect())
    });
    assert_eq!(pool.broadcast(script).expect("no rank fails"), [[1.0; 8]]);
}

/// Runs `script`, in which a rank is missing, and says what the pool has to say about it.
fn failure(mut pool: RankPool<Member>, script: Script) -> RankError {
    let begin = Instant::now();
    let error = pool.broadcast(script).expect_err("a rank is missing");
    pool.shutdown().expect_err("the pool has failed");
    assert!(begin.elapsed() < PATIENT / 2, "{:?}", begin.elapsed());
    error
}

#[test]
fn a_rank_that_does_not_come_to_nccl_is_not_waited_for_for_ever() {
    let error = failure(
        doomed_pool(4, IMPATIENT),
        Arc::new(|member| {
            if member.rank_idx() == 2 {
                return Ok(Vec::new());
            }
            let partial = member.upload(&[bf16::ONE; 8])?;
            sum_bf16(member, partial, 8)?;
            member.wait()?;
            Ok(Vec::new())
        }),
    );
    let text = error.to_string();
    assert!(text.contains("after ncclAllReduce (call 0 of this rank)"), "{text}");
    assert!(text.contains("a peer is missing"), "{text}");
    assert_ne!(error.rank.idx(), 2, "who waited says so: {text}");
}

#[test]
fn a_rank_that_does_not_come_to_a_kernel_is_not_waited_for_for_ever() {
    let error = failure(
        doomed_pool(4, IMPATIENT),
        Arc::new(|member| {
            if member.rank_idx() == 2 {
                return Ok(Vec::new());
            }
            let residual = member.upload(&[1.0f32; HIDDEN])?;
            // Two meetings: who was told to go on must not stop at the next.
            for partial in member.partials {
                member.reduce(partial, residual)?;
            }
            member.wait()?;
            Ok(Vec::new())
        }),
    );
    let text = error.to_string();
    assert!(text.contains("the device stands still"), "{text}");
    assert_ne!(error.rank.idx(), 2, "who waited says so: {text}");
}

#[test]
fn a_rank_that_does_not_come_to_two_shots_is_not_waited_for_for_ever() {
    let error = failure(
        doomed_pool(5, IMPATIENT),
        Arc::new(|member| {
            let partial = member.large[0];
            member.cuda().upload(partial, &large_numbers(member.rank_idx()))?;
            let residual = member.upload(&vec![1.0f32; LARGE.0 * LARGE.1])?;
            if member.rank_idx() != 2 {
                // Four meetings: who was told to go on must not stop at the next.
                for _ in 0..2 {
                    member.reduce_large(partial, residual)?;
                }
            }
            member.wait()?;
            Ok(Vec::new())
        }),
    );
    let text = error.to_string();
    assert!(text.contains("the device stands still"), "{text}");
    assert_ne!(error.rank.idx(), 2, "who waited says so: {text}");
}

#[test]
fn a_rank_that_fails_releases_those_who_wait_for_its_device() {
    let error = failure(
        doomed_pool(3, PATIENT),
        Arc::new(|member| {
            let residual = member.upload(&[1.0f32; HIDDEN])?;
            if member.rank_idx() == 1 {
                return Err(CollectiveError::DeviceStands { waited: Duration::ZERO }.into());
            }
            member.reduce(member.partials[0], residual)?;
            member.wait()?;
            Ok(Vec::new())
        }),
    );
    assert_eq!(error.rank.idx(), 1, "{error}");
}

#[test]
fn small_sums_take_one_shot_larger_ones_two_and_the_largest_the_library() {
    use Carrier::{Nccl, OneShot, TwoShot};
    let of_ultra = |n_tokens: usize, n_ranks| carrier(n_tokens * 16_384 * 2, n_ranks);
    let expected = [(1, OneShot), (16, OneShot), (17, TwoShot), (64, TwoShot), (256, TwoShot)];
    for (n_tokens, expected) in expected.into_iter().chain([(257, Nccl), (8192, Nccl)]) {
        assert_eq!(of_ultra(n_tokens, 8), expected, "{n_tokens} tokens");
    }
    assert_eq!([32, 33, 257].map(|n| of_ultra(n, 4)), [OneShot, TwoShot, Nccl]);
    assert_eq!([128, 129, 257].map(|n| of_ultra(n, 2)), [OneShot, TwoShot, Nccl]);
    // More ranks read more bytes: one shot gets no easier with them.
    for n_bytes in (0..16 << 20).step_by(64 << 10) {
        let ways = [2, 4, 8].map(|n_ranks| carrier(n_bytes, n_ranks) == OneShot);
        assert!(ways.is_sorted_by(|a, b| a >= b), "{n_bytes} bytes: {ways:?}");
    }
}
