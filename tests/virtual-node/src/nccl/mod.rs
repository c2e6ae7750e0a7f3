//! A double of NCCL: collectives over the devices of one process, on their streams.

pub mod faults;
pub mod reduce;
pub mod types;
pub mod world;
