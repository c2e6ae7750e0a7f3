//! Makes a folder in which programs find the virtual node under the names of NVIDIA's libraries,
//! and a table of the CUBINs whose PTX lies beside them.
//!
//! Cargo puts the folders that build scripts search for libraries onto `LD_LIBRARY_PATH` of
//! `cargo test` and `cargo run`, for packages that depend on this one and for no others. So a
//! test's `dlopen("libcuda.so.1")` finds this library, and a product on a real machine never does.

use std::fmt::Write;
use std::fs;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

const NAMES: &[&str] = &[
    "libcuda.so",
    "libcuda.so.1",
    "libcublasLt.so",
    "libcublasLt.so.12",
    "libnccl.so",
    "libnccl.so.2",
];

/// Where the product keeps its kernels, one family a folder.
const KERNELS: &str = "../../engine/src/kernels";

fn main() -> Result<(), Error> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={KERNELS}");
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
    fs::write(out.join("artifacts.rs"), artifacts(Path::new(KERNELS))?)
}

/// The table's text: of each CUBIN with PTX its hash and that PTX.
fn artifacts(kernels: &Path) -> Result<String, Error> {
    let mut table = String::from("static ARTIFACTS: &[Artifact] = &[\n");
    let mut cubins = Vec::new();
    for family in fs::read_dir(kernels)? {
        let family = family?.path();
        if family.is_dir() {
            let files = fs::read_dir(family)?.map(|entry| entry.map(|entry| entry.path()));
            cubins.extend(files.collect::<Result<Vec<_>, _>>()?);
        }
    }
    cubins.retain(|path| path.extension().is_some_and(|extension| extension == "cubin"));
    cubins.sort();
    for cubin in cubins {
        let ptx = cubin.with_extension("ptx");
        if ptx.exists() {
            let sha256: [u8; 32] = Sha256::digest(fs::read(&cubin)?).into();
            let ptx = ptx.canonicalize()?;
            let entry = format!("Artifact {{ sha256: {sha256:?}, ptx: include_str!({ptx:?}) }}");
            writeln!(table, "    {entry},").map_err(Error::other)?;
        }
    }
    table.push_str("];\n");
    Ok(table)
}

fn link(library: &Path, name: &Path) -> Result<(), Error> {
    match fs::remove_file(name) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => symlink(library, name),
    }
}
