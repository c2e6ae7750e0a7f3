//! A predicted step time: what a step of a model launches on each of the ranks, and a machine
//! whose every constant names its public source. Nothing here was measured on a GPU by us.

pub mod machine;
pub mod work;
