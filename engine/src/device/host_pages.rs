//! KV of one block that fell out of its region: pages of the same shape in this machine's memory,
//! which no kernel reads before they are back.

use scheduler::{HostPageId, PageId};

use super::cuda::Pinned;
use super::kv::{KvRegion, Memory, touched};
use super::{DeviceError, Exec};

/// A block's pages on the host.
pub(crate) struct HostPages {
    memory: Place,
}

enum Place {
    Nowhere,
    /// Beside a region of the processor's.
    Bytes {
        keys: Vec<u8>,
        values: Vec<u8>,
    },
    /// Where a device's copies reach: all keys, then all values, which begin at `values`.
    Pinned {
        pages: Pinned,
        values: usize,
    },
}

impl HostPages {
    /// None.
    pub(crate) fn none() -> HostPages {
        HostPages { memory: Place::Nowhere }
    }

    /// Memory for `n_pages` of `region`.
    pub(crate) fn new(
        exec: &Exec,
        region: &KvRegion,
        n_pages: usize,
    ) -> Result<HostPages, DeviceError> {
        let n_bytes = n_pages * region.shape().page_bytes(PageId(0)).len();
        let memory = match exec {
            _ if n_pages == 0 => Place::Nowhere,
            Exec::Cpu(_) => Place::Bytes { keys: touched(n_bytes), values: touched(n_bytes) },
            Exec::Cuda(gpu) => {
                Place::Pinned { pages: gpu.exec.alloc_pinned(2 * n_bytes)?, values: n_bytes }
            }
        };
        Ok(HostPages { memory })
    }

    /// Puts what page `from` of the region holds into page `to`: now, or when the device gets
    /// there.
    pub(crate) fn take_out(
        &mut self,
        exec: &Exec,
        region: &KvRegion,
        (from, to): (PageId, HostPageId),
    ) -> Result<(), DeviceError> {
        let from = region.shape().page_bytes(from);
        let n_bytes = from.len();
        let to = to.idx() * n_bytes;
        match (&region.memory, &mut self.memory, exec) {
            (Memory::Host { keys, values }, Place::Bytes { keys: k, values: v }, _) => {
                k[to..to + n_bytes].copy_from_slice(&keys[from.clone()]);
                v[to..to + n_bytes].copy_from_slice(&values[from]);
                Ok(())
            }
            (Memory::Device(pages), Place::Pinned { pages: host, values }, Exec::Cuda(gpu)) => {
                let stream = gpu.exec.stream();
                stream.copy_out(host, to, pages.keys.offset(from.start), n_bytes)?;
                stream.copy_out(host, *values + to, pages.values.offset(from.start), n_bytes)
            }
            _ => panic!("{:?} has no pages on the host", region.shape()),
        }
    }

    /// Puts what page `from` holds into page `to` of the region: now, or when the device gets
    /// there.
    pub(crate) fn bring_back(
        &self,
        exec: &Exec,
        region: &mut KvRegion,
        (from, to): (HostPageId, PageId),
    ) -> Result<(), DeviceError> {
        let shape = region.shape();
        let to = shape.page_bytes(to);
        let n_bytes = to.len();
        let from = from.idx() * n_bytes;
        match (&mut region.memory, &self.memory, exec) {
            (Memory::Host { keys, values }, Place::Bytes { keys: k, values: v }, _) => {
                keys[to.clone()].copy_from_slice(&k[from..from + n_bytes]);
                values[to].copy_from_slice(&v[from..from + n_bytes]);
                Ok(())
            }
            (Memory::Device(pages), Place::Pinned { pages: host, values }, Exec::Cuda(gpu)) => {
                let stream = gpu.exec.stream();
                stream.copy_in(pages.keys.offset(to.start), host, from, n_bytes)?;
                stream.copy_in(pages.values.offset(to.start), host, *values + from, n_bytes)
            }
            _ => panic!("{shape:?} has no pages on the host"),
        }
    }
}
