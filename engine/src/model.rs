//! The forward pass of one rank: embedding, the block list, the head.

use std::sync::Arc;

use parallel::{Communicator, Rank};
use scheduler::{GroupIdx, StepPlan};
use weights::{FfnWeights, LinearWeights, Matrix, MixerWeights, ModelSpec, RankWeights};

use crate::batch::{Batch, EmitPoint};
use crate::blocks::{
    Attention, Block, Ffn, Mixer, Replacement, Scratch, StepCx, SwiGlu, Widths, view, view_mut,
};
use crate::cache::{CacheLayout, PAGE_TOKENS, PageTables};
use crate::device::{Aligned, Exec, KvRegion, RopeAngles, RopeFrequencies};
use crate::kernels::attention::AttentionRow;
use crate::kernels::{embed, linear, rmsnorm};
use crate::memory_plan::MemoryPlan;
use crate::rank::StepError;

/// Positions whose logits are computed at once: bounds the logits' memory when a prompt is scored.
pub(crate) const N_LOGIT_ROWS: usize = 32;

/// One rank's model, with everything that a step writes.
pub(crate) struct Model {
    hidden_size: usize,
    norm_eps: f32,
    embedding: Matrix,
    vocab_begin: usize,
    blocks: Vec<Block>,
    final_norm: Arc<[f32]>,
    head: LinearWeights,
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
    /// Hidden states, then normalised, `[N_LOGIT_ROWS, hidden]` each.
    picked: Aligned,
    normed: Aligned,
    scales: Vec<f32>,
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
            let block_spec = &spec.blocks[block.block_idx];
            Block {
                mixer: block.mixer.map(|mixer| match mixer {
                    MixerWeights::Attention(weights) => {
                        let group = layout.group_of(block_spec).expect("it has attention");
                        let cache = KvRegion::new(
                            plan.kv_dtype,
                            plan.group_pages[group.idx()],
                            PAGE_TOKENS,
                            weights.share.n_kv_heads,
                            weights.share.head_dim,
                        );
                        Mixer::Attention(Attention { weights, cache, group })
                    }
                    MixerWeights::Linear(weights) => Mixer::Linear(Replacement { weights }),
                }),
                ffn: block.ffn.map(|ffn| match ffn {
                    FfnWeights::SwiGlu(weights) => Ffn::SwiGlu(SwiGlu { weights }),
                    FfnWeights::Linear(weights) => Ffn::Linear(Replacement { weights }),
                }),
            }
        });
        let n_tokens = plan.n_tokens_per_step;
        Model {
            hidden_size: spec.hidden_size,
            norm_eps: spec.norm_eps,
            vocab_begin: weights.vocab_begin,
            blocks: blocks.collect(),
            final_norm: weights.final_norm,
            frequencies: RopeFrequencies::new(&spec.rope, head_dim),
            tables: PageTables::new(n_groups, plan.n_slots, plan.n_context_tokens),
            batch: Batch::new(n_groups, n_tokens, plan.n_slots),
            rows: (0..n_groups).map(|_| Vec::with_capacity(plan.n_slots)).collect(),
            angles: RopeAngles::new(n_tokens, head_dim),
            scratch: Scratch::new(plan.widths, n_tokens),
            logits: Logits::new(spec, weights.head.matrix.n_rows, plan.n_ranks, rank),
            embedding: weights.embedding,
            head: weights.head,
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
        self.embed(exec, communicator)?;
        let mut rows = emptied(std::mem::take(&mut self.rows));
        for (group_idx, rows) in rows.iter_mut().enumerate() {
            let group = GroupIdx(group_idx as u16);
            rows.extend(self.batch.attention_rows(&self.tables, group));
        }
        let mut cx = StepCx {
            exec,
            communicator,
            batch: &self.batch,
            rows: &rows,
            angles: &self.angles,
            scratch: &mut self.scratch,
            norm_eps: self.norm_eps,
        };
        for block in &mut self.blocks {
            block.forward(&mut cx)?;
        }
        self.rows = emptied(rows);
        self.emit(exec, communicator, consume)
    }

    fn embed(&mut self, exec: &mut Exec, communicator: &mut Communicator) -> Result<(), StepError> {
        let n_tokens = self.batch.n_tokens();
        let residual = &mut self.scratch.residual;
        embed::embed(
            exec,
            embed::Args {
                tokens: &self.batch.tokens,
                table: &self.embedding,
                vocab_begin: self.vocab_begin,
                out: view_mut(residual, n_tokens, self.hidden_size),
            },
        )?;
        // Every token is one rank's; the others add zeros, which is exact.
        communicator.all_reduce_sum(&mut residual[..n_tokens * self.hidden_size])?;
        Ok(())
    }

    /// Final norm and head for the positions that emit, a few at a time.
    fn emit(
        &mut self,
        exec: &mut Exec,
        communicator: &mut Communicator,
        consume: &mut dyn FnMut(&EmitPoint, &[f32]),
    ) -> Result<(), StepError> {
        for points in self.batch.emits.chunks(N_LOGIT_ROWS) {
            let n_rows = points.len();
            for (picked, point) in self.logits.picked.chunks_exact_mut(self.hidden_size).zip(points)
            {
                let begin = point.token_idx * self.hidden_size;
                picked.copy_from_slice(&self.scratch.residual[begin..begin + self.hidden_size]);
            }
            rmsnorm::rmsnorm(
                exec,
                rmsnorm::Args {
                    x: view(&self.logits.picked, n_rows, self.hidden_size),
                    weight: &self.final_norm,
                    eps: self.norm_eps,
                    input: self.head.input,
                    out: view_mut(&mut self.logits.normed, n_rows, self.hidden_size),
                    out_scales: &mut self.logits.scales[..n_rows],
                },
            )?;
            linear::linear(
                exec,
                linear::Args {
                    x: view(&self.logits.normed, n_rows, self.hidden_size),
                    x_scales: &self.logits.scales[..n_rows],
                    weights: &self.head,
                    out: view_mut(&mut self.logits.local, n_rows, self.head.matrix.n_rows),
                },
            )?;
            self.logits.gather(communicator, n_rows)?;
            for (row_idx, point) in points.iter().enumerate() {
                if let Some(logits) = self.logits.row(communicator, row_idx) {
                    consume(point, logits);
                }
            }
        }
        Ok(())
    }
}

impl Logits {
    fn new(spec: &ModelSpec, n_local: usize, n_ranks: usize, rank: Rank) -> Logits {
        let gathers = n_ranks > 1 && rank.idx() == 0;
        Logits {
            vocab_size: spec.vocab_size,
            picked: Aligned::new(N_LOGIT_ROWS * spec.hidden_size),
            normed: Aligned::new(N_LOGIT_ROWS * spec.hidden_size),
            scales: vec![0.0; N_LOGIT_ROWS],
            local: Aligned::new(N_LOGIT_ROWS * n_local),
            gathered: vec![0.0; if gathers { N_LOGIT_ROWS * spec.vocab_size } else { 0 }],
        }
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
    let n_floats = N_LOGIT_ROWS * (2 * spec.hidden_size + 1 + n_local + n_gathered);
    (n_floats * size_of::<f32>()) as u64
}

#[cfg(test)]
mod tests;
