//! Ranks without the loop: tests and benches run plans by hand and look at the logits.

use std::sync::Arc;

use parallel::{RankError, RankPool};
use scheduler::StepPlan;
use weights::Checkpoint;

use crate::boot::{BootError, spawn_ranks};
use crate::config::EngineConfig;
use crate::memory_plan::MemoryPlan;
use crate::rank::{ModelWorker, Probed, RankCommand, RankReply};

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
