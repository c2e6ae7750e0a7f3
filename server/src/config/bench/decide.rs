//! From flags to settings: presets, defaults, and what cannot go together.

use super::*;

use crate::bench::arrivals::{Arrivals, Pattern};
use crate::bench::presets::PresetValues;
use crate::bench::settings::{SearchSettings, SourceSettings};
use crate::bench::slo::{Metric, Slos};
use crate::bench::workload::Shape;

/// A run of this many requests, where nobody says how long it is.
const N_REQUESTS: usize = 100;

/// Tokens of prompts and answers, where nobody says.
const LENGTHS: (usize, usize) = (128, 64);

/// Threads, where nobody says.
const N_THREADS_MAX: usize = 8;

/// How well a search knows its answer.
const PRECISION: f64 = 0.05;

impl MeasureArguments {
    pub(super) fn decide(self) -> Result<MeasureCommand, BenchError> {
        let preset = self.preset.map(Preset::values).unwrap_or_default();
        let duration = self.duration.or(preset.duration_s.map(Duration::from_secs_f64));
        let arrivals = self.arrivals(&preset, duration)?;
        let endpoints = match self.compare_protocols {
            true => Endpoint::ALL.to_vec(),
            false => vec![self.endpoint],
        };
        let limits = if self.slo.is_empty() { preset.slos.clone() } else { self.slo.clone() };
        let is_trace = matches!(arrivals, Arrivals::Trace { .. });
        let settings = BenchSettings {
            url: self.url.parse()?,
            n_requests: match self.requests {
                None if duration.is_none() && !is_trace => Some(N_REQUESTS),
                given => given,
            },
            duration,
            n_warmup: self.warmup,
            n_in_flight_max: self.max_in_flight,
            source: self.work.source(&preset)?,
            shape: self.work.shape(),
            temperature: self.work.temperature,
            ends_naturally: self.work.natural_end,
            slos: Slos { limits, percentile: self.slo_percentile },
            search: self.search(),
            n_checked: self.check_answers,
            n_repeats: self.repeats,
            seed: self.work.seed,
            timeout: self.timeout,
            lag_max: Duration::from_secs_f64(self.lag_max_ms / 1e3),
            described: Vec::new(),
            model: self.model,
            api_key: self.api_key,
            endpoints,
            arrivals,
        };
        check(&settings)?;
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(MeasureCommand {
            settings: BenchSettings { described: describe(&settings), ..settings },
            n_threads: self.output.threads.unwrap_or(n_cores.min(N_THREADS_MAX)),
            json: self.output.json,
            csv: self.output.csv,
            html: self.output.html,
            is_quiet: self.output.quiet,
        })
    }

    fn search(&self) -> Option<SearchSettings> {
        let from = self.rate.filter(|_| self.find_rate)?;
        Some(SearchSettings { from, precision: PRECISION })
    }

    fn arrivals(
        &self,
        preset: &PresetValues,
        duration: Option<Duration>,
    ) -> Result<Arrivals, BenchError> {
        if let (Some(Dataset::Mooncake(_)), None, None) =
            (&self.work.dataset, self.rate, self.concurrency)
        {
            return Ok(Arrivals::Trace { speed: self.speed });
        }
        let Some(rate) = self.rate else {
            let n_users = self.concurrency.or(preset.n_users).unwrap_or(1);
            return Ok(Arrivals::Closed { n_users });
        };
        Ok(Arrivals::Open(match (self.arrivals, self.ramp_to, duration) {
            (Spacing::Poisson, None, _) => Pattern::Poisson { rate },
            (Spacing::Gamma, None, _) => Pattern::Gamma { rate, burstiness: self.burstiness },
            (Spacing::Constant, None, _) => Pattern::Constant { rate },
            (Spacing::Ramp, Some(to), Some(over)) => Pattern::Ramp { from: rate, to, over },
            _ => {
                let words = "--arrivals ramp goes with --ramp-to and --duration, and --ramp-to \
                             with nothing else";
                return Err(BenchError::Settings(words.into()));
            }
        }))
    }
}

impl WorkArguments {
    fn source(&self, preset: &PresetValues) -> Result<SourceSettings, BenchError> {
        let (n_in, n_out) = preset.lengths.unwrap_or(LENGTHS);
        match &self.dataset {
            None => Ok(SourceSettings::Synthetic {
                n_in: self.isl.unwrap_or(Lengths::Fixed { n: n_in }),
                n_out: self.osl.unwrap_or(Lengths::Fixed { n: n_out }),
            }),
            Some(_) if self.isl.is_some() => {
                Err(BenchError::Settings("--isl is the --dataset's: leave one out".into()))
            }
            Some(Dataset::ShareGpt(path)) => {
                Ok(SourceSettings::ShareGpt { path: path.clone(), n_out: self.osl })
            }
            Some(Dataset::Mooncake(_)) if self.osl.is_some() => {
                Err(BenchError::Settings("--osl is the trace's: leave one out".into()))
            }
            Some(Dataset::Mooncake(path)) => Ok(SourceSettings::Mooncake { path: path.clone() }),
        }
    }

    fn shape(&self) -> Shape {
        Shape {
            n_turns: self.turns,
            think_time: self.think_time,
            thinking: self.thinking,
            cancelled: self.cancel,
            n_prefix: self.shared_prefix,
            n_prefixes: self.prefixes,
        }
    }
}

/// What cannot be measured as asked for.
fn check(settings: &BenchSettings) -> Result<(), BenchError> {
    let refuse = |words: &str| Err(BenchError::Settings(words.to_owned()));
    let all_chat = settings.endpoints.iter().all(|endpoint| *endpoint == Endpoint::Chat);
    if settings.shape.thinking.is_some() && !all_chat {
        return refuse("--thinking is said in a system message, which only --endpoint chat has");
    }
    let wants = |metric| settings.slos.limits.iter().any(|slo| slo.metric == metric);
    let wants_tokens = wants(Metric::Ttft) || wants(Metric::Tpot) || settings.shape.cancelled > 0.0;
    if wants_tokens && !settings.endpoints.iter().all(|endpoint| endpoint.streams()) {
        return refuse(
            "generate and infer answer in one piece: they have no ttft, no tpot, and no middle to \
             --cancel in",
        );
    }
    if settings.search.is_some() && settings.slos.limits.is_empty() {
        return refuse("--find-rate needs limits to keep: give --slo or a preset that has them");
    }
    if settings.search.is_some() && settings.endpoints.len() > 1 {
        return refuse("--find-rate goes with one protocol");
    }
    if let Arrivals::Open(Pattern::Ramp { .. }) = settings.arrivals
        && settings.search.is_some()
    {
        return refuse("--find-rate looks for one rate, and --arrivals ramp has many");
    }
    Ok(())
}

/// What the report says of it.
fn describe(settings: &BenchSettings) -> Vec<(String, String)> {
    let source = match &settings.source {
        SourceSettings::Synthetic { n_in, n_out } => {
            format!("synthetic, in {}, out {}", words(*n_in), words(*n_out))
        }
        SourceSettings::ShareGpt { path, .. } => format!("ShareGPT, {}", path.display()),
        SourceSettings::Mooncake { path } => format!("Mooncake, {}", path.display()),
    };
    let endpoints: Vec<&str> = settings.endpoints.iter().map(|endpoint| endpoint.name()).collect();
    let slos: Vec<String> = settings
        .slos
        .limits
        .iter()
        .map(|slo| format!("{:?} {} ms", slo.metric, slo.limit_ms).to_lowercase())
        .collect();
    let shape = &settings.shape;
    let or_none = |n: Option<String>| n.unwrap_or_else(|| "no bound".to_owned());
    let all = [
        ("protocols", endpoints.join(", ")),
        ("load", settings.arrivals.words()),
        ("requests", or_none(settings.n_requests.map(|n| n.to_string()))),
        ("seconds", or_none(settings.duration.map(|s| s.as_secs_f64().to_string()))),
        ("warm-up", settings.n_warmup.to_string()),
        ("repeats", settings.n_repeats.to_string()),
        ("work", source),
        ("turns", words(shape.n_turns)),
        ("think time, s", shape.think_time.as_secs_f64().to_string()),
        ("told to reason", shape.thinking.map_or("not said".into(), |share| share.to_string())),
        ("cancelled", shape.cancelled.to_string()),
        ("shared prefix", format!("{} of {}", shape.n_prefix, shape.n_prefixes)),
        ("temperature", settings.temperature.to_string()),
        ("ends", if settings.ends_naturally { "naturally" } else { "at length" }.to_owned()),
        ("limits", format!("{} at p{}", slos.join(", "), settings.slos.percentile)),
        ("seed", settings.seed.to_string()),
    ];
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn words(lengths: Lengths) -> String {
    match lengths {
        Lengths::Fixed { n } => n.to_string(),
        Lengths::Uniform { min, max } => format!("{min}-{max}"),
        Lengths::LogNormal { mean, deviation } => format!("lognormal:{mean},{deviation}"),
    }
}
