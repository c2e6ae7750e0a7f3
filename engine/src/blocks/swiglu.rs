//! The feed-forward network of one block on one rank: this rank's slice of its width.

use weights::{InputScale, SwiGluWeights};

use super::StepCx;
use crate::device::{Projection, Vector};
use crate::kernels::quantize::Magnitudes;
use crate::kernels::swiglu;
use crate::loading::{Placer, Unsupported, Use};
use crate::rank::StepError;

/// `h += down(silu(gate(x)) * up(x))` with `x = rmsnorm(h)` (Shazeer, arXiv 2002.05202).
pub(crate) struct SwiGlu {
    pub(crate) norm: Vector,
    /// Gate, then up.
    pub(crate) gate_up: Projection,
    pub(crate) down: Projection,
}

impl SwiGlu {
    pub(crate) fn new(
        weights: SwiGluWeights,
        placer: &mut Placer<'_>,
    ) -> Result<SwiGlu, Unsupported> {
        let SwiGluWeights { norm, gate, up, down } = weights;
        let n_parts = 2;
        // The loader gives gate and up one input scale: they share this tensor.
        let gate_up = placer.gated([gate, up])?;
        // As wide as the gate is where it lies: what was added to it meets added zeroes.
        let n_cols = gate_up.n_rows() / n_parts;
        Ok(SwiGlu {
            norm: placer.vector(norm),
            gate_up,
            down: placer.projection(vec![down], Use::Second { n_cols, col_begin: 0 })?,
        })
    }

    pub(crate) fn forward(&mut self, cx: &mut StepCx<'_>) -> Result<(), StepError> {
        let n_tokens = cx.n_tokens();
        cx.normalise(&self.norm, &self.gate_up)?;
        let magnitudes = match self.down.input() {
            InputScale::PerToken => Magnitudes::Found,
            InputScale::None | InputScale::Static(_) => Magnitudes::Unknown,
        };
        if self.gate_up.is_gated() {
            cx.project_gated(&self.gate_up, &self.down);
            return cx.project_inner(&self.down, magnitudes);
        }
        let scales = cx.project_normed(&self.gate_up)?;
        let (gate_up, _, inner) =
            cx.scratch.wide_and_inner(n_tokens, self.gate_up.n_rows(), &self.down);
        swiglu::swiglu(
            cx.exec,
            swiglu::Args {
                gate_up,
                scales,
                input: inner.input,
                magnitudes,
                out: inner.out,
                out_scales: inner.scales,
            },
        )?;
        cx.project_inner(&self.down, magnitudes)
    }
}
