//! Streams: which order work keeps, and what else waits for it.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::capture::{self, Link};
use super::context::{self, Context};
use super::handles::{Registry, new_handle};
use super::operation::Operation;
use super::queue::{Queue, Ticket};
use super::status::{Answer, Status};
use crate::report;

/// The legacy null stream, which all blocking streams of a context wait for and it for them.
const LEGACY: usize = 1;
/// The calling thread's own default stream.
const PER_THREAD: usize = 2;
/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;
/// The highest priority that a stream may have; the lowest is 0.
pub(super) const GREATEST_PRIORITY: i32 = -5;

/// An order of work on one device.
pub(super) struct Stream {
    pub(super) handle: usize,
    pub(super) context: Arc<Context>,
    pub(super) flags: u32,
    pub(super) priority: i32,
    pub(super) queue: Arc<Queue>,
    /// The capture that records the stream's work instead of running it.
    pub(super) capture: Mutex<Option<Link>>,
    is_legacy: bool,
}

static STREAMS: Registry<Stream> = Registry::new(Status::INVALID_HANDLE);

thread_local! {
    static PER_THREAD_STREAMS: RefCell<Vec<Weak<Stream>>> = const { RefCell::new(Vec::new()) };
}

impl Stream {
    fn new(context: &Arc<Context>, flags: u32, priority: i32, is_legacy: bool) -> Arc<Stream> {
        let stream = Arc::new(Stream {
            handle: new_handle(),
            context: context.clone(),
            flags,
            priority,
            queue: Queue::new(),
            capture: Mutex::new(None),
            is_legacy,
        });
        context.streams.lock().push(stream.clone());
        stream
    }

    /// Whether the legacy stream and this one wait for each other.
    pub(super) fn is_blocking(&self) -> bool {
        !self.is_legacy && self.flags & NON_BLOCKING == 0
    }

    pub(super) fn is_legacy(&self) -> bool {
        self.is_legacy
    }

    /// What new work must wait for besides the stream's own: across the legacy stream.
    fn implicit_order(&self) -> Vec<Ticket> {
        if !self.is_legacy && !self.is_blocking() {
            return Vec::new();
        }
        let streams = self.context.streams.lock();
        let others = streams.iter().filter(|other| match self.is_legacy {
            true => other.is_blocking(),
            false => other.is_legacy,
        });
        others.map(|other| other.queue.tail()).collect()
    }

    /// Appends work, or records it where the stream is captured: then there is nothing to wait
    /// for.
    pub(super) fn submit(&self, operation: Operation) -> Answer<Option<Ticket>> {
        self.submit_after(Vec::new(), operation)
    }

    /// As [`Stream::submit`], but for the work's further conditions; not for captured streams.
    pub(super) fn submit_after(
        &self,
        mut after: Vec<Ticket>,
        operation: Operation,
    ) -> Answer<Option<Ticket>> {
        if let Some(link) = &*self.capture.lock() {
            return link.record(self, operation).map(|()| None);
        }
        self.context.clone().check()?;
        if self.is_legacy {
            capture::forbid_legacy(&self.context)?;
        }
        after.extend(self.implicit_order());
        Ok(Some(self.queue.push(&self.context, after, operation)))
    }

    /// Waits for all work so far.
    pub(super) fn synchronize(&self) -> Answer {
        self.forbid_in_capture()?;
        if self.is_legacy {
            capture::forbid_legacy(&self.context)?;
        }
        for ticket in self.implicit_order_of_legacy() {
            ticket.wait();
        }
        self.queue.tail().wait();
        report::record(self.context.device.index(), |device| device.n_host_syncs += 1);
        self.context.clone().check().map(|_| ())
    }

    /// Whether all work so far is done. Asking opens the gates: a program may wait that way.
    pub(super) fn is_idle(&self) -> Answer<bool> {
        self.forbid_in_capture()?;
        let mut tickets = self.implicit_order_of_legacy();
        tickets.push(self.queue.tail());
        tickets.iter().for_each(Ticket::release);
        self.context.clone().check()?;
        let is_idle = tickets.iter().all(Ticket::is_done);
        if is_idle {
            tickets.iter().for_each(Ticket::saw);
        } else {
            // A program that asks in a loop must not keep the devices' threads from working.
            std::thread::yield_now();
        }
        Ok(is_idle)
    }

    fn implicit_order_of_legacy(&self) -> Vec<Ticket> {
        if self.is_legacy { self.implicit_order() } else { Vec::new() }
    }

    /// Ends the capture in an error when a call may not be made during one.
    pub(super) fn forbid_in_capture(&self) -> Answer {
        match &*self.capture.lock() {
            Some(link) => Err(link.invalidate(Status::STREAM_CAPTURE_UNSUPPORTED)),
            None => Ok(()),
        }
    }
}

/// `cuStreamCreate`.
pub(super) fn create(flags: u32, priority: i32) -> Answer<usize> {
    if flags & !NON_BLOCKING != 0 {
        return Err(Status::INVALID_VALUE);
    }
    let priority = priority.clamp(GREATEST_PRIORITY, 0);
    let stream = Stream::new(&context::current()?, flags, priority, false);
    STREAMS.insert(stream.handle, stream.clone());
    Ok(stream.handle)
}

/// `cuStreamDestroy`: pending work is still done.
pub(super) fn destroy(handle: usize) -> Answer {
    if handle <= PER_THREAD {
        return Err(Status::INVALID_VALUE);
    }
    let stream = STREAMS.remove(handle)?;
    if let Some(link) = &*stream.capture.lock() {
        link.invalidate(Status::STREAM_CAPTURE_INVALIDATED);
    }
    stream.queue.close();
    stream.context.streams.lock().retain(|other| other.handle != handle);
    Ok(())
}

/// The stream that a program means: 0 is the legacy stream.
pub(super) fn get(handle: usize) -> Answer<Arc<Stream>> {
    match handle {
        0 | LEGACY => legacy(&context::current()?),
        PER_THREAD => per_thread(&context::current()?),
        _ => STREAMS.get(handle),
    }
}

/// The context's null stream.
pub(super) fn legacy(context: &Arc<Context>) -> Answer<Arc<Stream>> {
    let found = context.streams.lock().iter().find(|stream| stream.is_legacy).cloned();
    Ok(found.unwrap_or_else(|| Stream::new(context, 0, 0, true)))
}

fn per_thread(context: &Arc<Context>) -> Answer<Arc<Stream>> {
    PER_THREAD_STREAMS.with_borrow_mut(|streams| {
        streams.retain(|stream| stream.strong_count() > 0);
        let mine = streams.iter().filter_map(Weak::upgrade);
        let found = mine.into_iter().find(|stream| Arc::ptr_eq(&stream.context, context));
        Ok(found.unwrap_or_else(|| {
            let stream = Stream::new(context, 0, 0, false);
            streams.push(Arc::downgrade(&stream));
            stream
        }))
    })
}

/// Takes all streams of a context away.
pub(super) fn forget(context: &Context) {
    for stream in std::mem::take(&mut *context.streams.lock()) {
        stream.queue.close();
    }
    STREAMS.remove_if(|stream| stream.context.handle == context.handle);
}

/// Waits on the host, which counts.
pub(super) fn wait_counted(context: &Context, ticket: &Ticket) {
    ticket.wait();
    report::record(context.device.index(), |device| device.n_host_syncs += 1);
}

/// `cuStreamGetId`: unlike the handle, the same for every way to name a stream.
pub(super) fn id(stream: &Stream) -> u64 {
    stream.handle as u64
}
