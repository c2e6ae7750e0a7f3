//! Where kernels run and what they run on: the executor, matrix views, rotary angles, KV memory.
//!
//! It knows no model, no step and no scheduler. `unsafe` is confined to `simd/` (instructions),
//! `view.rs` (disjoint tiles of one matrix) and `cuda/` (calls of the driver).

mod aligned;
mod cpu;
pub mod cuda;
mod error;
mod kv;
mod rope;
pub(crate) mod simd;
mod view;

pub use aligned::Aligned;
pub use cpu::CpuExec;
pub(crate) use cpu::{Grid, Tile};
pub use cuda::{CudaExec, DevicePtr};
pub use error::DeviceError;
pub use kv::{KvLocation, KvRegion, KvShape};
pub(crate) use kv::{KvPlace, Scaled};
pub use rope::{RopeAngles, RopeFrequencies};
pub use simd::{Simd, SimdLevel};
pub use view::{View, ViewMut};

/// The device of one rank. Every kernel family matches on it once, in its launcher.
pub enum Exec {
    /// Cores of this machine.
    Cpu(CpuExec),
}
