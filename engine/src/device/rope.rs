//! Rotary angles (Su et al., arXiv 2104.09864), once a step for all blocks of a head width.
//!
//! Everything is float64 until the sine and cosine themselves: at position 100,000 a float32
//! angle would already be off in its third decimal.

use std::f64::consts::TAU;

use weights::{ModelSpec, RopeScaling, RopeSpec};

/// The frequency of each pair of a head: pair `i` turns by `position * frequency[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFrequencies(Vec<f64>);

/// Cosines and sines of a step's tokens.
#[derive(Clone, Debug)]
pub struct RopeAngles {
    /// `[T, head_dim / 2]`
    pub cos: Vec<f32>,
    /// `[T, head_dim / 2]`
    pub sin: Vec<f32>,
    n_pairs: usize,
    n_tokens_max: usize,
}

impl RopeFrequencies {
    /// Frequencies of heads of width `head_dim`.
    pub fn new(spec: &RopeSpec, head_dim: usize) -> RopeFrequencies {
        assert!(head_dim > 0 && head_dim.is_multiple_of(2), "a head of {head_dim} has no pairs");
        let as_trained = (0..head_dim / 2)
            .map(|pair_idx| spec.theta.powf(-2.0 * pair_idx as f64 / head_dim as f64));
        RopeFrequencies(as_trained.map(|frequency| stretch(frequency, &spec.scaling)).collect())
    }

    /// Those of a model, all of whose blocks have heads of one width, as every config has that is
    /// read; without attention nothing is rotated.
    pub fn of_model(spec: &ModelSpec) -> RopeFrequencies {
        let mut widths = spec.blocks.iter().filter_map(|block| Some(block.attention()?.head_dim));
        let head_dim = widths.next().unwrap_or(2);
        // On a device no kernel could tell: it reads as many frequencies as its heads have pairs.
        assert!(widths.all(|width| width == head_dim), "heads of several widths");
        RopeFrequencies::new(&spec.rope, head_dim)
    }

    /// Pairs of a head.
    pub fn n_pairs(&self) -> usize {
        self.0.len()
    }

    /// Turns a position, `[n_pairs]`.
    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }
}

impl RopeAngles {
    /// Room for `n_tokens_max` tokens of heads of width `head_dim`; no tokens yet.
    pub fn new(n_tokens_max: usize, head_dim: usize) -> RopeAngles {
        let n_pairs = head_dim / 2;
        let room = || Vec::with_capacity(n_tokens_max * n_pairs);
        RopeAngles { cos: room(), sin: room(), n_pairs, n_tokens_max }
    }

    /// The angles of tokens at `positions`, in place of what was there. Nothing is allocated.
    pub fn fill(&mut self, frequencies: &RopeFrequencies, positions: &[u32]) {
        assert_eq!(frequencies.n_pairs(), self.n_pairs, "pairs of a head");
        let n_tokens_max = self.n_tokens_max;
        assert!(positions.len() <= n_tokens_max, "{} of {n_tokens_max} tokens", positions.len());
        self.cos.clear();
        self.sin.clear();
        for &position in positions {
            for frequency in &frequencies.0 {
                let (sin, cos) = (f64::from(position) * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }

    /// Tokens that it holds.
    pub fn n_tokens(&self) -> usize {
        self.cos.len() / self.n_pairs
    }

    /// Pairs of a head.
    pub fn n_pairs(&self) -> usize {
        self.n_pairs
    }

    /// Cosines and sines of the step's token `token_idx`.
    pub fn token(&self, token_idx: usize) -> (&[f32], &[f32]) {
        let range = token_idx * self.n_pairs..(token_idx + 1) * self.n_pairs;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Llama 3.1's rule: slow pairs turn `factor` times slower, fast ones as trained, and those between
/// are blended by how often they turn within the original context.
fn stretch(frequency: f64, scaling: &RopeScaling) -> f64 {
    let &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, n_positions_original } =
        scaling
    else {
        return frequency;
    };
    let n_turns = n_positions_original as f64 * frequency / TAU;
    if n_turns < low_freq_factor {
        frequency / factor
    } else if n_turns > high_freq_factor {
        frequency
    } else {
        let blend = (n_turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
        (1.0 - blend) * frequency / factor + blend * frequency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama3(factor: f64) -> RopeSpec {
        let scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            n_positions_original: 8192,
        };
        RopeSpec { theta: 500_000.0, scaling }
    }

    #[test]
    fn unscaled_frequencies_are_powers_of_theta() {
        let spec = RopeSpec { theta: 10_000.0, scaling: RopeScaling::None };
        let RopeFrequencies(frequencies) = RopeFrequencies::new(&spec, 8);
        for (frequency, expected) in frequencies.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((frequency / expected - 1.0).abs() < 1e-12, "{frequency} for {expected}");
        }
    }

    #[test]
    fn llama3_keeps_fast_pairs_and_slows_slow_ones() {
        let plain = RopeSpec { theta: 500_000.0, scaling: RopeScaling::None };
        let trained = RopeFrequencies::new(&plain, 128).0;
        let stretched = RopeFrequencies::new(&llama3(8.0), 128).0;
        let ratio: Vec<f64> = trained.iter().zip(&stretched).map(|(t, s)| t / s).collect();
        // Pairs turn 8192 * f / 2π times in the original context: more than 4 times up to pair 28,
        // less than once from pair 35 on (wavelengths 2,048 and 8,192).
        assert!(ratio[..=28].iter().all(|r| *r == 1.0), "{ratio:?}");
        assert!(ratio[35..].iter().all(|r| (r - 8.0).abs() < 1e-12), "{ratio:?}");
        assert!(ratio[29..35].windows(2).all(|r| 1.0 < r[0] && r[0] < r[1] && r[1] < 8.0));
    }

    #[test]
    fn the_blend_is_the_published_formula() {
        // Pair 32 of 64: frequency 500000^-0.5, wavelength 4442.9.
        let wavelength = TAU * 500_000f64.sqrt();
        let smooth = (8192.0 / wavelength - 1.0) / 3.0;
        let expected = ((1.0 - smooth) / 16.0 + smooth) / 500_000f64.sqrt();
        let frequency = RopeFrequencies::new(&llama3(16.0), 128).0[32];
        assert!((frequency / expected - 1.0).abs() < 1e-12, "{frequency} for {expected}");
    }

    #[test]
    fn angles_hold_at_far_positions_without_allocating() {
        let frequencies = RopeFrequencies::new(&llama3(8.0), 4);
        let mut angles = RopeAngles::new(3, 4);
        let capacity = angles.cos.capacity();
        for positions in [&[0, 1, 131_071][..], &[7]] {
            angles.fill(&frequencies, positions);
            assert_eq!(angles.n_tokens(), positions.len());
            for (token_idx, &position) in positions.iter().enumerate() {
                let (cos, sin) = angles.token(token_idx);
                assert_eq!(cos[0], f64::from(position).cos() as f32);
                assert_eq!(sin[0], f64::from(position).sin() as f32);
            }
        }
        assert_eq!(angles.cos.capacity(), capacity);
    }
}
