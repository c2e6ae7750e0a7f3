//! Grouped-query attention of one block on one rank: this rank's heads, its share of the cache.

use scheduler::GroupIdx;
use weights::{AttentionSpec, AttentionWeights};

use super::StepCx;
use crate::cache::PAGE_TOKENS;
use crate::device::{Deferred, Element, KvRegion, Projection, Vector};
use crate::kernels::{attention, rope_kv};
use crate::memory_plan::MemoryPlan;
use crate::rank::StepError;

/// `h += o(attend(rope(q(x)), rope(k(x)), v(x)))` with `x = rmsnorm(h)`.
pub(crate) struct Attention {
    pub(crate) norm: Vector,
    /// q, k and v.
    pub(crate) qkv: Projection,
    pub(crate) o: Projection,
    /// This rank's heads.
    pub(crate) share: AttentionSpec,
    pub(crate) k_scale: f32,
    pub(crate) v_scale: f32,
    pub(crate) cache: KvRegion,
    pub(crate) group: GroupIdx,
}

impl Attention {
    pub(crate) fn host(weights: AttentionWeights, group: GroupIdx, plan: &MemoryPlan) -> Attention {
        let AttentionWeights { share, norm, q, k, v, o, k_scale, v_scale, .. } = weights;
        let cache = KvRegion::new(
            plan.kv_dtype,
            plan.group_pages[group.idx()],
            PAGE_TOKENS,
            share.n_kv_heads,
            share.head_dim,
        );
        Attention {
            norm: Vector::Host(norm),
            // The loader gives q, k and v one input scale: they share this tensor.
            qkv: Projection::host(vec![q, k, v]),
            o: Projection::host(vec![o]),
            share,
            k_scale,
            v_scale,
            cache,
            group,
        }
    }

    pub(crate) fn forward(&mut self, cx: &mut StepCx<'_>) -> Result<(), StepError> {
        cx.normalise(&self.norm, self.qkv.input())?;
        let scales = cx.project_normed(&self.qkv)?;
        self.attend(cx, scales)?;
        cx.project_inner(&self.o)
    }

    /// Rotates, writes the cache, attends into `inner`.
    fn attend(&mut self, cx: &mut StepCx<'_>, scales: Deferred) -> Result<(), StepError> {
        let n_tokens = cx.n_tokens();
        let n_cols = self.qkv.n_rows();
        let q_width = self.share.n_q_heads * self.share.head_dim;
        rope_kv::rope_kv(
            cx.exec,
            rope_kv::Args {
                qkv: cx.scratch.wide.view_mut(Element::Bf16, n_tokens, n_cols),
                q: cx
                    .scratch
                    .rotated
                    .as_mut()
                    .map(|q| q.view_mut(Element::Bf16, n_tokens, q_width)),
                scales,
                places: cx.inputs.places(self.group),
                share: &self.share,
                k_scale: self.k_scale,
                v_scale: self.v_scale,
                cache: &mut self.cache,
            },
        )?;
        let (wide, rotated, inner) = cx.scratch.wide_and_inner(n_tokens, n_cols, &self.o);
        let in_place = || wide.columns(0..q_width);
        attention::attention(
            cx.exec,
            attention::Args {
                q: rotated.map_or_else(in_place, |q| q.view(Element::Bf16, n_tokens, q_width)),
                rows: cx.inputs.rows(self.group),
                share: &self.share,
                k_scale: self.k_scale,
                v_scale: self.v_scale,
                cache: &self.cache,
                input: inner.input,
                out: inner.out,
                out_scales: inner.scales,
            },
        )?;
        Ok(())
    }
}
