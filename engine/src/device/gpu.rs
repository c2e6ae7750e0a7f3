//! A rank's GPU: the executor, its planned products, and the memory that all ranks' kernels reach.

use super::DevicePtr;
use super::cuda::CudaExec;
use super::laps::Laps;
use crate::kernels::launching::{Exchange, N_RANKS_MAX};
use crate::kernels::linear::cuda::Gemms;
use crate::peers::{Carrier, carrier};

/// What a rank's kernels run on.
pub struct Gpu {
    /// The device.
    pub exec: CudaExec,
    /// Products of every projection, planned at boot.
    pub gemms: Gemms,
    /// f32 `[n_tokens]` for the magnitudes of rows; shared where there are other ranks.
    pub magnitudes: DevicePtr,
    /// What kernels of several ranks share; `None` for a rank alone.
    pub shared: Option<SharedMemory>,
    /// What sums take that NCCL carries.
    pub laps: Laps,
}

/// A piece of every rank's memory that all their kernels may read and write, laid out alike.
#[derive(Clone, Copy, Debug)]
pub struct SharedMemory {
    /// Where each rank's piece begins.
    pub pieces: [DevicePtr; N_RANKS_MAX],
    /// Of each.
    pub n_bytes: usize,
    /// How kernels wait for each other.
    pub exchange: Exchange,
    /// NCCL rounds otherwise than the kernels: a deterministic step leaves no sum to it.
    pub is_deterministic: bool,
}

impl SharedMemory {
    /// Which way a sum of `n_bytes` takes that lies here.
    pub(crate) fn carrier(&self, n_bytes: usize) -> Carrier {
        match carrier(n_bytes, self.exchange.n_ranks) {
            Carrier::Nccl if self.is_deterministic => Carrier::TwoShot,
            way => way,
        }
    }

    /// Where the ranks have what this one has at `mine`; `None` if it is not shared.
    pub(crate) fn everywhere(&self, mine: DevicePtr) -> Option<[DevicePtr; N_RANKS_MAX]> {
        let offset = mine.0.checked_sub(self.pieces[self.exchange.rank].0)?;
        if offset >= self.n_bytes as u64 {
            return None;
        }
        Some(std::array::from_fn(|rank_idx| match rank_idx < self.exchange.n_ranks {
            true => self.pieces[rank_idx].offset(offset as usize),
            false => DevicePtr::NULL,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_in_every_piece() {
        let mut pieces = [DevicePtr::NULL; N_RANKS_MAX];
        pieces[..3].copy_from_slice(&[0x1000, 0x9000, 0x5000].map(DevicePtr));
        let exchange = Exchange { n_ranks: 3, rank: 1, ..Exchange::ALONE };
        let shared = SharedMemory { pieces, n_bytes: 0x800, exchange, is_deterministic: false };
        let there = shared.everywhere(DevicePtr(0x9010)).expect("it is shared");
        assert_eq!(there[..3], [0x1010, 0x9010, 0x5010].map(DevicePtr));
        assert_eq!(there[3], DevicePtr::NULL);
        assert_eq!(shared.everywhere(DevicePtr(0x9800)), None);
        assert_eq!(shared.everywhere(DevicePtr(0x8FFF)), None);
    }

    #[test]
    fn a_deterministic_step_leaves_no_sum_to_nccl() {
        let pieces = [DevicePtr(0x1000); N_RANKS_MAX];
        let exchange = Exchange { n_ranks: 8, ..Exchange::ALONE };
        for (is_deterministic, largest) in [(false, Carrier::Nccl), (true, Carrier::TwoShot)] {
            let shared = SharedMemory { pieces, n_bytes: 1, exchange, is_deterministic };
            // Tokens of LN-Ultra.
            let ways = [16, 17, 2048].map(|n_tokens| shared.carrier(n_tokens * 16_384 * 2));
            assert_eq!(ways, [Carrier::OneShot, Carrier::TwoShot, largest]);
        }
    }
}
