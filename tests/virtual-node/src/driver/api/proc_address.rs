//! `cuGetProcAddress`: entry points by the names that programs compile against.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::api;
use super::ffi::{Out, Text};
use crate::driver::complain;
use crate::driver::status::{Answer, Status};

/// `CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND`.
const SYMBOL_NOT_FOUND: i32 = 1;

api! {
    fn cuGetProcAddress(name: Text, address: Out<usize>, _version: i32, _flags: u64) {
        address.put(find(&name.get()?)?)
    }

    fn cuGetProcAddress_v2(
        name: Text,
        address: Out<usize>,
        _version: i32,
        _flags: u64,
        status: Out<i32>,
    ) {
        let found = find(&name.get()?);
        status.offer(if found.is_ok() { 0 } else { SYMBOL_NOT_FOUND });
        address.put(found.unwrap_or(0))?;
        found.map(|_| ())
    }
}

/// The newest version of the entry point: a program names it as the header of its toolkit did,
/// without the version that the header's macros add.
fn find(name: &str) -> Answer<usize> {
    static ENTRIES: OnceLock<HashMap<&'static str, usize>> = OnceLock::new();
    let entries = ENTRIES.get_or_init(|| super::entries().into_iter().collect());
    let versions = ["_v3", "_v2", ""].map(|version| format!("{name}{version}"));
    let found = versions.iter().find_map(|name| entries.get(name.as_str()));
    found.copied().ok_or_else(|| {
        complain(format_args!("{name} is not among the driver's functions here"));
        Status::NOT_FOUND
    })
}
