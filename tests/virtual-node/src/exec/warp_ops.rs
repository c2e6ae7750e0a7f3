//! Operations between the lanes of a warp.

/// An operation between lanes.
#[derive(Debug)]
pub enum WarpOp {}
