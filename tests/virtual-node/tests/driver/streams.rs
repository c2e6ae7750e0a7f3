//! The order of work: within streams, across them by events, and around the null stream.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use cudarc::driver::sys::{CUresult, CUstream};

use crate::support::{Context, PATIENT, cu, new_stream, ok};

/// What host functions noted, in the order in which they ran.
#[derive(Default)]
struct Notes(Mutex<Vec<u32>>);

struct Note {
    notes: &'static Notes,
    number: u32,
    /// What it waits for before it is taken.
    gate: Option<Receiver<()>>,
    /// Whom it tells.
    done: Option<Sender<()>>,
}

extern "C" fn take_note(note: *mut c_void) {
    // SAFETY: `Notes::add` hands over a box, once.
    let note = unsafe { Box::from_raw(note.cast::<Note>()) };
    if let Some(gate) = note.gate {
        // Nobody opens the gate of work that waits for this: then its number shows it.
        let _ = gate.recv_timeout(PATIENT);
    }
    note.notes.0.lock().expect("nobody panics with it").push(note.number);
    if let Some(done) = note.done {
        // Whoever waited for it may have given up.
        let _ = done.send(());
    }
}

impl Notes {
    /// They live for ever: work of a test that has failed may still take them.
    fn new() -> &'static Notes {
        Box::leak(Box::default())
    }

    /// Lets a stream note a number.
    fn add(&'static self, stream: CUstream, number: u32) {
        self.submit(stream, Note { notes: self, number, gate: None, done: None });
    }

    /// As `add`, but only once somebody has opened the gate.
    fn add_gated(&'static self, stream: CUstream, number: u32) -> Sender<()> {
        let (open, gate) = channel();
        self.submit(stream, Note { notes: self, number, gate: Some(gate), done: None });
        open
    }

    fn submit(&self, stream: CUstream, note: Note) {
        let note = Box::into_raw(Box::new(note)).cast();
        ok(cu!(cuLaunchHostFunc(stream, Some(take_note), note)));
    }

    fn taken(&self) -> Vec<u32> {
        self.0.lock().expect("nobody panics with it").clone()
    }
}

/// Whether a stream's work is held up, after a while in which it would be done if it were not.
fn is_held(stream: CUstream) -> bool {
    let is_busy = || cu!(cuStreamQuery(stream)) == CUresult::CUDA_ERROR_NOT_READY;
    // Asking lets the work begin.
    let was_busy = is_busy();
    std::thread::sleep(Duration::from_millis(20));
    was_busy && is_busy()
}

fn new_blocking_stream() -> CUstream {
    let mut stream = null_mut();
    ok(cu!(cuStreamCreate(&mut stream, 0)));
    stream
}

#[test]
fn a_stream_keeps_its_order() {
    let _context = Context::new(0);
    let (notes, stream) = (Notes::new(), new_stream());
    for number in 0..20 {
        notes.add(stream, number);
    }
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(notes.taken(), (0..20).collect::<Vec<_>>());
}

#[test]
fn an_event_orders_two_streams() {
    let _context = Context::new(0);
    let (notes, first, second) = (Notes::new(), new_stream(), new_stream());
    let mut event = null_mut();
    ok(cu!(cuEventCreate(&mut event, 0)));
    let open = notes.add_gated(first, 1);
    ok(cu!(cuEventRecord(event, first)));
    ok(cu!(cuStreamWaitEvent(second, event, 0)));
    notes.add(second, 2);
    assert!(is_held(second));
    open.send(()).expect("it waits");
    ok(cu!(cuStreamSynchronize(second)));
    assert_eq!(notes.taken(), [1, 2]);
}

#[test]
fn without_an_event_streams_run_at_once() {
    let _context = Context::new(0);
    let (notes, first, second) = (Notes::new(), new_stream(), new_stream());
    let open = notes.add_gated(first, 1);
    notes.submit(second, Note { notes, number: 2, gate: None, done: Some(open) });
    ok(cu!(cuCtxSynchronize()));
    assert_eq!(notes.taken(), [2, 1]);
}

#[test]
fn the_null_stream_and_blocking_streams_wait_for_each_other() {
    let _context = Context::new(0);
    let (notes, blocking) = (Notes::new(), new_blocking_stream());
    for (number, first, second) in [(1, blocking, null_mut()), (3, null_mut(), blocking)] {
        let open = notes.add_gated(first, number);
        notes.add(second, number + 1);
        assert!(is_held(second), "{number}");
        open.send(()).expect("it waits");
        ok(cu!(cuStreamSynchronize(second)));
    }
    assert_eq!(notes.taken(), [1, 2, 3, 4]);
}

#[test]
fn the_null_stream_does_not_wait_for_others() {
    let _context = Context::new(0);
    let (notes, free) = (Notes::new(), new_stream());
    let open = notes.add_gated(free, 1);
    notes.submit(null_mut(), Note { notes, number: 2, gate: None, done: Some(open) });
    ok(cu!(cuCtxSynchronize()));
    assert_eq!(notes.taken(), [2, 1]);
}

#[test]
fn a_threads_own_stream_is_one_more_blocking_stream() {
    let _context = Context::new(0);
    let (notes, per_thread) = (Notes::new(), 2 as CUstream);
    let open = notes.add_gated(per_thread, 1);
    notes.add(null_mut(), 2);
    assert!(is_held(null_mut()));
    open.send(()).expect("it waits");
    ok(cu!(cuStreamSynchronize(null_mut())));
    assert_eq!(notes.taken(), [1, 2]);
}

#[test]
fn events_tell_whether_they_happened() {
    let _context = Context::new(0);
    let (notes, stream) = (Notes::new(), new_stream());
    let mut event = null_mut();
    ok(cu!(cuEventCreate(&mut event, 0)));
    ok(cu!(cuEventQuery(event)));
    let open = notes.add_gated(stream, 1);
    ok(cu!(cuEventRecord(event, stream)));
    assert_eq!(cu!(cuEventQuery(event)), CUresult::CUDA_ERROR_NOT_READY);
    open.send(()).expect("it waits");
    ok(cu!(cuEventSynchronize(event)));
    ok(cu!(cuEventQuery(event)));
    assert_eq!(notes.taken(), [1]);
}

#[test]
fn time_is_virtual_and_only_where_it_is_kept() {
    let _context = Context::new(0);
    let stream = new_stream();
    let mut events = [null_mut(); 2];
    for event in &mut events {
        ok(cu!(cuEventCreate(event, 0)));
    }
    let [start, end] = events;
    let (n_bytes, mut address, mut n_ms) = (64 << 20, 0, 0.0);
    ok(cu!(cuMemAlloc_v2(&mut address, n_bytes)));
    ok(cu!(cuEventRecord(start, stream)));
    ok(cu!(cuMemsetD8Async(address, 0, n_bytes, stream)));
    ok(cu!(cuEventRecord(end, stream)));
    ok(cu!(cuEventSynchronize(end)));
    ok(cu!(cuEventElapsedTime(&mut n_ms, start, end)));
    assert!((0.02..0.1).contains(&n_ms), "64 MiB at some TB/s: {n_ms} ms");
    let mut untimed = null_mut();
    ok(cu!(cuEventCreate(&mut untimed, 2)));
    ok(cu!(cuEventRecord(untimed, stream)));
    let answer = cu!(cuEventElapsedTime(&mut n_ms, start, untimed));
    assert_eq!(answer, CUresult::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn an_event_belongs_to_its_context() {
    let _first = Context::new(0);
    let mut event = null_mut();
    ok(cu!(cuEventCreate(&mut event, 0)));
    let _second = Context::new(1);
    let stream = new_stream();
    assert_eq!(cu!(cuEventRecord(event, stream)), CUresult::CUDA_ERROR_INVALID_HANDLE);
    ok(cu!(cuStreamWaitEvent(stream, event, 0)));
}

#[test]
fn destroying_a_stream_leaves_its_work() {
    let _context = Context::new(0);
    let (notes, stream) = (Notes::new(), new_stream());
    let (done, is_done) = channel();
    let open = notes.add_gated(stream, 1);
    notes.submit(stream, Note { notes, number: 2, gate: None, done: Some(done) });
    ok(cu!(cuStreamDestroy_v2(stream)));
    open.send(()).expect("it is destroyed, and its work waits all the same");
    is_done.recv_timeout(PATIENT).expect("the work was lost");
    assert_eq!(notes.taken(), [1, 2]);
}

#[test]
fn a_stream_far_behind_makes_the_program_wait() {
    let _context = Context::new(0);
    let (notes, stream) = (Notes::new(), new_stream());
    // More than a stream holds: the program must neither fail nor hang.
    for number in 0..10_000 {
        notes.add(stream, number);
    }
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(notes.taken().len(), 10_000);
}
