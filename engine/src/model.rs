//! The forward pass of one rank: embedding, the block list, the head.
//!
//! [`Network`] is the model, written once. What differs between the processor and a device is how
//! a step's inputs get to it and its logits come out: `host` and `device`.

mod host;

use parallel::{Communicator, Rank};
use scheduler::StepPlan;
use weights::{ModelSpec, RankWeights};

use crate::batch::EmitPoint;
use crate::blocks::{Block, Scratch, StepCx, Widths};
use crate::cache::CacheLayout;
use crate::device::{Array, Deferred, Element, Exec, Projection, Table, Vector};
use crate::kernels::embed;
use crate::kernels::reduce_norm::Pending;
use crate::memory_plan::MemoryPlan;
use crate::rank::StepError;

use host::HostSteps;

/// Positions whose logits are computed at once: bounds the logits' memory when a prompt is scored.
pub(crate) const N_LOGIT_ROWS: usize = 32;

/// One rank's model, with everything that a step writes.
pub(crate) struct Model {
    network: Network,
    scratch: Scratch,
    steps: Steps,
}

/// One rank's weights and caches.
pub(crate) struct Network {
    norm_eps: f32,
    embedding: Table,
    /// First vocabulary entry of this rank's embedding and head.
    vocab_begin: usize,
    blocks: Vec<Block>,
    final_norm: Vector,
    head: Projection,
}

/// How a plan becomes inputs, and normalised states become logits.
enum Steps {
    Host(HostSteps),
}

/// A step, and who runs it. `consume` gets the logits `[vocab]` of every position that emits, in
/// batch order, on rank 0; elsewhere it is not called.
pub(crate) struct StepRun<'a> {
    pub(crate) exec: &'a mut Exec,
    pub(crate) communicator: &'a mut Communicator,
    pub(crate) plan: &'a StepPlan,
    pub(crate) consume: &'a mut dyn FnMut(&EmitPoint, &[f32]),
}

impl Model {
    /// Takes a rank's weights where they are mapped, and allocates what `plan` says.
    pub(crate) fn host(
        spec: &ModelSpec,
        weights: RankWeights,
        plan: &MemoryPlan,
        rank: Rank,
    ) -> Model {
        let steps = HostSteps::new(spec, weights.head.matrix.n_rows, plan, rank);
        Model {
            network: Network::host(spec, weights, plan),
            scratch: Scratch::new(plan.widths, plan.n_tokens_per_step),
            steps: Steps::Host(steps),
        }
    }

    /// Runs a plan.
    pub(crate) fn forward(&mut self, run: StepRun<'_>) -> Result<(), StepError> {
        let Model { network, scratch, steps } = self;
        match steps {
            Steps::Host(steps) => steps.forward(network, scratch, run),
        }
    }
}

impl Network {
    fn host(spec: &ModelSpec, weights: RankWeights, plan: &MemoryPlan) -> Network {
        let layout = CacheLayout::new(spec);
        let blocks = weights.blocks.into_iter().map(|block| {
            let group = layout.group_of(&spec.blocks[block.block_idx]);
            Block::host(block, group, plan)
        });
        Network {
            norm_eps: spec.norm_eps,
            vocab_begin: weights.vocab_begin,
            blocks: blocks.collect(),
            final_norm: Vector::Host(weights.final_norm),
            embedding: Table::Host(weights.embedding),
            head: Projection::host(vec![weights.head]),
        }
    }

    /// From tokens to what the head projects: the normalised states of `rows`, or of every token,
    /// one below another in the scratch's `normed`.
    fn run(&mut self, cx: &mut StepCx<'_>, rows: Option<Array<'_, u32>>) -> Result<(), StepError> {
        let n_tokens = cx.n_tokens();
        let out = cx.scratch.partial.view_mut(Element::Bf16, n_tokens, cx.scratch.hidden_size);
        let (tokens, table, vocab_begin) = (cx.inputs.tokens(), &self.embedding, self.vocab_begin);
        embed::embed(cx.exec, embed::Args { tokens, table, vocab_begin, out })?;
        // Ranks hold parts of the vocabulary: what was looked up is the first partial result.
        cx.pending = Pending { scales: Deferred::Nothing, starts: true };
        for block in &mut self.blocks {
            block.forward(cx)?;
        }
        cx.normalise_rows(&self.final_norm, self.head.input(), rows)
    }
}

/// The widths of one rank's widest sub-blocks: what [`Scratch`] is sized by.
pub(crate) fn widths(spec: &ModelSpec, n_ranks: usize) -> Widths {
    let mut widths = Widths { hidden: spec.hidden_size, wide: 0, inner: 0 };
    for block in &spec.blocks {
        if let Some(attention) = block.attention() {
            let n_q_heads = attention.n_q_heads / n_ranks;
            let n_kv_heads = (attention.n_kv_heads / n_ranks).max(1);
            let columns = (n_q_heads + 2 * n_kv_heads) * attention.head_dim;
            widths.wide = widths.wide.max(columns);
            widths.inner = widths.inner.max(n_q_heads * attention.head_dim);
        }
        if let Some(weights::FfnSpec::SwiGlu { width }) = block.ffn {
            widths.wide = widths.wide.max(2 * width / n_ranks);
            widths.inner = widths.inner.max(width / n_ranks);
        }
    }
    widths
}

/// Bytes that one rank's logits take.
pub(crate) fn logits_bytes(spec: &ModelSpec, n_ranks: usize, rank_idx: usize) -> u64 {
    let n_local = spec.vocab_size.div_ceil(n_ranks);
    let n_gathered = if n_ranks > 1 && rank_idx == 0 { spec.vocab_size } else { 0 };
    let n_floats = N_LOGIT_ROWS * (n_local + n_gathered);
    (n_floats * size_of::<f32>()) as u64
}

#[cfg(test)]
mod tests;
