//! The plan for people.

use std::fmt::Write;

use engine::predict::machine::{Machine, roofline_seconds};
use engine::predict::work::{Launch, Step, Storage, launches_of};
use engine::{KvDtype, MemoryError, MemoryPlan, RankMemory, Term};

use super::bars::{bar, painted};
use super::{Planned, advice, heat};
use crate::cli::table::{grouped, kv_name, table};
use crate::config::ByteSize;

/// Characters of a device.
const BAR_WIDTH: usize = 40;

/// Contexts that are asked about.
pub(super) const CONTEXTS: [usize; 4] = [1024, 8192, 32_768, 131_072];

/// Sequences that decode at once, in the table of predicted times.
pub(super) const BATCHES: [usize; 5] = [1, 8, 32, 64, 256];

/// What a step of decoding would take.
pub(super) struct Predicted {
    pub(super) n_sequences: usize,
    pub(super) n_context: usize,
    pub(super) roofline_s: f64,
    pub(super) slow_s: f64,
    pub(super) expected_s: f64,
    pub(super) fast_s: f64,
}

/// The whole report, whether or not the model fits.
pub(super) fn of(
    planned: &Planned<'_>,
    plan: &Result<MemoryPlan, MemoryError>,
    has_colour: bool,
) -> String {
    let command = planned.command;
    let mut text = format!(
        "{}: {} parameters on {} GPUs of {} ({} bytes)\n",
        command.model,
        grouped(planned.checkpoint.spec().n_parameters()),
        command.engine.n_ranks,
        ByteSize(command.device_bytes),
        grouped(command.device_bytes),
    );
    let mut line = |what: &str| writeln!(text, "{what}").expect("a string takes everything");
    line(&format!(
        "weights {}; up to {} sequences at once, {} tokens a step",
        planned.format(),
        grouped(command.engine.n_slots),
        grouped(command.engine.n_tokens_per_step),
    ));
    match plan {
        Ok(plan) => line(&format!(
            "It fits: the cache holds {} tokens as {}.",
            grouped(plan.n_kv_tokens()),
            kv_name(plan.kv_dtype)
        )),
        Err(_) => line("It does NOT fit."),
    }
    let ranks: &[RankMemory] = match plan {
        Ok(plan) => &plan.ranks,
        Err(MemoryError::DeviceTooSmall { rank, .. }) => std::slice::from_ref(rank),
        Err(_) => &[],
    };
    text.push_str(&of_ranks(ranks, command.device_bytes, has_colour));
    if let Ok(plan) = plan {
        text.push_str(&sequences(plan));
        text.push_str(&predictions(planned, plan));
        let kv = (plan.kv_dtype.n_bytes(), plan.n_kv_tokens());
        let blocks = heat::block_bytes(&planned.checkpoint, plan.n_ranks, kv);
        text.push_str("\nbytes of each block, over all ranks, with a full cache\n");
        text.push_str(&heat::draw(&blocks, has_colour));
    }
    text.push_str(&alternatives(planned));
    text
}

/// Bars for each run of ranks that hold the same, and where the numbers are from.
fn of_ranks(ranks: &[RankMemory], device_bytes: u64, has_colour: bool) -> String {
    let mut text = String::new();
    let mut first_idx = 0;
    for run in ranks.chunk_by(|one, other| one == other) {
        let last_idx = first_idx + run.len() - 1;
        match run.len() {
            1 => write!(text, "\nrank {first_idx}\n"),
            _ => write!(text, "\neach of ranks {first_idx} to {last_idx}\n"),
        }
        .expect("a string takes everything");
        first_idx += run.len();
        text.push_str(&of_rank(&run[0], device_bytes, has_colour));
    }
    let mut sources: Vec<Term> = ranks.first().map(RankMemory::terms).unwrap_or_default();
    sources.retain(|term| term.n_bytes > 0 && !term.source.starts_with("counted"));
    if !sources.is_empty() {
        text.push_str("\nEverything is counted to the byte, but for what is not the engine's:\n");
    }
    for term in sources {
        writeln!(text, "  {}: {}", term.label, term.source).expect("a string takes everything");
    }
    text
}

fn of_rank(rank: &RankMemory, device_bytes: u64, has_colour: bool) -> String {
    let mut text = String::new();
    let mut line = |label: &str, n_bytes: u64, bar: &str| {
        let line =
            format!("  {label:22} {:>15}  {:>10}  {bar}", grouped(n_bytes), ByteSize(n_bytes));
        writeln!(text, "{}", line.trim_end()).expect("a string takes everything");
    };
    for term in rank.terms() {
        let bar = bar(term.n_bytes, device_bytes, BAR_WIDTH);
        line(term.label, term.n_bytes, &painted(&bar, term.kind, has_colour));
        if term.name == "weights_bytes" && rank.reserve.is_some() {
            for (label, n_bytes) in kinds(rank) {
                line(&format!("  {label}"), n_bytes, "");
            }
        }
    }
    let total_bytes = rank.total_bytes();
    line("total", total_bytes, &bar(total_bytes, device_bytes, BAR_WIDTH));
    match device_bytes.checked_sub(total_bytes) {
        Some(n_left) => line("left over", n_left, "less than a page, or not asked for"),
        None => line("TOO MUCH by", total_bytes - device_bytes, ""),
    }
    text
}

/// A rank's weights by what they are for.
pub(super) fn kinds(rank: &RankMemory) -> [(&'static str, u64); 6] {
    let weights = rank.weights;
    [
        ("embedding", weights.embedding_bytes),
        ("attention", weights.attention_bytes),
        ("ffn", weights.ffn_bytes),
        ("norms", weights.norms_bytes),
        ("scales and gaps", weights.scales_bytes),
        ("head", weights.head_bytes),
    ]
}

/// Sequences of `n_context` tokens each that the cache holds at once, by its tokens alone.
pub(super) fn n_sequences(plan: &MemoryPlan, n_context: usize) -> usize {
    let page_tokens = engine::PAGE_TOKENS;
    (plan.n_kv_tokens() / page_tokens) / n_context.div_ceil(page_tokens)
}

fn sequences(plan: &MemoryPlan) -> String {
    let row = |&n_context: &usize| {
        let n = n_sequences(plan, n_context);
        let words = match (n_context > plan.n_context_tokens, n >= plan.n_slots) {
            (true, _) => "longer than a sequence may be".to_owned(),
            (false, true) => format!("all {} of --max-seqs fit", plan.n_slots),
            (false, false) => format!("of --max-seqs {}; more of them give way", plan.n_slots),
        };
        vec![grouped(n_context), grouped(n), words]
    };
    let rows: Vec<Vec<String>> = CONTEXTS.iter().map(row).collect();
    format!(
        "\nwhat fits, up to {} tokens a sequence\n{}",
        grouped(plan.n_context_tokens),
        table(&["tokens each", "sequences", ""], &rows)
    )
}

/// Times of steps of decoding, of what fits.
pub(super) fn predicted(planned: &Planned<'_>, plan: &MemoryPlan) -> Vec<Predicted> {
    let spec = planned.checkpoint.spec();
    let storage = Storage {
        has_fp8_weights: match planned.has_weights {
            true => planned.checkpoint.quantization().scheme.is_some(),
            false => planned.command.format.is_fp8(),
        },
        has_fp8_kv: plan.kv_dtype == KvDtype::Fp8,
    };
    let one = |n_sequences: usize, n_context: usize| {
        let step =
            Step { n_sequences: n_sequences as u64, n_tokens_each: 1, context: n_context as u64 };
        let work: Vec<Launch> = launches_of(spec, step, plan.n_ranks as u64, storage);
        Predicted {
            n_sequences,
            n_context,
            roofline_s: roofline_seconds(&work),
            slow_s: Machine::LOW.seconds(&work),
            expected_s: Machine::EXPECTED.seconds(&work),
            fast_s: Machine::HIGH.seconds(&work),
        }
    };
    let fits = |n: usize, n_context: usize| {
        n <= plan.n_slots && n_context <= plan.n_context_tokens && n <= n_sequences(plan, n_context)
    };
    BATCHES
        .iter()
        .flat_map(|&n| CONTEXTS.iter().map(move |&n_context| (n, n_context)))
        .filter(|&(n, n_context)| fits(n, n_context))
        .map(|(n, n_context)| one(n, n_context))
        .collect()
}

fn predictions(planned: &Planned<'_>, plan: &MemoryPlan) -> String {
    let ms = |seconds: f64| format!("{:.2}", 1e3 * seconds);
    let row = |one: &Predicted| {
        let n = one.n_sequences as f64;
        vec![
            one.n_sequences.to_string(),
            grouped(one.n_context),
            ms(one.expected_s),
            format!("{} to {}", ms(one.fast_s), ms(one.slow_s)),
            ms(one.roofline_s),
            format!("{:.0}", n / one.expected_s),
        ]
    };
    let rows: Vec<Vec<String>> = predicted(planned, plan).iter().map(row).collect();
    let header = ["sequences", "tokens each", "step ms", "range", "roofline ms", "tokens/s"];
    let ranks = match plan.n_ranks {
        1 | 8 => "",
        _ => "; sums over ranks are timed as between eight",
    };
    format!(
        "\nPREDICTED steps of decoding on H100s, measured by nobody: from launches, bytes and\n\
         flops, and what others have published (engine/src/predict/machine.rs){ranks}\n{}",
        table(&header, &rows)
    )
}

fn alternatives(planned: &Planned<'_>) -> String {
    let row = |one: advice::Alternative| {
        let tokens = one.n_kv_tokens.map(grouped);
        vec![one.flag, tokens.unwrap_or_else(|| "does not fit".to_owned())]
    };
    let rows: Vec<Vec<String>> = advice::alternatives(planned).into_iter().map(row).collect();
    format!("\nwhat would change it\n{}", table(&["with", "tokens in the cache"], &rows))
}
