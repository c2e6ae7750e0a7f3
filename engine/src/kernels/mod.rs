//! What a rank computes, one family a folder: arguments and launcher in `mod.rs`, the processor's
//! version in `cpu.rs`.
//!
//! Each launcher checks shapes, then matches once on [`Exec`](crate::device::Exec). No family knows
//! a model or a step, nor another family, but that attention may do what `rope_kv` does; and none
//! allocates. **Every output row depends on its own row's data alone, bit for bit**: not on the
//! batch, the tile, the thread or the memory address.

mod ahead;
pub mod attention;
pub mod embed;
pub mod launching;
pub mod linear;
pub mod quantize;
pub mod reduce_norm;
pub mod rope_kv;
pub mod sample;
pub mod swiglu;

pub use ahead::{N_BYTES_MAX as N_BYTES_AHEAD_MAX, fetched_ahead};

#[cfg(test)]
pub(crate) mod testing;
