//! What other settings would give: each is planned anew, none is guessed.

use engine::{KvDtype, MemoryPlan};
use weights::synthetic::SyntheticFormat;

use super::{PlanCommand, Planned};

/// GPUs of a node at most.
const N_GPUS_MAX: usize = 8;

/// Settings that differ in one thing, and the tokens that the cache then holds.
pub(super) struct Alternative {
    /// As it is typed.
    pub(super) flag: String,
    /// `None` where it does not fit either.
    pub(super) n_kv_tokens: Option<usize>,
}

/// What differs in one setting each from what was asked for.
pub(super) fn alternatives(planned: &Planned<'_>) -> Vec<Alternative> {
    changes(planned).into_iter().map(|(flag, command)| try_out(planned, flag, &command)).collect()
}

fn changes(planned: &Planned<'_>) -> Vec<(String, PlanCommand)> {
    let PlanCommand { engine, format, .. } = planned.command;
    let mut changes = Vec::new();
    let mut change = |flag: String, change: &dyn Fn(&mut PlanCommand)| {
        let mut command = planned.command.clone();
        change(&mut command);
        changes.push((flag, command));
    };
    let more = [2, 4, 8].into_iter().filter(|&n| n > engine.n_ranks && n <= N_GPUS_MAX);
    for n_gpus in more {
        change(format!("--gpus {n_gpus}"), &|command| command.engine.n_ranks = n_gpus);
    }
    if !planned.has_weights && !format.is_fp8() {
        let flag = format!("--format {}", SyntheticFormat::ModelOptFp8);
        change(flag, &|command| command.format = SyntheticFormat::ModelOptFp8);
    }
    let is_fp8 = match engine.kv_dtype {
        None => planned.checkpoint.has_kv_scales(),
        Some(kv_dtype) => kv_dtype == KvDtype::Fp8,
    };
    if !is_fp8 {
        change("--kv-dtype fp8".to_owned(), &|c| c.engine.kv_dtype = Some(KvDtype::Fp8));
    }
    if engine.n_tokens_per_step > engine.n_slots.max(128) {
        let n = (engine.n_tokens_per_step / 2).max(engine.n_slots);
        change(format!("--max-tokens-per-step {n}"), &|c| c.engine.n_tokens_per_step = n);
    }
    if engine.n_slots > 8 {
        let n = engine.n_slots / 2;
        change(format!("--max-seqs {n}"), &|command| command.engine.n_slots = n);
    }
    let n_context = engine.n_context_tokens.unwrap_or(planned.checkpoint.spec().n_positions_max);
    if n_context > 32_768 {
        change("--max-model-len 32768".to_owned(), &|c| c.engine.n_context_tokens = Some(32_768));
    }
    changes
}

fn try_out(planned: &Planned<'_>, flag: String, command: &PlanCommand) -> Alternative {
    let plan =
        |planned: &Planned<'_>| planned.plan().ok().map(|plan: MemoryPlan| plan.n_kv_tokens());
    let n_kv_tokens = match command.format == planned.command.format {
        // Another number of ranks may not be able to share it: that does not fit, either.
        true => {
            let checkpoint = planned.checkpoint.clone();
            plan(&Planned { command, checkpoint, has_weights: planned.has_weights })
        }
        false => Planned::open(command).ok().and_then(|planned| plan(&planned)),
    };
    Alternative { flag, n_kv_tokens }
}
