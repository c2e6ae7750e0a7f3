//! How many ranks there are, and which one is meant.

use std::fmt;

/// Ranks of a world at most: one node's devices, with room for a denser node.
const N_RANKS_MAX: usize = 64;

/// One rank of a [`World`], counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank(usize);

/// The ranks that work together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    n_ranks: usize,
}

impl Rank {
    /// Position among the world's ranks.
    pub fn idx(self) -> usize {
        self.0
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl World {
    /// A rank alone.
    pub const SOLO: World = World { n_ranks: 1 };

    /// A world of `n_ranks`.
    ///
    /// # Panics
    /// Unless there are 1 to 64 ranks.
    pub fn new(n_ranks: usize) -> World {
        assert!((1..=N_RANKS_MAX).contains(&n_ranks), "{n_ranks} ranks, not 1 to {N_RANKS_MAX}");
        World { n_ranks }
    }

    /// Number of ranks.
    pub fn n_ranks(self) -> usize {
        self.n_ranks
    }

    /// The rank at `idx`.
    ///
    /// # Panics
    /// If the world has no such rank.
    pub fn rank(self, idx: usize) -> Rank {
        assert!(idx < self.n_ranks, "no rank {idx} in a world of {}", self.n_ranks);
        Rank(idx)
    }

    /// All ranks, in order.
    pub fn ranks(self) -> impl ExactSizeIterator<Item = Rank> {
        (0..self.n_ranks).map(Rank)
    }
}
