//! NCCL's functions, as C has them.
//!
//! The library is opened here and not by cudarc, whose types are used: cudarc knows no
//! `libnccl.so.2`, the only name in a run-time installation, and panics where it finds nothing.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

use cudarc::nccl::sys::{ncclComm_t, ncclUniqueId};

use super::NcclError;

/// Names of the library, the one of run-time installations first.
pub(super) const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

pub(super) const SUCCESS: c_int = 0;
pub(super) const REMOTE_ERROR: c_int = 6;
pub(super) const IN_PROGRESS: c_int = 7;

/// `ncclConfig_t` as of NCCL 2.18. Later versions take it: it says its own length and version.
#[repr(C)]
pub(super) struct Config {
    n_bytes: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    n_ctas_min: c_int,
    n_ctas_max: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// What NCCL's initializer macro says, but calls return before they are done.
    pub(super) fn non_blocking() -> Config {
        const UNDEFINED: c_int = c_int::MIN;
        Config {
            n_bytes: size_of::<Config>(),
            magic: 0xCAFE_BEEF,
            version: 21801,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            n_ctas_min: UNDEFINED,
            n_ctas_max: UNDEFINED,
            net_name: ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

/// The functions that are used. Enumerations are passed as the integers that they are in C.
pub(super) struct Library {
    pub(super) get_unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> c_int,
    pub(super) comm_init_rank_config:
        unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut Config) -> c_int,
    pub(super) comm_get_async_error: unsafe extern "C" fn(ncclComm_t, *mut c_int) -> c_int,
    pub(super) comm_abort: unsafe extern "C" fn(ncclComm_t) -> c_int,
    pub(super) get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    pub(super) all_reduce: AllReduce,
    pub(super) all_gather: AllGather,
}

type AllReduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_uint,
    c_uint,
    ncclComm_t,
    *mut c_void,
) -> c_int;

type AllGather = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_uint,
    ncclComm_t,
    *mut c_void,
) -> c_int;

impl Library {
    /// Opened once, and never closed.
    pub(super) fn open() -> Result<&'static Library, NcclError> {
        static LIBRARY: OnceLock<Result<Library, NcclError>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| {
            Library::load().map_err(|error| NcclError::MissingLibrary { why: error.to_string() })
        });
        library.as_ref().map_err(NcclError::clone)
    }

    fn load() -> Result<Library, libloading::Error> {
        // SAFETY: opening NCCL runs only its own start code. The functions have these signatures
        // since NCCL 2.18, and stay as long as the library, which is never closed.
        unsafe {
            let named = libloading::Library::new(NAMES[0]);
            let library = named.or_else(|_| libloading::Library::new(NAMES[1]))?;
            let functions = Library {
                get_unique_id: *library.get(c"ncclGetUniqueId")?,
                comm_init_rank_config: *library.get(c"ncclCommInitRankConfig")?,
                comm_get_async_error: *library.get(c"ncclCommGetAsyncError")?,
                comm_abort: *library.get(c"ncclCommAbort")?,
                get_error_string: *library.get(c"ncclGetErrorString")?,
                all_reduce: *library.get(c"ncclAllReduce")?,
                all_gather: *library.get(c"ncclAllGather")?,
            };
            std::mem::forget(library);
            Ok(functions)
        }
    }

    pub(super) fn text_of(&self, code: c_int) -> String {
        // SAFETY: NCCL's texts are constants that end with a zero.
        let text = unsafe { CStr::from_ptr((self.get_error_string)(code)) };
        text.to_string_lossy().into_owned()
    }
}
