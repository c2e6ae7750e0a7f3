//! A whole measurement: the server looked at, prompts prepared, and then stretch after stretch of
//! load, each with its warm-up before it and its answers checked behind it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::answers::{self, Answers};
use super::arrivals::{Arrivals, Pattern};
use super::client::{Client, Dial};
use super::clock::Clock;
use super::driver::{Stop, Stretch, Yield, drive};
use super::error::BenchError;
use super::exchange::{Asker, Progress};
use super::figures::figures;
use super::generator::reasons_against;
use super::preflight;
use super::protocol::{Asking, Endpoint};
use super::report::{Report, Run, SCHEMA, SCHEMA_VERSION, dots, timeline};
use super::sample::Sample;
use super::search;
use super::settings::{Settings, SourceSettings};
use super::source::{mooncake, share_gpt};
use super::workload::{Source, Workload, stream, thinking_words};

/// Users of a warm-up at most.
const N_WARMUP_USERS_MAX: usize = 64;

/// Conversations of a file whose answers are counted at most: others are not used.
const N_CONVERSATIONS_MAX: usize = 100_000;

/// What a measurement is about to do, for whoever watches.
#[derive(Clone, Debug)]
pub enum Stage {
    /// Looks at the server and prepares prompts.
    Preparing,
    /// Sends requests that do not count.
    WarmingUp {
        /// How many.
        n_requests: usize,
        /// How far it is.
        progress: Arc<Progress>,
    },
    /// Measures.
    Measuring {
        /// Which stretch.
        title: String,
        /// Requests, where they are counted.
        n_requests: Option<usize>,
        /// How far it is.
        progress: Arc<Progress>,
    },
    /// Asks for answers again.
    Checking {
        /// How many.
        n_answers: usize,
    },
    /// A stretch is over.
    Over,
}

/// All of a measurement's outcome.
#[derive(Debug)]
pub struct Measured {
    /// For reading.
    pub report: Report,
    /// Every request of every run.
    pub samples: Vec<Vec<Sample>>,
}

/// Makes measurements of one server.
pub struct Bench<'a> {
    settings: &'a Settings,
    client: Arc<Client>,
    clock: Clock,
    model: String,
    stop: Stop,
    watch: &'a (dyn Fn(Stage) + Sync),
    /// So that no stretch finds the prompts of another in the server's cache.
    next_session: u64,
    has_exact_prompts: bool,
    runs: Vec<Run>,
    samples: Vec<Vec<Sample>>,
}

/// Measures, as the settings say.
///
/// # Errors
/// The server is not there or refuses, a file is bad, or no request was answered.
pub async fn measure(
    settings: &Settings,
    (dial, clock): (Dial, Clock),
    stop: &Stop,
    watch: &(dyn Fn(Stage) + Sync),
) -> Result<Measured, BenchError> {
    watch(Stage::Preparing);
    let client = Client::new(settings.url.clone(), dial, settings.api_key.as_deref())?;
    let model = preflight::model(&client, settings.model.as_deref()).await?;
    let mut bench = Bench {
        settings,
        client,
        clock,
        model,
        stop: stop.clone(),
        watch,
        next_session: 0,
        has_exact_prompts: true,
        runs: Vec::new(),
        samples: Vec::new(),
    };
    let found = match &settings.search {
        Some(search) => Some(search::search(&mut bench, search).await?),
        None => {
            bench.repeat().await?;
            None
        }
    };
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let report = Report {
        schema: SCHEMA.to_owned(),
        schema_version: SCHEMA_VERSION,
        program: concat!("lnserve ", env!("CARGO_PKG_VERSION")).to_owned(),
        began_unix_s: began.as_secs(),
        server: settings.url.authority.clone(),
        model: bench.model,
        settings: settings.described.clone(),
        has_exact_prompts: bench.has_exact_prompts,
        intervals: if found.is_none() { Report::intervals_of(&bench.runs) } else { Vec::new() },
        runs: bench.runs,
        search: found,
    };
    Ok(Measured { report, samples: bench.samples })
}

impl Bench<'_> {
    /// Every protocol as often as asked for, in an order that turns: none always goes first.
    async fn repeat(&mut self) -> Result<(), BenchError> {
        let n_endpoints = self.settings.endpoints.len();
        for repeat_idx in 0..self.settings.n_repeats {
            let first_session = self.next_session;
            let mut next_session = first_session;
            for turn_idx in 0..n_endpoints {
                let endpoint = self.settings.endpoints[(repeat_idx + turn_idx) % n_endpoints];
                // The same workload for each protocol.
                self.next_session = first_session;
                let arrivals = self.settings.arrivals.clone();
                self.run(endpoint, arrivals, repeat_idx as u64).await?;
                next_session = next_session.max(self.next_session);
                if self.stop.is_set() {
                    return Ok(());
                }
            }
            self.next_session = next_session;
        }
        Ok(())
    }

    /// One stretch at a rate of its own. Comes back with what it found.
    pub(super) async fn probe(&mut self, rate: f64) -> Result<&Run, BenchError> {
        let pattern = match &self.settings.arrivals {
            Arrivals::Open(pattern) => pattern.at_rate(rate),
            Arrivals::Closed { .. } | Arrivals::Trace { .. } => Pattern::Poisson { rate },
        };
        let endpoint = self.settings.endpoints[0];
        self.run(endpoint, Arrivals::Open(pattern), self.runs.len() as u64).await?;
        Ok(&self.runs[self.runs.len() - 1])
    }

    /// Whether somebody told it to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_set()
    }

    async fn run(
        &mut self,
        endpoint: Endpoint,
        arrivals: Arrivals,
        repeat_idx: u64,
    ) -> Result<(), BenchError> {
        let settings = self.settings;
        let mut asker = self.asker(endpoint);
        let workload = Arc::new(self.workload(&asker, repeat_idx).await?);
        self.has_exact_prompts &= workload.words.is_exact;
        self.warm_up(&mut asker, &workload).await;
        let stretch = Stretch {
            arrivals: arrivals.clone(),
            n_requests: settings.n_requests,
            duration: settings.duration,
            n_in_flight_max: settings.n_in_flight_max,
            n_kept: settings.n_checked,
            first_session: self.first_session(),
        };
        asker.progress = Arc::default();
        (self.watch)(Stage::Measuring {
            title: format!("{}, {}", endpoint.name(), arrivals.words()),
            n_requests: settings.n_requests,
            progress: Arc::clone(&asker.progress),
        });
        let yielded = drive(&asker, &workload, stretch, &self.stop).await;
        self.next_session = yielded.next_session;
        let answers = match yielded.was_stopped {
            false => {
                (self.watch)(Stage::Checking { n_answers: yielded.kept.len() });
                answers::check(&asker, &yielded.kept).await
            }
            true => Answers::default(),
        };
        (self.watch)(Stage::Over);
        let run = self.judge(endpoint, &arrivals, (workload.seed, &yielded), answers)?;
        self.runs.push(run);
        self.samples.push(yielded.samples);
        Ok(())
    }

    fn judge(
        &self,
        endpoint: Endpoint,
        arrivals: &Arrivals,
        (seed, yielded): (u64, &Yield),
        answers: Answers,
    ) -> Result<Run, BenchError> {
        let samples = &yielded.samples;
        let figures = figures(samples, &self.settings.slos, !self.settings.ends_naturally);
        if figures.n_done + figures.n_cancelled == 0 && !yielded.was_stopped {
            let commonest = figures.failures.iter().max_by_key(|(_, failures)| failures.n);
            let commonest = commonest.map(|(kind, failures)| format!("{kind}: {}", failures.words));
            return Err(BenchError::NoAnswer {
                n_requests: figures.n_requests,
                commonest: commonest.unwrap_or_else(|| "nothing was sent".to_owned()),
            });
        }
        let lag_max = self.settings.lag_max;
        let mut invalid = reasons_against(&yielded.generator, &figures.send_lag_ms, lag_max);
        if yielded.was_stopped {
            invalid.push("it was interrupted before it was through".to_owned());
        }
        Ok(Run {
            endpoint,
            load: arrivals.words(),
            rate: match arrivals {
                Arrivals::Open(
                    Pattern::Poisson { rate }
                    | Pattern::Gamma { rate, .. }
                    | Pattern::Constant { rate },
                ) => Some(*rate),
                _ => None,
            },
            seed,
            figures,
            generator: yielded.generator.clone(),
            invalid,
            answers,
            timeline: timeline(samples),
            dots: dots(samples),
        })
    }

    /// A trace begins at its beginning each time; other workloads go on.
    fn first_session(&self) -> u64 {
        match self.settings.source {
            SourceSettings::Mooncake { .. } => 0,
            SourceSettings::Synthetic { .. } | SourceSettings::ShareGpt { .. } => self.next_session,
        }
    }

    fn asker(&self, endpoint: Endpoint) -> Asker {
        Asker {
            client: Arc::clone(&self.client),
            clock: self.clock.clone(),
            asking: Arc::new(Asking {
                endpoint,
                model: self.model.clone(),
                temperature: self.settings.temperature,
                ends_naturally: self.settings.ends_naturally,
            }),
            timeout: self.settings.timeout,
            progress: Arc::default(),
        }
    }

    async fn workload(&self, asker: &Asker, repeat_idx: u64) -> Result<Workload, BenchError> {
        let shape = self.settings.shape.clone();
        let system = shape.thinking.map(|share| thinking_words(share > 0.0));
        let words = preflight::words(asker, system).await?;
        let source = match &self.settings.source {
            SourceSettings::Synthetic { n_in, n_out } => {
                Source::Synthetic { n_in: *n_in, n_out: *n_out }
            }
            SourceSettings::ShareGpt { path, n_out } => {
                let mut all = Vec::new();
                for conversation in share_gpt(path)?.into_iter().take(N_CONVERSATIONS_MAX) {
                    let mut turns = Vec::with_capacity(conversation.len());
                    for (question, answer) in conversation {
                        let n = match n_out {
                            Some(lengths) => {
                                // A fixed length, or drawn by the question's place in the file.
                                lengths.sample(&mut stream(self.settings.seed, all.len() as u64))
                            }
                            None => self.count(&answer).await?.max(1),
                        };
                        turns.push((question.into(), n));
                    }
                    all.push(turns);
                }
                Source::Conversations(all)
            }
            SourceSettings::Mooncake { path } => Source::Trace(mooncake(path)?),
        };
        let seed = self.settings.seed.wrapping_add(repeat_idx);
        // No run finds another's prompts in the server's cache.
        let text_seed = seed.wrapping_add((1 + self.runs.len() as u64) << 32);
        Ok(Workload { source, shape, words, seed, text_seed })
    }

    /// Tokens of a text; four characters are taken for one where nobody counts.
    async fn count(&self, text: &str) -> Result<usize, BenchError> {
        let counted = preflight::count(&self.client, &self.model, text).await?;
        Ok(counted.unwrap_or(text.chars().count().div_ceil(4)))
    }

    /// Requests like those to come, but other ones.
    async fn warm_up(&self, asker: &mut Asker, workload: &Arc<Workload>) {
        let n_requests = self.settings.n_warmup;
        if n_requests == 0 {
            return;
        }
        let mut workload = Workload::clone(workload);
        workload.seed = !workload.seed;
        workload.text_seed = !workload.text_seed;
        asker.progress = Arc::default();
        let progress = Arc::clone(&asker.progress);
        (self.watch)(Stage::WarmingUp { n_requests, progress });
        let n_users = match self.settings.arrivals {
            Arrivals::Closed { n_users } => n_users,
            Arrivals::Open(_) | Arrivals::Trace { .. } => N_WARMUP_USERS_MAX,
        };
        let stretch = Stretch {
            arrivals: Arrivals::Closed { n_users: n_users.min(n_requests) },
            n_requests: Some(n_requests),
            duration: None,
            n_in_flight_max: 1,
            n_kept: 0,
            first_session: 0,
        };
        drive(asker, &Arc::new(workload), stretch, &self.stop).await;
    }
}

/// What an answer takes at most, unless the operator says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(600);
