//! Where kernels run and what they run on: the executor, views, weights, rotary angles, KV memory.
//!
//! It knows no model, no step and no scheduler. `unsafe` is confined to `simd/` (instructions),
//! `host_view.rs` and `cpu.rs` (disjoint tiles of one matrix), `team.rs` (threads that borrow) and
//! `cuda/` (calls of the driver).

mod aligned;
mod buffer;
mod cpu;
pub mod cuda;
mod error;
mod gpu;
mod host_pages;
mod host_view;
mod kv;
mod laps;
mod projection;
mod rope;
pub(crate) mod simd;
mod team;
mod view;

pub use aligned::Aligned;
pub use buffer::Buffer;
pub use cpu::CpuExec;
pub(crate) use cpu::{Grid, Scratch};
pub use cuda::{CudaExec, DevicePtr};
pub use error::DeviceError;
pub use gpu::{Gpu, SharedMemory};
pub(crate) use host_pages::HostPages;
pub(crate) use host_view::Tiles;
pub use host_view::{HostView, HostViewMut};
pub use kv::{DevicePages, KvLocation, KvRegion, KvShape};
pub(crate) use kv::{KvPlace, Scaled};
pub use laps::Laps;
pub use projection::{
    Deferred, DeviceProjection, N_PARTS_MAX, Projection, Table, Vector, WeightFactors,
};
pub use rope::{RopeAngles, RopeFrequencies};
pub use simd::{Simd, SimdLevel};
pub use view::{Array, ArrayMut, DeviceArray, DeviceView, Element, View, ViewMut};

/// The device of one rank. Every kernel family matches on it once, in its launcher.
pub enum Exec {
    /// Cores of this machine.
    Cpu(CpuExec),
    /// A GPU.
    Cuda(Box<Gpu>),
}
