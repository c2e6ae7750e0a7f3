//! A double of NCCL: collectives over the devices of one process, on their streams.
//!
//! [`world`] is where ranks meet, [`collective`] what they exchange there, [`communicator`] what
//! programs hold, [`api`] the C surface, [`faults`] what goes wrong on request.

pub mod api;
pub mod collective;
pub mod communicator;
pub mod faults;
pub mod reduce;
pub mod types;
pub mod world;
