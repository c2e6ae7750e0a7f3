//! Ranks as threads that serve typed commands, and the collectives between them.
//!
//! A rank is a thread that owns one device and one worker. [`RankPool`] builds the workers on
//! their threads, hands every rank the same command and gathers all replies. Ranks talk to each
//! other through the [`Communicator`] of their [`Seat`]. A rank that fails, panics or hangs fails
//! the pool with its name; its peers are released from whatever they wait in.
//!
//! This crate knows neither models nor plans: commands and replies are the worker's own types.

mod board;
mod clock;
mod communicator;
mod error;
#[cfg(test)]
mod fixture;
mod group;
mod host;
mod mailbox;
mod nccl;
mod pool;
mod rank;
mod signal;
mod world;

pub use clock::RankTime;
pub use communicator::{Communicator, Seat};
pub use error::{Call, CollectiveError, RankCause, RankError, SpawnError};
pub use host::HostCommunicator;
pub use nccl::{DeviceElement, DeviceSlice, DeviceStream, NcclCommunicator, NcclError};
pub use pool::{PoolConfig, RankPool, RankWorker};
pub use signal::{Patience, Signal};
pub use world::{Rank, World};
