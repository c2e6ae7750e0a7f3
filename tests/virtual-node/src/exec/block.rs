//! A block: its warps in turn, its barriers, its shared memory.

use std::ptr::NonNull;

use crate::exec::checks::BlockChecks;
use crate::exec::fault::Cause;
use crate::exec::tensor::BlockAsync;

/// What the threads of a block share.
#[derive(Debug)]
pub struct Block {
    /// Position in the grid.
    pub idx: [u32; 3],
    /// Rank in the cluster.
    pub rank: u32,
    pub shared: Shared,
    /// Shared memory of all blocks of the cluster, by rank.
    pub peers: Vec<Span>,
    /// Outstanding asynchronous work.
    pub tensor: BlockAsync,
    pub checks: BlockChecks,
}

/// Shared memory of a block.
#[derive(Debug)]
pub struct Shared {
    /// As units of 16 bytes, so that the whole is aligned.
    storage: Vec<u128>,
    n_bytes: usize,
}

/// A stretch of shared memory.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub start: NonNull<u8>,
    pub n_bytes: usize,
}

impl Shared {
    pub(crate) fn new(n_bytes: usize) -> Shared {
        Shared { storage: vec![0; n_bytes.div_ceil(16) + 1], n_bytes }
    }

    pub fn span(&mut self) -> Span {
        Span { start: NonNull::from(&mut self.storage[0]).cast(), n_bytes: self.n_bytes }
    }
}

impl Block {
    /// Shared memory of a block of the cluster.
    pub fn peer_shared(&self, rank: u32) -> Result<Span, Cause> {
        let n_blocks = self.peers.len();
        self.peers.get(rank as usize).copied().ok_or(Cause::ClusterRank { rank, n_blocks })
    }
}
