//! Ranks without the loop: tests and benches run plans by hand and look at the logits.

use std::sync::Arc;

use parallel::{RankError, RankPool};
use scheduler::{Admission, StepPlan};
use weights::Checkpoint;

use crate::boot::{BootError, spawn_ranks};
use crate::config::EngineConfig;
use crate::memory_plan::MemoryPlan;
use crate::rank::{Entering, ModelWorker, Probed, RankCommand, RankReply, StepInput, StepOutput};
use crate::request::{Request, SamplingParams, Terms};

/// A model on its ranks, driven by hand.
pub struct Probe {
    pool: RankPool<ModelWorker>,
    plan: MemoryPlan,
}

impl Probe {
    /// Starts the ranks as [`boot`](crate::boot) does.
    ///
    /// # Errors
    /// As [`boot`](crate::boot).
    pub fn new(checkpoint: Arc<Checkpoint>, config: &EngineConfig) -> Result<Probe, BootError> {
        let (pool, plan) = spawn_ranks(checkpoint, config, Arc::new(|_, _| {}))?;
        Ok(Probe { pool, plan })
    }

    /// What was allocated.
    pub fn memory(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Runs a plan as the loop does: tokens are drawn where its sequences' are, the likeliest ones.
    ///
    /// # Errors
    /// The first rank that failed, and why.
    pub fn step(&mut self, plan: StepPlan) -> Result<StepOutput, RankError> {
        let entering = plan.admitted.iter().map(|admission| entering(&plan, admission)).collect();
        let input = Arc::new(StepInput { plan, entering, allowed: Vec::new() });
        let replies = self.pool.broadcast(RankCommand::Step(input))?;
        let output = replies.into_iter().find_map(|reply| match reply {
            RankReply::Stepped(output) => output,
            RankReply::Probed(_) => None,
        });
        Ok(output.expect("rank 0 says what came out"))
    }

    /// Runs a plan; the logits of every position that emits, in the plan's order.
    ///
    /// # Errors
    /// The first rank that failed, and why.
    pub fn run(&mut self, plan: StepPlan) -> Result<Vec<Probed>, RankError> {
        let replies = self.pool.broadcast(RankCommand::Probe(Arc::new(plan)))?;
        let probed = replies.into_iter().find_map(|reply| match reply {
            RankReply::Probed(probed) => Some(probed),
            RankReply::Stepped(_) => None,
        });
        Ok(probed.expect("rank 0 answers first"))
    }
}

/// A sequence that takes a slot in `plan`, of which nothing but its likeliest tokens is wanted.
fn entering(plan: &StepPlan, admission: &Admission) -> Entering {
    let Admission { request, slot, .. } = *admission;
    let row = plan.rows.iter().find(|row| row.request == request);
    let prompt = row.map_or(&[][..], |row| plan.row_tokens(row));
    let request = Request {
        prompt: prompt.into(),
        n_new_max: usize::MAX,
        stop_tokens: Arc::new([]),
        sampling: SamplingParams::greedy(),
        n_logprobs: None,
        n_prompt_logprobs: None,
        hashes_logits: false,
        cache_salt: None,
        terms: Terms::ordinary(),
    };
    Entering { slot, request: Arc::new(request), generated: Vec::new(), is_guided: false }
}
