//! Matrix instructions, asynchronous copies and transaction barriers.

pub mod descriptor;
pub mod element;
pub mod fragment;
pub mod mbarrier;
pub mod swizzle;
pub mod tensor_map;

use thiserror::Error;

use crate::exec::fault::{Cause, Flow, Trap};
use crate::exec::{BlockCx, WarpCx};
use crate::ptx::{Instruction, Lowered, Lowering};

/// One instruction of this family, decoded.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorOp {}

/// What a kernel did wrong with one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TensorFault {}

/// Asynchronous work of a block.
#[derive(Debug, Default)]
pub struct BlockAsync {}

/// Asynchronous work of a warp.
#[derive(Debug, Default)]
pub struct WarpAsync {}

impl BlockAsync {
    /// A new block begins.
    pub fn reset(&mut self) {}
}

impl WarpAsync {
    /// A new block begins.
    pub fn reset(&mut self) {}
}

/// Decodes an instruction if it is of this family: `Ok(None)` where the opcode is not.
pub fn decode(_cx: &mut Lowering<'_>, _inst: &Instruction) -> Lowered<Option<TensorOp>> {
    Ok(None)
}

/// Runs one for the active lanes.
pub fn execute(op: &TensorOp, _cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    match *op {}
}

/// Lands one piece of outstanding asynchronous work: called when no warp of the block can go on,
/// and until nothing is left when all threads have exited. Tells whether there was any.
pub fn advance(_cx: &mut BlockCx<'_>) -> Result<bool, Cause> {
    Ok(false)
}
