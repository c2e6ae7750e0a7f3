//! `lnserve inspect`: what a model is, and what it would take to run it.

mod block_map;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use engine::{EngineConfig, KvDtype, MemoryPlan};
use weights::synthetic::{SyntheticConfig, SyntheticFormat};
use weights::{BlockSpec, CacheSpec, Checkpoint, LoadError, ModelSpec, RankBytes, Role};

use super::table::{grouped, kv_name, table};
use super::{CliError, model_spec};
use crate::boot;
use crate::config::{ByteSize, InspectCommand, ModelSource};

/// Prints the report. A directory or `demo` is looked at with its weights; a preset or a
/// `config.json` without.
///
/// # Errors
/// The model cannot be read, or does not fit the ranks or the memory.
pub fn run(command: &InspectCommand, has_colour: bool) -> Result<(), CliError> {
    let source = ModelSource::new(&command.model);
    let has_weights = source == ModelSource::Demo || Path::new(&command.model).is_dir();
    if has_weights {
        let checkpoint = boot::open(&source)?;
        print!("{}", of_checkpoint(&source.name(), &checkpoint, has_colour));
        // Printed before the plan, which may fail: the map helps to see why.
        print!("{}", plan_of_checkpoint(&checkpoint, &command.engine)?);
    } else {
        let spec = model_spec(&command.model)?;
        print!("{}", of_model(&command.model, &spec, has_colour));
        print!("{}", plan_of_model(spec, command.format, &command.engine)?);
    }
    Ok(())
}

/// What the model is, with its stored tensors.
fn of_checkpoint(name: &str, checkpoint: &Checkpoint, has_colour: bool) -> String {
    let mut text = of_model(name, checkpoint.spec(), has_colour);
    text.push_str("\ntensors\n");
    text.push_str(&tensors(checkpoint));
    text
}

/// What the model is: its sizes and its block map.
fn of_model(name: &str, spec: &ModelSpec, has_colour: bool) -> String {
    let n_empty = spec.blocks.iter().filter(|block| block.is_empty()).count();
    let mut text = format!(
        "{name}: {} blocks ({n_empty} empty), hidden size {}, vocabulary {}, {} positions, {} \
         parameters\n\n",
        spec.blocks.len(),
        grouped(spec.hidden_size),
        grouped(spec.vocab_size),
        grouped(spec.n_positions_max),
        grouped(spec.n_parameters()),
    );
    text.push_str(&block_map::draw(&spec.blocks, has_colour));
    text
}

/// Stored tensors by kind.
fn tensors(checkpoint: &Checkpoint) -> String {
    struct Kind {
        n_tensors: u64,
        n_elements: u64,
        n_bytes: u64,
        dtypes: BTreeSet<String>,
    }
    let parameters = checkpoint.spec().parameters();
    let roles: BTreeMap<String, Role> =
        parameters.iter().map(|parameter| (parameter.tensor_name(), parameter.role)).collect();
    let mut kinds: BTreeMap<(usize, &str), Kind> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let kind = kinds.entry(kind_of(roles.get(&tensor.name))).or_insert(Kind {
            n_tensors: 0,
            n_elements: 0,
            n_bytes: 0,
            dtypes: BTreeSet::new(),
        });
        kind.n_tensors += 1;
        kind.n_elements += tensor.shape.iter().map(|&size| size as u64).product::<u64>();
        kind.n_bytes += tensor.n_bytes;
        kind.dtypes.insert(tensor.dtype.to_string());
    }
    let sum = |of: fn(&Kind) -> u64| kinds.values().map(of).sum::<u64>();
    let total = vec![
        "total".to_owned(),
        grouped(sum(|kind| kind.n_tensors)),
        grouped(sum(|kind| kind.n_elements)),
        ByteSize(sum(|kind| kind.n_bytes)).to_string(),
        String::new(),
    ];
    let mut rows: Vec<Vec<String>> = kinds
        .iter()
        .map(|((_, name), kind)| {
            vec![
                (*name).to_owned(),
                grouped(kind.n_tensors),
                grouped(kind.n_elements),
                ByteSize(kind.n_bytes).to_string(),
                kind.dtypes.iter().map(String::as_str).collect::<Vec<_>>().join(" "),
            ]
        })
        .collect();
    rows.push(total);
    table(&["kind", "tensors", "elements", "bytes", "format"], &rows)
}

/// Where a tensor stands in the table, and under which name.
fn kind_of(role: Option<&Role>) -> (usize, &'static str) {
    match role {
        Some(Role::Embedding) => (0, "embedding"),
        Some(Role::Query | Role::Key | Role::Value | Role::AttentionOut) => (1, "attention"),
        Some(Role::MixerLinear) => (2, "linear for attention"),
        Some(Role::Gate | Role::Up | Role::Down) => (3, "ffn"),
        Some(Role::FfnLinear) => (4, "linear for ffn"),
        Some(Role::MixerNorm | Role::FfnNorm | Role::FinalNorm) => (5, "norms"),
        Some(Role::Head) => (6, "head"),
        None => (7, "scales"),
    }
}

/// What ranks hold of a checkpoint, and the plan that `serve` would follow.
fn plan_of_checkpoint(checkpoint: &Checkpoint, config: &EngineConfig) -> Result<String, CliError> {
    checkpoint.spec().check_sharding(config.n_ranks)?;
    let plan = MemoryPlan::new(checkpoint, config)?;
    let ranks = (0..plan.n_ranks)
        .map(|rank_idx| checkpoint.rank_bytes(rank_idx, plan.n_ranks))
        .collect::<Result<Vec<RankBytes>, LoadError>>()?;
    let mut text = ranks_table(&ranks);
    text.push_str("\nmemory plan\n");
    text.push_str(&plan_table(&plan));
    writeln!(
        text,
        "  up to {} sequences at once, each up to {} tokens; the cache holds {} tokens",
        grouped(plan.n_slots),
        grouped(plan.n_context_tokens),
        grouped(plan.n_kv_tokens()),
    )
    .expect("a string takes everything");
    Ok(text)
}

/// What ranks would hold of a model stored as `format`, and its cache per token.
fn plan_of_model(
    spec: ModelSpec,
    format: SyntheticFormat,
    config: &EngineConfig,
) -> Result<String, CliError> {
    let kv_dtype = config.kv_dtype.unwrap_or(match format {
        SyntheticFormat::ModelOptFp8 => KvDtype::Fp8,
        _ => KvDtype::Bf16,
    });
    let n_ranks = config.n_ranks;
    let token_bytes = |n_ranks| kv_elements(&spec, n_ranks) * kv_dtype.n_bytes() as u64;
    let (all_bytes, rank_bytes) = (token_bytes(1), token_bytes(n_ranks));
    // Nothing is written: shards and seed do not matter.
    let stored = SyntheticConfig { spec, format, n_shards: 1, seed: 0 };
    let ranks = (0..n_ranks)
        .map(|rank_idx| Ok(stored.rank_bytes(rank_idx, n_ranks)?))
        .collect::<Result<Vec<RankBytes>, CliError>>()?;
    let mut text = ranks_table(&ranks);
    writeln!(
        text,
        "\nKV cache as {}: {} a token over all blocks, {} on each of {n_ranks} ranks",
        kv_name(kv_dtype),
        ByteSize(all_bytes),
        ByteSize(rank_bytes),
    )
    .expect("a string takes everything");
    Ok(text)
}

/// Keys and values of a token that one of `n_ranks` ranks caches, over all blocks.
fn kv_elements(spec: &ModelSpec, n_ranks: usize) -> u64 {
    let of_block = |block: &BlockSpec| match block.cache(n_ranks) {
        CacheSpec::None => 0,
        CacheSpec::Full { n_elements_per_token } => n_elements_per_token,
        CacheSpec::Window { n_elements_per_token, .. } => n_elements_per_token,
    };
    spec.blocks.iter().map(of_block).sum::<usize>() as u64
}

/// One line for each run of ranks that hold the same.
fn ranks_table(ranks: &[RankBytes]) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut first_idx = 0;
    for run in ranks.chunk_by(|one, other| one == other) {
        let last_idx = first_idx + run.len() - 1;
        let name = match run.len() {
            1 => first_idx.to_string(),
            _ => format!("{first_idx}-{last_idx}"),
        };
        first_idx += run.len();
        let bytes = &run[0];
        let parts = [
            bytes.embedding,
            bytes.attention,
            bytes.ffn,
            bytes.norms,
            bytes.scales,
            bytes.head,
            bytes.total(),
        ];
        let cells = parts.map(|n_bytes| ByteSize(n_bytes).to_string());
        rows.push(std::iter::once(name).chain(cells).collect());
    }
    let header = ["rank", "embedding", "attention", "ffn", "norms", "scales", "head", "total"];
    format!("\nweights of each of {} ranks\n{}", ranks.len(), table(&header, &rows))
}

fn plan_table(plan: &MemoryPlan) -> String {
    let over_ranks = |of: fn(&engine::RankMemory) -> u64| plan.ranks.iter().map(of).sum::<u64>();
    let line = |what: &str, n_bytes: u64| vec![what.to_owned(), ByteSize(n_bytes).to_string()];
    let cache = format!("KV cache, {}", kv_name(plan.kv_dtype));
    let packed = (plan.packed_bytes > 0).then(|| line("weights, packed", plan.packed_bytes));
    let mut rows = vec![line("weights, mapped once", plan.mapped_bytes)];
    rows.extend(packed);
    rows.extend([
        line(&cache, over_ranks(|rank| rank.kv_bytes)),
        line("workspace", over_ranks(|rank| rank.workspace_bytes)),
        line("collectives", over_ranks(|rank| rank.collective_bytes)),
        line("total", plan.total_bytes()),
    ]);
    table(&["over all ranks", "bytes"], &rows)
}

#[cfg(test)]
mod tests;
