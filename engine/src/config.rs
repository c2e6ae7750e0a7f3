//! What the operator decides about an engine. Parts have no defaults: the caller decides.

use std::time::Duration;

use scheduler::{LatencyTarget, Priorities};

/// Tenants that are told apart; others share with one of them.
pub(crate) const N_TENANTS: usize = 1024;

/// Prompt tokens of a step, whatever the latency target: a page of every group and more, so that no
/// prompt comes to a halt.
const N_PROMPT_TOKENS_MIN: usize = 64;

/// Where the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// This machine's processor.
    Cpu,
    /// GPUs, one a rank.
    Cuda,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDtype {
    /// Exact: what tests against a float64 oracle use.
    F32,
    /// Two bytes.
    Bf16,
    /// One byte, e4m3, with the checkpoint's `k_scale` and `v_scale`.
    Fp8,
}

impl KvDtype {
    /// Bytes of one element.
    pub fn n_bytes(self) -> usize {
        match self {
            KvDtype::F32 => 4,
            KvDtype::Bf16 => 2,
            KvDtype::Fp8 => 1,
        }
    }
}

/// Whose turn it is, and how long anybody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How priorities are understood.
    pub priorities: Priorities,
    /// What a step should take at most while somebody reads an answer: prompts get what that
    /// leaves. `None` fills every step.
    pub step_target: Option<Duration>,
    /// From submission to a slot at most, where a request sets no such time itself.
    pub queue_timeout: Option<Duration>,
}

impl Policy {
    /// Turns are those of arrival, steps are full, everybody waits as long as it takes.
    pub fn plain() -> Policy {
        Policy { priorities: Priorities::single(), step_target: None, queue_timeout: None }
    }

    /// What steps should take, as the scheduler understands it.
    pub(crate) fn latency(&self) -> Option<LatencyTarget> {
        self.step_target.map(|target| LatencyTarget {
            step_us: target.as_micros() as u64,
            n_prompt_tokens_min: N_PROMPT_TOKENS_MIN,
        })
    }
}

/// What is kept of KV that a device has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostKv {
    /// Bytes, over all ranks.
    pub n_bytes: u64,
    /// So many tokens come back at least; fewer are computed anew.
    pub n_tokens_min: usize,
}

/// Everything that boot needs besides the checkpoint.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where the model runs.
    pub device: DeviceKind,
    /// Tensor-parallel ranks.
    pub n_ranks: usize,
    /// Compute threads of all ranks together; `None` takes the machine's cores.
    pub n_threads: Option<usize>,
    /// Sequences that may run at once.
    pub n_slots: usize,
    /// Requests that may wait.
    pub n_waiting_max: usize,
    /// Tokens computed in a step.
    pub n_tokens_per_step: usize,
    /// Prompt and answer of one sequence; `None` takes the checkpoint's.
    pub n_context_tokens: Option<usize>,
    /// Cache element type; `None` takes FP8 where the checkpoint brings KV scales, else BF16.
    pub kv_dtype: Option<KvDtype>,
    /// Bytes for KV pages over all ranks; `None` takes what all slots need at full length, up to a
    /// bound that the memory plan states.
    pub kv_bytes: Option<u64>,
    /// Whether a request's logits have the same bits on devices whatever runs beside it, however
    /// its prompt is cut, and whether it was preempted. It costs time. On the processor it is so
    /// anyway.
    pub is_deterministic: bool,
    /// Whether the processor rounds what meets weights of BF16 to BF16, as a device does, and where
    /// it multiplies tiles what meets keys and values. Where it has an instruction for products of
    /// BF16 that is twice as fast. Bits do not depend on the batch either way.
    pub rounds_inputs: bool,
    /// Whether a step is planned while the one before it runs. It keeps the scheduler off a
    /// device's time. What arrives waits for up to a step more, and a request that stops by itself
    /// costs a row for nothing: on the processor, where a step takes a thousand times what planning
    /// does, that is the worse bargain.
    pub overlaps_steps: bool,
    /// Whether KV that a prompt begins with is taken from an earlier request, where one began
    /// alike.
    pub caches_prefixes: bool,
    /// Whose turn it is, and how long anybody waits.
    pub policy: Policy,
    /// Memory of the host for KV that falls out of the prefix cache; `None` forgets it.
    pub host_kv: Option<HostKv>,
    /// Tokens that are guessed at most behind each one that a sequence generates, and verified in
    /// the same step; 0 guesses none. No token and no score changes by it. On devices all rows are
    /// sampled on the host then.
    pub n_candidates_max: usize,
}
