//! A predicted step time: what a step launches on each of the ranks, and a machine whose every
//! constant names its public source. Nothing here was measured on a GPU by us. Whoever shows a
//! number from here calls it predicted.
//!
//! That the work is what is really launched, `benches/prediction.rs` holds against a virtual node.

pub mod machine;
pub mod work;
