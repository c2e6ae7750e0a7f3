//! How the checks number what a cluster has: warps and bytes of its blocks, one block's after
//! another's.

use std::ops::Range;

/// What asynchronous work reads and writes at once.
pub(super) const CHUNK_BYTES: usize = 16;

/// A cluster's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::exec) struct Layout {
    pub(super) n_blocks: usize,
    /// Warps of each block.
    pub(super) n_warps_each: usize,
    /// Bytes of each block's shared memory, rounded up to whole chunks.
    pub(super) n_bytes_each: usize,
}

impl Layout {
    /// So many blocks of so many warps and bytes each.
    pub(in crate::exec) fn new(n_blocks: usize, n_warps_each: usize, n_bytes: usize) -> Layout {
        Layout { n_blocks, n_warps_each, n_bytes_each: n_bytes.next_multiple_of(CHUNK_BYTES) }
    }

    /// Of all blocks.
    pub(super) fn n_warps(&self) -> usize {
        self.n_blocks * self.n_warps_each
    }

    /// Of all blocks.
    pub(super) fn n_bytes(&self) -> usize {
        self.n_blocks * self.n_bytes_each
    }

    /// The number of a byte of a block; none beyond the block's end.
    pub(super) fn byte(&self, rank: usize, offset: usize) -> Option<usize> {
        let is_there = rank < self.n_blocks && offset < self.n_bytes_each;
        is_there.then(|| rank * self.n_bytes_each + offset)
    }

    /// Whose a byte is.
    pub(super) fn rank(&self, byte: usize) -> usize {
        byte / self.n_bytes_each
    }

    /// Where in its block a byte lies.
    pub(super) fn offset(&self, byte: usize) -> usize {
        byte % self.n_bytes_each
    }

    /// Those of `n_bytes` from `first` on that are of the same block.
    pub(super) fn within_block(&self, first: usize, n_bytes: usize) -> Range<usize> {
        let end = (self.rank(first) + 1) * self.n_bytes_each;
        first..(first + n_bytes).min(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_lie_behind_each_other() {
        let layout = Layout::new(3, 2, 60);
        assert_eq!((layout.n_warps(), layout.n_bytes()), (6, 192));
        assert_eq!(layout.byte(2, 5), Some(133));
        assert_eq!((layout.rank(133), layout.offset(133)), (2, 5));
        assert_eq!((layout.byte(2, 64), layout.byte(3, 0)), (None, None), "nobody's");
        assert_eq!(layout.within_block(124, 16), 124..128, "not into the next block");
    }
}
