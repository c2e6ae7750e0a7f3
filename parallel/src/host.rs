//! Collectives between threads of one process, through buffers that they share.
//!
//! A rank publishes its slice in a buffer of its own, meets the others, and reads theirs. The
//! buffers alternate between two sides from phase to phase, so a rank may publish for the next
//! collective while a slower one still reads this one (see [`Group`]). Nothing is allocated after
//! the buffers were made. Knows nothing of how long to wait for a peer: the pool does.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;

use crate::error::{Call, CollectiveError};
use crate::group::{Group, Phase};
use crate::world::{Rank, World};

/// Up to this many floats, over all ranks, each rank sums everything itself: the additions cost
/// less than a second meeting. Above, each rank sums its share of the positions for all.
const N_DIRECT_FLOATS_MAX: usize = 16 * 1024;

/// One rank's end of the shared buffers.
pub struct HostCommunicator {
    rank: Rank,
    group: Arc<Group>,
    buffers: Arc<Buffers>,
    /// The first error, which stays.
    failure: Option<CollectiveError>,
}

/// What all ranks of a pool share.
pub(crate) struct Buffers {
    n_floats_max: usize,
    lanes: Vec<Lane>,
}

/// One rank's buffers: it writes, all read. The locks are never contended for writing, because
/// the phases keep readers and the writer apart.
struct Lane {
    published: [RwLock<Vec<f32>>; Phase::N_SIDES],
    /// Sums of this rank's share of the positions.
    sums: RwLock<Vec<f32>>,
}

impl Buffers {
    /// Room for collectives of up to `n_floats_max`. Memory that is never used is never touched.
    pub(crate) fn new(world: World, n_floats_max: usize) -> Buffers {
        let buffer = |n_floats| RwLock::new(Vec::with_capacity(n_floats));
        let n_share_max = n_floats_max.div_ceil(world.n_ranks());
        let lane = |_| Lane {
            published: std::array::from_fn(|_| buffer(n_floats_max)),
            sums: buffer(n_share_max),
        };
        Buffers { n_floats_max, lanes: world.ranks().map(lane).collect() }
    }
}

impl HostCommunicator {
    pub(crate) fn new(rank: Rank, group: Arc<Group>, buffers: Arc<Buffers>) -> HostCommunicator {
        HostCommunicator { rank, group, buffers, failure: None }
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// All ranks.
    pub fn world(&self) -> World {
        self.group.world()
    }

    /// See [`crate::Communicator::all_reduce_sum`].
    ///
    /// # Errors
    /// The same.
    pub fn all_reduce_sum(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        self.timed(|host| host.reduce_sum(data))
    }

    fn reduce_sum(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        let phase = self.publish(Call::AllReduceSum { n_floats: data.len() }, data)?;
        if data.len() * self.world().n_ranks() <= N_DIRECT_FLOATS_MAX {
            self.buffers.sum(phase, 0, data);
            return Ok(());
        }
        self.sum_share(phase, data.len());
        let met = self.group.arrive_and_wait(self.rank);
        self.keep(met)?;
        for peer in self.world().ranks() {
            let share = self.share(peer, data.len());
            data[share].copy_from_slice(&self.buffers.lanes[peer.idx()].sums.read());
        }
        Ok(())
    }

    /// See [`crate::Communicator::all_reduce_max`].
    ///
    /// # Errors
    /// The same.
    pub fn all_reduce_max(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        self.timed(|host| host.reduce_max(data))
    }

    fn reduce_max(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        let phase = self.publish(Call::AllReduceMax { n_floats: data.len() }, data)?;
        for peer in self.world().ranks() {
            let published = self.buffers.published(peer, phase).read();
            if peer.idx() == 0 {
                // Not this rank's own: of two zeros, or two NaNs, all ranks keep the same one.
                data.copy_from_slice(&published);
                continue;
            }
            for (greatest, &theirs) in data.iter_mut().zip(&*published) {
                // `f32::max` would hide a NaN.
                if theirs > *greatest || theirs.is_nan() {
                    *greatest = theirs;
                }
            }
        }
        Ok(())
    }

    /// See [`crate::Communicator::all_gather`].
    ///
    /// # Errors
    /// The same.
    pub fn all_gather(
        &mut self,
        mine: &[f32],
        visit: &mut dyn FnMut(Rank, &[f32]),
    ) -> Result<(), CollectiveError> {
        self.timed(|host| {
            let phase = host.publish(Call::AllGather { n_floats: mine.len() }, mine)?;
            for peer in host.world().ranks() {
                visit(peer, &host.buffers.published(peer, phase).read());
            }
            Ok(())
        })
    }

    /// Puts down to exchanging what `exchange` takes.
    fn timed<T>(&mut self, exchange: impl FnOnce(&mut Self) -> T) -> T {
        let began = Instant::now();
        let exchanged = exchange(self);
        self.group.clock(self.rank).exchange(began.elapsed());
        exchanged
    }

    /// A number of each rank, in rank order: for what is exchanged at boot.
    ///
    /// # Errors
    /// As the others.
    pub fn all_gather_word(&mut self, mine: u64) -> Result<Vec<u64>, CollectiveError> {
        // Sixteen bits at a time, because every such number is a float.
        let digits: [f32; 4] = std::array::from_fn(|i| (mine >> (16 * i) & 0xFFFF) as f32);
        let mut words = Vec::with_capacity(self.world().n_ranks());
        self.all_gather(&digits, &mut |_, digits| {
            let word = digits.iter().rev().fold(0, |word, &digit| word << 16 | digit as u64);
            words.push(word);
        })?;
        Ok(words)
    }

    /// Whether a peer has failed, or the pool stops.
    pub(crate) fn is_aborted(&self) -> bool {
        self.group.is_aborted()
    }

    /// Shows `data` to the peers and waits until they have shown theirs.
    fn publish(&mut self, call: Call, data: &[f32]) -> Result<Phase, CollectiveError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let n_floats_max = self.buffers.n_floats_max;
        if data.len() > n_floats_max {
            return self.keep(Err(CollectiveError::TooLong { call, n_floats_max }));
        }
        let phase = self.group.next_phase(self.rank);
        {
            let mut published = self.buffers.published(self.rank, phase).write();
            published.clear();
            published.extend_from_slice(data);
        }
        let met = self.group.meet(self.rank, call);
        self.keep(met.map(|()| phase))
    }

    /// Sums this rank's share of `n_floats` positions for all.
    fn sum_share(&self, phase: Phase, n_floats: usize) {
        let share = self.share(self.rank, n_floats);
        let mut sums = self.buffers.lanes[self.rank.idx()].sums.write();
        sums.resize(share.len(), 0.0);
        self.buffers.sum(phase, share.start, &mut sums);
    }

    /// The positions that `rank` sums.
    fn share(&self, rank: Rank, n_floats: usize) -> Range<usize> {
        let n_share = n_floats.div_ceil(self.world().n_ranks());
        let start = n_floats.min(rank.idx() * n_share);
        start..n_floats.min(start + n_share)
    }

    fn keep<T>(&mut self, result: Result<T, CollectiveError>) -> Result<T, CollectiveError> {
        if let Err(failure) = &result {
            self.failure = Some(failure.clone());
        }
        result
    }
}

impl Buffers {
    fn published(&self, rank: Rank, phase: Phase) -> &RwLock<Vec<f32>> {
        &self.lanes[rank.idx()].published[phase.side()]
    }

    /// Sums what all ranks published from position `start` on: rank 0's value, plus rank 1's, and
    /// so on, which makes the bits independent of who sums and when.
    fn sum(&self, phase: Phase, start: usize, out: &mut [f32]) {
        let end = start + out.len();
        for (rank_idx, lane) in self.lanes.iter().enumerate() {
            let published = lane.published[phase.side()].read();
            let addends = &published[start..end];
            if rank_idx == 0 {
                out.copy_from_slice(addends);
            } else {
                out.iter_mut().zip(addends).for_each(|(sum, addend)| *sum += addend);
            }
        }
    }
}

#[cfg(test)]
mod tests;
