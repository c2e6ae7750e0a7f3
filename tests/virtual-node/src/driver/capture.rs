//! Capture: recording the work of streams into a graph, and what may not be done meanwhile.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::ThreadId;

use parking_lot::Mutex;

use super::context::Context;
use super::graph::Graph;
use super::operation::Operation;
use super::status::{Answer, Status};
use super::stream::Stream;

/// Which calls a capture forbids, by any thread, by its own, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

impl Mode {
    pub(super) fn from_code(code: i32) -> Answer<Mode> {
        match code {
            0 => Ok(Mode::Global),
            1 => Ok(Mode::ThreadLocal),
            2 => Ok(Mode::Relaxed),
            _ => Err(Status::INVALID_VALUE),
        }
    }

    pub(super) fn code(self) -> i32 {
        self as i32
    }
}

/// One capture, from its begin to its end.
pub(super) struct Capture {
    id: u64,
    mode: Mode,
    thread: ThreadId,
    /// The stream that it began in, and must end in.
    origin: usize,
    graph: Arc<Graph>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Streams that record into it.
    members: Vec<Arc<Stream>>,
    is_invalid: bool,
    has_ended: bool,
}

/// A stream's part in a capture.
pub(super) struct Link {
    capture: Arc<Capture>,
    /// Nodes that the stream's next one comes after.
    tail: Mutex<Vec<usize>>,
}

/// Nodes of a capture that an event stands for.
#[derive(Clone)]
pub(super) struct Point {
    capture: Arc<Capture>,
    nodes: Vec<usize>,
}

/// What `cuStreamGetCaptureInfo` tells.
pub(super) struct Info {
    pub(super) is_invalid: bool,
    pub(super) id: u64,
    pub(super) graph: usize,
    /// Handles of the nodes that the stream's next one comes after.
    pub(super) tail: Vec<usize>,
}

/// All captures that have not ended.
static ACTIVE: Mutex<Vec<Arc<Capture>>> = Mutex::new(Vec::new());
static N_ACTIVE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static THREAD_MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

impl Capture {
    fn invalidate(&self, status: Status) -> Status {
        self.state.lock().is_invalid = true;
        status
    }

    fn is_invalid(&self) -> bool {
        self.state.lock().is_invalid
    }
}

impl Link {
    /// Records work of a stream as a node.
    pub(super) fn record(&self, stream: &Stream, operation: Operation) -> Answer<()> {
        if self.capture.is_invalid() {
            return Err(Status::STREAM_CAPTURE_INVALIDATED);
        }
        let mut tail = self.tail.lock();
        let after = std::mem::take(&mut *tail);
        tail.push(self.capture.graph.add(&stream.context, operation, after));
        Ok(())
    }

    /// Where the stream has got to.
    pub(super) fn point(&self, _stream: &Stream) -> Answer<Point> {
        if self.capture.is_invalid() {
            return Err(Status::STREAM_CAPTURE_INVALIDATED);
        }
        Ok(Point { capture: self.capture.clone(), nodes: self.tail.lock().clone() })
    }

    /// Makes the capture end in an error, and answers the status.
    pub(super) fn invalidate(&self, status: Status) -> Status {
        self.capture.invalidate(status)
    }

    pub(super) fn info(&self) -> Info {
        let tail = self.tail.lock();
        Info {
            is_invalid: self.capture.is_invalid(),
            id: self.capture.id,
            graph: self.capture.graph.handle,
            tail: tail.iter().map(|node_idx| self.capture.graph.node_handle(*node_idx)).collect(),
        }
    }

    /// `cuStreamUpdateCaptureDependencies`: the stream's next node comes after these, and after
    /// what was before unless they replace it.
    pub(super) fn update(&self, nodes: Vec<usize>, replaces: bool) {
        let mut tail = self.tail.lock();
        if replaces {
            tail.clear();
        }
        unite(&mut tail, &nodes);
    }

    pub(super) fn graph(&self) -> &Arc<Graph> {
        &self.capture.graph
    }
}

impl Point {
    /// Makes the capture end in an error, and answers the status.
    pub(super) fn invalidate(&self, status: Status) -> Status {
        self.capture.invalidate(status)
    }
}

fn unite(tail: &mut Vec<usize>, nodes: &[usize]) {
    for node in nodes {
        if !tail.contains(node) {
            tail.push(*node);
        }
    }
}

/// `cuStreamBeginCapture`.
pub(super) fn begin(stream: &Arc<Stream>, mode: Mode) -> Answer {
    if stream.is_legacy() {
        return Err(Status::STREAM_CAPTURE_UNSUPPORTED);
    }
    stream.context.clone().check()?;
    let mut link = stream.capture.lock();
    if link.is_some() {
        return Err(Status::ILLEGAL_STATE);
    }
    static NEXT_ID: AtomicU64 = AtomicU64::new(1);
    let state = State { members: vec![stream.clone()], ..State::default() };
    let capture = Arc::new(Capture {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        mode,
        thread: std::thread::current().id(),
        origin: stream.handle,
        graph: Graph::create(),
        state: Mutex::new(state),
    });
    ACTIVE.lock().push(capture.clone());
    N_ACTIVE.fetch_add(1, Ordering::AcqRel);
    *link = Some(Link { capture, tail: Mutex::default() });
    Ok(())
}

/// `cuStreamEndCapture`.
pub(super) fn end(stream: &Arc<Stream>) -> Answer<Arc<Graph>> {
    let (capture, tail) = match &*stream.capture.lock() {
        Some(link) => (link.capture.clone(), link.tail.lock().clone()),
        None => return Err(Status::ILLEGAL_STATE),
    };
    if capture.origin != stream.handle {
        return Err(capture.invalidate(Status::STREAM_CAPTURE_UNMATCHED));
    }
    if capture.mode != Mode::Relaxed && capture.thread != std::thread::current().id() {
        return Err(Status::STREAM_CAPTURE_WRONG_THREAD);
    }
    let members = {
        let mut state = capture.state.lock();
        state.has_ended = true;
        std::mem::take(&mut state.members)
    };
    for member in members {
        *member.capture.lock() = None;
    }
    ACTIVE.lock().retain(|active| active.id != capture.id);
    N_ACTIVE.fetch_sub(1, Ordering::AcqRel);
    let graph = capture.graph.clone();
    let status = if capture.is_invalid() {
        Status::STREAM_CAPTURE_INVALIDATED
    } else if !graph.all_before(&tail) {
        Status::STREAM_CAPTURE_UNJOINED
    } else {
        return Ok(graph);
    };
    graph.destroy();
    Err(status)
}

/// Lets a stream wait for a captured event, which draws it into the capture.
pub(super) fn join(stream: &Arc<Stream>, point: &Point) -> Answer {
    let mut link = stream.capture.lock();
    match &*link {
        Some(link) if Arc::ptr_eq(&link.capture, &point.capture) => {
            unite(&mut link.tail.lock(), &point.nodes);
            Ok(())
        }
        Some(link) => {
            point.invalidate(Status::STREAM_CAPTURE_MERGE);
            Err(link.invalidate(Status::STREAM_CAPTURE_MERGE))
        }
        None => {
            let mut state = point.capture.state.lock();
            if state.has_ended {
                return Err(Status::CAPTURED_EVENT);
            }
            if stream.is_legacy() {
                state.is_invalid = true;
                return Err(Status::STREAM_CAPTURE_IMPLICIT);
            }
            state.members.push(stream.clone());
            let tail = Mutex::new(point.nodes.clone());
            *link = Some(Link { capture: point.capture.clone(), tail });
            Ok(())
        }
    }
}

/// Answers an error, and ends captures in one, where a call may not be made during a capture that
/// is under way: calls that wait for the device, allocate or ask.
pub(super) fn forbid_unsafe_call() -> Answer {
    if N_ACTIVE.load(Ordering::Acquire) == 0 || THREAD_MODE.get() == Mode::Relaxed {
        return Ok(());
    }
    let thread = std::thread::current().id();
    let mut answer = Ok(());
    for capture in ACTIVE.lock().iter() {
        let is_mine = capture.thread == thread && capture.mode != Mode::Relaxed;
        let is_global = THREAD_MODE.get() == Mode::Global && capture.mode == Mode::Global;
        if is_mine || is_global {
            answer = Err(capture.invalidate(Status::STREAM_CAPTURE_UNSUPPORTED));
        }
    }
    answer
}

/// Answers an error where the legacy stream would have to wait for a stream that is captured.
pub(super) fn forbid_legacy(context: &Context) -> Answer {
    if N_ACTIVE.load(Ordering::Acquire) == 0 {
        return Ok(());
    }
    let mut answer = Ok(());
    for stream in context.streams.lock().iter().filter(|stream| stream.is_blocking()) {
        if let Some(link) = &*stream.capture.lock() {
            answer = Err(link.invalidate(Status::STREAM_CAPTURE_IMPLICIT));
        }
    }
    answer
}

/// `cuThreadExchangeStreamCaptureMode`.
pub(super) fn exchange_mode(mode: Mode) -> Mode {
    THREAD_MODE.replace(mode)
}
