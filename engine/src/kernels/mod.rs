//! What a rank computes, one family a folder: arguments and launcher in `mod.rs`, the processor's
//! version in `cpu.rs`.
//!
//! Each launcher checks shapes, then matches once on [`Exec`](crate::device::Exec). No family knows
//! a model, a step or another family, and none allocates. **Every output row depends on its own
//! row's data alone, bit for bit**: not on the batch, the tile, the thread or the memory address.

pub mod attention;
pub mod embed;
pub mod launching;
pub mod linear;
pub mod quantize;
pub mod reduce_norm;
pub mod rope_kv;
pub mod sample;
pub mod swiglu;

#[cfg(test)]
pub(crate) mod testing;
