//! The feed-forward network of one block on one rank: this rank's slice of its width.

use weights::SwiGluWeights;

use super::StepCx;
use crate::device::{Projection, Vector};
use crate::kernels::swiglu;
use crate::rank::StepError;

/// `h += down(silu(gate(x)) * up(x))` with `x = rmsnorm(h)` (Shazeer, arXiv 2002.05202).
pub(crate) struct SwiGlu {
    pub(crate) norm: Vector,
    /// Gate, then up.
    pub(crate) gate_up: Projection,
    pub(crate) down: Projection,
}

impl SwiGlu {
    pub(crate) fn host(weights: SwiGluWeights) -> SwiGlu {
        let SwiGluWeights { norm, gate, up, down } = weights;
        SwiGlu {
            norm: Vector::Host(norm),
            // The loader gives gate and up one input scale: they share this tensor.
            gate_up: Projection::host(vec![gate, up]),
            down: Projection::host(vec![down]),
        }
    }

    pub(crate) fn forward(&mut self, cx: &mut StepCx<'_>) -> Result<(), StepError> {
        let n_tokens = cx.n_tokens();
        cx.normalise(&self.norm, self.gate_up.input())?;
        let scales = cx.project_normed(&self.gate_up)?;
        let (gate_up, _, inner) =
            cx.scratch.wide_and_inner(n_tokens, self.gate_up.n_rows(), &self.down);
        swiglu::swiglu(
            cx.exec,
            swiglu::Args {
                gate_up,
                scales,
                input: inner.input,
                out: inner.out,
                out_scales: inner.scales,
            },
        )?;
        cx.project_inner(&self.down)
    }
}
