//! A predicted step time: what a step of a model launches on each of the ranks, held against what a
//! virtual node counted, and a machine whose every constant names its public source. Nothing here
//! was measured on a GPU by us.

pub mod counted;
pub mod machine;
pub mod work;

/// Sequences that decode at once, in the table's lines.
pub const BATCHES: [u64; 6] = [1, 8, 32, 64, 128, 256];

/// Positions of each of them.
pub const CONTEXTS: [u64; 3] = [1024, 8192, 32_768];

/// Tokens of the prefill below the table.
pub const CHUNK: u64 = 8192;
