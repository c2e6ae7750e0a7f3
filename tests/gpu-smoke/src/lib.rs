//! For the day someone has a node of H100s: runs there what the virtual node runs in every test
//! run, and measures what it can only predict.
//!
//! It knows which tests speak to a GPU, not what they ask it.

pub mod lanes;
pub mod node;
mod operations;
pub mod steps;
pub mod table;
