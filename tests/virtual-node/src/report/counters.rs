//! What is counted, and how counts add up. Nothing here depends on time or on how the host's
//! threads were scheduled, so the same program always counts the same, with one exception: what a
//! kernel does while it looks for something that another device or block has yet to write.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything that a process did on the node since it began, or since the last reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// By device, as far as devices were used.
    pub devices: Vec<DeviceCounters>,
}

/// What one device did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounters {
    /// By kernel; the GEMMs of cuBLASLt and NCCL's collectives are kernels too.
    pub kernels: BTreeMap<String, KernelCounters>,
    /// Launches of whole graphs; the kernels in them are counted among the kernels too.
    pub graphs: GraphCounters,
    /// Times that the host waited for the device: stream, event, context or blocking copy.
    pub n_host_syncs: u64,
    /// Bytes of the L2 cache that were put aside for what is evicted last, of all calls.
    pub set_aside_bytes: u64,
    /// Copies and memsets, in graphs and out of them.
    pub copies: BTreeMap<CopyKind, Transfers>,
    /// By collective: calls, and bytes of the message on this rank.
    pub collectives: BTreeMap<String, Transfers>,
}

/// What all launches of one kernel did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelCounters {
    /// Launches, alone and as nodes of graphs.
    pub n_launches: u64,
    /// Blocks of all launches.
    pub n_blocks: u64,
    /// Instructions that warps issued.
    pub n_warp_instructions: u64,
    /// Bytes of global memory that active lanes asked for.
    pub bytes_read: u64,
    /// The same for stores, and for atomics, which count as both.
    pub bytes_written: u64,
    /// Bytes that were fetched into the L2 cache by bulk prefetches; not among those read.
    #[serde(default)]
    pub bytes_prefetched: u64,
    /// 32-byte sectors that those accesses touched, each counted once per warp access.
    pub sectors_read: u64,
    /// The same for stores and atomics.
    pub sectors_written: u64,
    /// What it computed.
    pub flops: Flops,
    /// Extra passes through shared memory because lanes met in a bank.
    pub n_bank_conflicts: u64,
}

/// Floating-point operations by the unit that did them; a fused multiply-add is two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flops {
    /// Scalar single precision, and what is narrower.
    pub f32: u64,
    /// Scalar double precision.
    pub f64: u64,
    /// Tensor cores on BF16 or F16.
    pub tensor_f16: u64,
    /// Tensor cores on FP8.
    pub tensor_f8: u64,
    /// Tensor cores on anything else.
    pub tensor_other: u64,
}

/// Graphs that were launched, and the nodes in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphCounters {
    /// Launches of graphs.
    pub n_launches: u64,
    /// Nodes of all of them: kernels, copies, memsets, library calls.
    pub n_nodes: u64,
    /// Launches behind another in the same stream whose end the host had not seen by then: the
    /// device need not wait for the host between the two.
    pub n_ahead: u64,
}

/// Between which memories bytes were copied. A memset is a copy of nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyKind {
    /// Over PCIe to the device.
    HostToDevice,
    /// Over PCIe to the host.
    DeviceToHost,
    /// Within one device.
    DeviceToDevice,
    /// Between devices.
    PeerToPeer,
    /// Within the host.
    HostToHost,
    /// Nothing is read.
    Memset,
}

/// How often something was moved, and how much in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfers {
    /// Times.
    pub n: u64,
    /// Bytes of all times together.
    pub bytes: u64,
}

impl std::fmt::Display for CopyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            CopyKind::HostToDevice => "host to device",
            CopyKind::DeviceToHost => "device to host",
            CopyKind::DeviceToDevice => "device to device",
            CopyKind::PeerToPeer => "peer to peer",
            CopyKind::HostToHost => "host to host",
            CopyKind::Memset => "memset",
        })
    }
}

impl Transfers {
    /// One more, of so many bytes.
    pub fn record(&mut self, n_bytes: u64) {
        *self += Transfers { n: 1, bytes: n_bytes };
    }
}

impl Flops {
    /// By every unit together.
    pub fn total(&self) -> u64 {
        self.f32 + self.f64 + self.tensor_f16 + self.tensor_f8 + self.tensor_other
    }
}

impl KernelCounters {
    /// Bytes that 32-byte sectors moved for each byte that was asked for; 1 when nothing was.
    /// Only meaningful where sectors were counted.
    pub fn sector_overhead(&self) -> f64 {
        let asked = self.bytes_read + self.bytes_written;
        let moved = 32 * (self.sectors_read + self.sectors_written);
        if asked == 0 { 1.0 } else { moved as f64 / asked as f64 }
    }
}

impl DeviceCounters {
    /// All kernels of the device together.
    pub fn all_kernels(&self) -> KernelCounters {
        let mut all = KernelCounters::default();
        for counters in self.kernels.values() {
            all += *counters;
        }
        all
    }
}

impl Counters {
    /// All devices together.
    pub fn total(&self) -> DeviceCounters {
        let mut total = DeviceCounters::default();
        for device in &self.devices {
            total += device;
        }
        total
    }
}

macro_rules! add_fields {
    ($type:ty: $($field:ident),+) => {
        impl std::ops::AddAssign for $type {
            fn add_assign(&mut self, other: $type) {
                $(self.$field += other.$field;)+
            }
        }
    };
}

add_fields!(Transfers: n, bytes);
add_fields!(GraphCounters: n_launches, n_nodes, n_ahead);
add_fields!(Flops: f32, f64, tensor_f16, tensor_f8, tensor_other);
add_fields!(KernelCounters: n_launches, n_blocks, n_warp_instructions, bytes_read, bytes_written,
    bytes_prefetched, sectors_read, sectors_written, flops, n_bank_conflicts);

impl std::ops::AddAssign<&DeviceCounters> for DeviceCounters {
    fn add_assign(&mut self, other: &DeviceCounters) {
        for (name, counters) in &other.kernels {
            *self.kernels.entry(name.clone()).or_default() += *counters;
        }
        self.graphs += other.graphs;
        self.n_host_syncs += other.n_host_syncs;
        self.set_aside_bytes += other.set_aside_bytes;
        for (kind, transfers) in &other.copies {
            *self.copies.entry(*kind).or_default() += *transfers;
        }
        for (name, transfers) in &other.collectives {
            *self.collectives.entry(name.clone()).or_default() += *transfers;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(n: u64) -> KernelCounters {
        KernelCounters {
            n_launches: n,
            n_blocks: 2 * n,
            n_warp_instructions: 3 * n,
            bytes_read: 4 * n,
            bytes_written: 5 * n,
            bytes_prefetched: 11 * n,
            sectors_read: 6 * n,
            sectors_written: 7 * n,
            flops: Flops { f32: 8 * n, f64: 9 * n, tensor_f16: n, tensor_f8: n, tensor_other: n },
            n_bank_conflicts: 10 * n,
        }
    }

    fn device(n: u64) -> DeviceCounters {
        let transfers = Transfers { n, bytes: 100 * n };
        DeviceCounters {
            kernels: BTreeMap::from([("norm".to_owned(), kernel(n))]),
            graphs: GraphCounters { n_launches: n, n_nodes: 7 * n, n_ahead: 2 * n },
            n_host_syncs: n,
            set_aside_bytes: 3 * n,
            copies: BTreeMap::from([(CopyKind::HostToDevice, transfers)]),
            collectives: BTreeMap::from([("all_reduce".to_owned(), transfers)]),
        }
    }

    #[test]
    fn every_count_adds_up() {
        let counters = Counters { devices: vec![device(1), device(2), DeviceCounters::default()] };
        assert_eq!(counters.total(), device(3));
        assert_eq!(counters.total().all_kernels(), kernel(3));
    }

    #[test]
    fn counters_survive_json() {
        let counters = Counters { devices: vec![device(1), device(2)] };
        let json = serde_json::to_string(&counters).unwrap();
        assert_eq!(serde_json::from_str::<Counters>(&json).unwrap(), counters);
    }

    #[test]
    fn sectors_are_set_against_bytes() {
        let strided = KernelCounters { bytes_read: 4, sectors_read: 1, ..Default::default() };
        assert!((strided.sector_overhead() - 8.0).abs() < 1e-9);
        assert!((KernelCounters::default().sector_overhead() - 1.0).abs() < 1e-9);
    }
}
