//! libcuda: contexts, streams, memory, modules, launches and graphs.
//!
//! `api` holds the C entry points; everything behind it is safe to call and answers with a
//! [`Status`]. cuBLASLt and NCCL put their work into streams with [`enqueue`].

mod alloc;
mod api;
mod capture;
mod context;
mod copy;
mod cubin;
mod device;
mod event;
mod graph;
mod handles;
mod image;
mod launch;
mod module;
mod occupancy;
mod operation;
mod pool;
mod queue;
pub mod status;
mod stream;

use std::fmt;
use std::sync::Arc;

pub use operation::{Failure, Task, WorkCx};
pub use status::{Answer, Status};

use crate::memory::DeviceIdx;
use operation::Operation;

/// Puts another library's work into a stream, or into the graph that the stream is captured to.
///
/// `stream` is the program's `CUstream`, 0 for the null stream of the current context. The work
/// runs on the stream's own thread, once for each launch; it may block, as NCCL's does until all
/// ranks are there. A failure is the context's end. `name` is what the graph's nodes are called.
pub fn enqueue(stream: usize, name: &'static str, task: Arc<Task>) -> Answer {
    stream::get(stream)?.submit(Operation::Task { name, task }).map(|_| ())
}

/// The device of the calling thread's current context, in good health.
pub fn current_device() -> Answer<DeviceIdx> {
    context::current().map(|context| context.device)
}

/// The device of a stream, with 0 for the null stream of the current context.
pub fn stream_device(stream: usize) -> Answer<DeviceIdx> {
    stream::get(stream).map(|stream| stream.context.device)
}

/// Whether what is enqueued to the stream now is recorded and not run.
pub fn is_capturing(stream: usize) -> Answer<bool> {
    stream::get(stream).map(|stream| stream.capture.lock().is_some())
}

/// Answers an error, and ends captures in one, where a call of another library may not be made
/// because it waits for the device or allocates.
pub fn forbid_in_captures() -> Answer {
    capture::forbid_unsafe_call()
}

/// The first failure of the device's current context, as a kernel leaves it behind.
pub fn check_current() -> Answer {
    context::current().map(|_| ())
}

/// Tells whoever reads stderr what a status alone does not.
pub(crate) fn complain(what: fmt::Arguments<'_>) {
    eprintln!("virtual node: {what}");
}
