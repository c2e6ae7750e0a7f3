//! A stream's order of work: a bounded queue and the thread that works it off.
//!
//! Work begins by itself, but copies between host and device, and calls back into the host, wait
//! at a gate until somebody legally waits for them. So a program that reads a buffer before it
//! has waited sees what was there before. For programs that never call in but watch memory, the
//! gate opens after a while ([`config::patience`]) all the same.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::context::Context;
use super::operation::{Operation, WorkCx};
use crate::config;

/// Work that may be pending in one stream; a program that is further ahead waits, as it does
/// on a real device.
const N_PENDING_MAX: usize = 4096;

/// One stream's pending work.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// The stream's virtual time: what copies would have taken, roughly, and what kernels took.
    clock_ns: AtomicU64,
    /// How far the host has seen work done.
    n_seen: AtomicU64,
    /// Where the last graph is; 0 for none.
    last_graph: AtomicU64,
}

#[derive(Default)]
struct State {
    pending: VecDeque<Item>,
    /// What the running piece waits for.
    running_after: Vec<Ticket>,
    n_enqueued: u64,
    n_done: u64,
    /// How far somebody waits: the gate is open for all work up to here.
    n_released: u64,
    has_worker: bool,
    is_closed: bool,
}

struct Item {
    context: Arc<Context>,
    after: Vec<Ticket>,
    operation: Operation,
}

/// A point in a stream's order: everything up to and including one piece of work.
#[derive(Clone)]
pub(super) struct Ticket {
    queue: Arc<Queue>,
    n_done: u64,
}

impl Ticket {
    /// Whether the work is done.
    pub(super) fn is_done(&self) -> bool {
        self.queue.state.lock().n_done >= self.n_done
    }

    /// The host has learned that the work is done.
    pub(super) fn saw(&self) {
        self.queue.n_seen.fetch_max(self.n_done, Ordering::Relaxed);
    }

    /// Opens the gate for the work and for everything that it waits for.
    pub(super) fn release(&self) {
        let mut further = vec![self.clone()];
        while let Some(ticket) = further.pop() {
            ticket.queue.release(ticket.n_done, &mut further);
        }
    }

    /// Waits on behalf of the host.
    pub(super) fn wait(&self) {
        self.release();
        self.wait_done();
        self.saw();
    }

    /// Waits on behalf of another stream, which opens no gate.
    fn wait_done(&self) {
        let mut state = self.queue.state.lock();
        while state.n_done < self.n_done {
            self.queue.changed.wait(&mut state);
        }
    }
}

impl Queue {
    pub(super) fn new() -> Arc<Queue> {
        let state = Mutex::new(State::default());
        let [clock_ns, n_seen, last_graph] = [const { AtomicU64::new(0) }; 3];
        Arc::new(Queue { state, changed: Condvar::new(), clock_ns, n_seen, last_graph })
    }

    /// Appends work, which begins when all of `after` is done.
    pub(super) fn push(
        self: &Arc<Queue>,
        context: &Arc<Context>,
        mut after: Vec<Ticket>,
        operation: Operation,
    ) -> Ticket {
        after.retain(|ticket| !ticket.is_done());
        let mut state = self.state.lock();
        while state.pending.len() >= N_PENDING_MAX {
            drop(state);
            self.tail().release();
            state = self.state.lock();
            if state.pending.len() >= N_PENDING_MAX {
                self.changed.wait(&mut state);
            }
        }
        let is_idle = state.n_done == state.n_enqueued;
        state.n_enqueued += 1;
        let ticket = Ticket { queue: self.clone(), n_done: state.n_enqueued };
        let is_free = operation.is_instant() || operation.is_only_counted();
        let takes_no_thread = is_idle && after.is_empty() && is_free;
        let item = Item { context: context.clone(), after, operation };
        if takes_no_thread {
            // No need to wake a thread for a note in the margin, and neither comes to the gate.
            self.run(&item);
            state.n_done += 1;
            return ticket;
        }
        state.pending.push_back(item);
        if !state.has_worker {
            state.has_worker = true;
            let queue = self.clone();
            let name = format!("device {}", context.device);
            let worker = std::thread::Builder::new().name(name).spawn(move || queue.work());
            worker.expect("the host has room for a stream's thread");
        }
        self.changed.notify_all();
        ticket
    }

    /// Whether the host has not yet seen the end of the last graph.
    pub(super) fn has_unseen_graph(&self) -> bool {
        self.last_graph.load(Ordering::Relaxed) > self.n_seen.load(Ordering::Relaxed)
    }

    /// A graph was appended.
    pub(super) fn note_graph(&self, graph: &Ticket) {
        self.last_graph.store(graph.n_done, Ordering::Relaxed);
    }

    /// The point behind everything that was enqueued so far.
    pub(super) fn tail(self: &Arc<Queue>) -> Ticket {
        Ticket { queue: self.clone(), n_done: self.state.lock().n_enqueued }
    }

    /// Lets the thread end when all work is done.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn release(&self, n_released: u64, further: &mut Vec<Ticket>) {
        let mut state = self.state.lock();
        if state.n_released >= n_released {
            return;
        }
        let first_pending = state.n_enqueued - state.pending.len() as u64 + 1;
        let newly = state.n_released + 1..=n_released;
        for (item, number) in state.pending.iter().zip(first_pending..) {
            if newly.contains(&number) {
                further.extend(item.after.iter().cloned());
            }
        }
        further.extend(state.running_after.iter().cloned());
        state.n_released = n_released;
        self.changed.notify_all();
    }

    /// Shuts the way for what lands on the host until somebody waits for it.
    fn pass_gate(&self) {
        let deadline = config::patience().map(|patience| Instant::now() + patience);
        let mut state = self.state.lock();
        while state.n_released <= state.n_done && !state.is_closed {
            match deadline {
                None => self.changed.wait(&mut state),
                Some(deadline) if !self.changed.wait_until(&mut state, deadline).timed_out() => {}
                // Once for all that is there already, or much of it would wait its own while.
                Some(_) => state.n_released = state.n_enqueued,
            }
        }
    }

    /// The stream's thread.
    fn work(self: Arc<Queue>) {
        let mut state = self.state.lock();
        loop {
            let Some(item) = state.pending.pop_front() else {
                if state.is_closed {
                    return;
                }
                self.changed.wait(&mut state);
                continue;
            };
            state.running_after.clone_from(&item.after);
            drop(state);
            for ticket in &item.after {
                ticket.wait_done();
                let then = ticket.queue.clock_ns.load(Ordering::Relaxed);
                self.clock_ns.fetch_max(then, Ordering::Relaxed);
            }
            self.run(&item);
            drop(item);
            state = self.state.lock();
            state.running_after.clear();
            state.n_done += 1;
            self.changed.notify_all();
        }
    }

    fn run(&self, item: &Item) {
        let gate = || self.pass_gate();
        let cx = WorkCx::new(&item.context, &self.clock_ns, &gate);
        if item.context.failure().is_some() {
            // Whoever waits for it must still be woken.
            item.operation.skip(&cx);
            return;
        }
        let run = std::panic::AssertUnwindSafe(|| item.operation.run(&cx));
        match std::panic::catch_unwind(run) {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => item.context.fail(failure),
            Err(_) => item.context.fail(super::operation::Failure::panic()),
        }
    }
}
