//! Counters and gauges of the engine, as values; the server publishes them.

use std::time::Duration;

use parallel::RankTime;
use scheduler::GroupStats;

/// What a step's time is counted up to; a last place is for longer ones.
pub const STEP_BOUNDS: [Duration; 21] = {
    const US: [u64; 21] = [
        250, 500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 40_000,
        50_000, 75_000, 100_000, 150_000, 200_000, 400_000, 1_000_000, 4_000_000, 16_000_000,
    ];
    let mut bounds = [Duration::ZERO; 21];
    let mut idx = 0;
    while idx < US.len() {
        bounds[idx] = Duration::from_micros(US[idx]);
        idx += 1;
    }
    bounds
};

/// What a step's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// All of more than one token.
    Prefill,
    /// All of one token, candidates aside.
    Decode,
    /// Some of each.
    Mixed,
}

impl StepKind {
    /// How many there are.
    pub const N: usize = 3;
}

/// How long steps took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Steps up to each of [`STEP_BOUNDS`] and above the one before it, and those above all.
    pub counts: [u64; STEP_BOUNDS.len() + 1],
    /// The sum.
    pub sum: Duration,
}

impl StepTimes {
    pub(crate) fn count(&mut self, took: Duration) {
        self.counts[STEP_BOUNDS.partition_point(|&bound| bound < took)] += 1;
        self.sum += took;
    }
}

/// As of the last step. Counters only grow.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    /// Requests in a slot.
    pub n_running: usize,
    /// Requests waiting for one.
    pub n_waiting: usize,
    /// The same, by the level of priority that they came with, the first level first.
    pub n_waiting_by_level: Vec<usize>,
    /// Pages in use, over all groups.
    pub n_pages_used: usize,
    /// Pages that nobody holds and whose content may be wanted again, over all groups.
    pub n_pages_cached: usize,
    /// Pages, over all groups.
    pub n_pages: usize,
    /// Pages of each group.
    pub groups: Vec<GroupStats>,
    /// Steps run.
    pub n_steps: u64,
    /// Prompt tokens computed (again, after a preemption).
    pub n_prompt_tokens: u64,
    /// Tokens of sequences that entered a slot whose KV was found in the cache.
    pub n_cached_tokens: u64,
    /// Of them, those that came back from the host.
    pub n_host_tokens: u64,
    /// Pages of the host that hold KV, over all groups.
    pub n_pages_host: usize,
    /// What they take, in bytes over all ranks.
    pub host_kv_bytes: u64,
    /// Bytes of the pages that went to the host, over all ranks.
    pub out_kv_bytes: u64,
    /// Bytes of those that came back.
    pub in_kv_bytes: u64,
    /// Pages that went to the host.
    pub n_pages_out: u64,
    /// Pages that came back.
    pub n_pages_in: u64,
    /// The same, where another answer to the same prompt had it.
    pub n_shared_tokens: u64,
    /// Tokens generated.
    pub n_generated_tokens: u64,
    /// Tokens guessed.
    pub n_proposed_tokens: u64,
    /// Of the generated tokens, those that had been guessed.
    pub n_accepted_tokens: u64,
    /// Sequences sent back to the queue, for want of pages or for one of a higher level.
    pub n_preemptions: u64,
    /// Time from the step's plan to its result, summed.
    pub step_time: Duration,
    /// Time that the scheduler took to plan, summed.
    pub plan_time: Duration,
    /// Rows of more than one token.
    pub n_prefill_rows: u64,
    /// Their tokens.
    pub n_prefill_tokens: u64,
    /// Rows of one token, candidates aside.
    pub n_decode_rows: u64,
    /// Their tokens, candidates among them.
    pub n_decode_tokens: u64,
    /// How long steps took, by [`StepKind`].
    pub step_times: [StepTimes; StepKind::N],
    /// What each rank's time went into.
    pub ranks: Vec<RankTime>,
    /// By how much longer the busiest rank of a step worked than the least busy one, waits for
    /// peers aside; summed over steps.
    pub rank_skew: Duration,
}
