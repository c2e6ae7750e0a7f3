//! The forward pass of one rank: embedding, the block list, the head.
//!
//! [`Network`] is the model, written once. What differs between the processor and a device is how
//! a step's inputs get to it and its logits come out: `host` and `device`.

mod device;
mod host;
mod inputs;
mod logits;
mod outbox;
pub(crate) mod sampling;

use std::ops::Range;

use parallel::{Communicator, Rank, RankTime};
use scheduler::{PageMove, StepPlan};
use weights::{ModelSpec, RankWeights};

use crate::batch::EmitPoint;
use crate::blocks::{Block, Scratch, StepCx, Widths};
use crate::cache::{CacheLayout, CacheSizes};
use crate::device::{
    Array, CpuExec, Deferred, DeviceError, Element, Exec, Projection, Table, Vector, ViewMut,
};
use crate::kernels::reduce_norm::Pending;
use crate::kernels::sample::cuda::DeviceAnswer;
use crate::kernels::{embed, linear};
use crate::loading::{Placer, Unsupported, Use};
use crate::memory_plan::MemoryPlan;
use crate::rank::{Entering, RowOutput, StepError};

pub(crate) use device::{DeviceLogits, DeviceSteps, DeviceStepsConfig, n_recorded};
use host::HostSteps;
pub(crate) use inputs::{DeviceInputs, InputPlaces, InputSizes};
pub(crate) use outbox::Outbox;
pub(crate) use sampling::{DeviceSampling, SamplingPlaces, SamplingSizes};

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
    Host(Box<HostSteps>),
    Device(Box<DeviceSteps>),
}

/// A step, and who runs it. `consume` gets the logits `[vocab]` of every position that emits, in
/// batch order, on rank 0; elsewhere it is not called.
pub(crate) struct StepRun<'a> {
    pub(crate) exec: &'a mut Exec,
    pub(crate) communicator: &'a mut Communicator,
    pub(crate) plan: &'a StepPlan,
    pub(crate) consume: &'a mut dyn FnMut(&EmitPoint, &[f32]),
    /// Where a device may sample for the host.
    pub(crate) sampling: Option<Sampling<'a>>,
}

/// A step for devices alone: all its tokens are drawn there, and rows that follow others take
/// theirs there.
pub(crate) struct Submission<'a> {
    pub(crate) exec: &'a mut Exec,
    pub(crate) communicator: &'a mut Communicator,
    pub(crate) plan: &'a StepPlan,
    pub(crate) entering: &'a [Entering],
}

/// Sequences that enter slots, and who hears of what a device has drawn.
pub(crate) struct Sampling<'a> {
    pub(crate) entering: &'a [Entering],
    pub(crate) drawn: &'a mut dyn FnMut(&EmitPoint, DeviceAnswer),
}

impl Model {
    /// Takes a rank's weights where they are mapped, or packs them, and allocates what `plan` says.
    /// Who is beside the processor hears how many bytes were packed, again and again.
    pub(crate) fn host(
        (cpu, packed): (&CpuExec, &dyn Fn(u64)),
        spec: &ModelSpec,
        weights: RankWeights,
        plan: &MemoryPlan,
        rank: Rank,
    ) -> Model {
        cpu.reserve_packed(plan.widths.n_packed_floats(plan.n_tokens_per_step));
        let steps = HostSteps::new(spec, weights.head.matrix.n_rows, plan, rank);
        let network = Network::new(spec, weights, plan.caches(), &mut Placer::Host(cpu, packed));
        Model {
            network: network.expect("the processor takes every checkpoint"),
            scratch: Scratch::new(plan.widths, plan.n_tokens_per_step),
            steps: Steps::Host(Box::new(steps)),
        }
    }

    /// Takes what was placed on a device, where its copies have arrived.
    pub(crate) fn on_device(network: Network, scratch: Scratch, steps: DeviceSteps) -> Model {
        Model { network, scratch, steps: Steps::Device(Box::new(steps)) }
    }

    /// Takes memory of the host for pages that fall out of the caches: as many of each group.
    pub(crate) fn keep_on_host(
        &mut self,
        exec: &Exec,
        group_pages: &[usize],
    ) -> Result<(), DeviceError> {
        let mut blocks = self.network.blocks.iter_mut();
        blocks.try_for_each(|block| block.keep_on_host(exec, group_pages))
    }

    /// Prepares what can be prepared of steps of decoding. All ranks do.
    pub(crate) fn record(
        &mut self,
        exec: &mut Exec,
        communicator: &mut Communicator,
    ) -> Result<(), StepError> {
        let Model { network, scratch, steps } = self;
        match steps {
            Steps::Host(_) => Ok(()),
            Steps::Device(steps) => steps.record(network, scratch, exec, communicator),
        }
    }

    /// Runs a plan.
    pub(crate) fn forward(&mut self, run: StepRun<'_>) -> Result<(), StepError> {
        let Model { network, scratch, steps } = self;
        match steps {
            Steps::Host(steps) => steps.forward(network, scratch, run),
            Steps::Device(steps) => steps.forward(network, scratch, run),
        }
    }

    /// Submits a step behind what was submitted before. How many steps before it have not
    /// [landed](Model::land): one at most.
    pub(crate) fn submit(&mut self, step: Submission<'_>) -> Result<usize, StepError> {
        let Model { network, scratch, steps } = self;
        match steps {
            Steps::Host(_) => panic!("nothing lies behind a step of the processor's"),
            Steps::Device(steps) => steps.submit(network, scratch, step),
        }
    }

    /// Has what was submitted end, whatever it waits for. Nothing may be submitted afterwards.
    pub(crate) fn let_go(&self, exec: &Exec) {
        if let (Steps::Device(steps), Exec::Cuda(gpu)) = (&self.steps, exec) {
            steps.let_go(&gpu.exec);
        }
    }

    /// What its device's time went into since this was last asked, if it has one.
    pub(crate) fn take_device_time(&mut self) -> Option<RankTime> {
        match &mut self.steps {
            Steps::Host(_) => None,
            Steps::Device(steps) => Some(steps.take_time()),
        }
    }

    /// Waits for the oldest step that was submitted, and says what its rows yield.
    pub(crate) fn land(
        &mut self,
        exec: &Exec,
        communicator: &mut Communicator,
        rows: Option<&mut Vec<RowOutput>>,
    ) -> Result<(), StepError> {
        match &mut self.steps {
            Steps::Host(_) => panic!("nothing was submitted to the processor"),
            Steps::Device(steps) => steps.land(exec, communicator, rows),
        }
    }
}

impl Network {
    /// A rank's weights and caches, where `placer` puts them.
    pub(crate) fn new(
        spec: &ModelSpec,
        weights: RankWeights,
        caches: CacheSizes<'_>,
        placer: &mut Placer<'_>,
    ) -> Result<Network, Unsupported> {
        let layout = CacheLayout::new(spec);
        let mut blocks = Vec::with_capacity(weights.blocks.len());
        for block in weights.blocks {
            let group = layout.group_of(&spec.blocks[block.block_idx]);
            blocks.push(Block::new(block, group, caches, placer)?);
        }
        Ok(Network {
            norm_eps: spec.norm_eps,
            vocab_begin: weights.vocab_begin,
            blocks,
            final_norm: placer.vector(weights.final_norm),
            embedding: placer.table(weights.embedding),
            head: placer.projection(vec![weights.head], Use::Head)?,
        })
    }

    /// Moves pages' content in order, before any row runs.
    fn move_pages(&mut self, exec: &Exec, moves: &[PageMove]) -> Result<(), StepError> {
        for &page in moves {
            for block in &mut self.blocks {
                block.move_page(exec, page)?;
            }
        }
        Ok(())
    }

    /// From tokens to what the head projects: the normalised states of `rows`, or of every token,
    /// one below another in the scratch's `normed`.
    fn run(&mut self, cx: &mut StepCx<'_>, rows: Option<Array<'_, u32>>) -> Result<(), StepError> {
        let n_tokens = cx.n_tokens();
        let hidden_size = cx.scratch.hidden_size;
        let partial = cx.scratch.partial.first(n_tokens);
        let out = partial.view_mut(Element::Bf16, n_tokens, hidden_size);
        let args = embed::Args {
            tokens: cx.inputs.tokens(),
            last_tokens: cx.inputs.last_tokens(),
            table: &self.embedding,
            vocab_begin: self.vocab_begin,
            out,
        };
        embed::embed(cx.exec, args)?;
        // Ranks hold parts of the vocabulary: what was looked up is the first partial result.
        cx.pending = Pending { scales: Deferred::Nothing, starts: true };
        for block in &mut self.blocks {
            block.forward(cx)?;
        }
        cx.normalise_rows(&self.final_norm, &self.head, rows)
    }

    /// This rank's logits of the normalised states `range`.
    fn project(
        &self,
        cx: &mut StepCx<'_>,
        range: Range<usize>,
        out: ViewMut<'_>,
    ) -> Result<(), StepError> {
        let (scratch, end) = (&*cx.scratch, range.end);
        let element = Element::of_input(self.head.input());
        linear::linear(
            cx.exec,
            linear::Args {
                x: scratch.normed.view(element, end, scratch.hidden_size).rows(range.clone()),
                x_scales: scratch.normed_scales.array(end).range(range),
                weights: &self.head,
                out,
            },
        )?;
        Ok(())
    }

    /// Vocabulary entries of this rank.
    fn n_vocab_local(&self) -> usize {
        self.head.n_rows()
    }

    /// Every projection.
    pub(crate) fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.blocks.iter().flat_map(Block::projections).chain([&self.head])
    }
}

/// The widths of one rank's widest sub-blocks, as multiples of `multiple`: what [`Scratch`] is
/// sized by.
pub(crate) fn widths(spec: &ModelSpec, n_ranks: usize, multiple: usize) -> Widths {
    let mut widths = Widths { hidden: spec.hidden_size, ..Widths::default() };
    for block in &spec.blocks {
        if let Some(attention) = block.attention() {
            let n_q_heads = attention.n_q_heads / n_ranks;
            let n_kv_heads = (attention.n_kv_heads / n_ranks).max(1);
            let columns = (n_q_heads + 2 * n_kv_heads) * attention.head_dim;
            widths.wide = widths.wide.max(columns);
            widths.queries = widths.queries.max(n_q_heads * attention.head_dim);
            widths.inner = widths.inner.max(n_q_heads * attention.head_dim);
        }
        if let Some(weights::FfnSpec::SwiGlu { width }) = block.ffn {
            let width = (width / n_ranks).next_multiple_of(multiple);
            widths.wide = widths.wide.max(2 * width);
            widths.inner = widths.inner.max(width);
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
