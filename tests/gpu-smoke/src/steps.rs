//! Steps of the engine on the node that is there: the predicted table's batches and contexts, as
//! far as memory goes, each beside what is predicted of it.
//!
//! Weights are numbers without meaning, and positions that were never computed hold what memory
//! held: what a step takes depends on neither, but for what clocks do under other power.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use benches::cost::machine::{Machine, roofline_seconds};
use benches::cost::work::{Launch, Step, launches};
use engine::device::cuda::memory_bytes;
use engine::{DeviceKind, EngineConfig, KvDtype, Probe, TokenId};
use harness::plans::{Planner, Span};
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat};
use weights::{Checkpoint, ModelSpec};

/// Ranks at most.
const N_RANKS_MAX: usize = 8;

/// The published models, largest first.
const MODELS: [&str; 3] = ["ultra-253b", "super-49b", "nano-8b"];

/// Share of a device's memory that weights may take.
const WEIGHTS_SHARE_MAX: f64 = 0.8;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Steps {
    /// The model.
    pub spec: ModelSpec,
    /// Its devices.
    pub n_ranks: usize,
    /// Sequences that decode at once.
    pub batches: Vec<u64>,
    /// Positions of each.
    pub contexts: Vec<u64>,
    /// Tokens of a prefill.
    pub chunk: u64,
    /// Steps of which a line has the median; odd.
    pub n_runs: usize,
}

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    step: Step,
    /// `None` where the cache does not fit.
    pub measured: Option<Duration>,
    work: Vec<Launch>,
    n_ranks: usize,
}

/// Devices that this node has, and the largest published model that they hold: its name and spec.
///
/// # Errors
/// There is no device, or none of the models fits.
pub fn largest_model() -> Result<(usize, &'static str, ModelSpec)> {
    let n_devices = (0..N_RANKS_MAX).take_while(|&idx| memory_bytes(idx).is_ok()).count();
    let (n_free_bytes, _) = memory_bytes(0).context("there is no GPU to measure")?;
    let n_ranks = 1 << n_devices.ilog2();
    for name in MODELS {
        let spec = preset(name).context("a published model")?;
        let rank_bytes = synthetic(&spec).rank_bytes(0, n_ranks)?.total();
        if rank_bytes as f64 <= WEIGHTS_SHARE_MAX * n_free_bytes as f64 {
            return Ok((n_ranks, name, spec));
        }
    }
    anyhow::bail!("{n_ranks} devices with {n_free_bytes} bytes free hold none of {MODELS:?}")
}

fn synthetic(spec: &ModelSpec) -> SyntheticConfig {
    let format = SyntheticFormat::ModelOptFp8;
    SyntheticConfig { spec: spec.clone(), format, n_shards: 1, seed: 0 }
}

impl Steps {
    /// Boots the model and hands out every line as it is measured.
    ///
    /// # Errors
    /// What the engine says.
    pub fn measure(&self, take: &mut dyn FnMut(Line)) -> Result<()> {
        let checkpoint = Arc::new(Checkpoint::without_data(&synthetic(&self.spec))?);
        let n_slots = self.batches.iter().copied().max().unwrap_or(1) as usize;
        let n_context = self.contexts.iter().copied().max().unwrap_or(1).max(self.chunk) as usize;
        let config = EngineConfig {
            device: DeviceKind::Cuda,
            n_ranks: self.n_ranks,
            n_threads: None,
            n_slots,
            n_waiting_max: 1,
            n_tokens_per_step: (self.chunk as usize).max(n_slots),
            n_context_tokens: Some(n_context),
            kv_dtype: Some(KvDtype::Fp8),
            kv_bytes: None,
            overlaps_steps: false,
            caches_prefixes: false,
            policy: engine::Policy::plain(),
            host_kv: None,
            n_candidates_max: 0,
            is_deterministic: false,
            rounds_inputs: false,
        };
        let mut probe = Probe::new(checkpoint, &config)?;
        // Everybody takes a slot: from then on the devices draw the tokens.
        let spans: Vec<Span<'_>> =
            (0..n_slots).map(|slot| Span { slot, start: 0, tokens: &[TokenId(1)] }).collect();
        probe.step(Planner::new(probe.memory()).last_only(&spans))?;
        for &n_sequences in &self.batches {
            for &context in &self.contexts {
                let step = Step { n_sequences, n_tokens_each: 1, context };
                let n_cached_max = probe.memory().n_kv_tokens() as u64;
                let fits = n_sequences * context <= n_cached_max;
                let measured = if fits { Some(self.decode(&mut probe, step)?) } else { None };
                take(self.line(step, measured));
            }
        }
        let step = Step { n_sequences: 1, n_tokens_each: self.chunk, context: self.chunk };
        let measured = Some(self.prefill(&mut probe)?);
        take(self.line(step, measured));
        Ok(())
    }

    /// Steps that end at the context's last positions, after one that brings the page tables.
    fn decode(&self, probe: &mut Probe, step: Step) -> Result<Duration> {
        let mut planner = Planner::new(probe.memory());
        let first = step.context as usize - self.n_runs - 1;
        let mut durations = Vec::with_capacity(self.n_runs);
        for start in first..step.context as usize {
            let spans: Vec<Span<'_>> = (0..step.n_sequences as usize)
                .map(|slot| Span { slot, start, tokens: &[TokenId(1)] })
                .collect();
            durations.push(timed(probe, &mut planner, &spans)?);
        }
        Ok(median(durations.split_off(1)))
    }

    fn prefill(&self, probe: &mut Probe) -> Result<Duration> {
        let n_vocab = self.spec.vocab_size as u64;
        let prompt: Vec<TokenId> =
            (0..self.chunk).map(|idx| TokenId((idx * 7919 % n_vocab) as u32)).collect();
        let mut durations = Vec::with_capacity(self.n_runs);
        for _ in 0..self.n_runs {
            let mut planner = Planner::new(probe.memory());
            let span = Span { slot: 0, start: 0, tokens: &prompt };
            durations.push(timed(probe, &mut planner, &[span])?);
        }
        Ok(median(durations))
    }

    fn line(&self, step: Step, measured: Option<Duration>) -> Line {
        let work = launches(&self.spec, step, self.n_ranks as u64);
        Line { step, measured, work, n_ranks: self.n_ranks }
    }
}

/// Of one step, from the plan to its tokens on the host.
fn timed(probe: &mut Probe, planner: &mut Planner, spans: &[Span<'_>]) -> Result<Duration> {
    let plan = planner.last_only(spans);
    let started = Instant::now();
    probe.step(plan)?;
    Ok(started.elapsed())
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort();
    durations[durations.len() / 2]
}

impl Line {
    /// What the columns are.
    pub fn head() -> String {
        format!(
            "{:>5} {:>7} {:>7} {:>12} {:>9} {:>20} {:>12} {:>11}",
            "batch",
            "tokens",
            "context",
            "measured ms",
            "tok/s",
            "predicted ms (range)",
            "measured / ~",
            "roofline ms"
        )
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step { n_sequences, n_tokens_each, context } = self.step;
        write!(f, "{n_sequences:>5} {n_tokens_each:>7} {context:>7} ")?;
        let Some(measured) = self.measured else {
            return write!(f, "the cache does not fit");
        };
        let seconds = measured.as_secs_f64();
        let rate = self.step.n_tokens() as f64 / seconds;
        write!(f, "{:>12.3} {rate:>9.1} ", 1e3 * seconds)?;
        // What exchanges take is published for eight devices.
        if ![1, N_RANKS_MAX].contains(&self.n_ranks) {
            return write!(f, "(nothing is predicted of {} devices)", self.n_ranks);
        }
        let [low, expected, high] = [Machine::LOW, Machine::EXPECTED, Machine::HIGH]
            .map(|machine| machine.seconds(&self.work));
        let range = format!("({:.1}-{:.1})", 1e3 * high, 1e3 * low);
        let roofline = 1e3 * roofline_seconds(&self.work);
        write!(f, "{:>6.2} {range:>13} ", 1e3 * expected)?;
        write!(f, "{:>12.2} {roofline:>11.2}", seconds / expected)
    }
}
