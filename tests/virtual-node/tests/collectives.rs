//! Eight ranks through NCCL's C functions: sums in graphs, and every failure seen by the caller.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use cudarc::nccl::sys::{
    self, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId,
};
use virtual_node::client::Node;

/// Tests of this file set faults and read counters of the whole process.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    let guard = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Node::open().expect("the library").clear_faults();
    guard
}

const SUCCESS: ncclResult_t = ncclResult_t::ncclSuccess;

/// Long enough never to pass on a busy machine.
const PATIENT: Duration = Duration::from_secs(300);

/// One rank's thread's things.
struct Rank {
    idx: usize,
    stream: Arc<CudaStream>,
    comm: ncclComm_t,
}

fn new_id() -> ncclUniqueId {
    let mut id = MaybeUninit::uninit();
    // SAFETY: there is room for the id, which is written before it is read.
    unsafe {
        assert_eq!(sys::ncclGetUniqueId(id.as_mut_ptr()), SUCCESS);
        id.assume_init()
    }
}

impl Rank {
    /// Joins on the device of its number, and returns at once unless it waits for the others.
    fn begin(idx: usize, n_ranks: usize, id: ncclUniqueId, waits: bool) -> (Rank, ncclResult_t) {
        let context = CudaContext::new(idx).expect("a device");
        // SAFETY: nothing uses the device's buffers from two streams.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().expect("a stream");
        let mut config = config(waits);
        let mut comm = ptr::null_mut();
        // SAFETY: pointers to places of the right types.
        let result = unsafe {
            sys::ncclCommInitRankConfig(&mut comm, n_ranks as c_int, id, idx as c_int, &mut config)
        };
        (Rank { idx, stream, comm }, result)
    }

    fn join(idx: usize, n_ranks: usize, id: ncclUniqueId) -> Rank {
        let (rank, result) = Rank::begin(idx, n_ranks, id, true);
        assert_eq!(result, SUCCESS);
        rank
    }

    fn buffer(&self, values: &[f32]) -> CudaSlice<f32> {
        self.stream.clone_htod(values).expect("room")
    }

    fn sum(&self, buffer: &mut CudaSlice<f32>) -> ncclResult_t {
        self.sum_of(buffer, buffer.len())
    }

    fn sum_of(&self, buffer: &mut CudaSlice<f32>, count: usize) -> ncclResult_t {
        let (address, _guard) = buffer.device_ptr_mut(&self.stream);
        // SAFETY: the buffer outlives the stream's work, for which every test waits.
        unsafe {
            sys::ncclAllReduce(
                address as *const _,
                address as *mut _,
                count,
                ncclDataType_t::ncclFloat32,
                ncclRedOp_t::ncclSum,
                self.comm,
                self.stream.cu_stream().cast(),
            )
        }
    }

    fn async_error(&self) -> ncclResult_t {
        let mut result = SUCCESS;
        // SAFETY: a live communicator, and a place for the answer.
        assert_eq!(unsafe { sys::ncclCommGetAsyncError(self.comm, &mut result) }, SUCCESS);
        result
    }

    fn abort(&self) {
        // SAFETY: a live communicator, which is not used any more.
        assert_eq!(unsafe { sys::ncclCommAbort(self.comm) }, SUCCESS);
    }

    fn destroy(self) {
        // SAFETY: as above.
        assert_eq!(unsafe { sys::ncclCommDestroy(self.comm) }, SUCCESS);
    }

    /// Looks for an error until there is one.
    fn wait_for_error(&self) -> ncclResult_t {
        let deadline = Instant::now() + PATIENT;
        loop {
            match self.async_error() {
                SUCCESS => assert!(Instant::now() < deadline, "rank {} sees no error", self.idx),
                error => return error,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn config(is_blocking: bool) -> sys::ncclConfig_t {
    // SAFETY: numbers and null pointers only; all that matters is set below.
    let mut config: sys::ncclConfig_t = unsafe { std::mem::zeroed() };
    config.size = size_of::<sys::ncclConfig_t>();
    config.magic = 0xcafe_beef;
    config.version = 22_703;
    config.blocking = c_int::from(is_blocking);
    (config.minCTAs, config.maxCTAs) = (c_int::MIN, c_int::MIN);
    config
}

/// Every rank on a thread of its own.
fn on_ranks<T: Send>(n_ranks: usize, run: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..n_ranks)
            .map(|idx| {
                let run = &run;
                scope.spawn(move || run(idx))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank that ends well")).collect()
    })
}

struct Id(ncclUniqueId);
// SAFETY: bytes.
unsafe impl Sync for Id {}

#[test]
fn eight_ranks_sum_in_a_graph() {
    let _alone = alone();
    let node = Node::open().unwrap();
    node.reset();
    let id = Id(new_id());
    let sums = on_ranks(8, |idx| {
        let id = &id;
        let rank = Rank::join(idx, 8, id.0);
        let mut buffer = rank.buffer(&[idx as f32, 1.0, -0.5 * idx as f32]);
        rank.stream.synchronize().unwrap();
        rank.stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .unwrap();
        assert_eq!(rank.sum(&mut buffer), SUCCESS);
        assert_eq!(rank.sum(&mut buffer), SUCCESS);
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = rank.stream.end_capture(flags).unwrap().unwrap();
        for _ in 0..3 {
            graph.launch().unwrap();
        }
        let sums = rank.stream.clone_dtoh(&buffer).unwrap();
        drop(graph);
        rank.destroy();
        sums
    });
    // The first sum adds up the ranks, each of the five others makes eight of one.
    let eights = 8f32.powi(5);
    for sum in sums {
        assert_eq!(sum, [28.0 * eights, 8.0 * eights, -14.0 * eights]);
    }
    let total = node.counters().total();
    assert_eq!(total.collectives["all_reduce"].n, 8 * 6);
    assert_eq!(total.collectives["all_reduce"].bytes, 8 * 6 * 12);
    assert_eq!((total.graphs.n_launches, total.graphs.n_nodes), (24, 48));
}

#[test]
fn one_thread_runs_all_ranks_in_groups() {
    let _alone = alone();
    let contexts: Vec<_> = (0..4).map(|idx| CudaContext::new(idx).unwrap()).collect();
    let mut comms = vec![ptr::null_mut(); 4];
    // SAFETY: room for four communicators; a null list means the first devices.
    assert_eq!(unsafe { sys::ncclCommInitAll(comms.as_mut_ptr(), 4, ptr::null()) }, SUCCESS);
    let ranks: Vec<Rank> = contexts
        .iter()
        .zip(comms)
        .enumerate()
        .map(|(idx, (context, comm))| Rank { idx, stream: context.new_stream().unwrap(), comm })
        .collect();
    let mut buffers: Vec<_> = ranks.iter().map(|rank| rank.buffer(&[1.0, 2.0])).collect();
    // SAFETY: groups are nested properly.
    unsafe {
        assert_eq!(sys::ncclGroupStart(), SUCCESS);
        for (rank, buffer) in ranks.iter().zip(&mut buffers) {
            assert_eq!(rank.sum(buffer), SUCCESS);
        }
        assert_eq!(sys::ncclGroupEnd(), SUCCESS);
        assert_eq!(sys::ncclGroupEnd(), ncclResult_t::ncclInvalidUsage, "no group is open");
    }
    for (rank, buffer) in ranks.into_iter().zip(&buffers) {
        assert_eq!(rank.stream.clone_dtoh(buffer).unwrap(), [4.0, 8.0]);
        rank.destroy();
    }
}

#[test]
fn bytes_are_gathered() {
    let _alone = alone();
    let id = Id(new_id());
    let gathered = on_ranks(2, |idx| {
        let id = &id;
        let rank = Rank::join(idx, 2, id.0);
        let send = rank.stream.clone_htod(&[idx as u8 + 1; 3]).unwrap();
        let mut receive = rank.stream.clone_htod(&[0u8; 6]).unwrap();
        // SAFETY: buffers of the right sizes, which outlive the work.
        let result = unsafe {
            sys::ncclAllGather(
                send.device_ptr(&rank.stream).0 as *const _,
                receive.device_ptr_mut(&rank.stream).0 as *mut _,
                3,
                ncclDataType_t::ncclUint8,
                rank.comm,
                rank.stream.cu_stream().cast(),
            )
        };
        assert_eq!(result, SUCCESS);
        rank.stream.clone_dtoh(&receive).unwrap()
    });
    assert_eq!(gathered, [[1, 1, 1, 2, 2, 2]; 2]);
}

#[test]
fn it_is_in_progress_until_all_ranks_are_there() {
    let _alone = alone();
    let id = new_id();
    let (first, result) = Rank::begin(0, 2, id, false);
    assert_eq!(result, ncclResult_t::ncclInProgress);
    assert_eq!(first.async_error(), ncclResult_t::ncclInProgress);
    let mut buffer = first.buffer(&[1.0]);
    assert_eq!(first.sum(&mut buffer), ncclResult_t::ncclInvalidArgument, "it is too early");
    let (second, _) = Rank::begin(1, 2, id, false);
    assert_eq!((first.async_error(), second.async_error()), (SUCCESS, SUCCESS));
    first.destroy();
    second.destroy();
}

#[test]
fn a_rank_that_never_joins_is_missed() {
    let _alone = alone();
    Node::open().unwrap().inject("nccl:rank=1:absent").unwrap();
    let id = new_id();
    let (first, _) = Rank::begin(0, 2, id, false);
    let (second, _) = Rank::begin(1, 2, id, false);
    for rank in [&first, &second] {
        assert_eq!(rank.async_error(), ncclResult_t::ncclInProgress);
    }
    first.abort();
    second.abort();
}

/// Two ranks; the second is to fail. Returns what each call and each look answered.
fn with_fault(fault: &str, run: impl Fn(Rank) + Sync) {
    Node::open().expect("the library").inject(fault).expect("a fault");
    let id = Id(new_id());
    on_ranks(2, |idx| {
        let id = &id;
        run(Rank::join(idx, 2, id.0));
    });
}

#[test]
fn a_rank_that_stays_away_from_a_collective_is_missed() {
    let _alone = alone();
    let both_have_looked = std::sync::Barrier::new(2);
    with_fault("nccl:rank=1:call=2:absent", |rank| {
        let mut buffer = rank.buffer(&[1.0]);
        assert_eq!(rank.sum(&mut buffer), SUCCESS);
        rank.stream.synchronize().unwrap();
        let submitted = rank.sum(&mut buffer);
        let done = rank.stream.record_event(None).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let seen = (submitted, done.is_complete(), rank.async_error());
        // The other hears of an abort, so none comes before both have looked.
        both_have_looked.wait();
        assert_eq!(seen, (SUCCESS, false, SUCCESS), "rank {} waits", rank.idx);
        rank.abort();
        // The stream goes on, and the buffer is as it was.
        assert_eq!(rank.stream.clone_dtoh(&buffer).unwrap(), [2.0]);
    });
}

#[test]
fn a_call_fails_on_request() {
    let _alone = alone();
    with_fault("nccl:rank=1:call=2:error", |rank| {
        let mut buffer = rank.buffer(&[1.0]);
        assert_eq!(rank.sum(&mut buffer), SUCCESS);
        rank.stream.synchronize().unwrap();
        let fails = rank.idx == 1;
        let result = rank.sum(&mut buffer);
        assert_eq!(result == ncclResult_t::ncclSystemError, fails, "{result:?}");
        if fails {
            rank.abort();
        } else {
            assert_eq!(rank.wait_for_error(), ncclResult_t::ncclRemoteError);
            rank.abort();
            rank.stream.synchronize().unwrap();
        }
    });
}

#[test]
fn an_async_error_is_seen_by_all() {
    let _alone = alone();
    with_fault("nccl:rank=1:call=1:async-error", |rank| {
        let mut buffer = rank.buffer(&[1.0]);
        let first = rank.sum(&mut buffer);
        // The other may be so late that it hears of it before its own call.
        let is_late = rank.idx == 0 && first == ncclResult_t::ncclRemoteError;
        assert!(first == SUCCESS || is_late, "{first:?}");
        let expected = match rank.idx {
            1 => ncclResult_t::ncclSystemError,
            _ => ncclResult_t::ncclRemoteError,
        };
        assert_eq!(rank.wait_for_error(), expected);
        let next = rank.sum(&mut buffer);
        assert_eq!(next, expected, "later calls say it too");
        rank.abort();
        rank.stream.synchronize().unwrap();
    });
}

#[test]
fn streams_belong_to_the_ranks_devices() {
    let _alone = alone();
    let id = Id(new_id());
    let streams_are_made = std::sync::Barrier::new(2);
    on_ranks(2, |idx| {
        let id = &id;
        let mut rank = Rank::join(idx, 2, id.0);
        let own = rank.stream.clone();
        let mut buffer = rank.buffer(&[1.0]);
        rank.stream = CudaContext::new(1 - idx).unwrap().new_stream().unwrap();
        // Making a stream may wait for the device, where the other's collective would wait for us.
        streams_are_made.wait();
        assert_eq!(rank.sum(&mut buffer), ncclResult_t::ncclInvalidUsage);
        rank.stream = own;
        assert_eq!(rank.sum(&mut buffer), SUCCESS);
        assert_eq!(rank.stream.clone_dtoh(&buffer).unwrap(), [2.0]);
    });
}
