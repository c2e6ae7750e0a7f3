//! A warp: 32 lanes, their registers, and which of them are where.

use crate::exec::registers::Registers;
use crate::exec::tensor::WarpAsync;

/// One warp of a block.
#[derive(Debug)]
pub struct Warp {
    /// Index in the block.
    pub idx: usize,
    pub registers: Registers,
    /// Local memory, lane after lane.
    pub local: Vec<u8>,
    /// Lanes that have not exited.
    pub live: u32,
    /// Outstanding asynchronous work.
    pub tensor: WarpAsync,
}
