//! The memory of the devices, and the host memory that they may reach.
//!
//! A device's addresses are numbers in a range of its own that the host may not touch: what they
//! stand for lies elsewhere, so a host program that follows a device pointer dies as it would on
//! a real machine. Every access asks [`Memory::resolve`] or a [`Window`], which know the live
//! allocations, their ends, and who may reach whom.
//!
//! Knows nothing of contexts, streams or kernels.

mod backing;
mod host;
mod space;
mod window;

use std::fmt;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::config::{Config, N_DEVICES_MAX};
pub use host::HostKind;
use host::HostRanges;
use space::Space;
pub use window::Window;

/// Where the first device's addresses begin.
const FIRST_ADDRESS: u64 = 0x2000_0000_0000;
/// Addresses from one device to the next.
const STRIDE_BYTES: u64 = 1 << 40;
/// Addresses that a device hands out: more than it has memory, so that guard gaps cost none and
/// freed addresses come back late, which is what makes a use after free visible.
const SPACE_BYTES: u64 = 256 << 30;
/// What a context finds in an H100 of 80 GB before it takes anything: 81,008 MiB.
pub const TOTAL_BYTES: u64 = 81_008 << 20;
/// What the first context on a device takes away from that. The real driver takes about as much.
pub const CONTEXT_BYTES: u64 = 520 << 20;
/// Allocations begin at multiples of this, as the real driver's do.
pub const ALIGNMENT_BYTES: u64 = 512;
/// Fresh memory, four bytes at a time: NaN read as f32, bf16, f16 or e4m3, and as an index far
/// outside of everything.
pub const POISON: u32 = 0x7fff_7fff;

/// A device's position in the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceIdx(pub u8);

impl DeviceIdx {
    /// As an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for DeviceIdx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An access that may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing lies there.
    #[error("{n_bytes} bytes at {address:#x} are in no allocation")]
    Unmapped {
        /// The first byte.
        address: u64,
        /// Bytes of the access.
        n_bytes: u64,
    },
    /// The access begins in an allocation and leaves it.
    #[error(
        "{n_bytes} bytes at {address:#x} leave the allocation of {allocation_bytes} bytes at \
         {start:#x}"
    )]
    OutOfBounds {
        /// The first byte.
        address: u64,
        /// Bytes of the access.
        n_bytes: u64,
        /// The allocation's first byte.
        start: u64,
        /// The allocation's size.
        allocation_bytes: u64,
    },
    /// What lay there was freed.
    #[error("{n_bytes} bytes at {address:#x} are in memory that was freed (from {start:#x})")]
    Freed {
        /// The first byte.
        address: u64,
        /// Bytes of the access.
        n_bytes: u64,
        /// The freed allocation's first byte.
        start: u64,
    },
    /// Another device's memory, and peer access was never enabled.
    #[error("device {accessor} reaches {address:#x} of device {owner} without peer access")]
    NoPeerAccess {
        /// Who asks.
        accessor: DeviceIdx,
        /// Whose memory it is.
        owner: DeviceIdx,
        /// The first byte.
        address: u64,
    },
    /// There is no data in dry mode.
    #[error("{address:#x} has no data: memory is address space only in dry mode")]
    Dry {
        /// The first byte.
        address: u64,
    },
}

/// Memory that cannot be had, or cannot be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The device, or its addresses, are full.
    #[error("{n_bytes} bytes do not fit into the {free_bytes} free bytes of device {device}")]
    OutOfMemory {
        /// The device.
        device: DeviceIdx,
        /// Bytes asked for.
        n_bytes: u64,
        /// Bytes that are free.
        free_bytes: u64,
    },
    /// No live allocation begins there.
    #[error("no allocation begins at {address:#x}{}", was_freed(*.freed))]
    NotAllocated {
        /// What was to be freed.
        address: u64,
        /// Whether an allocation that began there was freed a while ago.
        freed: bool,
    },
    /// The host has no memory left.
    #[error("the host cannot map {n_bytes} bytes")]
    Host {
        /// Bytes asked for.
        n_bytes: u64,
    },
    /// The host memory is registered already, at least in part.
    #[error("host memory at {address:#x} is registered already")]
    Registered {
        /// The first byte.
        address: u64,
    },
}

fn was_freed(freed: bool) -> &'static str {
    if freed { ": it was freed before" } else { "" }
}

/// A live allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Its first byte, as devices see it.
    pub start: u64,
    /// Its size as asked for.
    pub n_bytes: u64,
    /// Where it lies.
    pub place: Place,
}

/// Where an allocation lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a device's memory.
    Device(DeviceIdx),
    /// In host memory that devices may reach.
    Host(HostKind),
}

/// Bytes that are free and that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Bytes that may still be allocated.
    pub free_bytes: u64,
    /// Bytes of the device.
    pub total_bytes: u64,
}

/// The memory of all devices of one node.
pub struct Memory {
    devices: Vec<RwLock<Space>>,
    host: RwLock<HostRanges>,
    /// Bit `to` of number `from`: whether `from` may reach `to`.
    peers: RwLock<[u8; N_DEVICES_MAX]>,
    /// Grows whenever something that was reachable no longer is, which empties all windows.
    epoch: AtomicU64,
    is_backed: bool,
}

impl Memory {
    /// The process's memory, as the environment wants it.
    pub fn global() -> &'static Memory {
        static MEMORY: OnceLock<Memory> = OnceLock::new();
        MEMORY.get_or_init(|| {
            let config = Config::get();
            Memory::new(config.n_devices, !config.is_dry())
        })
    }

    /// A node's memory of its own. Without backing it is address space only.
    pub fn new(n_devices: usize, is_backed: bool) -> Memory {
        assert!((1..=N_DEVICES_MAX).contains(&n_devices), "{n_devices} devices");
        let first = |device: usize| FIRST_ADDRESS + STRIDE_BYTES * device as u64;
        let spaces = (0..n_devices).map(|device| {
            backing::forbid(first(device), SPACE_BYTES);
            RwLock::new(Space::new(DeviceIdx(device as u8), first(device), is_backed))
        });
        Memory {
            devices: spaces.collect(),
            host: RwLock::new(HostRanges::default()),
            peers: RwLock::new([0; N_DEVICES_MAX]),
            epoch: AtomicU64::new(1),
            is_backed,
        }
    }

    /// How many devices there are.
    pub fn n_devices(&self) -> usize {
        self.devices.len()
    }

    /// Takes `n_bytes` (not 0) of the device's memory, poisoned.
    pub fn allocate(&self, device: DeviceIdx, n_bytes: u64) -> Result<u64, MemoryError> {
        assert!(n_bytes > 0, "an allocation has bytes");
        self.space(device).write().allocate(n_bytes)
    }

    /// Gives an allocation of a device back. `address` is where it begins.
    pub fn free(&self, address: u64) -> Result<Allocation, MemoryError> {
        let owner = self.owner(address);
        let Some(owner) = owner else {
            return Err(MemoryError::NotAllocated { address, freed: false });
        };
        // Nobody may still hold the address when its bytes are poisoned again. Under the lock: a
        // window that is filled after it was emptied finds the allocation gone.
        let mut space = self.space(owner).write();
        self.epoch.fetch_add(1, Ordering::AcqRel);
        space.free(address)
    }

    /// Takes pinned host memory, whose address is the same for the host and all devices.
    pub fn allocate_host(&self, n_bytes: u64) -> Result<u64, MemoryError> {
        assert!(n_bytes > 0, "an allocation has bytes");
        self.host.write().allocate(n_bytes)
    }

    /// Gives pinned host memory back.
    pub fn free_host(&self, address: u64) -> Result<(), MemoryError> {
        let mut host = self.host.write();
        self.epoch.fetch_add(1, Ordering::AcqRel);
        host.free(address)
    }

    /// Lets devices reach host memory that the program allocated itself.
    pub fn register_host(&self, address: u64, n_bytes: u64) -> Result<(), MemoryError> {
        self.host.write().register(address, n_bytes)
    }

    /// The reverse of [`Memory::register_host`].
    pub fn unregister_host(&self, address: u64) -> Result<(), MemoryError> {
        let mut host = self.host.write();
        self.epoch.fetch_add(1, Ordering::AcqRel);
        host.unregister(address)
    }

    /// Takes bytes from the device's memory that have no address: what a context occupies.
    pub fn charge(&self, device: DeviceIdx, n_bytes: u64) -> Result<(), MemoryError> {
        self.space(device).write().charge(n_bytes)
    }

    /// The reverse of [`Memory::charge`].
    pub fn refund(&self, device: DeviceIdx, n_bytes: u64) {
        self.space(device).write().refund(n_bytes);
    }

    /// How much of the device is free. What is taken counts in units of 512 bytes.
    pub fn info(&self, device: DeviceIdx) -> MemoryInfo {
        let free_bytes = self.space(device).read().free_bytes();
        MemoryInfo { free_bytes, total_bytes: TOTAL_BYTES }
    }

    /// Lets `from` reach the memory of `to`. Answers whether it could not before.
    pub fn enable_peer(&self, from: DeviceIdx, to: DeviceIdx) -> bool {
        let mut peers = self.peers.write();
        let before = peers[from.index()];
        peers[from.index()] = before | 1 << to.0;
        before >> to.0 & 1 == 0
    }

    /// The reverse of [`Memory::enable_peer`]. Answers whether it could before.
    pub fn disable_peer(&self, from: DeviceIdx, to: DeviceIdx) -> bool {
        let mut peers = self.peers.write();
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let before = peers[from.index()];
        peers[from.index()] = before & !(1 << to.0);
        before >> to.0 & 1 == 1
    }

    /// Whether `from` may reach the memory of `to`.
    pub fn may_reach(&self, from: DeviceIdx, to: DeviceIdx) -> bool {
        from == to || self.peers.read()[from.index()] >> to.0 & 1 == 1
    }

    /// The live allocation that holds the address.
    pub fn find(&self, address: u64) -> Option<Allocation> {
        match self.owner(address) {
            Some(owner) => self.space(owner).read().find(address),
            None => self.host.read().find(address),
        }
    }

    /// The live allocation that holds all of the range, if the accessor may reach it.
    pub fn check(
        &self,
        accessor: DeviceIdx,
        address: u64,
        n_bytes: u64,
    ) -> Result<Allocation, Fault> {
        let Some(allocation) = self.find(address) else {
            return Err(match self.owner(address) {
                Some(owner) => self.space(owner).read().miss(address, n_bytes),
                None => Fault::Unmapped { address, n_bytes },
            });
        };
        if let Place::Device(owner) = allocation.place
            && !self.may_reach(accessor, owner)
        {
            return Err(Fault::NoPeerAccess { accessor, owner, address });
        }
        let Allocation { start, n_bytes: allocation_bytes, .. } = allocation;
        if n_bytes > allocation_bytes - (address - start) {
            return Err(Fault::OutOfBounds { address, n_bytes, start, allocation_bytes });
        }
        Ok(allocation)
    }

    /// Where the host finds the bytes of a range that lies in one live allocation which the
    /// accessor may reach. The pointer is good until the allocation is freed.
    pub fn resolve(
        &self,
        accessor: DeviceIdx,
        address: u64,
        n_bytes: u64,
    ) -> Result<NonNull<u8>, Fault> {
        let allocation = self.check(accessor, address, n_bytes)?;
        let host = self.host_address(allocation, address)?;
        Ok(NonNull::new(host as *mut u8).expect("backing is not at address 0"))
    }

    /// The device in whose range the address lies, allocated or not.
    pub fn owner(&self, address: u64) -> Option<DeviceIdx> {
        let device = address.checked_sub(FIRST_ADDRESS)? / STRIDE_BYTES;
        (device < self.devices.len() as u64).then_some(DeviceIdx(device as u8))
    }

    /// All live allocations of the device, by address.
    pub fn allocations(&self, device: DeviceIdx) -> Vec<Allocation> {
        self.space(device).read().allocations()
    }

    fn host_address(&self, allocation: Allocation, address: u64) -> Result<u64, Fault> {
        match allocation.place {
            Place::Host(_) => Ok(address),
            Place::Device(_) if !self.is_backed => Err(Fault::Dry { address }),
            Place::Device(owner) => Ok(self.space(owner).read().host_address(address)),
        }
    }

    fn space(&self, device: DeviceIdx) -> &RwLock<Space> {
        &self.devices[device.index()]
    }
}

#[cfg(test)]
mod tests;
