//! Host memory that devices may reach: pinned by the driver, or registered by the program.

use std::collections::BTreeMap;

use super::{Allocation, MemoryError, Place, backing};

/// Whose host memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// Allocated by the driver.
    Pinned,
    /// Allocated by the program, and registered.
    Registered,
}

/// All host memory that devices may reach, by address.
#[derive(Default)]
pub(super) struct HostRanges {
    ranges: BTreeMap<u64, (u64, HostKind)>,
}

impl HostRanges {
    pub(super) fn allocate(&mut self, n_bytes: u64) -> Result<u64, MemoryError> {
        let address = backing::map_host(n_bytes).ok_or(MemoryError::Host { n_bytes })?;
        self.ranges.insert(address, (n_bytes, HostKind::Pinned));
        Ok(address)
    }

    pub(super) fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        let n_bytes = self.take(address, HostKind::Pinned)?;
        backing::unmap_host(address, n_bytes);
        Ok(())
    }

    pub(super) fn register(&mut self, address: u64, n_bytes: u64) -> Result<(), MemoryError> {
        let before = self.ranges.range(..address + n_bytes).next_back();
        if before.is_some_and(|(start, (size, _))| start + size > address) {
            return Err(MemoryError::Registered { address });
        }
        self.ranges.insert(address, (n_bytes, HostKind::Registered));
        Ok(())
    }

    pub(super) fn unregister(&mut self, address: u64) -> Result<(), MemoryError> {
        self.take(address, HostKind::Registered).map(|_| ())
    }

    pub(super) fn find(&self, address: u64) -> Option<Allocation> {
        let (&start, &(n_bytes, kind)) = self.ranges.range(..=address).next_back()?;
        let allocation = Allocation { start, n_bytes, place: Place::Host(kind) };
        (address - start < n_bytes).then_some(allocation)
    }

    fn take(&mut self, address: u64, kind: HostKind) -> Result<u64, MemoryError> {
        match self.ranges.get(&address) {
            Some(&(n_bytes, found)) if found == kind => {
                self.ranges.remove(&address);
                Ok(n_bytes)
            }
            _ => Err(MemoryError::NotAllocated { address, freed: false }),
        }
    }
}
