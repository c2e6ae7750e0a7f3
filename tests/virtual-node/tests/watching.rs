//! A program that waits for nothing but watches host memory. In a process of its own, whose node is
//! as patient as it is by itself: tests of the driver make theirs wait for ever.

use std::time::Instant;

use cudarc::driver::CudaContext;

use support::{PATIENT, cu, device_words, new_stream, ok, peek, pinned_words};

#[path = "driver/support.rs"]
#[expect(dead_code, reason = "the driver's own tests call the rest")]
mod support;

#[test]
fn a_program_that_only_watches_memory_is_not_left_for_ever() {
    let _context = CudaContext::new(0).expect("a device");
    let (stream, address, at) = (new_stream(), device_words(&[5]), pinned_words(&[1]));
    ok(cu!(cuMemcpyDtoHAsync_v2(at.cast(), address, 4, stream)));
    let begin = Instant::now();
    while peek(at, 0) != 5 {
        assert!(begin.elapsed() < PATIENT, "it watches in vain");
        std::thread::yield_now();
    }
}
