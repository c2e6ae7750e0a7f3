//! A test's line to the node that its process has loaded.
//!
//! A test that links this crate has a second, unused copy of its state. So everything goes
//! through the exported functions of the library that programs load as `libcuda.so.1`.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::time::Duration;

use crate::report::Counters;

/// The node in this process.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    reset: unsafe extern "C" fn(),
    counters: unsafe extern "C" fn(*mut u8, usize) -> usize,
    set_checks: unsafe extern "C" fn(*const c_char) -> c_int,
    set_patience: unsafe extern "C" fn(u64),
    inject_faults: unsafe extern "C" fn(*const c_char) -> c_int,
    clear_faults: unsafe extern "C" fn(),
}

/// Why there is no node, or why it does not do as it is told.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No library of that name.
    #[error("libcuda.so.1 cannot be loaded: {reason}")]
    NotFound {
        /// What the loader says.
        reason: String,
    },
    /// A real driver, for example.
    #[error("the libcuda.so.1 that was found is no virtual node: it has no {symbol}")]
    Foreign {
        /// What it lacks.
        symbol: String,
    },
    /// A list that the node cannot read; it says why on standard error.
    #[error("the virtual node does not know {list:?}")]
    Refused {
        /// The list.
        list: String,
    },
}

impl Node {
    /// Finds the library as programs do, and loads it if no one has yet.
    ///
    /// # Errors
    /// There is no libcuda, or it is a real one.
    pub fn open() -> Result<Node, NodeError> {
        // SAFETY: a C string; the library's initializers are Rust's.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            // SAFETY: after a failure there is a message, good until the next call of the kind.
            let reason = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(NodeError::NotFound { reason: reason.to_string_lossy().into_owned() });
        }
        // SAFETY: the types are those of `report::api`, which exports these names, in all of
        // these lines. The library is never unloaded.
        unsafe {
            Ok(Node {
                reset: std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(find(
                    library,
                    c"virtualNodeReset",
                )?),
                counters: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut u8, usize) -> usize,
                >(find(library, c"virtualNodeCounters")?),
                set_checks: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*const c_char) -> c_int,
                >(find(library, c"virtualNodeSetChecks")?),
                set_patience: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(u64)>(find(
                    library,
                    c"virtualNodeSetPatience",
                )?),
                inject_faults: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*const c_char) -> c_int,
                >(find(library, c"virtualNodeInjectFaults")?),
                clear_faults: std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(find(
                    library,
                    c"virtualNodeClearFaults",
                )?),
            })
        }
    }

    /// Begins to count anew.
    pub fn reset(&self) {
        // SAFETY: `open` found the function, and it takes nothing.
        unsafe { (self.reset)() }
    }

    /// What was counted since the process began or the last reset. Work that is still under way
    /// is not in it: wait for it first.
    pub fn counters(&self) -> Counters {
        let mut json = Vec::new();
        loop {
            // SAFETY: room for as many bytes as are told.
            let n_bytes = unsafe { (self.counters)(json.as_mut_ptr(), json.len()) };
            if n_bytes <= json.len() {
                json.truncate(n_bytes);
                break;
            }
            // It may grow until the next look.
            json = vec![0; 2 * n_bytes];
        }
        serde_json::from_slice(&json).expect("both sides are of one build")
    }

    /// Makes these checks in launches from now on: of `races,init,sectors,banks,splits`.
    ///
    /// # Errors
    /// The list has something else.
    pub fn set_checks(&self, list: &str) -> Result<(), NodeError> {
        tell(self.set_checks, list)
    }

    /// Holds what lands on the host up for so long, where the program waits for nothing: so a test
    /// that looks at host memory too early sees what was there before, however slowly it runs.
    pub fn set_patience(&self, patience: Duration) {
        let n_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        // SAFETY: `open` found the function, and it takes a number.
        unsafe { (self.set_patience)(n_ms) }
    }

    /// Adds failures of NCCL, as [`crate::nccl::faults`] writes them.
    ///
    /// # Errors
    /// The list has something else.
    pub fn inject(&self, list: &str) -> Result<(), NodeError> {
        tell(self.inject_faults, list)
    }

    /// Forgets all failures that were asked for.
    pub fn clear_faults(&self) {
        // SAFETY: `open` found the function, and it takes nothing.
        unsafe { (self.clear_faults)() }
    }
}

fn find(library: *mut c_void, symbol: &CStr) -> Result<*mut c_void, NodeError> {
    // SAFETY: a library that was just opened, and a C string.
    let address = unsafe { libc::dlsym(library, symbol.as_ptr()) };
    if address.is_null() {
        return Err(NodeError::Foreign { symbol: symbol.to_string_lossy().into_owned() });
    }
    Ok(address)
}

fn tell(
    function: unsafe extern "C" fn(*const c_char) -> c_int,
    list: &str,
) -> Result<(), NodeError> {
    let refused = || NodeError::Refused { list: list.to_owned() };
    let text = CString::new(list).map_err(|_| refused())?;
    // SAFETY: a C string that outlives the call.
    match unsafe { function(text.as_ptr()) } {
        0 => Ok(()),
        _ => Err(refused()),
    }
}
