//! Makes a folder in which programs find the virtual node under the names of NVIDIA's libraries.
//!
//! Cargo puts the folders that build scripts search for libraries onto `LD_LIBRARY_PATH` of
//! `cargo test` and `cargo run`, for packages that depend on this one and for no others. So a
//! test's `dlopen("libcuda.so.1")` finds this library, and a product on a real machine never does.

use std::fs;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const NAMES: &[&str] = &[
    "libcuda.so",
    "libcuda.so.1",
    "libcublasLt.so",
    "libcublasLt.so.12",
    "libnccl.so",
    "libnccl.so.2",
];

fn main() -> Result<(), Error> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or(ErrorKind::NotFound)?);
    // OUT_DIR is `<profile>/build/virtual-node-<hash>/out`; the library is built later, beside it.
    let profile = out.ancestors().nth(3).ok_or(ErrorKind::NotFound)?;
    let library = profile.join("deps/libvirtual_node.so");
    let folder = out.join("lib");
    fs::create_dir_all(&folder)?;
    for name in NAMES {
        link(&library, &folder.join(name))?;
    }
    println!("cargo::rustc-link-search=native={}", folder.display());
    Ok(())
}

fn link(library: &Path, name: &Path) -> Result<(), Error> {
    match fs::remove_file(name) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => symlink(library, name),
    }
}
