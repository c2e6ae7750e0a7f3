//! One device's addresses: which are taken, and by what.

use std::collections::{BTreeMap, VecDeque};

use super::backing::Backing;
use super::{
    ALIGNMENT_BYTES, Allocation, DeviceIdx, Fault, MemoryError, Place, SPACE_BYTES, TOTAL_BYTES,
};

/// Addresses that stay unused behind every allocation.
const GUARD_BYTES: u64 = 4096;
/// Freed allocations that are remembered, for the words of a later fault.
const N_FREED_MAX: usize = 4096;

/// The addresses of one device. They are handed out upwards, and from the start again when the
/// end is reached, so that freed ones come back as late as can be.
pub(super) struct Space {
    device: DeviceIdx,
    first: u64,
    /// Size as asked for, by first byte.
    live: BTreeMap<u64, u64>,
    /// Where the next allocation is tried first.
    cursor: u64,
    taken_bytes: u64,
    freed: VecDeque<(u64, u64)>,
    /// What lies behind the addresses; nothing in dry mode, and until the first allocation.
    backing: Option<Backing>,
    is_backed: bool,
}

impl Space {
    pub(super) fn new(device: DeviceIdx, first: u64, is_backed: bool) -> Space {
        Space {
            device,
            first,
            live: BTreeMap::new(),
            cursor: first,
            taken_bytes: 0,
            freed: VecDeque::new(),
            backing: None,
            is_backed,
        }
    }

    pub(super) fn allocate(&mut self, n_bytes: u64) -> Result<u64, MemoryError> {
        self.charge(n_bytes)?;
        let start = self.place(n_bytes).ok_or(());
        let start = start.and_then(|start| self.back(start, n_bytes).map(|()| start));
        let Ok(start) = start else {
            self.refund(n_bytes);
            return Err(self.out_of_memory(n_bytes));
        };
        self.live.insert(start, n_bytes);
        self.cursor = start + footprint(n_bytes);
        Ok(start)
    }

    pub(super) fn free(&mut self, address: u64) -> Result<Allocation, MemoryError> {
        let Some(n_bytes) = self.live.remove(&address) else {
            let freed = self.freed.iter().any(|(start, _)| *start == address);
            return Err(MemoryError::NotAllocated { address, freed });
        };
        if let Some(backing) = &self.backing {
            backing.poison(address - self.first, n_bytes);
        }
        if self.freed.len() == N_FREED_MAX {
            self.freed.pop_front();
        }
        self.freed.push_back((address, n_bytes));
        self.refund(n_bytes);
        Ok(Allocation { start: address, n_bytes, place: Place::Device(self.device) })
    }

    pub(super) fn charge(&mut self, n_bytes: u64) -> Result<(), MemoryError> {
        if n_bytes > self.free_bytes() {
            return Err(self.out_of_memory(n_bytes));
        }
        self.taken_bytes += n_bytes.next_multiple_of(ALIGNMENT_BYTES);
        Ok(())
    }

    pub(super) fn refund(&mut self, n_bytes: u64) {
        self.taken_bytes -= n_bytes.next_multiple_of(ALIGNMENT_BYTES);
    }

    pub(super) fn free_bytes(&self) -> u64 {
        TOTAL_BYTES - self.taken_bytes
    }

    pub(super) fn find(&self, address: u64) -> Option<Allocation> {
        let (&start, &n_bytes) = self.live.range(..=address).next_back()?;
        let allocation = Allocation { start, n_bytes, place: Place::Device(self.device) };
        (address - start < n_bytes).then_some(allocation)
    }

    /// Why nothing is found at an address: it was freed, lies right behind what is live, or is
    /// nobody's.
    pub(super) fn miss(&self, address: u64, n_bytes: u64) -> Fault {
        let holds = |(start, n_bytes): &&(u64, u64)| (*start..start + n_bytes).contains(&address);
        if let Some(&(start, _)) = self.freed.iter().rev().find(holds) {
            return Fault::Freed { address, n_bytes, start };
        }
        match self.live.range(..=address).next_back() {
            Some((&start, &allocation_bytes)) if address - start < footprint(allocation_bytes) => {
                Fault::OutOfBounds { address, n_bytes, start, allocation_bytes }
            }
            _ => Fault::Unmapped { address, n_bytes },
        }
    }

    pub(super) fn allocations(&self) -> Vec<Allocation> {
        let place = Place::Device(self.device);
        self.live.iter().map(|(&start, &n_bytes)| Allocation { start, n_bytes, place }).collect()
    }

    /// Where the host finds the byte. It is in a live allocation.
    pub(super) fn host_address(&self, address: u64) -> u64 {
        let backing = self.backing.as_ref().expect("what is allocated has backing");
        backing.host_address(address - self.first)
    }

    /// A gap for the allocation and its guard: the first after the cursor, else the first at all.
    fn place(&self, n_bytes: u64) -> Option<u64> {
        let needed = footprint(n_bytes);
        self.gap(self.cursor, needed).or_else(|| self.gap(self.first, needed))
    }

    fn gap(&self, from: u64, needed: u64) -> Option<u64> {
        let before = self.live.range(..from).next_back();
        let mut at = before.map_or(from, |(start, n_bytes)| from.max(start + footprint(*n_bytes)));
        for (&start, &n_bytes) in self.live.range(from..) {
            if start - at >= needed {
                return Some(at);
            }
            at = start + footprint(n_bytes);
        }
        (self.first + SPACE_BYTES - at >= needed).then_some(at)
    }

    fn back(&mut self, start: u64, n_bytes: u64) -> Result<(), ()> {
        if !self.is_backed {
            return Ok(());
        }
        let backing = self.backing.get_or_insert_with(|| Backing::new(SPACE_BYTES));
        backing.map(start - self.first, n_bytes)
    }

    fn out_of_memory(&self, n_bytes: u64) -> MemoryError {
        let free_bytes = self.free_bytes();
        MemoryError::OutOfMemory { device: self.device, n_bytes, free_bytes }
    }
}

/// Addresses that an allocation keeps from others.
fn footprint(n_bytes: u64) -> u64 {
    n_bytes.next_multiple_of(ALIGNMENT_BYTES) + GUARD_BYTES
}
