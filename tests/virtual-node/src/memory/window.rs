//! A thread's short way to the memory that it used last.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use super::{DeviceIdx, Fault, Memory};

const N_ENTRIES: usize = 8;

/// Remembers the allocations that one thread reached last on behalf of one device, so that most
/// accesses cost a few comparisons. It forgets everything when anything was freed.
pub struct Window<'m> {
    memory: &'m Memory,
    accessor: DeviceIdx,
    epoch: u64,
    entries: [Entry; N_ENTRIES],
    /// The entry that answered last, tried first.
    last_idx: usize,
    /// The entry that the next miss overwrites.
    victim_idx: usize,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    start: u64,
    n_bytes: u64,
    /// Added to a device's address gives the host's.
    delta: u64,
}

impl Entry {
    #[inline(always)]
    fn lookup(&self, address: u64, n_bytes: u64) -> Option<NonNull<u8>> {
        let offset = address.wrapping_sub(self.start);
        if offset < self.n_bytes && n_bytes <= self.n_bytes - offset {
            NonNull::new(address.wrapping_add(self.delta) as *mut u8)
        } else {
            None
        }
    }
}

impl<'m> Window<'m> {
    /// A window onto what `accessor` may reach.
    pub fn new(memory: &'m Memory, accessor: DeviceIdx) -> Window<'m> {
        Window {
            memory,
            accessor,
            epoch: memory.epoch.load(Ordering::Acquire),
            entries: [Entry::default(); N_ENTRIES],
            last_idx: 0,
            victim_idx: 0,
        }
    }

    /// As [`Memory::resolve`].
    #[inline(always)]
    pub fn resolve(&mut self, address: u64, n_bytes: u64) -> Result<NonNull<u8>, Fault> {
        if self.memory.epoch.load(Ordering::Acquire) == self.epoch
            && let Some(found) = self.entries[self.last_idx].lookup(address, n_bytes)
        {
            return Ok(found);
        }
        self.search(address, n_bytes)
    }

    #[inline(never)]
    fn search(&mut self, address: u64, n_bytes: u64) -> Result<NonNull<u8>, Fault> {
        let epoch = self.memory.epoch.load(Ordering::Acquire);
        if epoch != self.epoch {
            self.entries = [Entry::default(); N_ENTRIES];
            self.epoch = epoch;
        }
        for (entry_idx, entry) in self.entries.iter().enumerate() {
            if let Some(found) = entry.lookup(address, n_bytes) {
                self.last_idx = entry_idx;
                return Ok(found);
            }
        }
        let allocation = self.memory.check(self.accessor, address, n_bytes)?;
        let host = self.memory.host_address(allocation, allocation.start)?;
        let delta = host.wrapping_sub(allocation.start);
        let entry = Entry { start: allocation.start, n_bytes: allocation.n_bytes, delta };
        self.entries[self.victim_idx] = entry;
        self.last_idx = self.victim_idx;
        self.victim_idx = (self.victim_idx + 1) % N_ENTRIES;
        Ok(entry.lookup(address, n_bytes).expect("the range was checked"))
    }
}
