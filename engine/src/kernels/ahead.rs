//! Which weights a sum over ranks, or attention, has fetched into the cache meanwhile.
//!
//! A sum of a few tokens is latency: for some microseconds a device's memory has nothing to do,
//! while the product that comes next waits for nothing but weights. So blocks beside those of the
//! rows ask for a part of them, which that product then finds in the L2 cache. Attention of a few
//! tokens is latency too, and of more it does not take all that the memory yields. Others do so to
//! the same end (arXiv 2501.08192; local-inference-lab/vllm#576, whose products are cuBLAS's, as
//! here, and #578, where a third of it was lost until a part of the cache was put aside).

use crate::device::{DevicePtr, DeviceView};

/// Bytes of a piece: enough to be worth an instruction, and few, so that every part of a product
/// has its share.
const PIECE_BYTES: usize = 2 << 10;

/// Bytes that are fetched of one token's step: about what an H100's memory yields in the 7 µs of
/// the shortest sum. Either half of its L2 of 50 MB has room for them, should both keep a copy.
const N_BYTES_ONE: usize = 20 << 20;

/// Bytes more for each token more: what it yields in the half of a microsecond that every rank then
/// reads longer.
const N_BYTES_EACH: usize = 5 << 18;

/// Most bytes that are fetched, and as many of the cache as are put aside for them: what H100s have
/// of it is 31.25 MiB.
pub const N_BYTES_MAX: usize = 30 << 20;

/// Most tokens: with more a product is no longer bound by its weights, nor a sum by its latency.
const N_TOKENS_MAX: usize = 256;

/// Pieces that lie evenly in a product's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernels) struct Ahead {
    weights: DevicePtr,
    n_pieces: usize,
    stride_bytes: usize,
}

impl Ahead {
    /// Blocks that ask: a multiple of every cluster's size, and few enough to run beside the rows'.
    pub(super) const N_BLOCKS: u32 = 96;

    /// Of a step of `n_tokens`; `None` where nothing is worth it.
    pub(super) fn new(weights: DeviceView, n_tokens: usize) -> Option<Ahead> {
        let n_bytes = weights.n_rows * weights.stride * weights.element.n_bytes();
        let n_pieces = fetched_ahead(n_bytes, n_tokens) / PIECE_BYTES;
        if n_pieces == 0 {
            return None;
        }
        // Pieces begin at multiples of 16 bytes, better of a sector.
        let stride_bytes = n_bytes / n_pieces / 32 * 32;
        Some(Ahead { weights: weights.first, n_pieces, stride_bytes })
    }

    /// `Ahead` of the kernel, for a grid whose last dimension is `first_block` without the blocks
    /// that fetch.
    pub(super) fn words(ahead: Option<Ahead>, first_block: u32) -> [u64; 3] {
        let pair = |low: usize, high: u32| low as u64 | u64::from(high) << 32;
        match ahead {
            None => [0, 0, pair(0, first_block)],
            Some(Ahead { weights, n_pieces, stride_bytes }) => {
                let stride = u32::try_from(stride_bytes).expect("a product of less than 32 TB");
                [weights.0, pair(n_pieces, stride), pair(PIECE_BYTES, first_block)]
            }
        }
    }
}

/// Bytes of a product's `n_bytes` of weights that are fetched by the kernel before it, in a step of
/// `n_tokens`.
pub fn fetched_ahead(n_bytes: usize, n_tokens: usize) -> usize {
    let most = match n_tokens {
        0 => 0,
        n if n > N_TOKENS_MAX => 0,
        n => (N_BYTES_ONE + (n - 1) * N_BYTES_EACH).min(N_BYTES_MAX),
    };
    n_bytes.min(most) / PIECE_BYTES * PIECE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Element;

    #[test]
    fn more_is_fetched_where_there_is_more_time() {
        let fetched = [1, 5, 9, 256, 257].map(|n_tokens| fetched_ahead(100 << 20, n_tokens));
        assert_eq!(fetched.map(|n_bytes| n_bytes >> 20), [20, 25, 30, 30, 0]);
        assert_eq!(fetched_ahead(5000, 1), 4096, "whole pieces");
    }

    #[test]
    fn pieces_lie_evenly_and_inside() {
        for (n_rows, stride) in [(1, 2048), (3, 1000), (2304, 16_384), (9344, 16_384), (5, 100)] {
            let first = DevicePtr(1 << 20);
            let element = Element::F8;
            let view = DeviceView { first, element, n_rows, n_cols: stride, stride };
            let n_bytes = n_rows * stride;
            for n_tokens in [1, 2, 9, N_TOKENS_MAX] {
                let Some(ahead) = Ahead::new(view, n_tokens) else {
                    assert!(n_bytes < PIECE_BYTES, "{n_bytes} bytes");
                    continue;
                };
                let Ahead { n_pieces, stride_bytes, .. } = ahead;
                assert_eq!(n_pieces * PIECE_BYTES, fetched_ahead(n_bytes, n_tokens));
                assert!(stride_bytes >= PIECE_BYTES && stride_bytes.is_multiple_of(16));
                let end = (n_pieces - 1) * stride_bytes + PIECE_BYTES;
                assert!(end <= n_bytes, "{end} of {n_bytes}");
                // What lies behind the last piece is no more than what lies between two, and what
                // rounding has left of each.
                assert!(n_bytes - end < stride_bytes + 32 * n_pieces, "{end} of {n_bytes}");
            }
            assert_eq!(Ahead::new(view, N_TOKENS_MAX + 1), None);
        }
    }
}
