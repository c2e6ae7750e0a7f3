//! What a kernel did wrong, and where.

use std::time::Duration;

use thiserror::Error;

use crate::exec::checks::Finding;
use crate::exec::inst::Space;
use crate::exec::tensor::TensorFault;
use crate::memory;

/// A launch that failed: the first fault that was met.
#[derive(Debug, Clone, PartialEq, Error)]
#[error(
    "kernel {kernel}, block {block:?}, thread {thread:?}: {cause}, at PTX line {line}: `{text}`"
)]
pub struct KernelFault {
    pub kernel: String,
    pub block: [u32; 3],
    pub thread: [u32; 3],
    /// From 1; 0 where no instruction is to blame.
    pub line: u32,
    pub text: String,
    /// Boxed, so that a result is small.
    pub cause: Box<Cause>,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Cause {
    #[error("{0}")]
    Memory(memory::Fault),
    #[error("{space:?} access of {n_bytes} bytes at {address:#x}, beyond {limit} bytes")]
    Bounds { space: Space, address: u64, n_bytes: usize, limit: usize },
    #[error("{space:?} access of {n_bytes} bytes at {address:#x}, which is not aligned")]
    Misaligned { space: Space, address: u64, n_bytes: usize },
    #[error("write to parameters at {address:#x}")]
    ReadOnly { address: u64 },
    #[error("lanes {active:#010x} reached it together, {expected:#010x} must")]
    Unconverged { active: u32, expected: u32 },
    #[error("barrier {barrier} with {found} threads, others came with {expected}")]
    BarrierCount { barrier: u32, found: u32, expected: u32 },
    #[error("{problem}: {value}")]
    BarrierUse { problem: &'static str, value: u32 },
    #[error("dead-lock: {n_waiting} warps wait at barriers that nobody else will reach")]
    Deadlock { n_waiting: usize },
    #[error("no progress for {waited:?}: a loop waits for what never comes")]
    Hang { waited: Duration },
    #[error("trap")]
    Trap,
    #[error("assertion failed: {message} ({file}:{line})")]
    Assert { message: String, file: String, line: u32 },
    #[error("branch to entry {index} of a table of {n_targets}")]
    BranchTable { index: u32, n_targets: usize },
    #[error("block {rank} of a cluster of {n_blocks}")]
    ClusterRank { rank: u32, n_blocks: usize },
    #[error("launch of {what} {found}, the limit is {limit}")]
    Launch { what: &'static str, found: usize, limit: usize },
    #[error(transparent)]
    Tensor(#[from] TensorFault),
    #[error(transparent)]
    Check(#[from] Finding),
}

/// A fault of one lane of the instruction that runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Trap {
    pub lane: usize,
    pub cause: Cause,
}

impl Cause {
    /// The cause, blamed on a lane.
    pub fn at(self, lane: usize) -> Trap {
        Trap { lane, cause: self }
    }
}

/// How an instruction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Next,
    /// The warp stays at this instruction and tries again after others ran.
    Retry,
    /// Done, but what it waits for has not come: others should run before the warp goes on.
    Yield,
}
