//! An engine whose model is a script: the product's own loop and scheduler over a rank that
//! computes nothing. Who wants to see what surrounds the model sees it without the model's time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engine::rank::{RankCommand, RankReply, RowOutput, StepInput, StepOutput};
use engine::{DeviceKind, Engine, EngineInfo, Policy, TokenId};
use parallel::{PoolConfig, RankPool, RankWorker, World};
use scheduler::Limits;
use weights::ModelSpec;

/// Nothing takes longer, on any machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// Hears of every step on the rank's thread, before its tokens are told; the step takes as long as
/// this does.
pub type Pace = Arc<dyn Fn(&StepInput) + Send + Sync>;

/// What the model says.
#[derive(Clone)]
pub struct Script {
    /// Tokens that every answer says in turn, over and over, from the first on. They differ.
    pub tokens: Vec<TokenId>,
    /// Decides when.
    pub pace: Pace,
}

/// How much there may be.
#[derive(Clone, Debug)]
pub struct ScriptBounds {
    /// Generations that run at once.
    pub n_slots: usize,
    /// Generations that wait.
    pub n_waiting_max: usize,
    /// Tokens of prompt and answer.
    pub n_context_tokens: usize,
    /// The model that it stands for.
    pub spec: Arc<ModelSpec>,
    /// Whose turn it is.
    pub policy: Policy,
}

#[derive(Debug, thiserror::Error)]
#[error("a script cannot be probed")]
struct NotScripted;

struct Scripted {
    /// The token after each of the script's.
    next: HashMap<TokenId, TokenId>,
    first: TokenId,
    pace: Pace,
}

impl RankWorker for Scripted {
    type Command = RankCommand;
    type Reply = RankReply;
    type Error = NotScripted;

    fn handle(&mut self, command: RankCommand) -> Result<RankReply, NotScripted> {
        let RankCommand::Step(input) = command else { return Err(NotScripted) };
        (self.pace)(&input);
        let plan = &input.plan;
        let rows = plan.rows.iter().map(|row| {
            let last = plan.row_tokens(row).last().expect("a row has tokens");
            // A prompt's last token has none after it, or it decides where the script begins.
            let next = self.next.get(last).copied().unwrap_or(self.first);
            RowOutput { token: row.emit.samples().then_some(next), ..RowOutput::default() }
        });
        Ok(RankReply::Stepped(Some(StepOutput { rows: rows.collect() })))
    }
}

/// An engine that says what is written, one step after the other. It has no KV cache, as a model
/// without attention.
///
/// # Panics
/// The script is empty.
pub fn engine(script: Script, bounds: &ScriptBounds) -> Engine {
    let Script { tokens, pace } = script;
    let first = *tokens.first().expect("a script says something");
    let after = tokens.iter().skip(1).chain(&tokens[..1]);
    let next: HashMap<TokenId, TokenId> = tokens.iter().copied().zip(after.copied()).collect();
    let config = PoolConfig {
        world: World::new(1),
        n_floats_max: 1,
        build_deadline: PATIENCE,
        deadline: PATIENCE,
    };
    let build = move |_| {
        let (next, pace) = (next.clone(), Arc::clone(&pace));
        Ok::<_, NotScripted>(Scripted { next, first, pace })
    };
    let pool = RankPool::spawn(config, build).expect("a thread starts");
    let n_tokens_per_step = bounds.n_context_tokens.max(bounds.n_slots);
    let limits = Limits {
        n_slots: bounds.n_slots,
        n_waiting_max: bounds.n_waiting_max,
        n_tokens_per_step,
        n_context_tokens: bounds.n_context_tokens,
        page_tokens: engine::PAGE_TOKENS,
        priorities: bounds.policy.priorities,
        n_tenants: 1,
        latency: None,
        prefix_cache: None,
        host_tier: None,
        speculation: None,
        groups: Vec::new(),
    };
    let info = EngineInfo {
        n_context_tokens: bounds.n_context_tokens,
        vocab_size: bounds.spec.vocab_size,
        spec: Arc::clone(&bounds.spec),
        groups: Vec::new(),
        device: DeviceKind::Cpu,
        n_slots: bounds.n_slots,
        n_waiting_max: bounds.n_waiting_max,
        n_tokens_per_step,
        page_tokens: engine::PAGE_TOKENS,
        page_bytes: Vec::new(),
        host_kv_bytes: 0,
        n_ranks: 1,
        overlaps_steps: false,
        policy: bounds.policy,
        launches_ahead: false,
    };
    Engine::start(pool, limits, info)
}
