//! The order of work: within streams, across them by events, and around the null stream.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUresult, CUstream};

use crate::support::{Context, cu, new_stream, ok};

/// What host functions noted, in the order in which they ran.
#[derive(Default)]
struct Notes(Mutex<Vec<u32>>);

struct Note<'a> {
    notes: &'a Notes,
    number: u32,
    delay: Duration,
}

extern "C" fn take_note(note: *mut c_void) {
    // SAFETY: `Notes::add` hands over a box, once.
    let note = unsafe { Box::from_raw(note.cast::<Note<'static>>()) };
    std::thread::sleep(note.delay);
    note.notes.0.lock().expect("nobody panics with it").push(note.number);
}

impl Notes {
    /// Lets a stream note a number after a while. The notes must outlive the stream's work.
    fn add(&self, stream: CUstream, number: u32, delay_ms: u64) {
        let note = Note { notes: self, number, delay: Duration::from_millis(delay_ms) };
        let note = Box::into_raw(Box::new(note)).cast();
        ok(cu!(cuLaunchHostFunc(stream, Some(take_note), note)));
    }

    fn taken(&self) -> Vec<u32> {
        self.0.lock().expect("nobody panics with it").clone()
    }
}

fn new_blocking_stream() -> CUstream {
    let mut stream = null_mut();
    ok(cu!(cuStreamCreate(&mut stream, 0)));
    stream
}

#[test]
fn a_stream_keeps_its_order() {
    let _context = Context::new(0);
    let (notes, stream) = (Notes::default(), new_stream());
    for number in 0..20 {
        notes.add(stream, number, u64::from(number % 3 == 0));
    }
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(notes.taken(), (0..20).collect::<Vec<_>>());
}

#[test]
fn an_event_orders_two_streams() {
    let _context = Context::new(0);
    let (notes, first, second) = (Notes::default(), new_stream(), new_stream());
    let mut event = null_mut();
    ok(cu!(cuEventCreate(&mut event, 0)));
    notes.add(first, 1, 20);
    ok(cu!(cuEventRecord(event, first)));
    ok(cu!(cuStreamWaitEvent(second, event, 0)));
    notes.add(second, 2, 0);
    ok(cu!(cuStreamSynchronize(second)));
    assert_eq!(notes.taken(), [1, 2]);
}

#[test]
fn without_an_event_streams_run_at_once() {
    let _context = Context::new(0);
    let (notes, first, second) = (Notes::default(), new_stream(), new_stream());
    notes.add(first, 1, 200);
    notes.add(second, 2, 0);
    ok(cu!(cuCtxSynchronize()));
    assert_eq!(notes.taken(), [2, 1]);
}

#[test]
fn the_null_stream_and_blocking_streams_wait_for_each_other() {
    let _context = Context::new(0);
    let (notes, blocking) = (Notes::default(), new_blocking_stream());
    notes.add(blocking, 1, 20);
    notes.add(null_mut(), 2, 20);
    notes.add(blocking, 3, 0);
    ok(cu!(cuStreamSynchronize(blocking)));
    assert_eq!(notes.taken(), [1, 2, 3]);
}

#[test]
fn the_null_stream_does_not_wait_for_others() {
    let _context = Context::new(0);
    let (notes, free) = (Notes::default(), new_stream());
    notes.add(free, 1, 200);
    notes.add(null_mut(), 2, 0);
    ok(cu!(cuCtxSynchronize()));
    assert_eq!(notes.taken(), [2, 1]);
}

#[test]
fn a_threads_own_stream_is_one_more_blocking_stream() {
    let _context = Context::new(0);
    let (notes, per_thread) = (Notes::default(), 2 as CUstream);
    notes.add(per_thread, 1, 20);
    notes.add(null_mut(), 2, 0);
    ok(cu!(cuStreamSynchronize(null_mut())));
    assert_eq!(notes.taken(), [1, 2]);
}

#[test]
fn events_tell_whether_they_happened() {
    let _context = Context::new(0);
    let (notes, stream) = (Notes::default(), new_stream());
    let mut event = null_mut();
    ok(cu!(cuEventCreate(&mut event, 0)));
    ok(cu!(cuEventQuery(event)));
    notes.add(stream, 1, 50);
    ok(cu!(cuEventRecord(event, stream)));
    assert_eq!(cu!(cuEventQuery(event)), CUresult::CUDA_ERROR_NOT_READY);
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
    let (notes, stream) = (Notes::default(), new_stream());
    notes.add(stream, 1, 10);
    ok(cu!(cuStreamDestroy_v2(stream)));
    let start = Instant::now();
    while notes.taken().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "the work was lost");
        std::thread::yield_now();
    }
}

#[test]
fn a_stream_far_behind_makes_the_program_wait() {
    let _context = Context::new(0);
    let (notes, stream) = (Notes::default(), new_stream());
    // More than a stream holds: the program must neither fail nor hang.
    for number in 0..10_000 {
        notes.add(stream, number, 0);
    }
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(notes.taken().len(), 10_000);
}
