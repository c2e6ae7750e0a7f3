//! A projection: products of tokens with stored weights, widened on the fly, scales at the end.

mod cpu;
pub mod cuda;

use weights::{InputScale, LinearWeights, WeightScale};

use crate::device::{DeviceError, Exec, View, ViewMut};

/// `out[t][n] = (Σ_k x[t][k] · w[n][k]) · weight_scale[n] · x_scales[t]`.
///
/// Whatever the stored type, an output is within `K / 16 + 8` roundings of f32 of the exact one,
/// each of the size of `Σ_k |x[t][k] · w[n][k]|` times the scales: widening is exact, sums have
/// sixteen lanes and a tree of four levels, and two scales follow. (One rounding more a product
/// where the level has no fused multiply-add.)
pub struct Args<'a> {
    /// `[T, K]`: quantized values, where the projection asks for them.
    pub x: View<'a>,
    /// `[T]`
    pub x_scales: &'a [f32],
    /// `[N, K]`
    pub weights: &'a LinearWeights,
    /// `[T, N]`
    pub out: ViewMut<'a>,
}

/// Projects every token.
pub fn linear(exec: &mut Exec, args: Args<'_>) -> Result<(), DeviceError> {
    args.check();
    match exec {
        Exec::Cpu(cpu) => cpu::linear(cpu, args),
    }
    Ok(())
}

impl Args<'_> {
    fn check(&self) {
        let matrix = &self.weights.matrix;
        let n_tokens = self.x.n_rows();
        assert_eq!(self.x.n_cols(), matrix.n_cols, "x is [T, K], weights are [N, K]");
        let shape = (self.out.n_rows(), self.out.n_cols());
        assert_eq!(shape, (n_tokens, matrix.n_rows), "out is [T, N]");
        assert_eq!(self.x_scales.len(), n_tokens, "x_scales is [T]");
        if let WeightScale::PerRow(scales) = &self.weights.scale {
            assert_eq!(scales.len(), matrix.n_rows, "a scale for every output");
        }
        if self.weights.input == InputScale::None {
            assert!(self.x_scales.iter().all(|scale| *scale == 1.0), "x is not quantized");
        }
    }
}

/// The bound of [`Args`], for tests.
#[cfg(test)]
fn n_roundings(n_cols: usize) -> f64 {
    n_cols as f64 / 16.0 + 9.0
}

#[cfg(test)]
mod tests;
