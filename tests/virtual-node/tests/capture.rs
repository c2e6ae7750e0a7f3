//! Streams that are captured, what may not be done meanwhile, and the graphs that come out.
//!
//! One test at a time: a capture forbids some calls to every thread of the process.

use std::ptr::null_mut;

use cudarc::driver::sys::CUstreamCaptureMode_enum as Mode;
use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUresult, CUstream};
use parking_lot::{Mutex, MutexGuard};

use support::{Context, cu, device_bytes, device_words, new_stream, ok, peek, pinned_words};
use support::{Launch, function, poke, read_words};

#[path = "driver/support.rs"]
#[expect(dead_code, reason = "the driver's own tests call the rest")]
mod support;

const GLOBAL: Mode = Mode::CU_STREAM_CAPTURE_MODE_GLOBAL;
const THREAD_LOCAL: Mode = Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const RELAXED: Mode = Mode::CU_STREAM_CAPTURE_MODE_RELAXED;
const UNSUPPORTED: CUresult = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
const INVALIDATED: CUresult = CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock()
}

fn begin(stream: CUstream, mode: Mode) {
    ok(cu!(cuStreamBeginCapture_v2(stream, mode)));
}

fn end(stream: CUstream) -> Result<CUgraph, CUresult> {
    let mut graph = null_mut();
    match cu!(cuStreamEndCapture(stream, &mut graph)) {
        CUresult::CUDA_SUCCESS => Ok(graph),
        error => {
            assert!(graph.is_null());
            Err(error)
        }
    }
}

fn instantiate(graph: CUgraph) -> CUgraphExec {
    let mut exec = null_mut();
    ok(cu!(cuGraphInstantiateWithFlags(&mut exec, graph, 0)));
    exec
}

fn n_nodes(graph: CUgraph) -> usize {
    let mut n = 0;
    ok(cu!(cuGraphGetNodes(graph, null_mut(), &mut n)));
    n
}

fn new_event() -> sys::CUevent {
    let mut event = null_mut();
    ok(cu!(cuEventCreate(&mut event, 2)));
    event
}

#[test]
fn a_graph_does_again_what_was_captured() {
    let _alone = alone();
    let _context = Context::new(0);
    let (stream, address) = (new_stream(), device_words(&[0, 0]));
    let (from, to) = (pinned_words(&[1, 2]), pinned_words(&[0, 0]));
    begin(stream, GLOBAL);
    ok(cu!(cuMemcpyHtoDAsync_v2(address, from.cast(), 8, stream)));
    ok(cu!(cuMemsetD32Async(address + 4, 9, 1, stream)));
    ok(cu!(cuMemcpyDtoHAsync_v2(to.cast(), address, 8, stream)));
    let graph = end(stream).expect("a legal capture");
    assert_eq!(n_nodes(graph), 3);
    let exec = instantiate(graph);
    ok(cu!(cuGraphDestroy(graph)));
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(peek(to, 0), 0, "nothing ran yet");
    for word in [1, 7] {
        poke(from, 0, word);
        ok(cu!(cuGraphLaunch(exec, stream)));
        ok(cu!(cuStreamSynchronize(stream)));
        assert_eq!((peek(to, 0), peek(to, 1)), (word, 9));
    }
    ok(cu!(cuGraphExecDestroy(exec)));
    assert_ne!(cu!(cuGraphLaunch(exec, stream)), CUresult::CUDA_SUCCESS);
}

#[test]
fn waiting_ends_a_capture_in_an_error() {
    let _alone = alone();
    let _context = Context::new(0);
    let (stream, address) = (new_stream(), device_bytes(4));
    type Call = fn(CUstream) -> CUresult;
    let calls: [(&str, Call); 4] = [
        ("synchronize", |stream| cu!(cuStreamSynchronize(stream))),
        ("query", |stream| cu!(cuStreamQuery(stream))),
        ("wait for the context", |_| cu!(cuCtxSynchronize())),
        ("ask an event", |_| {
            let event = new_event();
            cu!(cuEventQuery(event))
        }),
    ];
    for (name, call) in calls {
        begin(stream, GLOBAL);
        assert_eq!(call(stream), UNSUPPORTED, "{name}");
        assert_eq!(cu!(cuMemsetD32Async(address, 1, 1, stream)), INVALIDATED, "{name}");
        assert_eq!(end(stream), Err(INVALIDATED), "{name}");
        ok(cu!(cuStreamSynchronize(stream)));
    }
}

#[test]
fn allocating_is_forbidden_as_far_as_the_mode_says() {
    let _alone = alone();
    let _context = Context::new(0);
    let stream = new_stream();
    let allocate = || {
        let mut address = 0;
        cu!(cuMemAlloc_v2(&mut address, 4))
    };
    let allocate_elsewhere = || {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let _context = Context::new(1);
                allocate()
            });
            thread.join().expect("no panic")
        })
    };
    for (mode, here, elsewhere) in [
        (GLOBAL, UNSUPPORTED, UNSUPPORTED),
        (THREAD_LOCAL, UNSUPPORTED, CUresult::CUDA_SUCCESS),
        (RELAXED, CUresult::CUDA_SUCCESS, CUresult::CUDA_SUCCESS),
    ] {
        begin(stream, mode);
        assert_eq!(allocate_elsewhere(), elsewhere, "{mode:?}");
        assert_eq!(allocate(), here, "{mode:?}");
        assert_eq!(end(stream).is_ok(), here == CUresult::CUDA_SUCCESS, "{mode:?}");
    }
}

#[test]
fn the_null_stream_may_not_wait_for_a_captured_one() {
    let _alone = alone();
    let _context = Context::new(0);
    let (address, mut blocking) = (device_bytes(4), null_mut());
    ok(cu!(cuStreamCreate(&mut blocking, 0)));
    let implicit = CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    begin(blocking, RELAXED);
    assert_eq!(cu!(cuMemsetD32Async(address, 1, 1, null_mut())), implicit);
    assert_eq!(end(blocking), Err(INVALIDATED));
    // A stream that the null stream does not wait for is of no concern to it.
    let free = new_stream();
    begin(free, RELAXED);
    ok(cu!(cuMemsetD32Async(address, 1, 1, null_mut())));
    end(free).expect("nothing was forbidden");
    assert_eq!(cu!(cuStreamBeginCapture_v2(null_mut(), GLOBAL)), UNSUPPORTED);
}

#[test]
fn events_fork_and_join_a_capture() {
    let _alone = alone();
    let _context = Context::new(0);
    let (main, side, address) = (new_stream(), new_stream(), device_words(&[0, 0, 0]));
    let (fork, join) = (new_event(), new_event());
    begin(main, GLOBAL);
    ok(cu!(cuMemsetD32Async(address, 1, 3, main)));
    ok(cu!(cuEventRecord(fork, main)));
    ok(cu!(cuStreamWaitEvent(side, fork, 0)));
    ok(cu!(cuMemsetD32Async(address + 4, 2, 1, side)));
    ok(cu!(cuMemsetD32Async(address, 3, 1, main)));
    ok(cu!(cuEventRecord(join, side)));
    ok(cu!(cuStreamWaitEvent(main, join, 0)));
    ok(cu!(cuMemcpyDtoDAsync_v2(address + 8, address + 4, 4, main)));
    let mut status = sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE;
    ok(cu!(cuStreamIsCapturing(side, &mut status)));
    assert_eq!(status, sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    let graph = end(main).expect("joined");
    ok(cu!(cuStreamIsCapturing(side, &mut status)));
    assert_eq!(status, sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE);
    let mut n_edges = 0;
    ok(cu!(cuGraphGetEdges(graph, null_mut(), null_mut(), &mut n_edges)));
    assert_eq!((n_nodes(graph), n_edges), (4, 4));
    ok(cu!(cuGraphLaunch(instantiate(graph), main)));
    ok(cu!(cuStreamSynchronize(main)));
    assert_eq!(read_words(address, 3), [3, 2, 2]);
}

#[test]
fn a_branch_that_is_not_joined_is_an_error() {
    let _alone = alone();
    let _context = Context::new(0);
    let (main, side, address) = (new_stream(), new_stream(), device_bytes(4));
    let fork = new_event();
    begin(main, GLOBAL);
    ok(cu!(cuMemsetD32Async(address, 1, 1, main)));
    ok(cu!(cuEventRecord(fork, main)));
    ok(cu!(cuStreamWaitEvent(side, fork, 0)));
    ok(cu!(cuMemsetD32Async(address, 2, 1, side)));
    assert_eq!(end(main), Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED));
    // Both streams are as free as before.
    ok(cu!(cuStreamSynchronize(side)));
    ok(cu!(cuStreamSynchronize(main)));
}

#[test]
fn a_capture_ends_where_it_began() {
    let _alone = alone();
    let _context = Context::new(0);
    let (main, side) = (new_stream(), new_stream());
    let fork = new_event();
    begin(main, GLOBAL);
    ok(cu!(cuEventRecord(fork, main)));
    ok(cu!(cuStreamWaitEvent(side, fork, 0)));
    assert_eq!(end(side), Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED));
    assert_eq!(end(main), Err(INVALIDATED));
    assert_eq!(end(main), Err(CUresult::CUDA_ERROR_ILLEGAL_STATE));
    begin(main, THREAD_LOCAL);
    let handle = main as usize;
    let elsewhere = std::thread::spawn(move || end(handle as CUstream).err());
    let wrong_thread = CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    assert_eq!(elsewhere.join().expect("no panic"), Some(wrong_thread));
    end(main).expect("nothing else was wrong");
}

#[test]
fn captures_do_not_merge_nor_depend_on_what_runs() {
    let _alone = alone();
    let _context = Context::new(0);
    let (first, second) = (new_stream(), new_stream());
    let (captured, outside) = (new_event(), new_event());
    ok(cu!(cuEventRecord(outside, second)));
    begin(first, GLOBAL);
    begin(second, GLOBAL);
    ok(cu!(cuEventRecord(captured, first)));
    let merge = CUresult::CUDA_ERROR_STREAM_CAPTURE_MERGE;
    assert_eq!(cu!(cuStreamWaitEvent(second, captured, 0)), merge);
    assert_eq!((end(first), end(second)), (Err(INVALIDATED), Err(INVALIDATED)));
    begin(first, GLOBAL);
    let isolation = CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    assert_eq!(cu!(cuStreamWaitEvent(first, outside, 0)), isolation);
    assert_eq!(end(first), Err(INVALIDATED));
}

#[test]
fn a_captured_event_cannot_be_waited_for() {
    let _alone = alone();
    let _context = Context::new(0);
    let (stream, event) = (new_stream(), new_event());
    begin(stream, RELAXED);
    ok(cu!(cuEventRecord(event, stream)));
    assert_eq!(cu!(cuEventSynchronize(event)), CUresult::CUDA_ERROR_CAPTURED_EVENT);
    assert_eq!(end(stream), Err(INVALIDATED));
}

#[test]
fn a_graph_takes_over_another_of_its_form() {
    let _alone = alone();
    let _context = Context::new(0);
    let (stream, address) = (new_stream(), device_words(&[0]));
    let capture = |values: &[u32]| {
        begin(stream, GLOBAL);
        for value in values {
            ok(cu!(cuMemsetD32Async(address, *value, 1, stream)));
        }
        end(stream).expect("a legal capture")
    };
    let exec = instantiate(capture(&[1, 2]));
    let mut result = sys::CUgraphExecUpdateResultInfo {
        result: sys::CUgraphExecUpdateResult_enum::CU_GRAPH_EXEC_UPDATE_SUCCESS,
        errorNode: null_mut(),
        errorFromNode: null_mut(),
    };
    ok(cu!(cuGraphExecUpdate_v2(exec, capture(&[3, 4]), &mut result)));
    ok(cu!(cuGraphLaunch(exec, stream)));
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(read_words(address, 1), [4]);
    let other = cu!(cuGraphExecUpdate_v2(exec, capture(&[3]), &mut result));
    assert_eq!(other, CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
    assert_ne!(result.result, sys::CUgraphExecUpdateResult_enum::CU_GRAPH_EXEC_UPDATE_SUCCESS);
}

#[test]
fn a_graph_is_built_by_hand() {
    let _alone = alone();
    let _context = Context::new(0);
    let (stream, address) = (new_stream(), device_words(&[0]));
    let (mut graph, mut first, mut second) = (null_mut(), null_mut(), null_mut());
    ok(cu!(cuGraphCreate(&mut graph, 0)));
    let fill = |value| sys::CUDA_MEMSET_NODE_PARAMS {
        dst: address,
        pitch: 0,
        value,
        elementSize: 4,
        width: 1,
        height: 1,
    };
    let add = |node: &mut _, value| {
        let params = fill(value);
        ok(cu!(cuGraphAddMemsetNode(node, graph, std::ptr::null(), 0, &params, null_mut())));
    };
    // The node that is added last must run first.
    add(&mut first, 1);
    add(&mut second, 2);
    ok(cu!(cuGraphAddDependencies(graph, &second, &first, 1)));
    let exec = instantiate(graph);
    ok(cu!(cuGraphLaunch(exec, stream)));
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(read_words(address, 1), [1]);
    let params = fill(5);
    ok(cu!(cuGraphExecMemsetNodeSetParams(exec, first, &params, null_mut())));
    ok(cu!(cuGraphLaunch(exec, stream)));
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(read_words(address, 1), [5]);
    // A circle cannot run.
    ok(cu!(cuGraphAddDependencies(graph, &first, &second, 1)));
    let mut exec = null_mut();
    let circle = cu!(cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    assert_eq!(circle, CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn a_kernels_node_is_asked_and_changed() {
    const PTX: &std::ffi::CStr = c"
.version 8.5
.target sm_90a
.address_size 64
.visible .entry store(.param .u64 x, .param .u64 value)
{
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [value];
    st.global.u64 [%rd1], %rd2;
    ret;
}
";
    let _alone = alone();
    let _context = Context::new(0);
    let (stream, address) = (new_stream(), device_words(&[0, 0]));
    let mut launch = Launch::new(function(PTX, c"store"), 1, 1);
    launch.stream = stream;
    begin(stream, GLOBAL);
    ok(launch.run(&[address, 3]));
    let graph = end(stream).expect("a legal capture");
    let (mut node, mut n) = (null_mut(), 1);
    ok(cu!(cuGraphGetNodes(graph, &mut node, &mut n)));
    let mut kind = sys::CUgraphNodeType_enum::CU_GRAPH_NODE_TYPE_EMPTY;
    ok(cu!(cuGraphNodeGetType(node, &mut kind)));
    assert_eq!(kind, sys::CUgraphNodeType_enum::CU_GRAPH_NODE_TYPE_KERNEL);
    let exec = instantiate(graph);
    ok(cu!(cuGraphLaunch(exec, stream)));
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(read_words(address, 1), [3]);
    let mut params = std::mem::MaybeUninit::<sys::CUDA_KERNEL_NODE_PARAMS>::uninit();
    ok(cu!(cuGraphKernelNodeGetParams_v2(node, params.as_mut_ptr())));
    // SAFETY: the call succeeded, so the driver wrote all of it.
    let mut params = unsafe { params.assume_init() };
    let (mut to, mut value) = (address, 9u64);
    let mut pointers = [std::ptr::from_mut(&mut to).cast(), std::ptr::from_mut(&mut value).cast()];
    params.kernelParams = pointers.as_mut_ptr();
    ok(cu!(cuGraphExecKernelNodeSetParams_v2(exec, node, &params)));
    ok(cu!(cuGraphLaunch(exec, stream)));
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(read_words(address, 1), [9]);
}

#[test]
fn eight_threads_capture_at_once() {
    let _alone = alone();
    std::thread::scope(|scope| {
        for ordinal in 0..8 {
            scope.spawn(move || {
                let _context = Context::new(ordinal);
                let (stream, address) = (new_stream(), device_words(&[0]));
                begin(stream, THREAD_LOCAL);
                ok(cu!(cuMemsetD32Async(address, ordinal as u32 + 1, 1, stream)));
                let exec = instantiate(end(stream).expect("nobody disturbs it"));
                for _ in 0..10 {
                    ok(cu!(cuGraphLaunch(exec, stream)));
                    ok(cu!(cuStreamSynchronize(stream)));
                }
                assert_eq!(read_words(address, 1), [ordinal as u32 + 1]);
            });
        }
    });
}
