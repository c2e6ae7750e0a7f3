//! How ranks exchange numbers, whatever carries them.

use std::time::Duration;

use crate::error::CollectiveError;
use crate::host::HostCommunicator;
use crate::nccl::{DeviceSlice, DeviceStream, NcclCommunicator};
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
    /// Peers own a device each. What lies in the host's memory goes the host's way.
    Nccl(NcclCommunicator),
}

impl Communicator {
    /// This rank.
    pub fn rank(&self) -> Rank {
        match self {
            Communicator::Solo => World::SOLO.rank(0),
            Communicator::Host(host) => host.rank(),
            Communicator::Nccl(nccl) => nccl.rank(),
        }
    }

    /// All ranks.
    pub fn world(&self) -> World {
        match self {
            Communicator::Solo => World::SOLO,
            Communicator::Host(host) => host.world(),
            Communicator::Nccl(nccl) => nccl.world(),
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
            Communicator::Nccl(nccl) => nccl.host().all_reduce_sum(data),
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
            Communicator::Nccl(nccl) => nccl.host().all_reduce_max(data),
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
            Communicator::Nccl(nccl) => nccl.host().all_gather(mine, visit),
        }
    }

    /// A number of each rank, in rank order: for what is exchanged at boot.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_sum`].
    pub fn all_gather_word(&mut self, mine: u64) -> Result<Vec<u64>, CollectiveError> {
        match self {
            Communicator::Solo => Ok(vec![mine]),
            Communicator::Host(host) => host.all_gather_word(mine),
            Communicator::Nccl(nccl) => nccl.host().all_gather_word(mine),
        }
    }

    /// Connects the ranks' devices. Each is current on its rank's thread; all ranks call this.
    /// `deadline` bounds this meeting and whatever NCCL does in the background later.
    ///
    /// # Errors
    /// [`CollectiveError::Nccl`], with what NCCL says; `Aborted` when a peer failed.
    pub fn connect_devices(self, deadline: Duration) -> Result<Communicator, CollectiveError> {
        match self {
            Communicator::Host(host) => {
                NcclCommunicator::connect(host, deadline).map(Communicator::Nccl)
            }
            connected => Ok(connected),
        }
    }

    /// Has `slice` replaced by its sum over all ranks, on the devices, when its turn in the stream
    /// comes. Every rank gets the same bits.
    ///
    /// # Errors
    /// What NCCL says, now or about an earlier call.
    ///
    /// # Panics
    /// If the ranks' devices are not connected.
    pub fn all_reduce_sum_on_device(
        &mut self,
        slice: DeviceSlice,
        stream: DeviceStream,
    ) -> Result<(), CollectiveError> {
        match self {
            Communicator::Solo => Ok(()),
            Communicator::Host(_) => panic!("the ranks' devices are not connected"),
            Communicator::Nccl(nccl) => nccl.all_reduce_sum(slice, stream),
        }
    }

    /// Has the memory at `to` filled with every rank's `mine`, in rank order, when its turn in the
    /// stream comes. A rank alone leaves `to` as it is.
    ///
    /// # Errors
    /// What NCCL says, now or about an earlier call.
    ///
    /// # Panics
    /// If the ranks' devices are not connected.
    pub fn all_gather_on_device(
        &mut self,
        mine: DeviceSlice,
        to: u64,
        stream: DeviceStream,
    ) -> Result<(), CollectiveError> {
        match self {
            Communicator::Solo => Ok(()),
            Communicator::Host(_) => panic!("the ranks' devices are not connected"),
            Communicator::Nccl(nccl) => nccl.all_gather(mine, to, stream),
        }
    }

    /// Whether all is well so far: for a rank that waits for its device.
    ///
    /// # Errors
    /// [`CollectiveError::Aborted`] when a peer failed; what NCCL says about what runs.
    pub fn check(&mut self) -> Result<(), CollectiveError> {
        match self {
            Communicator::Solo => Ok(()),
            Communicator::Host(host) => match host.is_aborted() {
                true => Err(CollectiveError::Aborted),
                false => Ok(()),
            },
            Communicator::Nccl(nccl) => nccl.check(),
        }
    }

    /// This rank's device did not get on for `waited`: the devices' line is given up, which ends
    /// whatever of it runs. The error to report.
    pub fn time_out(&mut self, waited: Duration) -> CollectiveError {
        match self {
            Communicator::Nccl(nccl) => nccl.time_out(waited),
            _ => CollectiveError::DeviceStands { waited },
        }
    }
}
