//! A projection: products of tokens with stored weights, widened on the fly, scales at the end.

mod cpu;
pub mod cuda;

use weights::{InputScale, WeightScale};

use crate::device::cuda::Operands;
use crate::device::{
    Array, ArrayMut, Deferred, DeviceError, Exec, Gpu, Projection, View, ViewMut, WeightFactors,
};

/// `out[t][n] = (Σ_k x[t][k] · w[n][k]) · weight_scale[n] · x_scales[t]`, but for the factors that
/// the launcher gives back as [`Deferred`].
///
/// On the processor none are, and whatever the stored type, an output is within `K / 16 + 8`
/// roundings of f32 of the exact one, each of the size of `Σ_k |x[t][k] · w[n][k]|` times the
/// scales: widening is exact, sums have sixteen lanes and a tree of four levels, and two scales
/// follow. (One rounding more a product where the level has no fused multiply-add.) Tiles sum 32
/// columns in two chains of sixteen, which are added to what was there: `K / 32 + 19` roundings.
pub struct Args<'a> {
    /// `[T, K]`: quantized values, where the projection asks for them.
    pub x: View<'a>,
    /// `[T]`
    pub x_scales: Array<'a, f32>,
    /// `[N, K]`, in parts.
    pub weights: &'a Projection,
    /// `[T, N]`
    pub out: ViewMut<'a>,
}

/// Projects every token, and says what `out` still lacks.
pub fn linear(exec: &mut Exec, args: Args<'_>) -> Result<Deferred, DeviceError> {
    args.check();
    assert!(!args.weights.is_gated(), "a gate's product is asked for by itself");
    match exec {
        Exec::Cpu(cpu) => {
            cpu::linear(cpu, args, None);
            Ok(Deferred::Nothing)
        }
        Exec::Cuda(gpu) => args.launch(gpu),
    }
}

/// The same for a projection that [is gated](Projection::is_gated): `out[t] =
/// quantize(silu(gate[t]) * up[t])`, `[T, N / 2]`, to the bit what a product and the activation
/// behind it give. `input` says how it is quantized, not per token, which needs other columns;
/// `out_scales` is what `out` must be multiplied by to be the activations, `[T]`.
pub fn gated(exec: &mut Exec, args: Args<'_>, input: InputScale, out_scales: ArrayMut<'_, f32>) {
    let shape = (args.x.n_rows(), args.weights.n_rows() / 2);
    assert_eq!((args.out.n_rows(), args.out.n_cols()), shape, "out is [T, N / 2]");
    let out_scale = match input {
        InputScale::None => None,
        InputScale::Static(scale) => Some(scale),
        InputScale::PerToken => panic!("a token's scale needs all ranks' columns"),
    };
    let Exec::Cpu(cpu) = exec else { unreachable!("weights are packed for a processor") };
    out_scales.host().fill(out_scale.unwrap_or(1.0));
    cpu::linear(cpu, args, out_scale);
}

impl Args<'_> {
    fn launch(self, gpu: &mut Gpu) -> Result<Deferred, DeviceError> {
        let weights = self.weights.device.expect("weights of a device");
        let (x, out) = (self.x.device(), self.out.device());
        assert_eq!((x.stride, out.stride), (x.n_cols, out.n_cols), "rows follow without gaps");
        let operands = Operands {
            x: x.first,
            weights: weights.matrix.first,
            out: out.first,
            scales: weights.shape.is_scaled.then_some((weights.weight_scale, weights.input_scale)),
        };
        gpu.gemms.plan(&gpu.exec, weights.shape)?.run(&gpu.exec, operands, x.n_rows)?;
        let tokens = match self.weights.input() {
            InputScale::PerToken => Some(self.x_scales.device()),
            InputScale::None | InputScale::Static(_) => None,
        };
        Ok(match (weights.deferred, tokens) {
            (WeightFactors::None, None) => Deferred::Nothing,
            (weights, tokens) => Deferred::Scales { weights, tokens },
        })
    }

    fn check(&self) {
        let n_tokens = self.x.n_rows();
        assert_eq!(self.x.n_cols(), self.weights.n_cols(), "x is [T, K], weights are [N, K]");
        let shape = (self.out.n_rows(), self.out.n_cols());
        assert_eq!(shape, (n_tokens, self.weights.n_rows()), "out is [T, N]");
        assert_eq!(self.x_scales.len(), n_tokens, "x_scales is [T]");
        for part in &self.weights.parts {
            if let WeightScale::PerRow(scales) = &part.scale {
                assert_eq!(scales.len(), part.matrix.n_rows, "a scale for every output");
            }
        }
        if let (InputScale::None, Array::Host(scales)) = (self.weights.input(), self.x_scales) {
            assert!(scales.iter().all(|scale| *scale == 1.0), "x is not quantized");
        }
    }
}

/// The bound of [`Args`], for tests.
#[cfg(test)]
fn n_roundings(n_cols: usize, is_by_tiles: bool) -> f64 {
    if is_by_tiles { n_cols as f64 / 32.0 + 19.0 } else { n_cols as f64 / 16.0 + 9.0 }
}

#[cfg(test)]
mod tests;
