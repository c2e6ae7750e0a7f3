//! Root-mean-square normalisation, and the quantization that the projection after it asks for.

mod cpu;

use weights::InputScale;

use crate::device::{DeviceError, Exec, View, ViewMut};

/// `out[t] = quantize(x[t] / sqrt(mean(x[t]²) + eps) * weight)`.
///
/// The mean is summed in f32 over sixteen lanes: its relative error is under K/16 + 5 roundings,
/// and the root halves it.
pub struct Args<'a> {
    /// `[T, K]`
    pub x: View<'a>,
    /// `[K]`
    pub weight: &'a [f32],
    /// Keeps a zero row finite.
    pub eps: f32,
    /// How the next projection's input is quantized.
    pub input: InputScale,
    /// `[T, K]`
    pub out: ViewMut<'a>,
    /// `[T]`: what `out` must be multiplied by to be the normalised values.
    pub out_scales: &'a mut [f32],
}

/// Normalises every token.
pub fn rmsnorm(exec: &mut Exec, args: Args<'_>) -> Result<(), DeviceError> {
    args.check();
    match exec {
        Exec::Cpu(cpu) => cpu::rmsnorm(cpu, args),
    }
    Ok(())
}

impl Args<'_> {
    fn check(&self) {
        let shape = (self.x.n_rows(), self.x.n_cols());
        assert_eq!(shape, (self.out.n_rows(), self.out.n_cols()), "x and out are [T, K]");
        assert_eq!(self.weight.len(), shape.1, "weight is [K]");
        assert_eq!(self.out_scales.len(), shape.0, "out_scales is [T]");
    }
}

#[cfg(test)]
mod tests;
