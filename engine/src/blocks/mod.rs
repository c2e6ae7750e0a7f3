//! The block list, loaded: each block owns its weights and its region of the cache.
//!
//! An empty block is not in the list; an absent sub-block costs nothing. A sub-block leaves its
//! result in `partial`, not yet summed over the ranks: whoever reads the residual stream next sums
//! and adds it first, which a device does in one kernel.

mod attention;
mod linear;
mod scratch;
mod swiglu;

use parallel::Communicator;
use scheduler::{GroupIdx, PageMove};
use weights::{BlockWeights, FfnWeights, InputScale, MixerWeights};

pub(crate) use attention::Attention;
pub(crate) use linear::Replacement;
pub(crate) use scratch::{DeviceScratch, Scratch, Widths};
pub(crate) use swiglu::SwiGlu;

use crate::batch::Inputs;
use crate::cache::CacheSizes;
use crate::device::{Array, Deferred, DeviceError, Element, Exec, HostPages, Projection, Vector};
use crate::kernels::quantize::Magnitudes;
use crate::kernels::reduce_norm::{self, Pending};
use crate::kernels::{linear as projection, quantize};
use crate::loading::{Placer, Unsupported};
use crate::rank::StepError;

use scratch::fused;

/// A block with at least one sub-block.
pub(crate) struct Block {
    pub(crate) mixer: Option<Mixer>,
    pub(crate) ffn: Option<Ffn>,
}

/// What moves information between tokens, or stands in its place.
#[expect(clippy::large_enum_variant, reason = "one a block, and nearly all are the large one")]
pub(crate) enum Mixer {
    Attention(Attention),
    Linear(Replacement),
}

/// What works on each token alone.
pub(crate) enum Ffn {
    SwiGlu(SwiGlu),
    Linear(Replacement),
}

/// What a forward pass needs besides the blocks.
pub(crate) struct StepCx<'a> {
    pub(crate) exec: &'a mut Exec,
    pub(crate) communicator: &'a mut Communicator,
    pub(crate) inputs: Inputs<'a>,
    pub(crate) scratch: &'a mut Scratch,
    /// What is to be known of the partial result in `scratch`.
    pub(crate) pending: Pending,
    pub(crate) norm_eps: f32,
}

impl Block {
    /// A rank's share, where `placer` puts it; `group` is that of its cache, if it has one.
    pub(crate) fn new(
        weights: BlockWeights,
        group: Option<GroupIdx>,
        caches: CacheSizes<'_>,
        placer: &mut Placer<'_>,
    ) -> Result<Block, Unsupported> {
        let mixer = match weights.mixer {
            None => None,
            Some(MixerWeights::Attention(weights)) => {
                let group = group.expect("a block with attention has a cache");
                Some(Mixer::Attention(Attention::new(weights, group, caches, placer)?))
            }
            Some(MixerWeights::Linear(weights)) => {
                Some(Mixer::Linear(Replacement::new(weights, placer)?))
            }
        };
        let ffn = match weights.ffn {
            None => None,
            Some(FfnWeights::SwiGlu(weights)) => Some(Ffn::SwiGlu(SwiGlu::new(weights, placer)?)),
            Some(FfnWeights::Linear(weights)) => {
                Some(Ffn::Linear(Replacement::new(weights, placer)?))
            }
        };
        Ok(Block { mixer, ffn })
    }

    /// Its projections.
    pub(crate) fn projections(&self) -> impl Iterator<Item = &Projection> {
        let mixer: [Option<&Projection>; 2] = match &self.mixer {
            Some(Mixer::Attention(attention)) => [Some(&attention.qkv), Some(&attention.o)],
            Some(Mixer::Linear(replacement)) => [Some(&replacement.projection), None],
            None => [None; 2],
        };
        let ffn = match &self.ffn {
            Some(Ffn::SwiGlu(swiglu)) => [Some(&swiglu.gate_up), Some(&swiglu.down)],
            Some(Ffn::Linear(replacement)) => [Some(&replacement.projection), None],
            None => [None; 2],
        };
        mixer.into_iter().chain(ffn).flatten()
    }

    /// Moves a page's content, if it is one of this block's.
    pub(crate) fn move_page(&mut self, exec: &Exec, page: PageMove) -> Result<(), DeviceError> {
        let Some(Mixer::Attention(attention)) = &mut self.mixer else { return Ok(()) };
        let Attention { group: mine, cache, host_pages, .. } = attention;
        match page {
            PageMove::Copy { group, from, to } if group == *mine => cache.copy_page(exec, from, to),
            PageMove::Out { group, from, to } if group == *mine => {
                host_pages.take_out(exec, cache, (from, to))
            }
            PageMove::In { group, from, to } if group == *mine => {
                host_pages.bring_back(exec, cache, (from, to))
            }
            PageMove::Copy { .. } | PageMove::Out { .. } | PageMove::In { .. } => Ok(()),
        }
    }

    /// Takes the host's memory for as many pages as its group has there.
    pub(crate) fn keep_on_host(
        &mut self,
        exec: &Exec,
        group_pages: &[usize],
    ) -> Result<(), DeviceError> {
        let Some(Mixer::Attention(attention)) = &mut self.mixer else { return Ok(()) };
        let n_pages = group_pages[attention.group.idx()];
        attention.host_pages = HostPages::new(exec, &attention.cache, n_pages)?;
        Ok(())
    }

    pub(crate) fn forward(&mut self, cx: &mut StepCx<'_>) -> Result<(), StepError> {
        match &mut self.mixer {
            Some(Mixer::Attention(attention)) => attention.forward(cx)?,
            Some(Mixer::Linear(replacement)) => replacement.forward(cx)?,
            None => {}
        }
        match &mut self.ffn {
            Some(Ffn::SwiGlu(swiglu)) => swiglu.forward(cx),
            Some(Ffn::Linear(replacement)) => replacement.forward(cx),
            None => Ok(()),
        }
    }
}

impl StepCx<'_> {
    /// Tokens of the step.
    pub(crate) fn n_tokens(&self) -> usize {
        self.inputs.n_tokens()
    }

    /// Takes the pending partial result into the residual stream, and normalises that into
    /// `normed`, quantized as `next` takes it.
    pub(crate) fn normalise(&mut self, norm: &Vector, next: &Projection) -> Result<(), StepError> {
        self.normalise_rows(norm, next, None)
    }

    /// The same for the tokens of `rows` alone, one below another.
    pub(crate) fn normalise_rows(
        &mut self,
        norm: &Vector,
        next: &Projection,
        rows: Option<Array<'_, u32>>,
    ) -> Result<(), StepError> {
        let input = next.input();
        let n_tokens = self.n_tokens();
        let n_rows = rows.map_or(n_tokens, |rows| rows.len());
        let scratch = &mut *self.scratch;
        let hidden_size = scratch.hidden_size;
        reduce_norm::reduce_norm(
            self.exec,
            reduce_norm::Args {
                communicator: self.communicator,
                partial: scratch.partial.current(n_tokens).view_mut(
                    Element::Bf16,
                    n_tokens,
                    hidden_size,
                ),
                pending: std::mem::take(&mut self.pending),
                residual: scratch.residual.view_mut(Element::F32, n_tokens, hidden_size),
                weight: norm.as_array(),
                eps: self.norm_eps,
                rows,
                next: next.device.map(|device| device.matrix),
                input,
                out: scratch.normed.view_mut(Element::of_input(input), n_rows, hidden_size),
                out_scales: scratch.normed_scales.array_mut(n_rows),
            },
        )
    }

    /// Projects `normed` into `wide`, and says what that still lacks.
    pub(crate) fn project_normed(&mut self, weights: &Projection) -> Result<Deferred, StepError> {
        let n_tokens = self.n_tokens();
        let scratch = &mut *self.scratch;
        let element = Element::of_input(weights.input());
        Ok(projection::linear(
            self.exec,
            projection::Args {
                x: scratch.normed.view(element, n_tokens, scratch.hidden_size),
                x_scales: scratch.normed_scales.array(n_tokens),
                weights,
                out: scratch.wide.view_mut(Element::Bf16, n_tokens, weights.n_rows()),
            },
        )?)
    }

    /// Projects `normed` into `inner`, activated and quantized as `second` wants it.
    pub(crate) fn project_gated(&mut self, weights: &Projection, second: &Projection) {
        let n_tokens = self.n_tokens();
        let (scratch, n_cols) = (&mut *self.scratch, second.n_cols());
        let (element, input) = (Element::of_input(weights.input()), fused(second.input()));
        let args = projection::Args {
            x: scratch.normed.view(element, n_tokens, scratch.hidden_size),
            x_scales: scratch.normed_scales.array(n_tokens),
            weights,
            out: scratch.inner.view_mut(Element::of_input(input), n_tokens, n_cols),
        };
        projection::gated(self.exec, args, input, scratch.inner_scales.array_mut(n_tokens));
    }

    /// Projects `inner`, this rank's share of the columns, into the pending partial result.
    pub(crate) fn project_inner(
        &mut self,
        weights: &Projection,
        magnitudes: Magnitudes,
    ) -> Result<(), StepError> {
        let n_tokens = self.n_tokens();
        let (input, n_cols) = (weights.input(), weights.n_cols());
        let element = Element::of_input(input);
        let Scratch { inner, inner_quantized, inner_scales, partial, .. } = &mut *self.scratch;
        if input == InputScale::PerToken {
            let args = quantize::Args {
                x: inner.view_mut(Element::Bf16, n_tokens, n_cols),
                out: inner_quantized.as_mut().map(|out| out.view_mut(element, n_tokens, n_cols)),
                input,
                magnitudes,
                scales: inner_scales.array_mut(n_tokens),
            };
            quantize::quantize_cut(self.exec, self.communicator, args)?;
        }
        let quantized = inner_quantized.as_ref().filter(|_| input == InputScale::PerToken);
        self.pending.scales = projection::linear(
            self.exec,
            projection::Args {
                x: quantized.unwrap_or(inner).view(element, n_tokens, n_cols),
                x_scales: inner_scales.array(n_tokens),
                weights,
                out: partial.next(n_tokens).view_mut(Element::Bf16, n_tokens, weights.n_rows()),
            },
        )?;
        Ok(())
    }
}
