//! What programs under test may ask of the library that they have loaded: counters, checks and
//! failures. `virtual_node::client` is the Rust side of it.

use std::ffi::{CStr, c_char, c_int};

use crate::config;
use crate::handles::caller_room;
use crate::nccl::faults;

/// Begins to count anew.
// SAFETY: the name begins with this library's; nothing else defines it.
#[unsafe(no_mangle)]
pub extern "C" fn virtualNodeReset() {
    super::reset();
}

/// Writes the counters as JSON if they fit, and returns how many bytes they have.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub extern "C" fn virtualNodeCounters(buffer: usize, n_bytes: usize) -> usize {
    let json = serde_json::to_vec(&super::counters()).expect("counters are maps of numbers");
    if let Some(room) = caller_room(buffer, n_bytes)
        && let Some(room) = room.get_mut(..json.len())
    {
        room.write_copy_of_slice(&json);
    }
    json.len()
}

/// Makes these checks from now on, by their names in `VIRTUAL_NODE_CHECKS`. Answers 0, or 1 for
/// names that it does not know.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub extern "C" fn virtualNodeSetChecks(list: Option<&c_char>) -> c_int {
    answer(text(list).map(config::set_checks))
}

/// Sets how long what lands on the host is held up for a program that waits for nothing, in ms.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub extern "C" fn virtualNodeSetPatience(n_ms: u64) {
    config::set_patience(n_ms);
}

/// Adds failures, as `VIRTUAL_NODE_FAULTS` has them. Answers 0, or 1 for what it cannot read.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub extern "C" fn virtualNodeInjectFaults(list: Option<&c_char>) -> c_int {
    answer(text(list).map(faults::inject))
}

/// Forgets all failures that were asked for.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub extern "C" fn virtualNodeClearFaults() {
    faults::clear();
}

fn text(list: Option<&c_char>) -> Option<&str> {
    // SAFETY: the caller hands over a C string.
    unsafe { CStr::from_ptr(list?) }.to_str().ok()
}

fn answer<E: std::fmt::Display>(result: Option<Result<(), E>>) -> c_int {
    match result {
        Some(Ok(())) => 0,
        Some(Err(problem)) => {
            eprintln!("virtual node: {problem}");
            1
        }
        None => 1,
    }
}
