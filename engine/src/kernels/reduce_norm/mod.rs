//! The start of a sub-block: what the one before it left on all ranks is summed into the residual
//! stream, which is then normalised, and quantized as the next projection asks.

mod cpu;
mod cuda;

use parallel::Communicator;
use weights::InputScale;

use crate::device::{Array, ArrayMut, Deferred, Exec, ViewMut};
use crate::rank::StepError;

/// `residual[t] += Σ_rank partial[t] · scales`, in rank order, then
/// `out[t] = quantize(residual[t] / sqrt(mean(residual[t]²) + eps) * weight)`.
///
/// The mean is summed in f32 over sixteen lanes: its relative error is under K/16 + 5 roundings,
/// and the root halves it.
pub struct Args<'a> {
    /// Whose ranks hold the partial results.
    pub communicator: &'a mut Communicator,
    /// `[T, K]`: this rank's partial result; unspecified afterwards.
    pub partial: ViewMut<'a>,
    /// Factors that `partial` still lacks: the same on every rank, so they may follow the sum.
    pub scales: Deferred,
    /// `[T, K]`: the residual stream, the same on every rank.
    pub residual: ViewMut<'a>,
    /// `[K]`
    pub weight: Array<'a, f32>,
    /// Keeps a zero row finite.
    pub eps: f32,
    /// How the next projection's input is quantized.
    pub input: InputScale,
    /// `[T, K]`
    pub out: ViewMut<'a>,
    /// `[T]`: what `out` must be multiplied by to be the normalised values.
    pub out_scales: ArrayMut<'a, f32>,
}

/// Sums, adds and normalises every token.
///
/// # Errors
/// Where the ranks could not exchange their results, or the device fails.
pub fn reduce_norm(exec: &mut Exec, args: Args<'_>) -> Result<(), StepError> {
    args.check();
    match exec {
        Exec::Cpu(cpu) => cpu::reduce_norm(cpu, args),
    }
}

impl Args<'_> {
    fn check(&self) {
        let shape = (self.residual.n_rows(), self.residual.n_cols());
        let partial = (self.partial.n_rows(), self.partial.n_cols());
        assert_eq!(partial, shape, "partial and residual are [T, K]");
        assert_eq!((self.out.n_rows(), self.out.n_cols()), shape, "residual and out are [T, K]");
        assert_eq!(self.weight.len(), shape.1, "weight is [K]");
        assert_eq!(self.out_scales.len(), shape.0, "out_scales is [T]");
    }
}

#[cfg(test)]
mod tests;
