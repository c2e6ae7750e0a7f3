//! A projection's input, rounded to e4m3 as its checkpoint was calibrated for.

mod cpu;

use weights::InputScale;

use crate::device::{DeviceError, Exec, View, ViewMut};

pub(super) use cpu::quantize_row;

/// `x[t] = e4m3(clamp(x[t] / scales[t], ±448))`, kept as f32; with [`InputScale::None`] nothing but
/// `scales[t] = 1`. NaN stays NaN.
pub struct Args<'a> {
    /// `[T, K]`
    pub x: ViewMut<'a>,
    /// Where the scales come from.
    pub input: InputScale,
    /// `[T]`, written.
    pub scales: &'a mut [f32],
}

/// Quantizes in place.
pub fn quantize(exec: &mut Exec, args: Args<'_>) -> Result<(), DeviceError> {
    args.check();
    match exec {
        Exec::Cpu(cpu) => cpu::quantize(cpu, args),
    }
    Ok(())
}

/// `magnitudes[t] = max |x[t]|`: for a row of which this rank holds a part.
pub struct MagnitudeArgs<'a> {
    /// `[T, K]`
    pub x: View<'a>,
    /// `[T]`, written.
    pub magnitudes: &'a mut [f32],
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
    /// `[T]`: magnitudes that become scales.
    pub magnitudes: &'a mut [f32],
}

/// Quantizes in place to the magnitudes given.
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
    }
}

#[cfg(test)]
mod tests;
