//! Inputs of a product, laid as its kernels read them: whole vectors, panel by panel.
//!
//! **Pairs.** Where inputs and weights are e4m3 values, both are bf16 as well, and a lane takes two
//! of each. A product of two such values is a multiple of 2^-18 and, like every sum of them, far
//! from f32's subnormal numbers (weights come times 2^-8 on top): so instructions that take those
//! for zero give the bits that two fused multiply-adds give. Where inputs are rounded to bf16 to
//! meet weights of bf16, products may be anything: a level with such an instruction then loses what
//! is less than 2^-126, and agrees with the others bit for bit where nothing is.

use weights::{Dtype, InputScale, LinearWeights};

use crate::device::HostViewMut;

use super::Simd;
use super::lanes::Lanes;
use super::product::Blocks;

/// Vectors of a row that a product takes at once: 4 KiB, of which a register tile of rows stays in
/// the first-level cache.
pub(crate) const PANEL_BLOCKS: usize = 64;

/// What lies in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// An f32.
    Singles,
    /// Two numbers of bf16.
    Pairs,
}

/// `[T, K]`, as panels of [`PANEL_BLOCKS`] vectors: `[K / panel][T][panel]`, zeroes behind the end
/// of a row.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    blocks: Blocks<'a>,
    packing: Packing,
    /// Vectors of a row.
    n_row_blocks: usize,
    /// Rows that are packed, and those of this view.
    n_rows_all: usize,
    row_begin: usize,
    n_rows: usize,
}

impl Packing {
    /// What suits inputs of these weights; `rounds` says whether inputs may be rounded to bf16.
    pub(crate) fn of<'a>(
        parts: impl IntoIterator<Item = &'a LinearWeights, IntoIter: Clone>,
        rounds: bool,
    ) -> Packing {
        let mut parts = parts.into_iter();
        let is_e4m3 = |part: &LinearWeights| {
            part.input != InputScale::None && part.matrix.dtype == Dtype::F8E4m3
        };
        let is_bf16 = |part: &LinearWeights| part.matrix.dtype == Dtype::Bf16;
        if parts.clone().all(is_e4m3) || rounds && parts.all(is_bf16) {
            Packing::Pairs
        } else {
            Packing::Singles
        }
    }

    /// Elements of a vector.
    pub(crate) fn n_elements(self) -> usize {
        match self {
            Packing::Singles => 16,
            Packing::Pairs => 32,
        }
    }

    /// Room that `[n_rows, n_cols]` takes, packed.
    pub(crate) fn n_floats(self, n_rows: usize, n_cols: usize) -> usize {
        n_rows * n_cols.div_ceil(self.n_elements()) * 16
    }
}

/// Whether tiles multiply these weights, packed: their products are those of pairs, and the
/// processor has tiles.
pub(crate) fn packs<'a>(
    simd: Simd,
    parts: impl IntoIterator<Item = &'a LinearWeights, IntoIter: Clone>,
    rounds: bool,
) -> bool {
    simd.has_tiles() && Packing::of(parts, rounds) == Packing::Pairs
}

impl<'a> Packed<'a> {
    /// Of `memory`, which panels were packed in.
    pub(crate) fn new(
        packing: Packing,
        (n_rows, n_cols): (usize, usize),
        memory: &'a [f32],
    ) -> Packed<'a> {
        let blocks = memory[..packing.n_floats(n_rows, n_cols)].as_chunks().0;
        let n_row_blocks = n_cols.div_ceil(packing.n_elements());
        Packed { blocks, packing, n_row_blocks, n_rows_all: n_rows, row_begin: 0, n_rows }
    }

    /// Rows `begin..end` alone.
    pub(crate) fn rows(self, begin: usize, end: usize) -> Packed<'a> {
        assert!(begin <= end && end <= self.n_rows, "rows {begin}..{end} of {}", self.n_rows);
        Packed { row_begin: self.row_begin + begin, n_rows: end - begin, ..self }
    }

    pub(crate) fn packing(&self) -> Packing {
        self.packing
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(crate) fn n_panels(&self) -> usize {
        self.n_row_blocks.div_ceil(PANEL_BLOCKS)
    }

    /// Vectors of a panel's rows.
    pub(crate) fn panel_width(&self, panel_idx: usize) -> usize {
        PANEL_BLOCKS.min(self.n_row_blocks - panel_idx * PANEL_BLOCKS)
    }

    /// Row `row_idx` of a panel.
    #[inline(always)]
    pub(super) fn row(&self, panel_idx: usize, row_idx: usize) -> Blocks<'a> {
        assert!(row_idx < self.n_rows, "row {row_idx} of {}", self.n_rows);
        let width = self.panel_width(panel_idx);
        let begin = panel_idx * PANEL_BLOCKS * self.n_rows_all;
        &self.blocks[begin + (self.row_begin + row_idx) * width..][..width]
    }
}

/// Cuts memory for `[n_rows, n_cols]` into its panels, each with its first column of the matrix.
pub(crate) fn panels_mut(
    packing: Packing,
    (n_rows, n_cols): (usize, usize),
    memory: &mut [f32],
) -> impl Iterator<Item = (usize, HostViewMut<'_>)> {
    let n_row_blocks = n_cols.div_ceil(packing.n_elements());
    let memory = &mut memory[..packing.n_floats(n_rows, n_cols)];
    let panels = memory.chunks_mut((n_rows * PANEL_BLOCKS * 16).max(1));
    panels.enumerate().map(move |(panel_idx, panel)| {
        let begin = panel_idx * PANEL_BLOCKS;
        let width = 16 * PANEL_BLOCKS.min(n_row_blocks - begin);
        (begin * packing.n_elements(), HostViewMut::new(panel, n_rows, width))
    })
}

/// A row of numbers as they are, zeroes behind its end.
pub(crate) fn pack_singles(x: &[f32], out: &mut [f32]) {
    let (numbers, rest) = out.split_at_mut(x.len());
    numbers.copy_from_slice(x);
    rest.fill(0.0);
}

/// A row of e4m3 values as pairs, zeroes behind its end. Whether all were bf16; if not, what lies
/// in `out` is worth nothing.
#[inline(always)]
pub(super) fn pack_pairs<S: Lanes>(_s: S, x: &[f32], out: &mut [f32]) -> bool {
    let (pairs, odd_one) = x.as_chunks::<2>();
    assert!(out.len() >= x.len().div_ceil(2), "{} pairs for {} numbers", out.len(), x.len());
    let mut lost = 0;
    for (out, pair) in out.iter_mut().zip(pairs) {
        let [even, odd] = pair.map(quiet_bits);
        lost |= even | odd;
        *out = f32::from_bits(even >> 16 | odd & 0xFFFF_0000);
    }
    let rest = &mut out[pairs.len()..];
    rest.fill(0.0);
    if let ([even], [out, ..]) = (odd_one, rest) {
        let even = quiet_bits(*even);
        lost |= even;
        *out = f32::from_bits(even >> 16);
    }
    lost & 0xFFFF == 0
}

/// A row of numbers as pairs, each the nearest bf16, ties to even; zeroes behind its end.
#[inline(always)]
pub(super) fn round_to_pairs<S: Lanes>(_s: S, x: &[f32], out: &mut [f32]) {
    let (pairs, odd_one) = x.as_chunks::<2>();
    assert!(out.len() >= x.len().div_ceil(2), "{} pairs for {} numbers", out.len(), x.len());
    for (out, pair) in out.iter_mut().zip(pairs) {
        let [even, odd] = pair.map(rounded_bits);
        *out = f32::from_bits(even >> 16 | odd & 0xFFFF_0000);
    }
    let rest = &mut out[pairs.len()..];
    rest.fill(0.0);
    if let ([even], [out, ..]) = (odd_one, rest) {
        *out = f32::from_bits(rounded_bits(*even) >> 16);
    }
}

/// A number's bits, of which the high half is the nearest bf16.
#[inline(always)]
fn rounded_bits(x: f32) -> u32 {
    let bits = quiet_bits(x);
    bits + (0x7FFF + (bits >> 16 & 1))
}

/// A number's bits; of any NaN, those of one whose low half is zero.
#[inline(always)]
fn quiet_bits(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}
