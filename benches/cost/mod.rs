//! The engine's predicted step times, and what holds them against what a virtual node counted.
//! Nothing here was measured on a GPU by us.

pub mod counted;

pub use engine::predict::{machine, work};

/// Sequences that decode at once, in the table's lines.
pub const BATCHES: [u64; 6] = [1, 8, 32, 64, 128, 256];

/// Positions of each of them.
pub const CONTEXTS: [u64; 3] = [1024, 8192, 32_768];

/// Tokens of the prefill below the table.
pub const CHUNK: u64 = 8192;
