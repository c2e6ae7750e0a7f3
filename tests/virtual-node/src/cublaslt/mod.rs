//! A double of cuBLASLt 12.6: matrix products on the node's streams, under the real one's rules.

mod element;
mod product;
