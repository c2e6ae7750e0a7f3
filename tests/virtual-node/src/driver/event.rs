//! Events: points in the order of streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::capture::{self, Point};
use super::context::{self, Context};
use super::handles::{Registry, new_handle};
use super::operation::{Moment, Operation};
use super::queue::Ticket;
use super::status::{Answer, Status};
use super::stream::{self, Stream};

/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;
/// `CU_EVENT_INTERPROCESS`.
const INTERPROCESS: u32 = 4;

/// A point in the order of the stream that it was recorded in last.
pub(super) struct Event {
    context: Arc<Context>,
    flags: u32,
    last: Mutex<Last>,
}

/// Where the event was recorded last.
#[derive(Clone)]
enum Last {
    Never,
    Stream { ticket: Ticket, moment: Arc<Moment> },
    Capture(Point),
}

static EVENTS: Registry<Event> = Registry::new(Status::INVALID_HANDLE);

/// `cuEventCreate`.
pub(super) fn create(flags: u32) -> Answer<usize> {
    if flags & INTERPROCESS != 0 {
        return Err(Status::NOT_SUPPORTED);
    }
    if flags & !(1 | DISABLE_TIMING) != 0 {
        return Err(Status::INVALID_VALUE);
    }
    let context = context::current()?;
    let handle = new_handle();
    EVENTS.insert(handle, Arc::new(Event { context, flags, last: Mutex::new(Last::Never) }));
    Ok(handle)
}

/// `cuEventDestroy`.
pub(super) fn destroy(handle: usize) -> Answer {
    EVENTS.remove(handle).map(|_| ())
}

/// `cuEventRecord`.
pub(super) fn record(handle: usize, stream: &Stream) -> Answer {
    let event = EVENTS.get(handle)?;
    if event.context.handle != stream.context.handle {
        return Err(Status::INVALID_HANDLE);
    }
    if let Some(link) = &*stream.capture.lock() {
        *event.last.lock() = Last::Capture(link.point(stream)?);
        return Ok(());
    }
    let moment = Arc::new(AtomicU64::new(0));
    if let Some(ticket) = stream.submit(Operation::Note(moment.clone()))? {
        *event.last.lock() = Last::Stream { ticket, moment };
    }
    Ok(())
}

/// `cuStreamWaitEvent`.
pub(super) fn wait_in_stream(stream: &Arc<Stream>, handle: usize) -> Answer {
    let event = EVENTS.get(handle)?;
    let last = event.last.lock().clone();
    match last {
        Last::Capture(point) => capture::join(stream, &point),
        _ if stream.capture.lock().is_some() => {
            // What the capture would depend on is not part of it.
            let link = stream.capture.lock();
            let link = link.as_ref().expect("it was captured a moment ago");
            match last {
                Last::Never => Ok(()),
                _ => Err(link.invalidate(Status::STREAM_CAPTURE_ISOLATION)),
            }
        }
        Last::Never => Ok(()),
        Last::Stream { ticket, .. } if ticket.is_done() => Ok(()),
        Last::Stream { ticket, .. } => {
            stream.submit_after(vec![ticket], Operation::Empty).map(|_| ())
        }
    }
}

/// `cuEventQuery`. Asking opens the gates: a program may wait that way.
pub(super) fn is_done(handle: usize) -> Answer<bool> {
    let event = EVENTS.get(handle)?;
    capture::forbid_unsafe_call()?;
    let last = event.last.lock().clone();
    event.context.clone().check()?;
    match last {
        Last::Never => Ok(true),
        Last::Capture(point) => Err(point.invalidate(Status::CAPTURED_EVENT)),
        Last::Stream { ticket, .. } => {
            ticket.release();
            let is_done = ticket.is_done();
            if is_done {
                ticket.saw();
            } else {
                // A program that asks in a loop must not keep the devices' threads from working.
                std::thread::yield_now();
            }
            Ok(is_done)
        }
    }
}

/// `cuEventSynchronize`.
pub(super) fn synchronize(handle: usize) -> Answer {
    let event = EVENTS.get(handle)?;
    let last = event.last.lock().clone();
    match last {
        Last::Never => {}
        Last::Capture(point) => return Err(point.invalidate(Status::CAPTURED_EVENT)),
        Last::Stream { ticket, .. } => stream::wait_counted(&event.context, &ticket),
    }
    event.context.clone().check().map(|_| ())
}

/// `cuEventElapsedTime`, in ms of virtual time.
pub(super) fn elapsed_ms(start: usize, end: usize) -> Answer<f32> {
    let mut moments_ns = [0; 2];
    for (handle, moment_ns) in [start, end].into_iter().zip(&mut moments_ns) {
        let event = EVENTS.get(handle)?;
        if event.flags & DISABLE_TIMING != 0 {
            return Err(Status::INVALID_HANDLE);
        }
        let last = event.last.lock().clone();
        match last {
            Last::Never => return Err(Status::INVALID_HANDLE),
            Last::Capture(_) => return Err(Status::CAPTURED_EVENT),
            Last::Stream { ticket, .. } if !ticket.is_done() => return Err(Status::NOT_READY),
            Last::Stream { moment, .. } => *moment_ns = moment.load(Ordering::Relaxed),
        }
    }
    let [start_ns, end_ns] = moments_ns;
    Ok((end_ns as f64 - start_ns as f64) as f32 / 1e6)
}
