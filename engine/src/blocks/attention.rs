//! Grouped-query attention of one block on one rank: this rank's heads, its share of the cache.

use scheduler::GroupIdx;
use weights::AttentionWeights;

use super::{StepCx, quantize_cut, view, view_mut};
use crate::device::KvRegion;
use crate::kernels::{attention, linear, quantize, rmsnorm, rope_kv};
use crate::rank::StepError;

/// `h += o(attend(rope(q(x)), rope(k(x)), v(x)))` with `x = rmsnorm(h)`.
pub(crate) struct Attention {
    pub(crate) weights: AttentionWeights,
    pub(crate) cache: KvRegion,
    pub(crate) group: GroupIdx,
}

impl Attention {
    pub(crate) fn forward(&mut self, cx: &mut StepCx<'_>) -> Result<(), StepError> {
        self.project_qkv(cx)?;
        self.attend(cx)?;
        let n_tokens = cx.batch.n_tokens();
        let (hidden_size, width) = (cx.scratch.hidden_size, self.q_width());
        let scales = &mut cx.scratch.scales[..n_tokens];
        let mut attended = view_mut(&mut cx.scratch.inner, n_tokens, width);
        quantize_cut(
            cx.exec,
            cx.communicator,
            quantize::Args { x: attended.reborrow(), input: self.weights.o.input, scales },
        )?;
        linear::linear(
            cx.exec,
            linear::Args {
                x: attended.as_view(),
                x_scales: scales,
                weights: &self.weights.o,
                out: view_mut(&mut cx.scratch.partial, n_tokens, hidden_size),
            },
        )?;
        cx.add_partial()
    }

    fn q_width(&self) -> usize {
        self.weights.share.n_q_heads * self.weights.share.head_dim
    }

    fn qkv_width(&self) -> usize {
        self.q_width() + self.weights.share.kv_elements_per_token()
    }

    /// Normalises, then projects into `wide` as `q | k | v`.
    fn project_qkv(&self, cx: &mut StepCx<'_>) -> Result<(), StepError> {
        let n_tokens = cx.batch.n_tokens();
        let hidden_size = cx.scratch.hidden_size;
        let scales = &mut cx.scratch.scales[..n_tokens];
        let weights = &self.weights;
        rmsnorm::rmsnorm(
            cx.exec,
            rmsnorm::Args {
                x: view(&cx.scratch.residual, n_tokens, hidden_size),
                weight: &weights.norm,
                eps: cx.norm_eps,
                // The loader gives q, k and v one input scale: they share this tensor.
                input: weights.q.input,
                out: view_mut(&mut cx.scratch.normed, n_tokens, hidden_size),
                out_scales: scales,
            },
        )?;
        let x = view(&cx.scratch.normed, n_tokens, hidden_size);
        let mut qkv = view_mut(&mut cx.scratch.wide, n_tokens, self.qkv_width());
        let mut begin = 0;
        for projection in [&weights.q, &weights.k, &weights.v] {
            let end = begin + projection.matrix.n_rows;
            let out = qkv.reborrow().columns(begin..end);
            linear::linear(
                cx.exec,
                linear::Args { x, x_scales: scales, weights: projection, out },
            )?;
            begin = end;
        }
        Ok(())
    }

    /// Rotates, writes the cache, attends into `inner`.
    fn attend(&mut self, cx: &mut StepCx<'_>) -> Result<(), StepError> {
        let n_tokens = cx.batch.n_tokens();
        let (q_width, qkv_width) = (self.q_width(), self.qkv_width());
        let AttentionWeights { share, k_scale, v_scale, .. } = &self.weights;
        let mut qkv = view_mut(&mut cx.scratch.wide, n_tokens, qkv_width);
        rope_kv::rope_kv(
            cx.exec,
            rope_kv::Args {
                qkv: qkv.reborrow(),
                angles: cx.angles,
                share,
                k_scale: *k_scale,
                v_scale: *v_scale,
                locations: &cx.batch.locations[self.group.idx()],
                cache: &mut self.cache,
            },
        )?;
        attention::attention(
            cx.exec,
            attention::Args {
                q: qkv.as_view().columns(0..q_width),
                rows: &cx.rows[self.group.idx()],
                share,
                k_scale: *k_scale,
                v_scale: *v_scale,
                cache: &self.cache,
                out: view_mut(&mut cx.scratch.inner, n_tokens, q_width),
            },
        )?;
        Ok(())
    }
}
