//! Barriers of a block and of a cluster.

/// A barrier instruction.
#[derive(Debug)]
pub enum BarrierOp {}
