//! A projection's input, rounded to e4m3 as its checkpoint was calibrated for.

mod cpu;
mod cuda;

use parallel::Communicator;
use weights::InputScale;

use crate::device::{ArrayMut, DeviceError, Exec, Gpu, View, ViewMut};
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
    /// Whether the kernel before has left them.
    pub magnitudes: Magnitudes,
    /// `[T]`, written.
    pub scales: ArrayMut<'a, f32>,
}

/// Whether a device has the greatest magnitude of each row where the rank keeps them. The
/// processor finds them in the cache, and does not ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Magnitudes {
    /// Somebody must look.
    Unknown,
    /// The kernel that wrote the rows has looked.
    Found,
}

/// Quantizes.
pub fn quantize(exec: &mut Exec, args: Args<'_>) -> Result<(), DeviceError> {
    args.check();
    match exec {
        Exec::Cpu(cpu) => cpu::quantize(cpu, args),
        Exec::Cuda(gpu) => args.launch(gpu)?,
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
    let Args { x, out, input, magnitudes: known, mut scales } = args;
    if input != InputScale::PerToken || communicator.world().n_ranks() == 1 {
        return Ok(quantize(exec, Args { x, out, input, magnitudes: known, scales })?);
    }
    if let Exec::Cuda(gpu) = exec {
        return Ok(Args { x, out, input, magnitudes: known, scales }.launch_exchanged(gpu)?);
    }
    let local = MagnitudeArgs { x: x.as_view(), magnitudes: scales.reborrow() };
    magnitudes(exec, local)?;
    communicator.all_reduce_max(scales.reborrow().host())?;
    Ok(quantize_known(exec, KnownArgs { x, magnitudes: scales })?)
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
        Exec::Cuda(_) => unreachable!("a device exchanges magnitudes inside its kernels"),
    }
    Ok(())
}

/// As [`InputScale::PerToken`], with magnitudes that are known.
pub struct KnownArgs<'a> {
    /// `[T, K]`
    pub x: ViewMut<'a>,
    /// `[T]`: magnitudes that become scales.
    pub magnitudes: ArrayMut<'a, f32>,
}

/// Quantizes to the magnitudes given.
pub fn quantize_known(exec: &mut Exec, args: KnownArgs<'_>) -> Result<(), DeviceError> {
    assert_eq!(args.magnitudes.len(), args.x.n_rows(), "a magnitude for every token");
    match exec {
        Exec::Cpu(cpu) => cpu::quantize_known(cpu, args),
        Exec::Cuda(_) => unreachable!("a device exchanges magnitudes inside its kernels"),
    }
    Ok(())
}

impl Args<'_> {
    /// On a rank alone: `out` lies apart from `x`.
    fn launch(self, gpu: &Gpu) -> Result<(), DeviceError> {
        let (rows, scales) = (self.rows(), self.scales.as_array().device());
        let scale = match self.input {
            InputScale::None => return Ok(()),
            InputScale::Static(scale) => cuda::Scale::Static(scale),
            InputScale::PerToken => {
                self.find_magnitudes(gpu)?;
                cuda::Scale::Known { magnitudes: gpu.magnitudes, scales }
            }
        };
        let out = self.out.expect("a device quantizes into other memory").device();
        let launch = cuda::Launch { rows, out: out.first, out_stride: out.stride, scale };
        cuda::launch(&gpu.exec, &launch)
    }

    /// Among ranks: magnitudes go through memory that all reach, and kernels meet there.
    fn launch_exchanged(self, gpu: &Gpu) -> Result<(), DeviceError> {
        let shared = gpu.shared.expect("several ranks share memory");
        let rows = self.rows();
        self.find_magnitudes(gpu)?;
        let scale = cuda::Scale::Exchanged {
            magnitudes: shared.everywhere(gpu.magnitudes).expect("they are shared"),
            scales: self.scales.as_array().device(),
            exchange: shared.exchange,
        };
        let out = self.out.expect("a device quantizes into other memory").device();
        let launch = cuda::Launch { rows, out: out.first, out_stride: out.stride, scale };
        cuda::launch(&gpu.exec, &launch)
    }

    fn find_magnitudes(&self, gpu: &Gpu) -> Result<(), DeviceError> {
        match self.magnitudes {
            Magnitudes::Unknown => cuda::launch_magnitudes(&gpu.exec, &self.rows(), gpu.magnitudes),
            Magnitudes::Found => Ok(()),
        }
    }

    fn rows(&self) -> cuda::Rows {
        let x = self.x.as_view().device();
        cuda::Rows { x: x.first, in_stride: x.stride, n_tokens: x.n_rows, width: x.n_cols }
    }

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
