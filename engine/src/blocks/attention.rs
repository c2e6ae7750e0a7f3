//! Grouped-query attention of one block on one rank: this rank's heads, its share of the cache.

use scheduler::GroupIdx;
use weights::{AttentionSpec, AttentionWeights};

use super::StepCx;
use crate::cache::{CacheSizes, PAGE_TOKENS};
use crate::device::{Deferred, Element, HostPages, KvRegion, KvShape, Projection, Vector};
use crate::kernels::attention::Queries;
use crate::kernels::quantize::Magnitudes;
use crate::kernels::{attention, rope_kv};
use crate::loading::{Placer, Unsupported, Use};
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
    /// What fell out of it.
    pub(crate) host_pages: HostPages,
    pub(crate) group: GroupIdx,
}

impl Attention {
    pub(crate) fn new(
        weights: AttentionWeights,
        group: GroupIdx,
        caches: CacheSizes<'_>,
        placer: &mut Placer<'_>,
    ) -> Result<Attention, Unsupported> {
        let AttentionWeights { share, norm, q, k, v, o, k_scale, v_scale, .. } = weights;
        let shape = KvShape {
            dtype: caches.kv_dtype,
            n_pages: caches.group_pages[group.idx()],
            page_tokens: PAGE_TOKENS,
            n_kv_heads: share.n_kv_heads,
            head_dim: share.head_dim,
        };
        let n_cols = o.matrix.n_cols;
        Ok(Attention {
            norm: placer.vector(norm),
            // The loader gives q, k and v one input scale: they share this tensor.
            qkv: placer.projection(vec![q, k, v], Use::First)?,
            o: placer.projection(vec![o], Use::Second { n_cols, col_begin: 0 })?,
            share,
            k_scale,
            v_scale,
            cache: placer.cache(shape),
            host_pages: HostPages::none(),
            group,
        })
    }

    pub(crate) fn forward(&mut self, cx: &mut StepCx<'_>) -> Result<(), StepError> {
        cx.normalise(&self.norm, &self.qkv)?;
        let scales = cx.project_normed(&self.qkv)?;
        self.attend(cx, scales)?;
        cx.project_inner(&self.o, Magnitudes::Unknown)
    }

    /// Rotates, writes the cache, attends into `inner`.
    fn attend(&mut self, cx: &mut StepCx<'_>, scales: Deferred) -> Result<(), StepError> {
        let n_tokens = cx.n_tokens();
        let n_cols = self.qkv.n_rows();
        let q_width = self.share.n_q_heads * self.share.head_dim;
        let rows = cx.inputs.rows(self.group);
        if !rows.rotates() {
            self.rotate(cx, scales)?;
        }
        let (qkv, rotated, inner) = cx.scratch.wide_and_inner(n_tokens, n_cols, &self.o);
        let queries = if rows.rotates() {
            Queries::Projected { qkv, scales }
        } else {
            Queries::Rotated(match rotated {
                Some(q) => q.view(Element::Bf16, n_tokens, q_width),
                None => qkv.columns(0..q_width),
            })
        };
        attention::attention(
            cx.exec,
            attention::Args {
                queries,
                rows,
                share: &self.share,
                k_scale: self.k_scale,
                v_scale: self.v_scale,
                cache: &mut self.cache,
                next: self.o.device.map(|device| device.matrix),
                input: inner.input,
                out: inner.out,
                out_scales: inner.scales,
            },
        )?;
        Ok(())
    }

    /// Rotates queries and keys, and writes the cache.
    fn rotate(&mut self, cx: &mut StepCx<'_>, scales: Deferred) -> Result<(), StepError> {
        let n_tokens = cx.n_tokens();
        let q_width = self.share.n_q_heads * self.share.head_dim;
        rope_kv::rope_kv(
            cx.exec,
            rope_kv::Args {
                qkv: cx.scratch.wide.view_mut(Element::Bf16, n_tokens, self.qkv.n_rows()),
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
        Ok(())
    }
}
