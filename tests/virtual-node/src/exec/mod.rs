//! Runs decoded kernels: warps of 32 lanes, blocks over cores, faults by name. It knows neither
//! PTX text nor the driver.
//!
//! A launch is cut into clusters (of one block, mostly); workers take them one after another
//! (`grid`), run a block's warps in turn (`block`), and each warp from one yield to the next
//! (`warp`). Arithmetic is lane-wise and vectorised (`alu`).

pub mod access;
pub mod alu;
pub mod atomics;
pub mod barrier;
pub mod block;
pub mod checks;
pub mod context;
pub mod fault;
pub mod grid;
pub mod inst;
pub mod numbers;
mod pool;
pub mod registers;
pub mod special;
mod step;
pub mod tensor;
pub mod warp;
pub mod warp_ops;

pub use block::Block;
pub use checks::Checks;
pub use context::{BlockCx, WarpCx};
pub use fault::{Cause, Flow, KernelFault, Trap};
pub use grid::{Launch, STALL_MAX};
pub use registers::Registers;
pub use warp::Warp;

/// Lanes of a warp.
pub const N_LANES: usize = 32;

/// The bits above a shared address in the generic space.
pub const SHARED_WINDOW: u64 = 0x0100_0000_0000_0000;

/// The bits above a local address in the generic space.
pub const LOCAL_WINDOW: u64 = 0x0200_0000_0000_0000;

/// The bits above an offset into the kernel's parameters in the generic space.
pub const PARAM_WINDOW: u64 = 0x0300_0000_0000_0000;

/// In a shared address, above these bits stands 0 for one's own block, and else one more than the
/// rank of a block in the cluster.
pub const CLUSTER_SHIFT: u32 = 24;

#[cfg(test)]
mod tests;
