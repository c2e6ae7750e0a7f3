//! The gated activation between the two halves of an FFN, and the quantization that follows it.

mod cpu;
mod cuda;

use weights::InputScale;

use super::quantize::Magnitudes;
use crate::device::{ArrayMut, Deferred, DeviceError, DevicePtr, Exec, View, ViewMut};

/// `out[t] = quantize(silu(gate[t]) * up[t])`, `silu(x) = x / (1 + exp(-x))`.
pub struct Args<'a> {
    /// `[T, 2 * w]`: gate, then up.
    pub gate_up: View<'a>,
    /// Factors that `gate_up` still lacks.
    pub scales: Deferred,
    /// How the next projection's input is quantized; not per token, which needs other columns.
    pub input: InputScale,
    /// Whether the rows' magnitudes will be asked for: a device finds them on its way.
    pub magnitudes: Magnitudes,
    /// `[T, w]`
    pub out: ViewMut<'a>,
    /// `[T]`: what `out` must be multiplied by to be the activations.
    pub out_scales: ArrayMut<'a, f32>,
}

/// Activates every token.
pub fn swiglu(exec: &mut Exec, args: Args<'_>) -> Result<(), DeviceError> {
    args.check();
    match exec {
        Exec::Cpu(cpu) => {
            cpu::swiglu(cpu, args);
            Ok(())
        }
        Exec::Cuda(gpu) => cuda::launch(&gpu.exec, &args.launch(gpu.magnitudes)),
    }
}

impl Args<'_> {
    fn launch(self, magnitudes: DevicePtr) -> cuda::Launch {
        let (gate_up, out) = (self.gate_up.device(), self.out.device());
        cuda::Launch {
            gate_up: gate_up.first,
            in_stride: gate_up.stride,
            scales: self.scales,
            n_tokens: out.n_rows,
            width: out.n_cols,
            out: out.first,
            out_stride: out.stride,
            output: match self.input {
                InputScale::None if self.magnitudes == Magnitudes::Found => {
                    cuda::Output::Bf16AndMagnitudes(magnitudes)
                }
                InputScale::None => cuda::Output::Bf16,
                InputScale::Static(scale) => cuda::Output::E4m3(scale),
                InputScale::PerToken => unreachable!("it was checked"),
            },
        }
    }

    fn check(&self) {
        let shape = (self.out.n_rows(), self.out.n_cols());
        let in_shape = (self.gate_up.n_rows(), self.gate_up.n_cols());
        assert_eq!(in_shape, (shape.0, 2 * shape.1), "gate_up is [T, 2 w], out is [T, w]");
        assert_ne!(self.input, InputScale::PerToken, "a token's scale needs all ranks' columns");
        assert_eq!(self.out_scales.len(), shape.0, "out_scales is [T]");
    }
}

#[cfg(test)]
mod tests;
