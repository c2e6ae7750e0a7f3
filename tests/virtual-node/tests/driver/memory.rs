//! Device memory, host memory, peers.

use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult};

use crate::support::{
    Context, cu, device_bytes, device_words, new_stream, ok, peek, pinned_words, poke, read_words,
};

const INVALID_VALUE: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

#[test]
fn freeing_twice_and_copying_after_it_are_refused() {
    let _context = Context::new(0);
    let address = device_words(&[1, 2, 3]);
    ok(cu!(cuMemFree_v2(address)));
    assert_eq!(cu!(cuMemFree_v2(address)), INVALID_VALUE);
    let mut word = 0u32;
    let to = std::ptr::from_mut(&mut word).cast();
    assert_eq!(cu!(cuMemcpyDtoH_v2(to, address, 4)), INVALID_VALUE);
}

#[test]
fn copies_stay_within_their_allocations() {
    let _context = Context::new(0);
    let address = device_words(&[1; 16]);
    let words = [7u32; 17];
    assert_eq!(cu!(cuMemcpyHtoD_v2(address, words.as_ptr().cast(), 68)), INVALID_VALUE);
    assert_eq!(cu!(cuMemcpyHtoD_v2(address + 4, words.as_ptr().cast(), 64)), INVALID_VALUE);
    assert_eq!(cu!(cuMemsetD32_v2(address + 32, 7, 9)), INVALID_VALUE);
    assert_eq!(cu!(cuMemsetD32_v2(address + 2, 7, 1)), INVALID_VALUE);
    assert_eq!(read_words(address, 16), [1; 16]);
}

#[test]
fn fresh_memory_is_no_number() {
    let _context = Context::new(0);
    let address = device_bytes(4096);
    assert!(read_words(address, 1024).into_iter().all(|word| f32::from_bits(word).is_nan()));
}

#[test]
fn pinned_memory_has_one_address() {
    let _context = Context::new(0);
    let at = pinned_words(&[1, 2, 3, 4]);
    let mut device = 0;
    ok(cu!(cuMemHostGetDevicePointer_v2(&mut device, at.cast(), 0)));
    assert_eq!(device, at as u64);
    let mut kind = 0u32;
    let attribute = sys::CUpointer_attribute_enum::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    let out = std::ptr::from_mut(&mut kind).cast();
    ok(cu!(cuPointerGetAttribute(out, attribute, device)));
    assert_eq!(kind, sys::CUmemorytype_enum::CU_MEMORYTYPE_HOST as u32);
    ok(cu!(cuMemFreeHost(at.cast())));
    assert_eq!(cu!(cuPointerGetAttribute(out, attribute, device)), INVALID_VALUE);
    assert_eq!(cu!(cuMemFreeHost(at.cast())), INVALID_VALUE);
}

#[test]
fn a_program_registers_its_own_memory_once() {
    let _context = Context::new(0);
    let mut mine = vec![5u32; 1024];
    let at = mine.as_mut_ptr().cast();
    ok(cu!(cuMemHostRegister_v2(at, 4096, 0)));
    let twice = cu!(cuMemHostRegister_v2(at, 4096, 0));
    assert_eq!(twice, CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    ok(cu!(cuMemHostUnregister(at)));
    let gone = cu!(cuMemHostUnregister(at));
    assert_eq!(gone, CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

#[test]
fn pointers_know_their_device() {
    for ordinal in [0, 3] {
        let _context = Context::new(ordinal);
        let address = device_bytes(100);
        let mut found = -1;
        let attribute = sys::CUpointer_attribute_enum::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
        let out = std::ptr::from_mut(&mut found).cast();
        ok(cu!(cuPointerGetAttribute(out, attribute, address + 50)));
        assert_eq!(found, ordinal);
        let (mut start, mut n_bytes) = (0, 0);
        ok(cu!(cuMemGetAddressRange_v2(&mut start, &mut n_bytes, address + 50)));
        assert_eq!((start, n_bytes), (address, 100));
    }
}

#[test]
fn peer_access_is_switched_on_once() {
    let (near, far) = (Context::new(6), Context::new(7));
    near.make_current();
    assert_eq!(cu!(cuCtxDisablePeerAccess(far.0)), CUresult::CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
    ok(cu!(cuCtxEnablePeerAccess(far.0, 0)));
    assert_eq!(
        cu!(cuCtxEnablePeerAccess(far.0, 0)),
        CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED
    );
    assert_eq!(cu!(cuCtxEnablePeerAccess(near.0, 0)), CUresult::CUDA_ERROR_INVALID_CONTEXT);
    ok(cu!(cuCtxDisablePeerAccess(far.0)));
}

#[test]
fn memory_is_freed_in_the_streams_order() {
    let _context = Context::new(3);
    let stream = new_stream();
    let mut address = 0;
    ok(cu!(cuMemAllocAsync(&mut address, 4096, stream)));
    ok(cu!(cuMemsetD32Async(address, 9, 1024, stream)));
    let at = pinned_words(&[0]);
    ok(cu!(cuMemcpyDtoHAsync_v2(at.cast(), address, 4, stream)));
    ok(cu!(cuMemFreeAsync(address, stream)));
    ok(cu!(cuStreamSynchronize(stream)));
    assert_eq!(peek(at, 0), 9);
    assert_eq!(cu!(cuMemFreeAsync(address, stream)), INVALID_VALUE);
    assert_eq!(cu!(cuMemsetD32Async(address, 9, 1, stream)), INVALID_VALUE);
}

#[test]
fn what_is_not_there_is_refused() {
    let _context = Context::new(0);
    let mut address = 0;
    let not_supported = CUresult::CUDA_ERROR_NOT_SUPPORTED;
    assert_eq!(cu!(cuMemAllocManaged(&mut address, 4096, 1)), not_supported);
    let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
    assert_eq!(cu!(cuIpcGetMemHandle(&mut handle, device_bytes(4))), not_supported);
}

#[test]
fn two_dimensions_are_copied_row_by_row() {
    let _context = Context::new(0);
    let (mut address, mut pitch) = (0, 0);
    ok(cu!(cuMemAllocPitch_v2(&mut address, &mut pitch, 12, 4, 4)));
    assert_eq!(pitch, 512);
    let from: Vec<u32> = (0..12).collect();
    let mut copy = sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype_enum::CU_MEMORYTYPE_HOST,
        srcHost: from.as_ptr().cast(),
        srcDevice: 0,
        srcArray: null_mut(),
        srcPitch: 12,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE,
        dstHost: null_mut(),
        dstDevice: address,
        dstArray: null_mut(),
        dstPitch: pitch,
        WidthInBytes: 12,
        Height: 4,
    };
    ok(cu!(cuMemcpy2D_v2(&copy)));
    assert_eq!(read_words(address + 512, 3), [3, 4, 5]);
    assert_eq!(read_words(address + 1536, 3), [9, 10, 11]);
    // The gap between the rows is as fresh as it was.
    assert!(f32::from_bits(read_words(address + 12, 1)[0]).is_nan());
    copy.Height = 6;
    assert_eq!(cu!(cuMemcpy2D_v2(&copy)), INVALID_VALUE);
}

#[test]
fn pools_keep_what_they_are_told() {
    let _context = Context::new(2);
    let mut pool = null_mut();
    ok(cu!(cuDeviceGetDefaultMemPool(&mut pool, 2)));
    let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let (mut threshold, mut found) = (u64::MAX, 0u64);
    let set = std::ptr::from_mut(&mut threshold).cast();
    ok(cu!(cuMemPoolSetAttribute(pool, attribute, set)));
    let get = std::ptr::from_mut(&mut found).cast();
    ok(cu!(cuMemPoolGetAttribute(pool, attribute, get)));
    assert_eq!(found, u64::MAX);
}

#[test]
fn the_host_sees_what_it_wrote_to_pinned_memory() {
    let _context = Context::new(0);
    let at = pinned_words(&[0; 4]);
    poke(at, 2, 8);
    let address = device_bytes(16);
    ok(cu!(cuMemcpyHtoD_v2(address, at.cast(), 16)));
    assert_eq!(read_words(address, 4), [0, 0, 8, 0]);
}
