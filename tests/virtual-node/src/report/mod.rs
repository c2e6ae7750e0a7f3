//! What was counted: launches, bytes, flops, per kernel and in all.
