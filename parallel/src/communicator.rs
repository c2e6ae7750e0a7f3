//! How ranks exchange numbers, whatever carries them.

use crate::error::CollectiveError;
use crate::host::HostCommunicator;
use crate::world::{Rank, World};

/// What a rank is born with.
pub struct Seat {
    /// Which rank it is.
    pub rank: Rank,
    /// How many there are.
    pub world: World,
    /// Its line to the others.
    pub communicator: Communicator,
}

/// A rank's line to its peers. Every rank must call the same collectives in the same order.
///
/// After an error all further calls fail: the ranks no longer agree on where they are.
pub enum Communicator {
    /// There is no peer.
    Solo,
    /// Peers are threads that share this machine's memory.
    Host(HostCommunicator),
}

impl Communicator {
    /// This rank.
    pub fn rank(&self) -> Rank {
        match self {
            Communicator::Solo => World::SOLO.rank(0),
            Communicator::Host(host) => host.rank(),
        }
    }

    /// All ranks.
    pub fn world(&self) -> World {
        match self {
            Communicator::Solo => World::SOLO,
            Communicator::Host(host) => host.world(),
        }
    }

    /// Replaces `data` by its element-wise sum over all ranks. Each sum is taken in rank order, so
    /// every rank and every run gets the same bits.
    ///
    /// # Errors
    /// [`CollectiveError::Mismatch`] if the ranks' calls or lengths differ, `TooLong` beyond the
    /// pool's bound, `Aborted` when a peer failed. `data` is then unspecified.
    pub fn all_reduce_sum(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        match self {
            Communicator::Solo => Ok(()),
            Communicator::Host(host) => host.all_reduce_sum(data),
        }
    }

    /// Replaces each position by the greatest of all ranks; NaN on any rank stays NaN.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_sum`].
    pub fn all_reduce_max(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        match self {
            Communicator::Solo => Ok(()),
            Communicator::Host(host) => host.all_reduce_max(data),
        }
    }

    /// Shows every rank's slice to `visit`, in rank order, this rank's among them. Lengths may
    /// differ between ranks.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_sum`]; `visit` was then not called.
    pub fn all_gather(
        &mut self,
        mine: &[f32],
        visit: &mut dyn FnMut(Rank, &[f32]),
    ) -> Result<(), CollectiveError> {
        match self {
            Communicator::Solo => {
                visit(self.rank(), mine);
                Ok(())
            }
            Communicator::Host(host) => host.all_gather(mine, visit),
        }
    }
}
