//! Ranks that ask for different things are told so. On a real node they would hang or get garbage;
//! here their devices fail, so no program can miss it. In a process of its own, since those
//! contexts are of no more use.

use std::ffi::c_int;
use std::ptr;

use cudarc::driver::{CudaContext, DevicePtr};
use cudarc::nccl::sys::{self, ncclDataType_t, ncclRedOp_t, ncclResult_t};

#[test]
fn two_ranks_with_different_counts_fail() {
    let contexts = [0, 1].map(|idx| CudaContext::new(idx).expect("a device"));
    let mut comms = [ptr::null_mut(); 2];
    let devices: [c_int; 2] = [0, 1];
    // SAFETY: room for two communicators, and a list of two devices.
    let result = unsafe { sys::ncclCommInitAll(comms.as_mut_ptr(), 2, devices.as_ptr()) };
    assert_eq!(result, ncclResult_t::ncclSuccess);
    let mut held = Vec::new();
    for (idx, context) in contexts.iter().enumerate() {
        let stream = context.new_stream().unwrap();
        let buffer = stream.alloc_zeros::<f32>(16).unwrap();
        let address = buffer.device_ptr(&stream).0;
        // SAFETY: a buffer that is larger than either count, and is never freed.
        let result = unsafe {
            sys::ncclAllReduce(
                address as *const _,
                address as *mut _,
                8 + idx,
                ncclDataType_t::ncclFloat32,
                ncclRedOp_t::ncclSum,
                comms[idx],
                stream.cu_stream().cast(),
            )
        };
        assert_eq!(result, ncclResult_t::ncclSuccess, "nothing is known yet");
        held.push((stream, buffer));
    }
    for (idx, (stream, buffer)) in held.into_iter().enumerate() {
        assert!(stream.synchronize().is_err(), "rank {idx}");
        let mut error = ncclResult_t::ncclSuccess;
        // SAFETY: a live communicator, and a place for the answer.
        unsafe { sys::ncclCommGetAsyncError(comms[idx], &mut error) };
        assert_eq!(error, ncclResult_t::ncclInvalidUsage);
        std::mem::forget(buffer);
    }
}
