//! Whole checkpoints: opened, cut into ranks' slices, and refused.

#![allow(clippy::unwrap_used, reason = "what fails in a test is the test")]

mod common;
mod damage;
mod golden;
mod malformed;
mod scales;
mod sharding;
