//! Steps on the processor: a plan laid out for its kernels, logits in this machine's memory.

use parallel::Rank;
use scheduler::GroupIdx;
use weights::ModelSpec;

use super::logits::Logits;
use super::{N_LOGIT_ROWS, Network, StepRun};
use crate::batch::{Batch, Inputs};
use crate::blocks::{Scratch, StepCx};
use crate::cache::{CacheLayout, PageTables};
use crate::device::{RopeAngles, RopeFrequencies, ViewMut};
use crate::kernels::attention::AttentionRow;
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
        let StepRun { exec, communicator, plan, consume, .. } = run;
        self.tables.apply(&plan.pages);
        network.move_pages(exec, &plan.moves)?;
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
            let (n_rows, n_local) = (points.len(), network.n_vocab_local());
            let out = ViewMut::new(self.logits.local_mut(n_rows), n_rows, n_local);
            network.project(&mut cx, first..first + n_rows, out)?;
            self.logits.gather(cx.communicator, n_rows)?;
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

/// The same vectors without their rows, free to hold rows of another lifetime. Nothing is
/// allocated: what a vector of the same layout is collected from is reused (`tests` counts).
fn emptied<'b>(rows: Vec<Vec<AttentionRow<'_>>>) -> Vec<Vec<AttentionRow<'b>>> {
    let empty_one = |mut rows: Vec<AttentionRow<'_>>| {
        rows.clear();
        rows.into_iter().map(|_| unreachable!("it was cleared")).collect()
    };
    rows.into_iter().map(empty_one).collect()
}
