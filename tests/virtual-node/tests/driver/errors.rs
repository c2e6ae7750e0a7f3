//! Names of errors, calls at the wrong time, handles that are none.

use std::ffi::{CStr, c_char};
use std::ptr::{null, null_mut};
use std::sync::Barrier;

use cudarc::driver::sys::CUresult;

use crate::support::{Context, cu, new_stream, ok};

fn name(code: CUresult) -> String {
    let mut text: *const c_char = null();
    ok(cu!(cuGetErrorName(code, &mut text)));
    // SAFETY: the driver's names are C strings that live for ever.
    unsafe { CStr::from_ptr(text) }.to_str().expect("ASCII").to_owned()
}

#[test]
fn codes_have_the_names_of_the_header() {
    for code in [
        CUresult::CUDA_SUCCESS,
        CUresult::CUDA_ERROR_INVALID_VALUE,
        CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
        CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
        CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED,
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
        CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE,
        CUresult::CUDA_ERROR_UNKNOWN,
    ] {
        assert_eq!(name(code), format!("{code:?}"));
    }
}

#[test]
fn a_thread_without_a_context_may_do_nothing() {
    ok(cu!(cuInit(0)));
    let mut address = 0;
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| cu!(cuMemAlloc_v2(&mut address, 4)));
        let answer = refused.join().expect("no panic");
        assert_eq!(answer, CUresult::CUDA_ERROR_INVALID_CONTEXT);
    });
}

#[test]
fn stale_handles_are_errors() {
    let _context = Context::new(0);
    let stream = new_stream();
    ok(cu!(cuStreamDestroy_v2(stream)));
    assert_eq!(cu!(cuStreamSynchronize(stream)), CUresult::CUDA_ERROR_INVALID_HANDLE);
    let nonsense = 0x1234_5678_usize as *mut _;
    assert_eq!(cu!(cuEventQuery(nonsense)), CUresult::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn a_destroyed_context_is_told_from_none() {
    let context = Context::new(0);
    let (is_current, is_destroyed) = (Barrier::new(2), Barrier::new(2));
    let handle = context.0 as usize;
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let made_current = cu!(cuCtxSetCurrent(handle as *mut _));
            is_current.wait();
            is_destroyed.wait();
            ok(made_current);
            cu!(cuCtxSynchronize())
        });
        is_current.wait();
        let destroyed = cu!(cuCtxDestroy_v2(context.0));
        is_destroyed.wait();
        ok(destroyed);
        let answer = worker.join().expect("no panic");
        assert_eq!(answer, CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
    });
    std::mem::forget(context);
}

#[test]
fn contexts_stack_up() {
    let (first, second) = (Context::new(0), Context::new(1));
    let mut current = null_mut();
    ok(cu!(cuCtxGetCurrent(&mut current)));
    assert_eq!(current, second.0);
    ok(cu!(cuCtxPopCurrent_v2(&mut current)));
    assert_eq!(current, second.0);
    ok(cu!(cuCtxGetCurrent(&mut current)));
    assert_eq!(current, first.0);
    let mut device = -1;
    ok(cu!(cuCtxPushCurrent_v2(second.0)));
    ok(cu!(cuCtxGetDevice(&mut device)));
    assert_eq!(device, 1);
}

#[test]
fn entry_points_are_found_by_name() {
    ok(cu!(cuInit(0)));
    for (name, expected) in [
        (c"cuMemAlloc", CUresult::CUDA_SUCCESS),
        (c"cuStreamSynchronize", CUresult::CUDA_SUCCESS),
        (c"cuNoSuchThing", CUresult::CUDA_ERROR_NOT_FOUND),
    ] {
        let mut address = null_mut();
        let answer = cu!(cuGetProcAddress_v2(name.as_ptr(), &mut address, 12060, 0, null_mut()));
        assert_eq!(answer, expected, "{name:?}");
        assert_eq!(address.is_null(), answer != CUresult::CUDA_SUCCESS, "{name:?}");
    }
}
