//! A square projection in a sub-block's place. Cut by input columns, so that ranks sum as they do
//! for every other sub-block.

use weights::ReplacementWeights;

use super::StepCx;
use crate::device::{Element, Projection, Vector};
use crate::kernels::linear;
use crate::loading::{Placer, Unsupported, Use};
use crate::rank::StepError;

/// `h += W · rmsnorm(h)`.
pub(crate) struct Replacement {
    pub(crate) norm: Vector,
    pub(crate) projection: Projection,
    /// First of this rank's input columns.
    pub(crate) col_begin: usize,
}

impl Replacement {
    /// On a device the product takes the whole row, of which other ranks' columns weigh nothing:
    /// its rows then begin where products want them to. No published model has such a sub-block.
    pub(crate) fn new(
        weights: ReplacementWeights,
        placer: &mut Placer<'_>,
    ) -> Result<Replacement, Unsupported> {
        let ReplacementWeights { norm, projection, col_begin } = weights;
        let (n_cols, n_stored) = (norm.len(), projection.matrix.n_cols);
        let norm = placer.vector(norm);
        let projection = placer.projection(vec![projection], Use::Second { n_cols, col_begin })?;
        let col_begin = if projection.n_cols() == n_stored { col_begin } else { 0 };
        Ok(Replacement { norm, projection, col_begin })
    }

    /// Every rank normalises the whole row, so a per-token scale needs no exchange: only the
    /// product is this rank's own.
    pub(crate) fn forward(&mut self, cx: &mut StepCx<'_>) -> Result<(), StepError> {
        let n_tokens = cx.n_tokens();
        let input = self.projection.input();
        cx.normalise(&self.norm, &self.projection)?;
        let columns = self.col_begin..self.col_begin + self.projection.n_cols();
        let scratch = &mut *cx.scratch;
        let (element, hidden_size) = (Element::of_input(input), scratch.hidden_size);
        cx.pending.scales = linear::linear(
            cx.exec,
            linear::Args {
                x: scratch.normed.view(element, n_tokens, hidden_size).columns(columns),
                x_scales: scratch.normed_scales.array(n_tokens),
                weights: &self.projection,
                out: scratch.partial.next(n_tokens).view_mut(Element::Bf16, n_tokens, hidden_size),
            },
        )?;
        Ok(())
    }
}
