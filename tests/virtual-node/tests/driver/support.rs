//! What all tests of the driver need: a context of their own, and short ways to call.

use std::ffi::CStr;
use std::ptr::null_mut;
use std::time::Duration;

use cudarc::driver::sys::{self, CUcontext, CUdeviceptr, CUfunction, CUresult, CUstream};
use virtual_node::client::Node;

/// Long enough never to pass on a busy machine.
pub(crate) const PATIENT: Duration = Duration::from_secs(300);

/// The answer of a call that must succeed.
#[track_caller]
pub(crate) fn ok(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

/// Calls a function of the driver. Tests keep what they point to alive.
macro_rules! cu {
    ($name:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: pointers in the arguments are to values of the test that outlive the call.
        unsafe { cudarc::driver::sys::$name($($argument),*) }
    };
}
pub(crate) use cu;

/// A context of the test's own, current in its thread, so that its failures are nobody else's.
pub(crate) struct Context(pub(crate) CUcontext);

impl Context {
    pub(crate) fn new(ordinal: i32) -> Context {
        let mut context = null_mut();
        ok(cu!(cuInit(0)));
        // However slowly a test runs, nothing lands on the host before the test waits for it.
        Node::open().expect("the virtual node").set_patience(Duration::MAX);
        ok(cu!(cuCtxCreate_v2(&mut context, 0, ordinal)));
        Context(context)
    }

    pub(crate) fn make_current(&self) {
        ok(cu!(cuCtxSetCurrent(self.0)));
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        cu!(cuCtxDestroy_v2(self.0));
    }
}

/// A stream that does not wait for the null stream.
pub(crate) fn new_stream() -> CUstream {
    let mut stream = null_mut();
    let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    ok(cu!(cuStreamCreate(&mut stream, flags)));
    stream
}

/// Device memory that holds words.
pub(crate) fn device_words(words: &[u32]) -> CUdeviceptr {
    let address = device_bytes(words.len() * 4);
    ok(cu!(cuMemcpyHtoD_v2(address, words.as_ptr().cast(), words.len() * 4)));
    address
}

/// Fresh device memory.
pub(crate) fn device_bytes(n_bytes: usize) -> CUdeviceptr {
    let mut address = 0;
    ok(cu!(cuMemAlloc_v2(&mut address, n_bytes)));
    address
}

/// What device memory holds.
pub(crate) fn read_words(address: CUdeviceptr, n: usize) -> Vec<u32> {
    let mut words = vec![0; n];
    ok(cu!(cuMemcpyDtoH_v2(words.as_mut_ptr().cast(), address, n * 4)));
    words
}

/// Pinned host memory that holds words.
pub(crate) fn pinned_words(words: &[u32]) -> *mut u32 {
    let mut at = null_mut();
    ok(cu!(cuMemHostAlloc(&mut at, words.len() * 4, 0)));
    let at: *mut u32 = at.cast();
    for (idx, word) in words.iter().enumerate() {
        poke(at, idx, *word);
    }
    at
}

/// A word of pinned memory.
pub(crate) fn peek(at: *const u32, idx: usize) -> u32 {
    // SAFETY: the test allocated the pinned words, and has not freed them.
    unsafe { at.add(idx).read_volatile() }
}

/// Sets a word of pinned memory.
pub(crate) fn poke(at: *mut u32, idx: usize, word: u32) {
    // SAFETY: the test allocated the pinned words, and has not freed them.
    unsafe { at.add(idx).write_volatile(word) }
}

/// A function of a module that is loaded from PTX.
pub(crate) fn function(ptx: &CStr, name: &CStr) -> CUfunction {
    let (mut module, mut function) = (null_mut(), null_mut());
    ok(cu!(cuModuleLoadData(&mut module, ptx.as_ptr().cast())));
    ok(cu!(cuModuleGetFunction(&mut function, module, name.as_ptr())));
    function
}

/// A launch of blocks and threads along x, with 8-byte parameters.
pub(crate) struct Launch {
    pub(crate) function: CUfunction,
    pub(crate) n_blocks: u32,
    pub(crate) n_threads: u32,
    pub(crate) dynamic_shared_bytes: u32,
    pub(crate) stream: CUstream,
}

impl Launch {
    pub(crate) fn new(function: CUfunction, n_blocks: u32, n_threads: u32) -> Launch {
        Launch { function, n_blocks, n_threads, dynamic_shared_bytes: 0, stream: null_mut() }
    }

    pub(crate) fn run(&self, params: &[u64]) -> CUresult {
        let mut pointers: Vec<_> =
            params.iter().map(|param| std::ptr::from_ref(param).cast_mut().cast()).collect();
        cu!(cuLaunchKernel(
            self.function,
            self.n_blocks,
            1,
            1,
            self.n_threads,
            1,
            1,
            self.dynamic_shared_bytes,
            self.stream,
            pointers.as_mut_ptr(),
            null_mut(),
        ))
    }
}
