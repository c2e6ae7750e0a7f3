//! What the driver says is free on a device. All of a process's programs share a device, so these
//! tests have a process of their own, and a device each.

use cudarc::driver::sys::CUresult;

use support::{Context, cu, device_bytes, ok};

#[path = "driver/support.rs"]
#[expect(dead_code, reason = "the driver's own tests call the rest")]
mod support;

const INVALID_VALUE: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

fn free_bytes() -> usize {
    let (mut free, mut total) = (0, 0);
    ok(cu!(cuMemGetInfo_v2(&mut free, &mut total)));
    assert_eq!(total, 81_008 << 20);
    free
}

#[test]
fn memory_is_counted_and_limited() {
    let _context = Context::new(5);
    let before = free_bytes();
    assert_eq!(before, (81_008 << 20) - (520 << 20));
    let address = device_bytes(1000);
    assert_eq!(free_bytes(), before - 1024);
    let mut too_much = 0;
    let answer = cu!(cuMemAlloc_v2(&mut too_much, before));
    assert_eq!(answer, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    ok(cu!(cuMemFree_v2(address)));
    assert_eq!(free_bytes(), before);
    let all = device_bytes(before);
    assert_eq!(free_bytes(), 0);
    ok(cu!(cuMemFree_v2(all)));
    assert_eq!(cu!(cuMemAlloc_v2(&mut too_much, 0)), INVALID_VALUE);
}

#[test]
fn a_context_takes_its_memory_with_it() {
    let outer = Context::new(4);
    let before = free_bytes();
    let inner = Context::new(4);
    device_bytes(1 << 20);
    assert_eq!(free_bytes(), before - (1 << 20) - (520 << 20));
    drop(inner);
    outer.make_current();
    assert_eq!(free_bytes(), before);
}
