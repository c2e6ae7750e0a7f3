//! Streams, events and captured graphs: what runs after what.

use std::ptr;
use std::rc::Rc;
use std::time::Duration;

use cudarc::driver::sys::{
    self, CUevent, CUevent_flags, CUgraph, CUgraphExec, CUresult, CUstream, CUstream_flags,
    CUstreamCaptureMode,
};

use super::context::Context;
use super::driver::{check, check_late};
use super::memory::{DevicePtr, Pinned};
use crate::device::DeviceError;

/// A queue of work on a device. It waits for no other stream unless it is told to.
pub struct Stream {
    raw: CUstream,
    context: Rc<Context>,
}

/// A point in a stream.
pub struct Event {
    raw: CUevent,
    /// It must not outlive the device.
    _context: Rc<Context>,
}

/// Work that was recorded once and is submitted in one call.
pub struct Graph {
    raw: CUgraphExec,
    n_nodes: usize,
    /// Owns all memory that the recorded work uses.
    _context: Rc<Context>,
}

impl Stream {
    pub(super) fn new(context: &Rc<Context>) -> Result<Stream, DeviceError> {
        let mut raw = ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `raw` outlives the call; the context is current on this thread.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, flags) })?;
        Ok(Stream { raw, context: Rc::clone(context) })
    }

    /// The driver's handle, for libraries that enqueue by themselves.
    pub fn raw(&self) -> CUstream {
        self.raw
    }

    /// The stream as collectives take it. They are submitted by the rank that owns it, and its
    /// communicator is dropped first.
    pub fn for_collectives(&self) -> parallel::DeviceStream {
        // SAFETY: the stream is the driver's; a rank keeps its executor until its worker is gone,
        // and calls no collective after that.
        unsafe { parallel::DeviceStream::new(self.raw.cast()) }
    }

    /// Copies to the device and waits until it is there.
    pub(super) fn upload(&self, to: DevicePtr, from: &[u8]) -> Result<(), DeviceError> {
        let (start, n_bytes) = (from.as_ptr().cast(), from.len());
        // SAFETY: `from` outlives the call, which waits for the copy.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to.0, start, n_bytes, self.raw)
        })?;
        self.synchronize()
    }

    /// Waits for what was submitted, then copies from the device.
    pub(super) fn download(&self, from: DevicePtr, to: &mut [u8]) -> Result<(), DeviceError> {
        let (start, n_bytes) = (to.as_mut_ptr().cast(), to.len());
        // SAFETY: `to` outlives the call, which waits for the copy.
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(start, from.0, n_bytes, self.raw)
        })?;
        self.synchronize()
    }

    /// Copies pinned host memory to the device, when its turn comes.
    pub fn copy_in(
        &self,
        to: DevicePtr,
        from: &Pinned,
        offset_bytes: usize,
        n_bytes: usize,
    ) -> Result<(), DeviceError> {
        let from = from.range(offset_bytes, n_bytes);
        // SAFETY: the host's range lies in memory that lives as long as the context, which is
        // synchronized before it is freed. A wrong device address is the device's to report.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to.0, from.cast(), n_bytes, self.raw)
        })
    }

    /// Copies device memory to pinned host memory, when its turn comes.
    pub fn copy_out(
        &self,
        to: &Pinned,
        offset_bytes: usize,
        from: DevicePtr,
        n_bytes: usize,
    ) -> Result<(), DeviceError> {
        let to = to.range(offset_bytes, n_bytes);
        // SAFETY: as in `copy_in`; nobody holds a reference into pinned memory.
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.cast(), from.0, n_bytes, self.raw)
        })
    }

    /// Copies within the device, when its turn comes.
    pub fn copy_within(
        &self,
        to: DevicePtr,
        from: DevicePtr,
        n_bytes: usize,
    ) -> Result<(), DeviceError> {
        // SAFETY: no host memory is touched.
        check("cuMemcpyDtoDAsync", unsafe {
            sys::cuMemcpyDtoDAsync_v2(to.0, from.0, n_bytes, self.raw)
        })
    }

    /// Sets every byte, when its turn comes.
    pub fn fill(&self, to: DevicePtr, byte: u8, n_bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: no host memory is touched.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(to.0, byte, n_bytes, self.raw) })
    }

    /// Waits until all that was submitted has run. What a kernel did wrong comes out here.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream is ours.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) })
    }

    /// Marks the end of what was submitted so far.
    pub fn record(&self, event: &Event) -> Result<(), DeviceError> {
        // SAFETY: both are ours and of one context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event.raw, self.raw) })
    }

    /// From here on work is recorded instead of run. Other threads' calls are not affected.
    pub fn begin_capture(&self) -> Result<(), DeviceError> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.raw, mode) })
    }

    /// Ends the recording and prepares it for the device. To be called as well when recording
    /// failed: the stream runs again, and what the driver has against it is said here.
    pub fn end_capture(&self) -> Result<Graph, DeviceError> {
        let mut recorded = ptr::null_mut();
        // SAFETY: the stream is ours and `recorded` outlives the call.
        check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.raw, &mut recorded) })?;
        let graph = self.instantiate(recorded);
        // SAFETY: the driver gave it to us and the instance does not depend on it.
        check_late("cuGraphDestroy", unsafe { sys::cuGraphDestroy(recorded) });
        graph
    }

    /// Submits a graph.
    pub fn launch(&self, graph: &Graph) -> Result<(), DeviceError> {
        // SAFETY: the graph holds the context that owns all memory it uses.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.raw, self.raw) })
    }

    fn instantiate(&self, recorded: CUgraph) -> Result<Graph, DeviceError> {
        let mut n_nodes = 0;
        let mut raw = ptr::null_mut();
        // SAFETY: `recorded` is a graph of the driver's; a null list asks for the count alone.
        unsafe {
            let nodes = sys::cuGraphGetNodes(recorded, ptr::null_mut(), &mut n_nodes);
            check("cuGraphGetNodes", nodes)?;
            let instance = sys::cuGraphInstantiateWithFlags(&mut raw, recorded, 0);
            check("cuGraphInstantiate", instance)?;
        }
        let graph = Graph { raw, n_nodes, _context: Rc::clone(&self.context) };
        // SAFETY: both are ours. Uploading now spares the first launch the work.
        check("cuGraphUpload", unsafe { sys::cuGraphUpload(raw, self.raw) })?;
        Ok(graph)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is ours; the driver lets what was submitted finish.
        check_late("cuStreamDestroy", unsafe { sys::cuStreamDestroy_v2(self.raw) });
    }
}

impl Event {
    pub(super) fn new(context: &Rc<Context>) -> Result<Event, DeviceError> {
        Event::with(context, CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// One that knows when the stream passed it.
    pub(super) fn timed(context: &Rc<Context>) -> Result<Event, DeviceError> {
        Event::with(context, CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(context: &Rc<Context>, flags: CUevent_flags) -> Result<Event, DeviceError> {
        let mut raw = ptr::null_mut();
        let flags = flags as u32;
        // SAFETY: `raw` outlives the call; the context is current on this thread.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, flags) })?;
        Ok(Event { raw, _context: Rc::clone(context) })
    }

    /// Whether the stream has passed it, or was never asked to record it. Does not wait.
    pub fn has_passed(&self) -> Result<bool, DeviceError> {
        // SAFETY: the event is ours.
        match unsafe { sys::cuEventQuery(self.raw) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check("cuEventQuery", result).map(|()| true),
        }
    }

    /// From when the stream passed `start` until it passed this one, to half a microsecond. Both
    /// are timed, and passed.
    pub fn since(&self, start: &Event) -> Result<Duration, DeviceError> {
        let mut ms = 0.0f32;
        // SAFETY: both events are ours, and `ms` outlives the call.
        check("cuEventElapsedTime", unsafe {
            sys::cuEventElapsedTime(&mut ms, start.raw, self.raw)
        })?;
        Ok(Duration::try_from_secs_f64(f64::from(ms) / 1e3).unwrap_or_default())
    }

    /// Waits until the stream has passed it.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the event is ours.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is ours.
        check_late("cuEventDestroy", unsafe { sys::cuEventDestroy_v2(self.raw) });
    }
}

impl Graph {
    /// Kernels, copies and fills in it.
    pub fn n_nodes(&self) -> usize {
        self.n_nodes
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph is ours.
        check_late("cuGraphExecDestroy", unsafe { sys::cuGraphExecDestroy(self.raw) });
    }
}
