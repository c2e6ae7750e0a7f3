//! What says that the virtual node computes what an H100 computes, and was not written by it.
//!
//! `isa`: instructions against the tables of the PTX ISA. `triton`: kernels from a compiler that
//! is known to be right on real H100s. Both talk to a plain libcuda and know nothing of the node,
//! so that they run as they are on a real GPU.

mod gpu;
#[path = "../isa/mod.rs"]
mod isa;
#[path = "../triton/mod.rs"]
mod triton;
