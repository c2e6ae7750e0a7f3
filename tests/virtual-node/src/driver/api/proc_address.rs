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
    fn cuGetProcAddress(name: Text, address: Out<usize>, version: i32, _flags: u64) {
        address.put(find(&name.get()?, version)?)
    }

    fn cuGetProcAddress_v2(
        name: Text,
        address: Out<usize>,
        version: i32,
        _flags: u64,
        status: Out<i32>,
    ) {
        let found = find(&name.get()?, version);
        status.offer(if found.is_ok() { 0 } else { SYMBOL_NOT_FOUND });
        address.put(found.unwrap_or(0))?;
        found.map(|_| ())
    }
}

/// Entry points whose arguments changed, and the version of CUDA from which on their name means
/// this form. Other names mean the newest form that there is.
const SINCE: &[(&str, i32)] = &[
    ("cuCtxCreate_v3", 11_040),
    ("cuCtxCreate_v4", 12_050),
    ("cuGetProcAddress_v2", 12_000),
    ("cuGraphAddDependencies_v2", 12_030),
    ("cuGraphGetEdges_v2", 12_030),
    ("cuGraphInstantiateWithFlags", 12_000),
    ("cuGraphNodeGetDependencies_v2", 12_030),
    ("cuGraphNodeGetDependentNodes_v2", 12_030),
    ("cuStreamGetCaptureInfo_v3", 12_030),
    ("cuStreamGetCtx_v2", 12_050),
    ("cuStreamUpdateCaptureDependencies_v2", 12_030),
];

/// Endings of names, the newest form first. The second is that of `cuGraphInstantiate` alone.
const ENDINGS: &[&str] = &["_v4", "WithFlags", "_v3", "_v2", ""];

/// The entry point that a name means to a program of that version of CUDA: it names it as the
/// header of its toolkit did, without the ending that the header's macros add.
fn find(name: &str, version: i32) -> Answer<usize> {
    static ENTRIES: OnceLock<HashMap<&'static str, usize>> = OnceLock::new();
    let entries = ENTRIES.get_or_init(|| super::entries().into_iter().collect());
    let is_known = |full: &str| {
        let since = SINCE.iter().find(|(name, _)| *name == full).map_or(0, |(_, since)| *since);
        version >= since
    };
    let endings = ENDINGS.iter().filter(|ending| {
        // Elsewhere that ending names another function, not another form.
        **ending != "WithFlags" || name == "cuGraphInstantiate"
    });
    let mut names = endings.map(|ending| format!("{name}{ending}")).filter(|full| is_known(full));
    let found = names.find_map(|full| entries.get(full.as_str()));
    found.copied().ok_or_else(|| {
        complain(format_args!("{name} is not among the driver's functions here"));
        Status::NOT_FOUND
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_what_the_programs_header_meant() {
        let entries: HashMap<_, _> = super::super::entries().into_iter().collect();
        for (name, version, expected) in [
            ("cuMemAlloc", 12_060, "cuMemAlloc_v2"),
            ("cuCtxCreate", 12_060, "cuCtxCreate_v4"),
            ("cuCtxCreate", 12_000, "cuCtxCreate_v3"),
            ("cuCtxCreate", 11_000, "cuCtxCreate_v2"),
            ("cuGraphInstantiate", 12_060, "cuGraphInstantiateWithFlags"),
            ("cuGraphInstantiate", 11_040, "cuGraphInstantiate_v2"),
            ("cuEventRecord", 12_060, "cuEventRecord"),
            ("cuOccupancyMaxPotentialBlockSize", 12_060, "cuOccupancyMaxPotentialBlockSize"),
            ("cuStreamGetCaptureInfo", 12_060, "cuStreamGetCaptureInfo_v3"),
            ("cuStreamGetCaptureInfo", 11_040, "cuStreamGetCaptureInfo_v2"),
            ("cuGraphGetEdges", 12_000, "cuGraphGetEdges"),
        ] {
            assert_eq!(find(name, version), Ok(entries[expected]), "{name} {version}");
        }
        assert_eq!(find("cuNothing", 12_060), Err(Status::NOT_FOUND));
    }
}
