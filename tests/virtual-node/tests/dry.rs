//! Dry mode: eight full devices of address space, where work is checked and counted, not run.
//!
//! A process of its own, as the mode is the process's.

use std::process::Command;
use std::ptr::null_mut;

use cudarc::driver::sys::CUresult;

use support::{
    Context, Launch, cu, device_bytes, device_words, function, new_stream, ok, peek, pinned_words,
};

#[path = "driver/support.rs"]
#[expect(dead_code, reason = "the driver's own tests call the rest")]
mod support;

const IS_CHILD: &str = "VIRTUAL_NODE_TEST_CHILD";

const PTX: &std::ffi::CStr = c"
.version 8.5
.target sm_90a
.address_size 64
.visible .entry store(.param .u64 x)
{
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [x];
    st.global.u64 [%rd1], %rd1;
    ret;
}
.visible .entry pairs(.param .align 8 .b8 x[16])
{
    .reg .b32 %r<3>;
    .reg .b64 %rd<2>;
    ld.param.v2.u32 {%r1, %r2}, [x];
    ld.param.u32 %r1, [x+8];
    ld.param.u64 %rd1, [x+8];
    ret;
}
";

/// Runs this test's own function in a process whose mode is dry.
fn in_dry_process(name: &str) -> bool {
    if std::env::var_os(IS_CHILD).is_some() {
        return true;
    }
    let child = Command::new(std::env::current_exe().expect("the test's own file"))
        .args([name, "--exact", "--nocapture"])
        .env(IS_CHILD, "1")
        .env("VIRTUAL_NODE_MODE", "dry")
        .output()
        .expect("the test's own file runs");
    let text = String::from_utf8_lossy(&child.stdout).into_owned();
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && text.contains("1 passed"), "{text}\n{errors}");
    false
}

#[test]
fn whole_devices_are_allocated_and_nothing_is_run() {
    if !in_dry_process("whole_devices_are_allocated_and_nothing_is_run") {
        return;
    }
    for ordinal in 0..8 {
        let context = Context::new(ordinal);
        let address = device_bytes(75 << 30);
        ok(cu!(cuMemsetD8_v2(address, 1, 75 << 30)));
        let launch = Launch::new(function(PTX, c"store"), 1, 1);
        ok(launch.run(&[address + (74 << 30)]));
        ok(cu!(cuCtxSynchronize()));
        // The next one takes the device's memory too.
        drop(context);
    }
}

#[test]
fn what_is_read_back_is_zeros() {
    if !in_dry_process("what_is_read_back_is_zeros") {
        return;
    }
    let _context = Context::new(0);
    let (stream, address, at) = (new_stream(), device_words(&[5]), pinned_words(&[1]));
    ok(cu!(cuMemcpyDtoHAsync_v2(at.cast(), address, 4, stream)));
    assert_eq!(peek(at, 0), 1);
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(peek(at, 0), 0);
}

#[test]
fn stale_pointers_are_found_in_parameters() {
    if !in_dry_process("stale_pointers_are_found_in_parameters") {
        return;
    }
    let _context = Context::new(0);
    let (stale, live) = (device_bytes(64), device_bytes(64));
    ok(cu!(cuMemFree_v2(stale)));
    let store = function(PTX, c"store");
    assert_eq!(Launch::new(store, 1, 1).run(&[stale]), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    for good in [live, live + 63, live + 64, 0, 12] {
        ok(Launch::new(store, 1, 1).run(&[good]));
    }
    // Two numbers that look like one address are none, unless they are also read as one.
    let pairs = function(PTX, c"pairs");
    ok(Launch::new(pairs, 1, 1).run(&[stale, 0]));
    assert_eq!(Launch::new(pairs, 1, 1).run(&[0, stale]), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let _far = Context::new(1);
    let far = device_bytes(64);
    let near = Context::new(0);
    let mut launch = Launch::new(function(PTX, c"store"), 1, 1);
    launch.stream = null_mut();
    assert_eq!(launch.run(&[far]), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    drop(near);
}
