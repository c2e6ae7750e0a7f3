//! A projection's input, rounded to e4m3 as its checkpoint was calibrated for.

mod cpu;
mod cuda;

use parallel::Communicator;
use weights::InputScale;

use crate::device::{ArrayMut, DeviceError, Exec, View, ViewMut};
use crate::rank::StepError;

pub(super) use cpu::quantize_row;

/// `out[t] = e4m3(clamp(x[t] / scales[t], ±448))`; with [`InputScale::None`] nothing but
/// `scales[t] = 1`. NaN stays NaN.
pub struct Args<'a> {
    /// `[T, K]`
    pub x: ViewMut<'a>,
    /// `[T, K]`; `None` is in place, as f32, which is how the host keeps quantized values.
    pub out: Option<ViewMut<'a>>,
    /// Where the scales come from.
    pub input: InputScale,
    /// `[T]`, written.
    pub scales: ArrayMut<'a, f32>,
}

/// Quantizes.
pub fn quantize(exec: &mut Exec, args: Args<'_>) -> Result<(), DeviceError> {
    args.check();
    match exec {
        Exec::Cpu(cpu) => cpu::quantize(cpu, args),
    }
    Ok(())
}

/// Quantizes the input of a projection that is cut by columns: `x` holds this rank's.
///
/// A per-token scale comes from the whole row, so ranks exchange their magnitudes: then every
/// number of ranks rounds alike, and the model's answers do not depend on how it is sharded.
pub fn quantize_cut(
    exec: &mut Exec,
    communicator: &mut Communicator,
    args: Args<'_>,
) -> Result<(), StepError> {
    let Args { x, out, input, mut scales } = args;
    if input != InputScale::PerToken || communicator.world().n_ranks() == 1 {
        return Ok(quantize(exec, Args { x, out, input, scales })?);
    }
    let local = MagnitudeArgs { x: x.as_view(), magnitudes: scales.reborrow() };
    magnitudes(exec, local)?;
    match scales.reborrow() {
        ArrayMut::Host(magnitudes) => communicator.all_reduce_max(magnitudes)?,
        ArrayMut::Device(magnitudes) => unreachable!("{magnitudes:?} without a device"),
    }
    Ok(quantize_known(exec, KnownArgs { x, out, magnitudes: scales })?)
}

/// `magnitudes[t] = max |x[t]|`: for a row of which this rank holds a part.
pub struct MagnitudeArgs<'a> {
    /// `[T, K]`
    pub x: View<'a>,
    /// `[T]`, written.
    pub magnitudes: ArrayMut<'a, f32>,
}

/// Finds each row's greatest magnitude.
pub fn magnitudes(exec: &mut Exec, args: MagnitudeArgs<'_>) -> Result<(), DeviceError> {
    assert_eq!(args.magnitudes.len(), args.x.n_rows(), "a magnitude for every token");
    match exec {
        Exec::Cpu(cpu) => cpu::magnitudes(cpu, args),
    }
    Ok(())
}

/// As [`InputScale::PerToken`], with magnitudes that are known.
pub struct KnownArgs<'a> {
    /// `[T, K]`
    pub x: ViewMut<'a>,
    /// As in [`Args`].
    pub out: Option<ViewMut<'a>>,
    /// `[T]`: magnitudes that become scales.
    pub magnitudes: ArrayMut<'a, f32>,
}

/// Quantizes to the magnitudes given.
pub fn quantize_known(exec: &mut Exec, args: KnownArgs<'_>) -> Result<(), DeviceError> {
    assert_eq!(args.magnitudes.len(), args.x.n_rows(), "a magnitude for every token");
    match exec {
        Exec::Cpu(cpu) => cpu::quantize_known(cpu, args),
    }
    Ok(())
}

impl Args<'_> {
    fn check(&self) {
        assert_eq!(self.scales.len(), self.x.n_rows(), "a scale for every token");
        if let Some(out) = &self.out {
            let shape = (out.n_rows(), out.n_cols());
            assert_eq!(shape, (self.x.n_rows(), self.x.n_cols()), "x and out are of one shape");
        }
    }
}

#[cfg(test)]
mod tests;
