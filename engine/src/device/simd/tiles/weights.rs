//! Weights laid as tiles want them: packed once, when a model is loaded, and read from then on from
//! the first byte to the last.

use std::slice;

use weights::{Dtype, Matrix};

use crate::device::{Aligned, HostViewMut};

use super::super::element::LINE_BYTES;
use super::super::lanes::{Lanes, padded};
use super::multiply::{N_STRIPS, TILE, WeightStep};

/// Outputs that are packed, and multiplied, side by side.
pub(crate) const PAIR_ROWS: usize = N_STRIPS * TILE;

/// Bytes between asking for a line and reading it, where lines are widened one by one.
pub(super) const AHEAD_BYTES: usize = 16 * LINE_BYTES;

/// A line of each output's row.
type Rows = [[u8; LINE_BYTES]; PAIR_ROWS];

/// Matrices of one shape and type whose rows are packed.
#[derive(Clone, Copy)]
pub(crate) enum Stored<'a> {
    /// Its rows, strip after strip.
    Plain(&'a Matrix),
    /// Sixteen rows of a gate beside the same of what it gates, in turns.
    Gated([&'a Matrix; N_STRIPS]),
}

/// Weights `[N, K]`, as `[N / 32, K / columns of a unit]` units of 2 KiB, zeroes behind the last
/// row and the last column. A unit holds 64 bytes of each of 32 rows: of bf16 that is a
/// [`WeightStep`]; of e4m3 it becomes two of them. Gated, N is twice the outputs.
pub(crate) struct TileWeights {
    memory: Aligned,
    dtype: Dtype,
    is_gated: bool,
    n_outputs: usize,
    n_units: usize,
}

/// What tiles know of an element type.
pub(super) trait TileElement {
    /// Steps that a unit becomes.
    const N_STEPS: usize;

    /// Whether neither a product nor a sum of products with inputs can be a subnormal number.
    const IS_NORMAL: bool;

    /// Lays rows' lines into a unit.
    fn pack(rows: &Rows, unit: &mut WeightStep);

    /// Makes steps of a unit, in `steps` if they need room. Of one that comes from main memory what
    /// lies behind it is asked for as it is read.
    fn widen<S: Lanes>(s: S, unit: &WeightStep, is_far: bool, steps: &mut [WeightStep]);

    /// Where the steps of widened units are: `steps`, if they needed room.
    fn steps<'a>(units: &'a [WeightStep], steps: &'a [WeightStep]) -> &'a [WeightStep];
}

pub(super) struct Bf16Units;
pub(super) struct E4m3Units;

impl TileWeights {
    /// Bytes of memory that matrices take at most, packed.
    pub(crate) fn n_bytes_of(stored: Stored<'_>) -> usize {
        Aligned::n_bytes_taken(stored.n_packed_floats())
    }

    /// Room for matrices of which nothing is packed yet.
    ///
    /// # Panics
    /// If a gate is not as large as what it gates.
    pub(crate) fn room_for(stored: Stored<'_>) -> TileWeights {
        let matrix = stored.first();
        if let Stored::Gated([gate, up]) = stored {
            let shape = |matrix: &Matrix| (matrix.dtype, matrix.n_rows, matrix.n_cols);
            assert_eq!(shape(gate), shape(up), "a gate is as large as what it gates");
        }
        TileWeights {
            memory: Aligned::new(stored.n_packed_floats()),
            dtype: matrix.dtype,
            is_gated: matches!(stored, Stored::Gated(_)),
            n_outputs: matrix.n_rows,
            n_units: stored.n_units(),
        }
    }

    /// A row for each pair of strips: to be filled by [`pack_pair`].
    pub(crate) fn pairs_mut(&mut self) -> HostViewMut<'_> {
        let n_floats = self.n_units * size_of::<WeightStep>() / size_of::<f32>();
        let n_pairs = self.n_outputs.div_ceil(self.n_pair_outputs());
        HostViewMut::new(&mut self.memory, n_pairs, n_floats)
    }

    /// Whether its outputs are products of a gate and what it gates.
    pub(crate) fn is_gated(&self) -> bool {
        self.is_gated
    }

    /// Outputs that two strips give.
    pub(crate) fn n_pair_outputs(&self) -> usize {
        if self.is_gated { TILE } else { PAIR_ROWS }
    }

    /// Bytes of memory that it takes at most.
    pub(crate) fn n_bytes(&self) -> usize {
        Aligned::n_bytes_taken(self.memory.len())
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Outputs of its product.
    pub(crate) fn n_outputs(&self) -> usize {
        self.n_outputs
    }

    /// All units of a pair of strips.
    pub(super) fn units(&self, pair_idx: usize) -> &[WeightStep] {
        let units = self.memory.as_chunks::<TILE>().0.as_chunks::<TILE>().0.as_chunks().0;
        &units[pair_idx * self.n_units..][..self.n_units]
    }
}

impl std::fmt::Debug for TileWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TileWeights({:?}, {} outputs)", self.dtype, self.n_outputs)
    }
}

impl<'a> Stored<'a> {
    /// Each matrix once.
    pub(crate) fn matrices(&self) -> &[&'a Matrix] {
        match self {
            Stored::Plain(matrix) => slice::from_ref(matrix),
            Stored::Gated(matrices) => matrices,
        }
    }

    fn first(&self) -> &'a Matrix {
        self.matrices()[0]
    }

    /// Of a pair of strips.
    fn n_units(self) -> usize {
        let Matrix { n_cols, dtype, .. } = self.first();
        (n_cols * dtype.n_bytes()).div_ceil(LINE_BYTES)
    }

    fn n_packed_floats(self) -> usize {
        let n_pairs = self.first().n_rows.div_ceil(self.n_pair_outputs());
        n_pairs * self.n_units() * size_of::<WeightStep>() / size_of::<f32>()
    }

    fn n_pair_outputs(self) -> usize {
        match self {
            Stored::Plain(_) => PAIR_ROWS,
            Stored::Gated(_) => TILE,
        }
    }

    /// Each strip of a pair: its matrix and its first row.
    fn strips(self, pair_idx: usize) -> [(&'a Matrix, usize); N_STRIPS] {
        let begin = pair_idx * self.n_pair_outputs();
        match self {
            Stored::Plain(matrix) => [(matrix, begin), (matrix, begin + TILE)],
            Stored::Gated(matrices) => matrices.map(|matrix| (matrix, begin)),
        }
    }
}

/// Packs a pair of strips, as far as there are rows of it.
pub(crate) fn pack_pair(stored: Stored<'_>, pair_idx: usize, out: &mut [f32]) {
    match stored.first().dtype {
        Dtype::Bf16 => pack_pair_of::<Bf16Units>(stored, pair_idx, out),
        Dtype::F8E4m3 => pack_pair_of::<E4m3Units>(stored, pair_idx, out),
        dtype => panic!("tiles of {dtype:?}"),
    }
}

fn pack_pair_of<E: TileElement>(stored: Stored<'_>, pair_idx: usize, out: &mut [f32]) {
    let mut lines = [[0; LINE_BYTES]; PAIR_ROWS];
    let (rows, _) = out.as_chunks_mut::<TILE>();
    let units = rows.as_chunks_mut::<TILE>().0.as_chunks_mut::<N_STRIPS>().0;
    let strips = stored.strips(pair_idx);
    for (unit_idx, unit) in units.iter_mut().enumerate() {
        for ((matrix, begin), lines) in strips.into_iter().zip(lines.chunks_exact_mut(TILE)) {
            for (line, row_idx) in lines.iter_mut().zip(begin..matrix.n_rows) {
                let row = &matrix.row(row_idx)[unit_idx * LINE_BYTES..];
                *line = row.first_chunk().copied().unwrap_or_else(|| padded(row));
            }
        }
        E::pack(&lines, unit);
    }
}

/// Asks for what lies behind a line, if anything does: so many bytes on for what is read soon, and
/// two units on for what main memory shall begin to send.
#[inline(always)]
pub(super) fn ask_behind<S: Lanes>(s: S, line: &[f32; TILE], n_bytes: usize) {
    let line = line.as_ptr().cast::<u8>();
    s.prefetch_outer(line.wrapping_add(2 * size_of::<WeightStep>()));
    s.prefetch_at(line.wrapping_add(n_bytes));
}

impl TileElement for Bf16Units {
    const N_STEPS: usize = 1;
    const IS_NORMAL: bool = false;

    fn pack(rows: &Rows, unit: &mut WeightStep) {
        for (strip, rows) in unit.iter_mut().zip(rows.as_chunks::<TILE>().0) {
            for (n, row) in rows.iter().enumerate() {
                for (pair, bytes) in strip.iter_mut().zip(row.as_chunks().0) {
                    pair[n] = f32::from_le_bytes(*bytes);
                }
            }
        }
    }

    #[inline(always)]
    fn widen<S: Lanes>(s: S, unit: &WeightStep, is_far: bool, _steps: &mut [WeightStep]) {
        if is_far {
            for line in unit.as_flattened() {
                ask_behind(s, line, size_of::<WeightStep>());
            }
        }
    }

    #[inline(always)]
    fn steps<'a>(units: &'a [WeightStep], _steps: &'a [WeightStep]) -> &'a [WeightStep] {
        units
    }
}

/// A lane holds two outputs' pairs of columns. Of every four lanes the first two are the first
/// step's, the others the second one's: see [`Lanes::pairs_of_steps`].
impl TileElement for E4m3Units {
    const N_STEPS: usize = 2;
    const IS_NORMAL: bool = true;

    fn pack(rows: &Rows, unit: &mut WeightStep) {
        for (strip, rows) in unit.iter_mut().zip(rows.as_chunks::<TILE>().0) {
            for (k, lanes) in strip.iter_mut().enumerate() {
                for (lane_idx, lane) in lanes.iter_mut().enumerate() {
                    let n = lane_idx / 4 * 4 + lane_idx % 2 * 2;
                    let begin = lane_idx / 2 % 2 * (LINE_BYTES / 2) + 2 * k;
                    let [first, second] =
                        [&rows[n][begin..begin + 2], &rows[n + 1][begin..begin + 2]];
                    *lane = f32::from_le_bytes([first[0], first[1], second[0], second[1]]);
                }
            }
        }
    }

    #[inline(always)]
    fn widen<S: Lanes>(s: S, unit: &WeightStep, is_far: bool, steps: &mut [WeightStep]) {
        let [first, second] = steps else { panic!("room for {} steps", Self::N_STEPS) };
        let steps = first.as_flattened_mut().iter_mut().zip(second.as_flattened_mut());
        for (codes, (first, second)) in unit.as_flattened().iter().zip(steps) {
            if is_far {
                ask_behind(s, codes, AHEAD_BYTES);
            }
            let [a, b] = s.pairs_of_steps(codes);
            s.store(a, first);
            s.store(b, second);
        }
    }

    #[inline(always)]
    fn steps<'a>(_units: &'a [WeightStep], steps: &'a [WeightStep]) -> &'a [WeightStep] {
        steps
    }
}
