//! What can go wrong with ranks: always with the rank's name and what it was doing.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::nccl::NcclError;
use crate::world::Rank;

/// What a rank did where its peers expected a collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// It summed `n_floats`.
    AllReduceSum {
        /// Length of its slice.
        n_floats: usize,
    },
    /// It took the greatest of `n_floats`.
    AllReduceMax {
        /// Length of its slice.
        n_floats: usize,
    },
    /// It gathered, with `n_floats` of its own.
    AllGather {
        /// Length of its slice.
        n_floats: usize,
    },
    /// It was done with its command.
    Return,
}

/// Why a collective did not take place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CollectiveError {
    /// Another rank failed, or the pool stops. Never the root cause.
    #[error("the collective was aborted: another rank failed, or the ranks were stopped")]
    Aborted,
    /// The ranks did not call the same collective with lengths that go together.
    #[error("the ranks disagree on a collective: {}", Calls(.calls))]
    Mismatch {
        /// What each rank called, in rank order.
        calls: Vec<Call>,
    },
    /// A rank's device did not finish, and there is no line to other devices to blame.
    #[error("the device has not finished after {waited:?}")]
    DeviceStands {
        /// How long it was waited for.
        waited: Duration,
    },
    /// Devices could not exchange data.
    #[error(transparent)]
    Nccl(#[from] NcclError),
    /// A slice is longer than what the pool was made for.
    #[error("{call}, but collectives here hold at most {n_floats_max} floats")]
    TooLong {
        /// The refused call.
        call: Call,
        /// The pool's bound.
        n_floats_max: usize,
    },
}

/// A rank failed, and with it the pool.
#[derive(Clone, Debug, Error)]
#[error("rank {rank}, command {command_idx}: {cause}")]
pub struct RankError {
    /// The rank at fault.
    pub rank: Rank,
    /// Which of the pool's commands it served, counted from 0.
    pub command_idx: u64,
    /// What happened.
    pub cause: RankCause,
}

/// How a rank failed.
#[derive(Clone, Debug, Error)]
pub enum RankCause {
    /// Its worker panicked.
    #[error("panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// Its worker returned an error.
    #[error("failed: {source}")]
    Failed {
        /// The worker's error.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// Its worker did not answer.
    #[error("no answer after {waited:?}")]
    Hung {
        /// How long it was waited for.
        waited: Duration,
    },
}

/// The pool did not come up.
#[derive(Debug, Error)]
pub enum SpawnError<E> {
    /// The system gave no thread.
    #[error("rank {rank}: no thread to run on")]
    Thread {
        /// The rank.
        rank: Rank,
        /// Why.
        source: io::Error,
    },
    /// A worker could not be built.
    #[error("rank {rank}: {source}")]
    Build {
        /// The rank.
        rank: Rank,
        /// The builder's error.
        source: E,
    },
    /// Building a worker panicked.
    #[error("rank {rank}: panicked while it was built: {message}")]
    Panicked {
        /// The rank.
        rank: Rank,
        /// The panic's message.
        message: String,
    },
    /// Building a worker took too long.
    #[error("rank {rank}: not built after {waited:?}")]
    Hung {
        /// The rank.
        rank: Rank,
        /// How long it was waited for.
        waited: Duration,
    },
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::AllReduceSum { n_floats } => write!(f, "all_reduce_sum of {n_floats} floats"),
            Call::AllReduceMax { n_floats } => write!(f, "all_reduce_max of {n_floats} floats"),
            Call::AllGather { n_floats } => write!(f, "all_gather of {n_floats} floats"),
            Call::Return => write!(f, "return from the command"),
        }
    }
}

/// Names each rank's call.
struct Calls<'a>(&'a [Call]);

impl fmt::Display for Calls<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rank_idx, call) in self.0.iter().enumerate() {
            let separator = if rank_idx == 0 { "" } else { ", " };
            write!(f, "{separator}rank {rank_idx}: {call}")?;
        }
        Ok(())
    }
}
