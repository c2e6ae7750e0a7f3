//! What the families' launches on a GPU share: the names of `common.cuh`, from the host's side.

use crate::device::cuda::{Param, bytes_of};
use crate::device::{Deferred, DevicePtr, N_PARTS_MAX, WeightFactors};

/// Neighbouring columns that are moved as one.
pub(super) const CHUNK: usize = 8;

/// Ranks of a node at most.
pub const N_RANKS_MAX: usize = 8;

/// Tokens of a step at most: blocks that a grid may have in its second dimension.
pub const N_TOKENS_MAX: usize = 65_535;

/// Bytes that [`Exchange::flags`] points to in each rank's memory; zeroes at first.
pub const FLAG_BYTES: usize = N_RANKS_MAX * size_of::<u32>();

/// Bytes that [`Exchange::state`] points to; zeroes at first.
pub const STATE_BYTES: usize = SPENT_OFFSET_BYTES + 2 * size_of::<u64>();

/// Where in it is what the rank's exchanges took, in nanoseconds, and behind it what they waited.
pub const SPENT_OFFSET_BYTES: usize = 2 * size_of::<u32>();

/// How ranks meet inside a kernel: `Exchange` of `common.cuh`, where its rules are.
///
/// In short: what the others read in one exchange may be written again only by work that is
/// submitted after the next one. All ranks make the same exchanges in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Every rank's flags, in memory that all may reach.
    pub flags: [DevicePtr; N_RANKS_MAX],
    /// This rank's own count of exchanges.
    pub state: DevicePtr,
    /// Ranks that meet; 1 for none but this one, which needs neither flags nor state.
    pub n_ranks: usize,
    /// Which of them this is.
    pub rank: usize,
}

impl Exchange {
    /// Of a rank that meets nobody.
    pub const ALONE: Exchange = Exchange {
        flags: [DevicePtr::NULL; N_RANKS_MAX],
        state: DevicePtr::NULL,
        n_ranks: 1,
        rank: 0,
    };

    /// The struct as the kernel takes it.
    pub(super) fn words(&self) -> [u64; N_RANKS_MAX + 3] {
        let Exchange { flags, state, n_ranks, rank } = *self;
        assert!(rank < n_ranks && n_ranks <= N_RANKS_MAX, "rank {rank} of {n_ranks}");
        let mut words = [0; N_RANKS_MAX + 3];
        words[..N_RANKS_MAX].copy_from_slice(&flags.map(|flags| flags.0));
        words[N_RANKS_MAX] = flags[rank].0;
        words[N_RANKS_MAX + 1] = state.0;
        // Two i32, the first in the lower half.
        words[N_RANKS_MAX + 2] = n_ranks as u64 | (rank as u64) << 32;
        words
    }
}

/// Addresses, one of each rank: `OfRanks` of `common.cuh`.
pub(super) fn of_ranks(addresses: [DevicePtr; N_RANKS_MAX]) -> [u64; N_RANKS_MAX] {
    addresses.map(|address| address.0)
}

/// A struct that is passed by value.
pub(super) fn by_value(words: &[u64]) -> Param<'_> {
    Param::Bytes(bytes_of(words))
}

/// Parameters of kernels that differ in their last ones, gathered without allocating.
pub(super) struct Params<'a> {
    params: [Param<'a>; Params::N_MAX],
    n: usize,
}

impl<'a> Params<'a> {
    const N_MAX: usize = 16;

    pub(super) fn new(first: &[Param<'a>]) -> Params<'a> {
        let mut params = Params { params: [Param::Word(0); Params::N_MAX], n: 0 };
        params.extend(first);
        params
    }

    pub(super) fn extend(&mut self, more: &[Param<'a>]) {
        self.params[self.n..self.n + more.len()].copy_from_slice(more);
        self.n += more.len();
    }

    pub(super) fn as_slice(&self) -> &[Param<'a>] {
        &self.params[..self.n]
    }
}

/// Factors that a product still lacks, as kernels take them.
pub(super) struct Factors {
    /// Of the parts; 1 where rows have their own.
    pub(super) parts: [f32; N_PARTS_MAX],
    /// f32 for each column, or null.
    pub(super) columns: DevicePtr,
    /// f32 for each token, or null.
    pub(super) tokens: DevicePtr,
}

impl From<Deferred> for Factors {
    fn from(deferred: Deferred) -> Factors {
        let none = DevicePtr::NULL;
        match deferred {
            Deferred::Nothing => Factors { parts: [1.0; N_PARTS_MAX], columns: none, tokens: none },
            Deferred::Scales { weights, tokens } => {
                let (parts, columns) = match weights {
                    WeightFactors::None => ([1.0; N_PARTS_MAX], none),
                    WeightFactors::PerPart(parts) => (parts, none),
                    WeightFactors::PerRow(columns) => ([1.0; N_PARTS_MAX], columns),
                };
                Factors { parts, columns, tokens: tokens.unwrap_or(none) }
            }
        }
    }
}

/// Whether whole chunks may be moved: every row begins and ends at a multiple of one.
pub(super) fn is_wide(columns: &[usize], addresses: &[DevicePtr]) -> i32 {
    let is_wide = columns.iter().all(|n| n.is_multiple_of(CHUNK))
        && addresses.iter().all(|address| address.is_aligned(16));
    i32::from(is_wide)
}

/// A number of rows or columns; kernels multiply them in 64 bits.
pub(super) fn count(n: usize) -> i32 {
    i32::try_from(n).expect("no dimension of a step has 2^31 elements")
}

/// Blocks in the grid's second dimension.
pub(super) fn n_rows(n_tokens: usize) -> u32 {
    assert!(n_tokens <= N_TOKENS_MAX, "a step of {n_tokens} tokens");
    n_tokens as u32
}

/// Blocks of a cluster that cover `n_cols`, each of them `cols_of_block`: a power of two, at most
/// the eight that every H100 can place.
pub(super) fn cluster_of(n_cols: usize, cols_of_block: usize) -> u32 {
    n_cols.div_ceil(cols_of_block).max(1).next_power_of_two().min(8) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_is_laid_out_as_the_kernel_reads_it() {
        let flags = std::array::from_fn(|rank| DevicePtr(0x100 * (rank as u64 + 1)));
        let exchange = Exchange { flags, state: DevicePtr(7), n_ranks: 8, rank: 5 };
        let words = exchange.words();
        assert_eq!(words[..8], [0x100, 0x200, 0x300, 0x400, 0x500, 0x600, 0x700, 0x800]);
        assert_eq!(words[8..], [0x600, 7, 5 << 32 | 8]);
    }

    #[test]
    fn chunks_are_moved_whole_where_rows_allow_it() {
        assert_eq!(is_wide(&[16, 24], &[DevicePtr(32), DevicePtr::NULL]), 1);
        assert_eq!(is_wide(&[16, 28], &[DevicePtr(32)]), 0);
        assert_eq!(is_wide(&[16], &[DevicePtr(36)]), 0);
    }

    #[test]
    fn clusters_cover_a_row_or_are_as_large_as_they_get() {
        let sizes = [1, 2048, 2049, 5120, 8192, 16_384, 53_248].map(|n| cluster_of(n, 2048));
        assert_eq!(sizes, [1, 1, 2, 4, 4, 8, 8]);
    }
}
