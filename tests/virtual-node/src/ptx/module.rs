//! What a loaded module offers: kernels ready to run, and the variables that it wants allocated.

use std::sync::Arc;

use crate::exec::inst::{Inst, Pred, R32, R64};
use crate::exec::special::Special;

/// A PTX module, decoded.
#[derive(Debug)]
pub struct Module {
    pub kernels: Vec<Arc<Kernel>>,
    /// Variables of the module. Whoever loads it allocates them in this order, fills them, and
    /// hands their addresses to each launch.
    pub globals: Vec<Global>,
}

/// A `.global` or `.const` variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Global {
    pub name: String,
    pub n_bytes: usize,
    pub align: usize,
    /// `n_bytes` of them, zero where nothing was said.
    pub initial: Vec<u8>,
    /// Places in `initial` that hold the address of another variable: byte offset, index into
    /// the module's globals, bytes to add.
    pub addresses: Vec<(usize, usize, i64)>,
    pub constant: bool,
}

/// An entry function.
#[derive(Debug)]
pub struct Kernel {
    pub name: String,
    pub params: Vec<Param>,
    /// Bytes of the parameter block.
    pub n_param_bytes: usize,
    /// Offsets of eight bytes of it that the code reads as smaller numbers, in rising order: no
    /// address is there, whatever two neighbours look like together.
    pub narrow_params: Vec<usize>,
    pub static_shared_bytes: usize,
    /// Where dynamic shared memory begins in the block's window.
    pub dynamic_shared_offset: usize,
    /// Of each thread.
    pub local_bytes: usize,
    /// From `.maxntid` or `.reqntid`: threads per block at most.
    pub max_threads: Option<u32>,
    /// From `.reqntid`: the one block shape that is allowed.
    pub required_block: Option<[u32; 3]>,
    /// From `.reqnctapercluster`: blocks per cluster.
    pub required_cluster: Option<[u32; 3]>,
    /// From `.minnctapersm`.
    pub min_blocks_per_sm: Option<u32>,
    /// From `.maxnreg`: hardware registers per thread at most.
    pub max_registers: Option<u32>,
    pub code: Vec<Inst>,
    /// Sizes of the register files.
    pub n_registers: RegisterCounts,
    /// Registers that hold the same value in every thread of every launch.
    pub constants: Constants,
    /// The module's text by line, for faults.
    pub source: Arc<[String]>,
}

/// Registers of a kernel, by file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegisterCounts {
    pub n_r32: usize,
    pub n_r64: usize,
    pub n_predicates: usize,
}

/// What registers hold before a thread begins.
#[derive(Debug, Default)]
pub struct Constants {
    pub r32: Vec<(R32, u32)>,
    pub r64: Vec<(R64, u64)>,
    pub predicates: Vec<(Pred, bool)>,
    pub special: Vec<(R32, Special)>,
    /// Index into the module's globals, and bytes to add.
    pub globals: Vec<(R64, usize, i64)>,
}

/// A kernel's parameter, in bytes of the parameter block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    pub offset: usize,
    pub size: usize,
    pub align: usize,
}

impl Module {
    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<&Arc<Kernel>> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }
}
