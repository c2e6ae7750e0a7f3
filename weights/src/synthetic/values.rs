//! Random values of one tensor: uniform, of 4,096 levels, times one of 16 gains a row.
//!
//! So few distinct values make every format a table look-up: an element's bytes are
//! `table[gain of the row][level]`, with the encoding paid once per table entry.

use crate::dtype::{E4M3_MAX, encode};
use crate::loaded::Dtype;
use crate::parameters::{ParameterSpec, Role};

/// Levels of the uniform distribution.
const N_LEVELS: usize = 1 << LEVEL_BITS;
const LEVEL_BITS: u32 = 12;
/// Gains that rows are given, evenly spread over [`GAIN_MIN`] to 1.
const N_GAINS: usize = 16;
const GAIN_MIN: f32 = 0.6;
/// Spread of the logits, so that the likeliest token stands out.
const HEAD_GAIN: f32 = 3.0;
/// Norms' gains are 1 with this deviation at most.
const NORM_DEVIATION: f32 = 0.1;

/// The values of one parameter.
pub(super) struct Values {
    /// Decides everything.
    key: u64,
    /// Largest magnitude of a row of gain 1.
    amplitude: f32,
    center: f32,
}

/// What an e4m3 element is multiplied with, for each gain that a row may have.
pub(super) type RowScales = [f32; N_GAINS];

/// Encoded elements of every gain and level.
pub(super) struct Table {
    bytes: Vec<u8>,
    n_element_bytes: usize,
}

impl Values {
    pub(super) fn new(parameter: &ParameterSpec, seed: u64) -> Values {
        let key = key(&parameter.tensor_name(), seed);
        // A uniform distribution of this amplitude has deviation 1.
        let unit = 3f32.sqrt();
        let fan_in = unit / (parameter.n_cols as f32).sqrt();
        // Each tensor has a loudness of its own, or all scales of a model would be alike.
        let loudness = 0.8 + 0.4 * (mix(key) >> 40) as f32 / (1u64 << 24) as f32;
        let (amplitude, center) = match parameter.role {
            Role::Embedding => (unit, 0.0),
            Role::Head => (HEAD_GAIN * fan_in, 0.0),
            role if role.is_norm() => (NORM_DEVIATION, 1.0),
            _ => (loudness * fan_in / mean_gain(), 0.0),
        };
        Values { key, amplitude, center }
    }

    /// Which of the gains row `row_idx` has.
    pub(super) fn gain_idx(&self, row_idx: usize) -> usize {
        (mix(self.key ^ mix(row_idx as u64)) >> 32) as usize % N_GAINS
    }

    /// The scales with which each gain's rows use all of e4m3's range.
    pub(super) fn row_scales(&self) -> RowScales {
        std::array::from_fn(|gain_idx| self.amplitude * gain(gain_idx) / E4M3_MAX)
    }

    /// The one scale with which the whole tensor fits e4m3's range.
    pub(super) fn tensor_scale(&self) -> f32 {
        self.amplitude / E4M3_MAX
    }

    /// Elements of `dtype` that give the tensor's values when multiplied with `scales`.
    pub(super) fn table(&self, dtype: Dtype, scales: &RowScales) -> Table {
        let n_element_bytes = dtype.n_bytes();
        let mut bytes = Vec::with_capacity(N_GAINS * N_LEVELS * n_element_bytes);
        for (gain_idx, scale) in scales.iter().enumerate() {
            // A norm's rows are single gains already, and around 1.
            let gain = if self.center == 0.0 { gain(gain_idx) } else { 1.0 };
            for level in 0..N_LEVELS {
                let uniform = (2 * level + 1) as f32 / N_LEVELS as f32 - 1.0;
                let value = self.center + uniform * self.amplitude * gain;
                encode(dtype, value / scale, &mut bytes);
            }
        }
        Table { bytes, n_element_bytes }
    }

    /// Appends row `row_idx` of `n_cols` elements.
    pub(super) fn push_row(&self, table: &Table, row_idx: usize, n_cols: usize, out: &mut Vec<u8>) {
        let row_key = mix(self.key.wrapping_add(row_idx as u64).wrapping_mul(ODD));
        let base = self.gain_idx(row_idx) * N_LEVELS;
        match table.n_element_bytes {
            1 => push_elements::<1>(&table.bytes, base, row_key, n_cols, out),
            2 => push_elements::<2>(&table.bytes, base, row_key, n_cols, out),
            _ => push_elements::<4>(&table.bytes, base, row_key, n_cols, out),
        }
    }
}

fn push_elements<const N: usize>(
    table: &[u8],
    base: usize,
    row_key: u64,
    n_cols: usize,
    out: &mut Vec<u8>,
) {
    let levels = &table.as_chunks::<N>().0[base..base + N_LEVELS];
    let levels: &[[u8; N]; N_LEVELS] = levels.try_into().expect("a gain has all levels");
    let begin = out.len();
    out.resize(begin + n_cols * N, 0);
    // One draw gives four levels; a row of its own key can be written without those before it.
    let elements = out[begin..].as_chunks_mut::<N>().0;
    for (draw_idx, four) in elements.chunks_mut(4).enumerate() {
        let draw = mix(row_key.wrapping_add((draw_idx as u64).wrapping_mul(ODD)));
        for (i, element) in four.iter_mut().enumerate() {
            *element = levels[(draw >> (16 * i)) as usize % N_LEVELS];
        }
    }
}

/// An odd number with scattered bits: the step of Steele, Lea and Flood's SplitMix64.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finalizer.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A name's 64-bit FNV-1a hash, mixed with the seed.
fn key(name: &str, seed: u64) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(hash ^ mix(seed.wrapping_add(ODD)))
}

fn gain(gain_idx: usize) -> f32 {
    GAIN_MIN + (1.0 - GAIN_MIN) * gain_idx as f32 / (N_GAINS - 1) as f32
}

/// Root mean square of the gains.
fn mean_gain() -> f32 {
    let squares: f32 = (0..N_GAINS).map(|gain_idx| gain(gain_idx).powi(2)).sum();
    (squares / N_GAINS as f32).sqrt()
}
