//! The feed-forward network of one block on one rank: this rank's slice of its width.

use weights::{InputScale, SwiGluWeights};

use super::{StepCx, needs_exchange, quantize_cut, view, view_mut};
use crate::kernels::{linear, quantize, rmsnorm, swiglu};
use crate::rank::StepError;

/// `h += down(silu(gate(x)) * up(x))` with `x = rmsnorm(h)` (Shazeer, arXiv 2002.05202).
pub(crate) struct SwiGlu {
    pub(crate) weights: SwiGluWeights,
}

impl SwiGlu {
    pub(crate) fn forward(&mut self, cx: &mut StepCx<'_>) -> Result<(), StepError> {
        let n_tokens = cx.batch.n_tokens();
        let hidden_size = cx.scratch.hidden_size;
        let width = self.weights.gate.matrix.n_rows;
        let scales = &mut cx.scratch.scales[..n_tokens];
        rmsnorm::rmsnorm(
            cx.exec,
            rmsnorm::Args {
                x: view(&cx.scratch.residual, n_tokens, hidden_size),
                weight: &self.weights.norm,
                eps: cx.norm_eps,
                // The loader gives gate and up one input scale: they share this tensor.
                input: self.weights.gate.input,
                out: view_mut(&mut cx.scratch.normed, n_tokens, hidden_size),
                out_scales: scales,
            },
        )?;
        let x = view(&cx.scratch.normed, n_tokens, hidden_size);
        let mut gate_up = view_mut(&mut cx.scratch.wide, n_tokens, 2 * width);
        for (half, projection) in [&self.weights.gate, &self.weights.up].into_iter().enumerate() {
            let out = gate_up.reborrow().columns(half * width..(half + 1) * width);
            linear::linear(
                cx.exec,
                linear::Args { x, x_scales: scales, weights: projection, out },
            )?;
        }
        let mut gated = view_mut(&mut cx.scratch.inner, n_tokens, width);
        let input = self.weights.down.input;
        let exchanges = needs_exchange(input, cx.communicator);
        swiglu::swiglu(
            cx.exec,
            swiglu::Args {
                gate_up: gate_up.as_view(),
                input: if exchanges { InputScale::None } else { input },
                out: gated.reborrow(),
                out_scales: scales,
            },
        )?;
        if exchanges {
            let args = quantize::Args { x: gated.reborrow(), input, scales };
            quantize_cut(cx.exec, cx.communicator, args)?;
        }
        linear::linear(
            cx.exec,
            linear::Args {
                x: gated.as_view(),
                x_scales: scales,
                weights: &self.weights.down,
                out: view_mut(&mut cx.scratch.partial, n_tokens, hidden_size),
            },
        )?;
        cx.add_partial()
    }
}
