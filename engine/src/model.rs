//! The forward pass of one rank: embedding, the block list, the head.

use std::ops::Range;

use parallel::{Communicator, Rank};
use scheduler::{GroupIdx, StepPlan};
use weights::{InputScale, ModelSpec, RankWeights};

use crate::batch::{Batch, EmitPoint, Inputs};
use crate::blocks::{Block, Scratch, StepCx, Widths};
use crate::cache::{CacheLayout, PageTables};
use crate::device::{
    Aligned, Buffer, Deferred, Element, Exec, Projection, RopeAngles, RopeFrequencies, Table,
    Vector, ViewMut,
};
use crate::kernels::attention::AttentionRow;
use crate::kernels::{embed, linear, quantize};
use crate::memory_plan::MemoryPlan;
use crate::rank::StepError;

/// Positions whose logits are computed at once: bounds the logits' memory when a prompt is scored.
pub(crate) const N_LOGIT_ROWS: usize = 32;

/// One rank's model, with everything that a step writes.
pub(crate) struct Model {
    norm_eps: f32,
    embedding: Table,
    vocab_begin: usize,
    blocks: Vec<Block>,
    final_norm: Vector,
    head: Projection,
    frequencies: RopeFrequencies,
    tables: PageTables,
    batch: Batch,
    /// Room for the batch's rows in every cache group; empty between steps.
    rows: Vec<Vec<AttentionRow<'static>>>,
    angles: RopeAngles,
    scratch: Scratch,
    logits: Logits,
}

/// Memory for [`N_LOGIT_ROWS`] positions.
struct Logits {
    vocab_size: usize,
    /// Normalised hidden states of positions that emit, `[N_LOGIT_ROWS, hidden]`.
    picked: Buffer,
    scales: Buffer,
    /// This rank's vocabulary entries, `[N_LOGIT_ROWS, n_local]`.
    local: Aligned,
    /// All of them, `[N_LOGIT_ROWS, vocab]`; only rank 0 of several has it.
    gathered: Vec<f32>,
}

impl Model {
    /// Takes a rank's weights and allocates what `plan` says.
    pub(crate) fn new(
        spec: &ModelSpec,
        weights: RankWeights,
        plan: &MemoryPlan,
        rank: Rank,
    ) -> Model {
        let layout = CacheLayout::new(spec);
        let n_groups = layout.groups.len();
        // One for the whole model; a model without attention rotates nothing.
        let head_dim =
            spec.blocks.iter().find_map(|block| block.attention()).map_or(2, |a| a.head_dim);
        let blocks = weights.blocks.into_iter().map(|block| {
            let group = layout.group_of(&spec.blocks[block.block_idx]);
            Block::host(block, group, plan)
        });
        let n_tokens = plan.n_tokens_per_step;
        Model {
            norm_eps: spec.norm_eps,
            vocab_begin: weights.vocab_begin,
            blocks: blocks.collect(),
            final_norm: Vector::Host(weights.final_norm),
            frequencies: RopeFrequencies::new(&spec.rope, head_dim),
            tables: PageTables::new(n_groups, plan.n_slots, plan.n_context_tokens),
            batch: Batch::new(n_groups, n_tokens, plan.n_slots),
            rows: (0..n_groups).map(|_| Vec::with_capacity(plan.n_slots)).collect(),
            angles: RopeAngles::new(n_tokens, head_dim),
            scratch: Scratch::new(plan.widths, n_tokens),
            logits: Logits::new(spec, weights.head.matrix.n_rows, plan.n_ranks, rank),
            embedding: Table::Host(weights.embedding),
            head: Projection::host(vec![weights.head]),
        }
    }

    /// Runs a plan. On rank 0, `consume` gets the logits `[vocab]` of every position that emits,
    /// in batch order; elsewhere it is not called.
    pub(crate) fn forward(
        &mut self,
        exec: &mut Exec,
        communicator: &mut Communicator,
        plan: &StepPlan,
        consume: &mut dyn FnMut(&EmitPoint, &[f32]),
    ) -> Result<(), StepError> {
        self.tables.apply(&plan.pages);
        self.batch.fill(plan, &self.tables);
        self.angles.fill(&self.frequencies, &self.batch.positions);
        let mut rows = emptied(std::mem::take(&mut self.rows));
        for (group_idx, rows) in rows.iter_mut().enumerate() {
            let group = GroupIdx(group_idx as u16);
            rows.extend(self.batch.attention_rows(&self.tables, group));
        }
        let mut cx = StepCx {
            exec,
            communicator,
            inputs: Inputs::Host { batch: &self.batch, rows: &rows, angles: &self.angles },
            scratch: &mut self.scratch,
            pending: Deferred::Nothing,
            norm_eps: self.norm_eps,
        };
        cx.embed(&self.embedding, self.vocab_begin)?;
        for block in &mut self.blocks {
            block.forward(&mut cx)?;
        }
        if !self.batch.emits.is_empty() {
            cx.normalise(&self.final_norm, InputScale::None)?;
        }
        for (chunk_idx, points) in self.batch.emits.chunks(N_LOGIT_ROWS).enumerate() {
            let first = chunk_idx * N_LOGIT_ROWS;
            self.logits.compute(&mut cx, &self.head, first..first + points.len())?;
            for (row_idx, point) in points.iter().enumerate() {
                if let Some(logits) = self.logits.row(cx.communicator, row_idx) {
                    consume(point, logits);
                }
            }
        }
        self.rows = emptied(rows);
        Ok(())
    }
}

impl StepCx<'_> {
    /// Starts the residual stream: the looked-up tokens are its first partial result.
    fn embed(&mut self, table: &Table, vocab_begin: usize) -> Result<(), StepError> {
        let n_tokens = self.n_tokens();
        let scratch = &mut *self.scratch;
        let out = scratch.partial.view_mut(Element::Bf16, n_tokens, scratch.hidden_size);
        let args = embed::Args { tokens: self.inputs.tokens(), table, vocab_begin, out };
        embed::embed(self.exec, args)?;
        let residual = scratch.residual.view_mut(Element::F32, n_tokens, scratch.hidden_size);
        Ok(self.exec.zero(residual)?)
    }
}

impl Logits {
    fn new(spec: &ModelSpec, n_local: usize, n_ranks: usize, rank: Rank) -> Logits {
        let gathers = n_ranks > 1 && rank.idx() == 0;
        Logits {
            vocab_size: spec.vocab_size,
            picked: Buffer::host(N_LOGIT_ROWS * spec.hidden_size),
            scales: Buffer::host(N_LOGIT_ROWS),
            local: Aligned::new(N_LOGIT_ROWS * n_local),
            gathered: vec![0.0; if gathers { N_LOGIT_ROWS * spec.vocab_size } else { 0 }],
        }
    }

    /// The head for the emitting positions `range`, whose hidden states are normalised.
    fn compute(
        &mut self,
        cx: &mut StepCx<'_>,
        head: &Projection,
        range: Range<usize>,
    ) -> Result<(), StepError> {
        let (n_tokens, n_rows, hidden_size) = (cx.n_tokens(), range.len(), cx.scratch.hidden_size);
        let pick = embed::PickArgs {
            x: cx.scratch.normed.view(Element::Bf16, n_tokens, hidden_size),
            rows: cx.inputs.emitting(range),
            out: self.picked.view_mut(Element::Bf16, n_rows, hidden_size),
        };
        embed::pick(cx.exec, pick)?;
        let quantize = quantize::Args {
            x: self.picked.view_mut(Element::Bf16, n_rows, hidden_size),
            out: None,
            input: head.input(),
            scales: self.scales.array_mut(n_rows),
        };
        quantize::quantize(cx.exec, quantize)?;
        let n_local = head.n_rows();
        linear::linear(
            cx.exec,
            linear::Args {
                x: self.picked.view(Element::Bf16, n_rows, hidden_size),
                x_scales: self.scales.array(n_rows),
                weights: head,
                out: ViewMut::new(&mut self.local[..n_rows * n_local], n_rows, n_local),
            },
        )?;
        self.gather(cx.communicator, n_rows)
    }

    /// Puts every rank's vocabulary entries side by side on rank 0.
    fn gather(&mut self, communicator: &mut Communicator, n_rows: usize) -> Result<(), StepError> {
        if matches!(communicator, Communicator::Solo) {
            return Ok(());
        }
        let n_local = self.local.len() / N_LOGIT_ROWS;
        let (gathered, vocab_size) = (&mut self.gathered, self.vocab_size);
        let mut begin = 0;
        communicator.all_gather(&self.local[..n_rows * n_local], &mut |_, theirs| {
            let n_theirs = theirs.len() / n_rows;
            if n_theirs > 0 && !gathered.is_empty() {
                for (row_idx, row) in theirs.chunks_exact(n_theirs).enumerate() {
                    let at = row_idx * vocab_size + begin;
                    gathered[at..at + n_theirs].copy_from_slice(row);
                }
            }
            begin += n_theirs;
        })?;
        assert_eq!(begin, vocab_size, "the ranks' vocabulary entries make up the whole");
        Ok(())
    }

    /// The whole row of logits, where this rank has it.
    fn row(&self, communicator: &Communicator, row_idx: usize) -> Option<&[f32]> {
        let whole = match communicator {
            Communicator::Solo => &*self.local,
            _ if self.gathered.is_empty() => return None,
            _ => &self.gathered,
        };
        Some(&whole[row_idx * self.vocab_size..(row_idx + 1) * self.vocab_size])
    }
}

/// The same vectors without their rows, free to hold rows of another lifetime. Nothing is
/// allocated: what a vector of the same layout is collected from is reused (`tests` counts).
fn emptied<'b>(rows: Vec<Vec<AttentionRow<'_>>>) -> Vec<Vec<AttentionRow<'b>>> {
    let empty_one = |mut rows: Vec<AttentionRow<'_>>| {
        rows.clear();
        rows.into_iter().map(|_| unreachable!("it was cleared")).collect()
    };
    rows.into_iter().map(empty_one).collect()
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
    let n_floats = N_LOGIT_ROWS * (spec.hidden_size + 1 + n_local + n_gathered);
    (n_floats * size_of::<f32>()) as u64
}

#[cfg(test)]
mod tests;
