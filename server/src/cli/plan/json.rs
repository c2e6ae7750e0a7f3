//! The plan for programs. Names are kept: scripts rely on them.

use engine::{MemoryError, MemoryPlan, RankMemory};
use serde_json::{Map, Value, json};

use super::report::{CONTEXTS, kinds, n_sequences, predicted};
use super::{Planned, advice};
use crate::cli::table::kv_name;

/// The whole, whether or not the model fits.
pub(super) fn of(planned: &Planned<'_>, plan: &Result<MemoryPlan, MemoryError>) -> Value {
    let command = planned.command;
    let mut root = json!({
        "model": command.model,
        "format": planned.format(),
        "gpus": command.engine.n_ranks,
        "device_bytes": command.device_bytes,
        "max_seqs": command.engine.n_slots,
        "max_tokens_per_step": command.engine.n_tokens_per_step,
        "fits": plan.is_ok(),
        "kv_tokens": plan.as_ref().map_or(0, MemoryPlan::n_kv_tokens),
    });
    let alternatives = advice::alternatives(planned);
    root["alternatives"] = alternatives
        .into_iter()
        .map(|one| json!({ "with": one.flag, "kv_tokens": one.n_kv_tokens }))
        .collect();
    let ranks: &[RankMemory] = match plan {
        Ok(plan) => &plan.ranks,
        Err(MemoryError::DeviceTooSmall { rank, .. }) => std::slice::from_ref(rank),
        Err(_) => &[],
    };
    let rank =
        |(rank_idx, rank): (usize, &RankMemory)| of_rank(rank_idx, rank, command.device_bytes);
    root["ranks"] = ranks.iter().enumerate().map(rank).collect();
    let terms = ranks.first().map(RankMemory::terms).unwrap_or_default();
    let sources = terms.iter().map(|term| (term.name.to_owned(), term.source.into()));
    root["sources"] = Value::Object(sources.collect::<Map<String, Value>>());
    match plan {
        Ok(plan) => of_plan(&mut root, planned, plan),
        Err(error) => root["reason"] = error.to_string().into(),
    }
    root
}

/// Every key that ends in `_bytes` is a term, but for `total_bytes`, their sum, and `device_bytes`.
fn of_rank(rank_idx: usize, rank: &RankMemory, device_bytes: u64) -> Value {
    let mut object = Map::new();
    object.insert("rank".to_owned(), rank_idx.into());
    let weights = kinds(rank).map(|(label, n_bytes)| (label.replace(' ', "_"), n_bytes.into()));
    object.insert("weights".to_owned(), Value::Object(weights.into_iter().collect()));
    for term in rank.terms() {
        object.insert(term.name.to_owned(), term.n_bytes.into());
    }
    object.insert("total_bytes".to_owned(), rank.total_bytes().into());
    object.insert("device_bytes".to_owned(), device_bytes.into());
    Value::Object(object)
}

fn of_plan(root: &mut Value, planned: &Planned<'_>, plan: &MemoryPlan) {
    root["kv_dtype"] = kv_name(plan.kv_dtype).into();
    root["page_tokens"] = engine::PAGE_TOKENS.into();
    root["context_tokens"] = plan.n_context_tokens.into();
    let fitting = |&n_context: &usize| {
        let n = n_sequences(plan, n_context);
        json!({ "context_tokens": n_context, "sequences": n })
    };
    root["sequences"] = CONTEXTS.iter().map(fitting).collect();
    root["predicted_decode_steps"] = predicted(planned, plan)
        .iter()
        .map(|one| {
            json!({
                "sequences": one.n_sequences,
                "context_tokens": one.n_context,
                "expected_s": one.expected_s,
                "fast_s": one.fast_s,
                "slow_s": one.slow_s,
                "roofline_s": one.roofline_s,
            })
        })
        .collect();
}
