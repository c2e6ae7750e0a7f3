//! Steps on the processor: a plan laid out for its kernels, logits in this machine's memory.

use parallel::{Communicator, Rank};
use scheduler::GroupIdx;
use weights::ModelSpec;

use super::{N_LOGIT_ROWS, Network, StepRun};
use crate::batch::{Batch, Inputs};
use crate::blocks::{Scratch, StepCx};
use crate::cache::{CacheLayout, PageTables};
use crate::device::{Aligned, Element, Projection, RopeAngles, RopeFrequencies, ViewMut};
use crate::kernels::attention::AttentionRow;
use crate::kernels::linear;
use crate::kernels::reduce_norm::Pending;
use crate::memory_plan::MemoryPlan;
use crate::rank::StepError;

/// What the processor needs for a step besides the model.
pub(super) struct HostSteps {
    frequencies: RopeFrequencies,
    tables: PageTables,
    batch: Batch,
    /// Room for the batch's rows in every cache group; empty between steps.
    rows: Vec<Vec<AttentionRow<'static>>>,
    angles: RopeAngles,
    logits: Logits,
}

/// Memory for [`N_LOGIT_ROWS`] positions.
struct Logits {
    vocab_size: usize,
    /// This rank's vocabulary entries, `[N_LOGIT_ROWS, n_local]`.
    local: Aligned,
    /// All of them, `[N_LOGIT_ROWS, vocab]`; only rank 0 of several has it.
    gathered: Vec<f32>,
}

impl HostSteps {
    /// `n_local` is how many vocabulary entries this rank has.
    pub(super) fn new(
        spec: &ModelSpec,
        n_local: usize,
        plan: &MemoryPlan,
        rank: Rank,
    ) -> HostSteps {
        let n_groups = CacheLayout::new(spec).groups.len();
        let n_tokens = plan.n_tokens_per_step;
        let frequencies = RopeFrequencies::of_model(spec);
        HostSteps {
            tables: PageTables::new(n_groups, plan.n_slots, plan.n_context_tokens),
            batch: Batch::new(n_groups, n_tokens, plan.n_slots),
            rows: (0..n_groups).map(|_| Vec::with_capacity(plan.n_slots)).collect(),
            angles: RopeAngles::new(n_tokens, 2 * frequencies.n_pairs()),
            frequencies,
            logits: Logits::new(spec, n_local, plan.n_ranks, rank),
        }
    }

    pub(super) fn forward(
        &mut self,
        network: &mut Network,
        scratch: &mut Scratch,
        run: StepRun<'_>,
    ) -> Result<(), StepError> {
        let StepRun { exec, communicator, plan, consume } = run;
        self.tables.apply(&plan.pages);
        self.batch.fill(plan, &self.tables);
        self.angles.fill(&self.frequencies, &self.batch.positions);
        let mut rows = emptied(std::mem::take(&mut self.rows));
        for (group_idx, rows) in rows.iter_mut().enumerate() {
            let group = GroupIdx(group_idx as u16);
            rows.extend(self.batch.attention_rows(&self.tables, group));
        }
        let inputs = Inputs::Host { batch: &self.batch, rows: &rows, angles: &self.angles };
        let pending = Pending::default();
        let norm_eps = network.norm_eps;
        let mut cx = StepCx { exec, communicator, inputs, scratch, pending, norm_eps };
        network.run(&mut cx, inputs.emitting())?;
        for (chunk_idx, points) in self.batch.emits.chunks(N_LOGIT_ROWS).enumerate() {
            let first = chunk_idx * N_LOGIT_ROWS;
            self.logits.compute(&mut cx, &network.head, (first, points.len()))?;
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

impl Logits {
    fn new(spec: &ModelSpec, n_local: usize, n_ranks: usize, rank: Rank) -> Logits {
        let gathers = n_ranks > 1 && rank.idx() == 0;
        Logits {
            vocab_size: spec.vocab_size,
            local: Aligned::new(N_LOGIT_ROWS * n_local),
            gathered: vec![0.0; if gathers { N_LOGIT_ROWS * spec.vocab_size } else { 0 }],
        }
    }

    /// The head for `n_rows` normalised states from `first` on.
    fn compute(
        &mut self,
        cx: &mut StepCx<'_>,
        head: &Projection,
        (first, n_rows): (usize, usize),
    ) -> Result<(), StepError> {
        let (scratch, n_local) = (&*cx.scratch, head.n_rows());
        let end = first + n_rows;
        let element = Element::of_input(head.input());
        linear::linear(
            cx.exec,
            linear::Args {
                x: scratch.normed.view(element, end, scratch.hidden_size).rows(first..end),
                x_scales: scratch.normed_scales.array(end).range(first..end),
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
