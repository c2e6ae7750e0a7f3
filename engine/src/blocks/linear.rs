//! A square projection in a sub-block's place. Cut by input columns, so that ranks sum as they do
//! for every other sub-block.

use weights::{InputScale, ReplacementWeights};

use super::{StepCx, quantize_cut, view, view_mut};
use crate::kernels::{linear, quantize, rmsnorm};
use crate::rank::StepError;

/// `h += W · rmsnorm(h)`.
pub(crate) struct Replacement {
    pub(crate) weights: ReplacementWeights,
}

impl Replacement {
    pub(crate) fn forward(&mut self, cx: &mut StepCx<'_>) -> Result<(), StepError> {
        let n_tokens = cx.batch.n_tokens();
        let hidden_size = cx.scratch.hidden_size;
        let projection = &self.weights.projection;
        let columns = self.weights.col_begin..self.weights.col_begin + projection.matrix.n_cols;
        let scales = &mut cx.scratch.scales[..n_tokens];
        let mut normed = view_mut(&mut cx.scratch.normed, n_tokens, hidden_size);
        rmsnorm::rmsnorm(
            cx.exec,
            rmsnorm::Args {
                x: view(&cx.scratch.residual, n_tokens, hidden_size),
                weight: &self.weights.norm,
                eps: cx.norm_eps,
                input: InputScale::None,
                out: normed.reborrow(),
                out_scales: scales,
            },
        )?;
        // Only this rank's columns.
        let mut x = normed.columns(columns);
        quantize_cut(
            cx.exec,
            cx.communicator,
            quantize::Args { x: x.reborrow(), input: projection.input, scales },
        )?;
        linear::linear(
            cx.exec,
            linear::Args {
                x: x.as_view(),
                x_scales: scales,
                weights: projection,
                out: view_mut(&mut cx.scratch.partial, n_tokens, hidden_size),
            },
        )?;
        cx.add_partial()
    }
}
