//! The driver's answers as errors, and the libraries that must be there before the first call.
//!
//! Calls go to the driver itself: there is no wrapper that tracks events, orders streams or frees
//! memory behind our back, so a step does exactly what is written.

use std::ffi::{CStr, c_char};
use std::ptr;

use cudarc::cublaslt::sys as blas;
use cudarc::driver::sys::{self, CUresult};

use crate::device::DeviceError;

/// What NVIDIA's driver brings.
const DRIVER: Library = Library {
    name: "libcuda.so.1",
    remedy: "install NVIDIA's driver 525 or later, or run with --device cpu",
};

/// What the CUDA toolkit brings, or the `nvidia-cublas-cu12` package.
const CUBLAS_LT: Library = Library {
    name: "libcublasLt.so.12",
    remedy: "install cuBLAS of CUDA 12 and put its folder on LD_LIBRARY_PATH",
};

struct Library {
    name: &'static str,
    remedy: &'static str,
}

/// Sees that the libraries are there. Without this the first call into one would panic.
pub(super) fn require_libraries() -> Result<(), DeviceError> {
    // SAFETY: opening a library runs only its own start code; these are NVIDIA's.
    let is_present = unsafe { [sys::is_culib_present(), blas::is_culib_present()] };
    for (library, is_present) in [DRIVER, CUBLAS_LT].iter().zip(is_present) {
        if !is_present {
            let Library { name: library, remedy } = *library;
            return Err(DeviceError::MissingLibrary { library, remedy });
        }
    }
    Ok(())
}

/// An answer of the driver to `call`.
pub(super) fn check(call: &'static str, result: CUresult) -> Result<(), DeviceError> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        _ => Err(driver_error(call, result)),
    }
}

/// The same where nothing can be done about it: while something is dropped.
pub(super) fn check_late(call: &'static str, result: CUresult) {
    if let Err(error) = check(call, result) {
        tracing::warn!(%error, "while a device's things are given back");
    }
}

#[cold]
fn driver_error(call: &'static str, result: CUresult) -> DeviceError {
    DeviceError::Driver {
        call,
        code: result as u32,
        name: described(result, sys::cuGetErrorName),
        text: described(result, sys::cuGetErrorString),
    }
}

fn described(
    result: CUresult,
    describe: unsafe fn(CUresult, *mut *const c_char) -> CUresult,
) -> String {
    let mut text = ptr::null();
    // SAFETY: the driver writes a pointer to a text of its own, or leaves it null.
    let answer = unsafe { describe(result, &mut text) };
    if answer != CUresult::CUDA_SUCCESS || text.is_null() {
        return "unknown".to_owned();
    }
    // SAFETY: the driver's texts are constants that end with a zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
