//! NCCL fails in every way that it can on a real node. Whatever happens, the pool says which rank
//! and which call, soon, and its ranks end.
//!
//! The virtual node's faults are the whole process's: nothing else may run beside this.

use std::time::{Duration, Instant};

use engine::device::{CudaExec, DeviceError, DevicePtr};
use parallel::{
    CollectiveError, Communicator, DeviceElement, DeviceSlice, PoolConfig, RankError, RankPool,
    RankWorker, Seat, SpawnError, World,
};
use virtual_node::client::Node;

const N_RANKS: usize = 4;
const N_ELEMENTS: usize = 64;

/// Long enough never to pass on a busy machine.
const PATIENT: Duration = Duration::from_secs(600);

/// For meetings to which a rank never comes, and only for those.
const IMPATIENT: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

/// A rank that sums over devices.
struct Summer {
    // Dropped before the device that its collectives run on.
    communicator: Communicator,
    values: DevicePtr,
    exec: CudaExec,
}

impl Summer {
    /// `deadline` is for the ranks' meeting.
    fn build(seat: Seat, deadline: Duration) -> Result<Summer, Failure> {
        let exec = CudaExec::open(seat.rank.idx())?;
        let values = exec.alloc(N_ELEMENTS * size_of::<f32>())?;
        let communicator = seat.communicator.connect_devices(deadline)?;
        Ok(Summer { communicator, values, exec })
    }

    /// Gives up after `deadline`.
    fn sum(&mut self, deadline: Duration) -> Result<f32, Failure> {
        self.exec.upload(self.values, &[1.0f32; N_ELEMENTS])?;
        let address = self.values.0;
        let slice = DeviceSlice { address, n_elements: N_ELEMENTS, element: DeviceElement::F32 };
        let stream = self.exec.stream();
        self.communicator.all_reduce_sum_on_device(slice, stream.for_collectives())?;
        let event = self.exec.new_event()?;
        stream.record(&event)?;
        let begin = Instant::now();
        while !event.has_passed()? {
            self.communicator.check()?;
            if begin.elapsed() > deadline {
                return Err(self.communicator.time_out(begin.elapsed()).into());
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        let mut sums = [0.0f32; N_ELEMENTS];
        self.exec.download(self.values, &mut sums)?;
        Ok(sums[N_ELEMENTS - 1])
    }
}

impl RankWorker for Summer {
    type Command = Duration;
    type Reply = f32;
    type Error = Failure;

    fn handle(&mut self, deadline: Duration) -> Result<f32, Failure> {
        self.sum(deadline)
    }
}

fn spawn(deadline: Duration) -> Result<RankPool<Summer>, SpawnError<Failure>> {
    let world = World::new(N_RANKS);
    let config = PoolConfig { world, n_floats_max: 64, build_deadline: PATIENT, deadline: PATIENT };
    RankPool::spawn(config, move |seat| Summer::build(seat, deadline))
}

/// Sums three times with a fault in the second, for which ranks wait up to `deadline`; what the
/// pool says.
fn failure_with(node: &Node, fault: &str, deadline: Duration) -> RankError {
    node.clear_faults();
    let mut pool = spawn(PATIENT).expect("ranks are built");
    node.inject(fault).expect("it is a fault");
    let begin = Instant::now();
    let replies = pool.broadcast(PATIENT).expect("the first sum is well");
    assert_eq!(replies, [N_RANKS as f32; N_RANKS]);
    let error = pool.broadcast(deadline).expect_err(fault);
    let again = pool.broadcast(PATIENT).expect_err("a failed pool stays so");
    assert_eq!(again.to_string(), error.to_string());
    pool.shutdown().expect_err("the pool has failed");
    assert!(begin.elapsed() < PATIENT, "{fault}: {:?}", begin.elapsed());
    error
}

#[test]
fn every_failure_ends_in_an_error_that_names_rank_and_call() {
    let node = Node::open().expect("this runs on the virtual node");

    let error = failure_with(&node, "nccl:rank=1:call=2:error", PATIENT);
    assert_eq!(error.rank.idx(), 1, "{error}");
    assert!(error.to_string().contains("ncclAllReduce, call 1 of this rank"), "{error}");

    let error = failure_with(&node, "nccl:rank=2:call=2:async-error", PATIENT);
    assert_eq!(error.rank.idx(), 2, "{error}");
    assert!(error.to_string().contains("ncclAllReduce, call 1 of this rank"), "{error}");

    let error = failure_with(&node, "nccl:rank=3:call=2:absent", IMPATIENT);
    assert!(error.to_string().contains("ncclAllReduce (call 1 of this rank)"), "{error}");
    assert!(error.to_string().contains("a peer is missing"), "{error}");

    node.clear_faults();
    node.inject("nccl:rank=0:absent").expect("it is a fault");
    let begin = Instant::now();
    let error = spawn(IMPATIENT).map(drop).expect_err("a rank is missing");
    assert!(error.to_string().contains("ncclCommInitRankConfig"), "{error}");
    assert!(error.to_string().contains("a peer is missing"), "{error}");
    assert!(begin.elapsed() < PATIENT, "{:?}", begin.elapsed());

    node.clear_faults();
    let mut pool = spawn(PATIENT).expect("ranks are built");
    let replies = pool.broadcast(PATIENT).expect("nothing fails without faults");
    assert_eq!(replies, [N_RANKS as f32; N_RANKS]);
}
