//! Which node this is: a real one, or nothing to smoke-test.

use std::fs;

use anyhow::{Context, Result, ensure};
use engine::device::CudaExec;

/// A part of the path of the virtual node's library.
const VIRTUAL: &str = "libvirtual_node";

/// Opens device 0 of a real node and says what it is.
///
/// # Errors
/// No driver, no device, a device that is no H100, or the virtual node.
pub fn open_real() -> Result<String> {
    let exec = CudaExec::open(0).context("there is no GPU to test")?;
    ensure!(!is_virtual()?, "libcuda is the virtual node's: this is for real GPUs");
    let info = exec.info();
    Ok(format!("{}, {} multiprocessors", info.name, info.n_multiprocessors))
}

/// Opens device 0 of a virtual node.
///
/// # Errors
/// There is no device, or it is a real one.
pub fn open_virtual() -> Result<()> {
    CudaExec::open(0).context("there is no device to rehearse on")?;
    ensure!(is_virtual()?, "a rehearsal is for the virtual node: this node is real");
    Ok(())
}

/// Whether the libcuda that this process has loaded is the virtual node's.
pub fn is_virtual() -> Result<bool> {
    let maps = fs::read_to_string("/proc/self/maps").context("what this process has loaded")?;
    Ok(maps.contains(VIRTUAL))
}
