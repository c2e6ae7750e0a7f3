//! Races on shared memory: accesses of two warps, one of them a write, that nothing orders.
//!
//! Each warp of a cluster has a vector clock, which barriers, mbarriers and atomics join; each byte
//! of its blocks' memory remembers its last write and every thread's last read. A warp counts as
//! one thread. The asynchronous work of a block (bulk copies, `wgmma`) is one more thread, which
//! accesses at the issue and which a warp joins where it waits for the work.
//!
//! Warps are numbered through the blocks of the cluster, and so are the bytes ([`super::Layout`]).
//!
//! The same bookkeeping finds a missing proxy fence: what threads write, asynchronous work may
//! read only when the writer, or the warp that issues the work, has fenced since.

use std::collections::HashMap;

use super::layout::CHUNK_BYTES;
use super::{Finding, Layout};

/// What each thread has seen of each other one.
type Clock = Vec<u32>;

/// Who did something, and when by its own clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Epoch {
    thread: u32,
    /// 0: never.
    at: u32,
}

/// What is remembered of one cluster.
#[derive(Debug)]
pub(super) struct Races {
    layout: Layout,
    /// All warps, then the asynchronous work of each block.
    n_threads: usize,
    clocks: Vec<Clock>,
    n_async: u32,
    cluster: Phases,
    /// By byte.
    writes: Vec<Epoch>,
    /// By byte and thread.
    reads: Vec<u32>,
    mbarriers: HashMap<u64, Phases>,
    atomics: HashMap<u64, Clock>,
    proxies: Proxies,
    contended: Vec<Contended>,
}

/// A byte that two warps write with nothing between them, which is harmless if both write the
/// same: compilers let every warp store what all of them hold.
#[derive(Debug)]
struct Contended {
    byte: usize,
    /// What it held after the first write.
    value: u8,
    finding: Finding,
}

/// Clocks of an mbarrier, or of the cluster's barrier: of those who arrived in the phase under way,
/// and in phases before.
#[derive(Debug, Default)]
struct Phases {
    arriving: Clock,
    over: Clock,
}

/// Writes that only threads see so far.
#[derive(Debug)]
struct Proxies {
    now: u32,
    /// By warp: when it last fenced.
    fences: Vec<u32>,
    /// By chunk: the warp that last wrote it, and when.
    writes: Vec<Epoch>,
}

impl Races {
    pub(super) fn new(layout: Layout) -> Races {
        let (n_warps, n_bytes) = (layout.n_warps(), layout.n_bytes());
        let n_threads = n_warps + layout.n_blocks;
        let clock = |warp| (0..n_threads).map(|thread| u32::from(thread == warp)).collect();
        Races {
            layout,
            n_threads,
            clocks: (0..n_warps).map(clock).collect(),
            n_async: 0,
            cluster: Phases::default(),
            writes: vec![Epoch::default(); n_bytes],
            reads: vec![0; n_bytes * n_threads],
            contended: Vec::new(),
            mbarriers: HashMap::new(),
            atomics: HashMap::new(),
            proxies: Proxies {
                now: 1,
                fences: vec![0; n_warps],
                writes: vec![Epoch::default(); n_bytes.div_ceil(CHUNK_BYTES)],
            },
        }
    }

    /// Bytes that are watched; accesses beyond are out of bounds and found elsewhere.
    fn bytes(&self, first: usize, n_bytes: usize) -> std::ops::Range<usize> {
        self.layout.within_block(first, n_bytes)
    }

    /// The thread that is the asynchronous work of `warp`'s block.
    fn async_of(&self, warp: usize) -> usize {
        self.layout.n_warps() + warp / self.layout.n_warps_each
    }

    pub(super) fn read(
        &mut self,
        warp: usize,
        first: usize,
        n_bytes: usize,
    ) -> Result<(), Finding> {
        let at = self.clocks[warp][warp];
        self.read_as(warp, Epoch { thread: warp as u32, at }, first, n_bytes)
    }

    /// Threads of a warp write over bytes that hold `held` so far.
    pub(super) fn write(&mut self, warp: usize, first: usize, held: &[u8]) -> Result<(), Finding> {
        for byte in self.bytes(first, held.len()) {
            if let Err(finding) = self.check_write(warp, byte) {
                let is_of_warp = matches!(finding, Finding::Race { .. });
                if !is_of_warp {
                    return Err(finding);
                }
                self.contended.push(Contended { byte, value: held[byte - first], finding });
                self.writes[byte] = Epoch::default();
            }
        }
        self.write_alone(warp, first, held.len())
    }

    /// Judges contended bytes by what they hold once the second write is done.
    pub(super) fn settle(&mut self, holds: impl Fn(usize) -> u8) -> Result<(), Finding> {
        for contended in self.contended.drain(..) {
            if holds(contended.byte) != contended.value {
                return Err(contended.finding);
            }
        }
        Ok(())
    }

    /// A write that no other may meet, whatever it writes.
    fn write_alone(&mut self, warp: usize, first: usize, n_bytes: usize) -> Result<(), Finding> {
        let at = self.clocks[warp][warp];
        self.write_as(warp, Epoch { thread: warp as u32, at }, first, n_bytes)?;
        let chunks = self.bytes(first, n_bytes);
        let now = self.proxies.now;
        for chunk in chunks.start / CHUNK_BYTES..chunks.end.div_ceil(CHUNK_BYTES) {
            self.proxies.writes[chunk] = Epoch { thread: warp as u32, at: now };
        }
        Ok(())
    }

    /// An atomic operation sees all that came before on the same address.
    pub(super) fn atomic(
        &mut self,
        warp: usize,
        first: usize,
        n_bytes: usize,
    ) -> Result<(), Finding> {
        let seen = self.atomics.entry(first as u64).or_default();
        join(&mut self.clocks[warp], seen);
        self.write_alone(warp, first, n_bytes)?;
        let seen = self.atomics.entry(first as u64).or_default();
        join(seen, &self.clocks[warp]);
        self.clocks[warp][warp] += 1;
        Ok(())
    }

    /// Asynchronous work that `warp` issues reads chunks; returns the time of its thread.
    pub(super) fn async_read(&mut self, warp: usize, chunks: &[usize]) -> Result<u32, Finding> {
        self.n_async += 1;
        let epoch = Epoch { thread: self.async_of(warp) as u32, at: self.n_async };
        for &chunk in chunks {
            self.proxies.check(warp, chunk / CHUNK_BYTES, self.layout.offset(chunk))?;
            self.read_as(warp, epoch, chunk, CHUNK_BYTES)?;
        }
        Ok(self.n_async)
    }

    /// The same for work that writes.
    pub(super) fn async_write(&mut self, warp: usize, chunks: &[usize]) -> Result<u32, Finding> {
        self.n_async += 1;
        let epoch = Epoch { thread: self.async_of(warp) as u32, at: self.n_async };
        for &chunk in chunks {
            self.write_as(warp, epoch, chunk, CHUNK_BYTES)?;
            if let Some(write) = self.proxies.writes.get_mut(chunk / CHUNK_BYTES) {
                *write = Epoch::default();
            }
        }
        Ok(self.n_async)
    }

    /// A warp waited for asynchronous work.
    pub(super) fn async_done(&mut self, warp: usize, at: u32) {
        let thread = self.async_of(warp);
        let seen = &mut self.clocks[warp][thread];
        *seen = at.max(*seen);
    }

    /// Warps met at a barrier of their block, whose first is `first`.
    pub(super) fn barrier(&mut self, first: usize, warps: u64) {
        let of_block = first..first + self.layout.n_warps_each;
        let there = |warp: &usize| warps >> (warp - first) & 1 != 0;
        let mut met = Clock::new();
        for warp in of_block.clone().filter(there) {
            join(&mut met, &self.clocks[warp]);
        }
        for warp in of_block.filter(there) {
            self.clocks[warp].copy_from_slice(&met);
            self.clocks[warp][warp] += 1;
        }
    }

    /// A warp arrived at the cluster's barrier with all that it has done, unless it said that
    /// nobody need see it (`.relaxed`).
    pub(super) fn cluster_arrive(&mut self, warp: usize, is_relaxed: bool) {
        if !is_relaxed {
            join(&mut self.cluster.arriving, &self.clocks[warp]);
            self.clocks[warp][warp] += 1;
        }
    }

    /// All warps of the cluster have arrived.
    pub(super) fn cluster_met(&mut self) {
        self.cluster.turn();
    }

    /// A warp waited for the cluster's barrier.
    pub(super) fn cluster_wait(&mut self, warp: usize) {
        join(&mut self.clocks[warp], &self.cluster.over);
    }

    /// A warp made an mbarrier; threads that use it must know.
    pub(super) fn mbarrier_init(&mut self, warp: usize, address: u64) -> Result<(), Finding> {
        self.mbarriers.remove(&address);
        self.write_alone(warp, address as usize, 8)
    }

    /// A warp arrived at an mbarrier; `is_over` tells whether that ended a phase.
    pub(super) fn mbarrier_arrive(
        &mut self,
        warp: usize,
        address: u64,
        is_over: bool,
    ) -> Result<(), Finding> {
        self.check_write(warp, address as usize)?;
        let phases = self.mbarriers.entry(address).or_default();
        join(&mut phases.arriving, &self.clocks[warp]);
        self.clocks[warp][warp] += 1;
        if is_over {
            phases.turn();
        }
        Ok(())
    }

    /// Asynchronous work told an mbarrier that it is done.
    /// It is work of `warp`'s block.
    pub(super) fn mbarrier_arrive_async(
        &mut self,
        warp: usize,
        address: u64,
        at: u32,
        is_over: bool,
    ) {
        let thread = self.async_of(warp);
        let phases = self.mbarriers.entry(address).or_default();
        phases.arriving.resize(self.n_threads, 0);
        let seen = &mut phases.arriving[thread];
        *seen = at.max(*seen);
        if is_over {
            phases.turn();
        }
    }

    /// A warp saw a phase of an mbarrier end.
    pub(super) fn mbarrier_wait(&mut self, warp: usize, address: u64) {
        if let Some(phases) = self.mbarriers.get(&address) {
            join(&mut self.clocks[warp], &phases.over);
        }
    }

    pub(super) fn proxy_fence(&mut self, warp: usize) {
        self.proxies.now += 1;
        self.proxies.fences[warp] = self.proxies.now;
    }

    fn read_as(
        &mut self,
        warp: usize,
        reader: Epoch,
        first: usize,
        n_bytes: usize,
    ) -> Result<(), Finding> {
        for byte in self.bytes(first, n_bytes) {
            self.check_write(warp, byte)?;
            self.reads[byte * self.n_threads + reader.thread as usize] = reader.at;
        }
        Ok(())
    }

    fn write_as(
        &mut self,
        warp: usize,
        writer: Epoch,
        first: usize,
        n_bytes: usize,
    ) -> Result<(), Finding> {
        for byte in self.bytes(first, n_bytes) {
            self.check_write(warp, byte)?;
            let reads = &self.reads[byte * self.n_threads..][..self.n_threads];
            let seen = &self.clocks[warp];
            if let Some(other) = (0..self.n_threads).find(|&other| reads[other] > seen[other]) {
                return Err(self.race(byte, warp, other));
            }
            self.writes[byte] = writer;
        }
        Ok(())
    }

    /// Whether `warp` may access a byte that another thread wrote.
    fn check_write(&self, warp: usize, byte: usize) -> Result<(), Finding> {
        let Some(write) = self.writes.get(byte) else { return Ok(()) };
        let is_seen = self.clocks[warp][write.thread as usize] >= write.at;
        if is_seen { Ok(()) } else { Err(self.race(byte, warp, write.thread as usize)) }
    }

    fn race(&self, byte: usize, warp: usize, other: usize) -> Finding {
        let offset = self.layout.offset(byte);
        if other >= self.layout.n_warps() {
            Finding::AsyncRace { offset, warp }
        } else {
            Finding::Race { offset, warp, other }
        }
    }
}

impl Phases {
    fn turn(&mut self) {
        join(&mut self.over, &self.arriving);
        self.arriving.clear();
    }
}

impl Proxies {
    fn check(&self, issuer: usize, chunk: usize, offset: usize) -> Result<(), Finding> {
        let Some(write) = self.writes.get(chunk) else { return Ok(()) };
        let fenced = |warp: usize| self.fences[warp] > write.at;
        if write.at == 0 || fenced(write.thread as usize) || fenced(issuer) {
            return Ok(());
        }
        Err(Finding::NoProxyFence { offset, warp: issuer, writer: write.thread as usize })
    }
}

/// Makes `clock` know what `other` knows.
fn join(clock: &mut Clock, other: &Clock) {
    if clock.len() < other.len() {
        clock.resize(other.len(), 0);
    }
    for (seen, other) in clock.iter_mut().zip(other) {
        *seen = (*seen).max(*other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 0b11;

    fn two_warps() -> Races {
        Races::new(Layout::new(1, 2, 1024))
    }

    fn race(offset: usize, warp: usize, other: usize) -> Result<(), Finding> {
        Err(Finding::Race { offset, warp, other })
    }

    #[test]
    fn a_barrier_orders_and_its_absence_is_seen() {
        let mut block = two_warps();
        assert_eq!(block.write(0, 16, &[0; 4]), Ok(()));
        assert_eq!(block.read(0, 16, 4), Ok(()), "a warp sees what it wrote");
        assert_eq!(block.read(1, 16, 4), race(16, 1, 0));
        block.barrier(0, ALL);
        assert_eq!(block.read(1, 16, 4), Ok(()));
        assert_eq!(block.write(0, 18, &[0; 1]), race(18, 0, 1), "a write after a read");
        block.barrier(0, ALL);
        assert_eq!(block.write(0, 16, &[0; 4]), Ok(()));
        assert_eq!(block.write(1, 19, &[0; 1]), Ok(()), "not yet known");
        assert_eq!(block.settle(|_| 1), race(19, 1, 0), "another value over the first");
    }

    #[test]
    fn two_warps_may_write_the_same() {
        let mut block = two_warps();
        assert_eq!(block.write(0, 0, &[7; 4]), Ok(()));
        assert_eq!(block.write(1, 0, &[9; 4]), Ok(()));
        assert_eq!(block.settle(|_| 9), Ok(()));
        assert_eq!(block.read(0, 0, 4), race(0, 0, 1), "a read is another matter");
    }

    /// Two blocks of one warp each, with 64 bytes.
    fn two_blocks() -> Races {
        Races::new(Layout::new(2, 1, 64))
    }

    fn meet(cluster: &mut Races, is_relaxed: bool) {
        (0..2).for_each(|warp| cluster.cluster_arrive(warp, is_relaxed));
        cluster.cluster_met();
        (0..2).for_each(|warp| cluster.cluster_wait(warp));
    }

    #[test]
    fn blocks_of_a_cluster_are_ordered_by_its_barrier() {
        let mut cluster = two_blocks();
        assert_eq!(cluster.write(0, 64 + 8, &[0; 4]), Ok(()), "into the other block's memory");
        assert_eq!(cluster.read(1, 64 + 8, 4), race(8, 1, 0));
        cluster.barrier(0, 1);
        assert_eq!(cluster.read(1, 64 + 8, 4), race(8, 1, 0), "a barrier of one block");
        meet(&mut cluster, false);
        assert_eq!(cluster.read(1, 64 + 8, 4), Ok(()));
        assert_eq!(cluster.write(0, 64 + 8, &[0; 4]), race(8, 0, 1), "it may still be read");
        assert_eq!(cluster.write(0, 8, &[0; 4]), Ok(()), "the same offset of another block");
    }

    #[test]
    fn who_arrives_relaxed_tells_nothing() {
        let mut cluster = two_blocks();
        assert_eq!(cluster.write(0, 64, &[0; 4]), Ok(()));
        meet(&mut cluster, true);
        assert_eq!(cluster.read(1, 64, 4), race(0, 1, 0));
    }

    #[test]
    fn what_comes_between_arrival_and_wait_is_not_told() {
        let mut cluster = two_blocks();
        cluster.cluster_arrive(0, false);
        assert_eq!(cluster.write(0, 64, &[0; 4]), Ok(()));
        cluster.cluster_arrive(1, false);
        cluster.cluster_met();
        cluster.cluster_wait(1);
        assert_eq!(cluster.read(1, 64, 4), race(0, 1, 0));
    }

    #[test]
    fn bytes_of_one_word_are_apart() {
        let mut block = two_warps();
        assert_eq!(block.write(0, 0, &[0; 2]), Ok(()));
        assert_eq!(block.write(1, 2, &[0; 2]), Ok(()));
    }

    #[test]
    fn a_named_barrier_orders_those_who_come() {
        let mut block = Races::new(Layout::new(1, 3, 64));
        assert_eq!(block.write(0, 0, &[0; 4]), Ok(()));
        block.barrier(0, 0b011);
        assert_eq!(block.read(1, 0, 4), Ok(()));
        assert_eq!(block.read(2, 0, 4), race(0, 2, 0));
    }

    #[test]
    fn an_mbarrier_orders_arrival_before_wait() {
        let mut block = two_warps();
        assert_eq!(block.mbarrier_init(0, 512), Ok(()));
        assert_eq!(block.mbarrier_arrive(1, 512, false), race(512, 1, 0), "not yet made");
        block.barrier(0, ALL);
        assert_eq!(block.write(0, 0, &[0; 4]), Ok(()));
        assert_eq!(block.mbarrier_arrive(0, 512, false), Ok(()));
        block.mbarrier_wait(1, 512);
        assert_eq!(block.read(1, 0, 4), race(0, 1, 0), "the phase is not over");
        assert_eq!(block.mbarrier_arrive(1, 512, true), Ok(()));
        block.mbarrier_wait(1, 512);
        assert_eq!(block.read(1, 0, 4), Ok(()));
    }

    #[test]
    fn a_copy_is_read_after_its_barrier() {
        let mut block = two_warps();
        assert_eq!(block.read(1, 0, 4), Ok(()));
        assert_eq!(block.async_write(0, &[0]), race(0, 0, 1).map(|()| 0), "warp 1 still reads");
        block.barrier(0, ALL);
        let at = block.async_write(0, &[0]).expect("ordered by the barrier");
        assert_eq!(block.read(0, 0, 4), Err(Finding::AsyncRace { offset: 0, warp: 0 }));
        block.mbarrier_arrive_async(0, 512, at, true);
        block.mbarrier_wait(1, 512);
        assert_eq!(block.read(1, 0, 4), Ok(()));
    }

    #[test]
    fn operands_in_flight_may_not_be_written() {
        let mut block = two_warps();
        let at = block.async_read(0, &[32, 48]).expect("nothing was written");
        assert_eq!(block.write(0, 40, &[0; 1]), Err(Finding::AsyncRace { offset: 40, warp: 0 }));
        block.async_done(0, at);
        assert_eq!(block.write(0, 40, &[0; 1]), Ok(()));
    }

    #[test]
    fn a_proxy_fence_of_writer_or_issuer() {
        let mut block = two_warps();
        let missing = Err(Finding::NoProxyFence { offset: 0, warp: 0, writer: 1 });
        assert_eq!(block.write(1, 0, &[0; 16]), Ok(()));
        block.barrier(0, ALL);
        assert_eq!(block.async_read(0, &[0]), missing);
        block.proxy_fence(0);
        assert!(block.async_read(0, &[0]).is_ok());
        block.async_done(1, 9);
        assert_eq!(block.write(1, 0, &[0; 16]), Ok(()));
        block.proxy_fence(1);
        block.barrier(0, ALL);
        assert!(block.async_read(0, &[0]).is_ok());
    }

    #[test]
    fn atomics_order_each_other() {
        let mut block = two_warps();
        for warp in [0, 1, 0, 1] {
            assert_eq!(block.atomic(warp, 0, 4), Ok(()));
        }
        assert_eq!(block.read(0, 0, 4), race(0, 0, 1));
        block.barrier(0, ALL);
        assert_eq!(block.read(0, 0, 4), Ok(()));
    }
}
