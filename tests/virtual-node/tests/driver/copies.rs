//! When copies land: as late as the program allows, and never later.

use std::ptr::null_mut;
use std::time::Duration;

use cudarc::driver::sys::CUresult;

use crate::support::{
    Context, cu, device_bytes, device_words, new_stream, ok, peek, pinned_words, poke, read_words,
};

/// Leaves work that waits for nobody the time to be done.
fn a_while() {
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn a_read_back_lands_when_it_is_waited_for() {
    let _context = Context::new(0);
    let (stream, address, at) = (new_stream(), device_words(&[5]), pinned_words(&[1]));
    ok(cu!(cuMemcpyDtoHAsync_v2(at.cast(), address, 4, stream)));
    a_while();
    assert_eq!(peek(at, 0), 1, "nobody has waited yet");
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(peek(at, 0), 5);
}

#[test]
fn an_upload_reads_pinned_memory_late() {
    let _context = Context::new(0);
    let (stream, address, at) = (new_stream(), device_words(&[0]), pinned_words(&[1]));
    ok(cu!(cuMemcpyHtoDAsync_v2(address, at.cast(), 4, stream)));
    a_while();
    // A program that reuses its buffer before it has waited uploads what it wrote then.
    poke(at, 0, 2);
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(read_words(address, 1), [2]);
}

#[test]
fn an_upload_takes_pageable_memory_at_once() {
    let _context = Context::new(0);
    let (stream, address) = (new_stream(), device_bytes(4));
    let mut word = 1u32;
    ok(cu!(cuMemcpyHtoDAsync_v2(address, std::ptr::from_ref(&word).cast(), 4, stream)));
    word = 2;
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(read_words(address, 1), [1], "not {word}");
}

#[test]
fn a_read_back_to_pageable_memory_is_done_when_it_returns() {
    let _context = Context::new(0);
    let (stream, address) = (new_stream(), device_words(&[5]));
    let mut word = 1u32;
    ok(cu!(cuMemcpyDtoHAsync_v2(std::ptr::from_mut(&mut word).cast(), address, 4, stream)));
    assert_eq!(word, 5);
}

#[test]
fn waiting_for_an_event_lands_what_came_before_it() {
    let _context = Context::new(0);
    let (stream, address) = (new_stream(), device_words(&[5, 6]));
    let (first, second) = (pinned_words(&[1]), pinned_words(&[1]));
    let mut event = null_mut();
    ok(cu!(cuEventCreate(&mut event, 0)));
    ok(cu!(cuMemcpyDtoHAsync_v2(first.cast(), address, 4, stream)));
    ok(cu!(cuEventRecord(event, stream)));
    ok(cu!(cuMemcpyDtoHAsync_v2(second.cast(), address + 4, 4, stream)));
    ok(cu!(cuEventSynchronize(event)));
    a_while();
    assert_eq!((peek(first, 0), peek(second, 0)), (5, 1));
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(peek(second, 0), 6);
}

#[test]
fn waiting_reaches_across_streams() {
    let _context = Context::new(0);
    let (first, second) = (new_stream(), new_stream());
    let (address, at) = (device_words(&[5]), pinned_words(&[1]));
    let mut event = null_mut();
    ok(cu!(cuEventCreate(&mut event, 0)));
    ok(cu!(cuMemcpyDtoHAsync_v2(at.cast(), address, 4, first)));
    ok(cu!(cuEventRecord(event, first)));
    ok(cu!(cuStreamWaitEvent(second, event, 0)));
    a_while();
    assert_eq!(peek(at, 0), 1);
    ok(cu!(cuStreamSynchronize(second)));
    assert_eq!(peek(at, 0), 5);
}

#[test]
fn another_streams_wait_lands_nothing() {
    let _context = Context::new(0);
    let (first, second) = (new_stream(), new_stream());
    let (address, at) = (device_words(&[5]), pinned_words(&[1]));
    ok(cu!(cuMemcpyDtoHAsync_v2(at.cast(), address, 4, first)));
    ok(cu!(cuStreamSynchronize(second)));
    a_while();
    assert_eq!(peek(at, 0), 1);
    ok(cu!(cuCtxSynchronize()));
    assert_eq!(peek(at, 0), 5);
}

#[test]
fn asking_again_and_again_is_waiting() {
    let _context = Context::new(0);
    let (stream, address, at) = (new_stream(), device_words(&[5]), pinned_words(&[1]));
    ok(cu!(cuMemcpyDtoHAsync_v2(at.cast(), address, 4, stream)));
    while cu!(cuStreamQuery(stream)) == CUresult::CUDA_ERROR_NOT_READY {
        std::thread::yield_now();
    }
    assert_eq!(peek(at, 0), 5);
}

#[test]
fn devices_copy_among_each_other_without_leave() {
    let far = Context::new(1);
    let from = device_words(&[1, 2, 3]);
    let near = Context::new(0);
    let to = device_bytes(12);
    ok(cu!(cuMemcpyPeer(to, near.0, from, far.0, 12)));
    assert_eq!(read_words(to, 3), [1, 2, 3]);
    let stream = new_stream();
    ok(cu!(cuMemsetD8_v2(to, 0, 12)));
    // The stream does not wait for the null stream, so the program must.
    ok(cu!(cuCtxSynchronize()));
    ok(cu!(cuMemcpyPeerAsync(to, near.0, from, far.0, 12, stream)));
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(read_words(to, 3), [1, 2, 3]);
}
