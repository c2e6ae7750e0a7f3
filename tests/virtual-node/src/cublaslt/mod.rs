//! A double of cuBLASLt 12.6: matrix products on the node's streams, under the real one's rules.
//!
//! [`rules`] says what there are kernels for, [`heuristic`] which algorithms suit, [`matmul`] does
//! it, and [`product`] has the arithmetic. [`api`] is the C surface over them.

pub mod api;
pub mod attributes;
pub mod descriptors;
pub mod element;
pub mod heuristic;
pub mod matmul;
pub mod product;
pub mod rules;
pub mod status;
