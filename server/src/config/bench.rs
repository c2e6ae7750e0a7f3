//! The command line of `lnserve bench`, and the checked settings that it stands for.

mod decide;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::arguments::at_least_one;
use crate::bench::lengths::Lengths;
use crate::bench::presets::Preset;
use crate::bench::protocol::Endpoint;
use crate::bench::slo::Slo;
use crate::bench::{BenchError, Settings as BenchSettings};

pub(super) const EXAMPLES: &str = "\
Examples:
  lnserve bench --concurrency 8 --isl 200 --osl 100       eight users, 100 requests, 127.0.0.1
  lnserve bench --rate 3 --duration 60 --html run.html    an open loop, three requests a second
  lnserve bench --preset s1 --url http://node:8000        250 users, 500 tokens in, 2,000 out
  lnserve bench --rate 1 --find-rate --slo ttft=6000 --slo tpot=175 --duration 60
  lnserve bench --compare-protocols --concurrency 8       chat, completions, Triton's three
  lnserve bench --dataset mooncake:trace.jsonl            a trace, at its own moments
  lnserve bench compare before.json after.json            what two runs' --json files differ in

A slow server, where does it hang? Look at the line `TTFT split`: a long queue means too little room
(--max-seqs, memory), a long prefill long prompts, a long network the way there and back.
`INVALID` means that this tool itself was too slow: give it more --threads or another machine.
Answers that differ alone from what they were under load are shown with the place of the difference.

Exit status: 0 measured, 1 no result, an invalid one, or answers that differ, 2 wrong usage.";

/// `lnserve bench`.
#[derive(Clone, Debug)]
pub enum BenchCommand {
    /// Measure.
    Measure(Box<MeasureCommand>),
    /// Compare two results.
    Compare(CompareCommand),
}

/// A measurement, and where its results go.
#[derive(Clone, Debug)]
pub struct MeasureCommand {
    /// What to measure, or why that cannot be.
    pub settings: BenchSettings,
    /// Threads that send and read.
    pub n_threads: usize,
    /// A file for programs.
    pub json: Option<PathBuf>,
    /// A file with a line a request.
    pub csv: Option<PathBuf>,
    /// A page with charts.
    pub html: Option<PathBuf>,
    /// No progress.
    pub is_quiet: bool,
}

/// `lnserve bench compare`.
#[derive(Clone, Debug, PartialEq)]
pub struct CompareCommand {
    /// The older result.
    pub before: PathBuf,
    /// The newer one.
    pub after: PathBuf,
    /// Per cent by which a figure may be worse.
    pub regression_max: Option<f64>,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchArguments {
    #[command(subcommand)]
    compare: Option<BenchSubcommand>,

    #[command(flatten)]
    measure: MeasureArguments,
}

#[derive(Subcommand)]
enum BenchSubcommand {
    /// Compare two results that --json wrote
    Compare(CompareArguments),
}

#[derive(Args)]
struct CompareArguments {
    /// The older result
    before: PathBuf,
    /// The newer result
    after: PathBuf,
    /// Exit with 1 if a key figure is worse by more than this many per cent
    #[arg(long, value_name = "PERCENT", value_parser = positive)]
    max_regression: Option<f64>,
}

#[derive(Args)]
struct MeasureArguments {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8000", help_heading = "Server")]
    url: String,

    /// The model's name [default: the first that the server lists]
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    model: Option<String>,

    /// Key to show as `Authorization: Bearer KEY`
    #[arg(long, value_name = "KEY", env = "LNSERVE_API_KEY", hide_env_values = true)]
    #[arg(help_heading = "Server")]
    api_key: Option<String>,

    /// Protocol
    #[arg(long, value_enum, default_value_t = Endpoint::Chat, help_heading = "Server")]
    endpoint: Endpoint,

    /// Put the same load on every protocol in turn, and compare
    #[arg(long, conflicts_with = "endpoint", help_heading = "Server")]
    compare_protocols: bool,

    /// A known workload; other flags go before it
    #[arg(long, value_enum, help_heading = "Load")]
    preset: Option<Preset>,

    /// Closed loop: so many users, each of whom waits for its answer before the next request
    /// [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "rate", help_heading = "Load")]
    #[arg(value_parser = at_least_one)]
    concurrency: Option<usize>,

    /// Open loop: so many requests a second, whatever the server does
    #[arg(long, value_name = "R", value_parser = positive, help_heading = "Load")]
    rate: Option<f64>,

    /// How an open loop's gaps are drawn
    #[arg(long, value_enum, requires = "rate", default_value_t = Spacing::Poisson)]
    #[arg(help_heading = "Load")]
    arrivals: Spacing,

    /// Shape of gamma gaps: below 1 comes in bursts, above 1 evenly
    #[arg(long, value_name = "G", default_value_t = 1.0, value_parser = positive)]
    #[arg(help_heading = "Load")]
    burstiness: f64,

    /// With --arrivals ramp: the rate at the end of --duration
    #[arg(long, value_name = "R", value_parser = positive, help_heading = "Load")]
    ramp_to: Option<f64>,

    /// With a trace: how many times as fast as it was recorded
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    #[arg(help_heading = "Load")]
    speed: f64,

    /// Requests of a run at most [default: no bound where there is a --duration; else 100, or the
    /// trace's]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Load")]
    requests: Option<usize>,

    /// Send for so many seconds, then wait for what runs
    #[arg(long, value_name = "S", value_parser = seconds, help_heading = "Load")]
    duration: Option<Duration>,

    /// Requests before each run that do not count
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Load")]
    warmup: usize,

    /// Requests under way at most, in an open loop; more wait, and that counts
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = at_least_one)]
    #[arg(help_heading = "Load")]
    max_in_flight: usize,

    #[command(flatten)]
    work: WorkArguments,

    /// Limit that answers should keep, in milliseconds: ttft=6000, tpot=175 or e2e=30000; may be
    /// given several times
    #[arg(long, value_name = "METRIC=MS", help_heading = "Judging")]
    slo: Vec<Slo>,

    /// Share of requests, in per cent, that must keep each limit
    #[arg(long, value_name = "P", default_value_t = 99.0, value_parser = percent)]
    #[arg(help_heading = "Judging")]
    slo_percentile: f64,

    /// Find the highest rate that keeps all limits, beginning with --rate
    #[arg(long, requires = "rate", help_heading = "Judging")]
    find_rate: bool,

    /// Answers of each run that are asked for again, alone, and must be the same; 0 checks none
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Judging")]
    check_answers: usize,

    /// Measure so many times, each with another seed, for confidence intervals
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    #[arg(help_heading = "Judging")]
    repeats: usize,

    /// An answer that takes longer has failed, seconds
    #[arg(long, value_name = "S", default_value = "600", value_parser = seconds)]
    #[arg(help_heading = "Judging")]
    timeout: Duration,

    /// A run is invalid if this tool was later than that in one of a hundred cases
    #[arg(long, value_name = "MS", default_value_t = 10.0, value_parser = positive)]
    #[arg(help_heading = "Judging")]
    lag_max_ms: f64,

    #[command(flatten)]
    output: OutputArguments,
}

/// What is asked.
#[derive(Args)]
struct WorkArguments {
    /// Tokens of a prompt, its template's among them: 500, 100-900 or lognormal:MEAN,DEVIATION
    /// [default: 128]
    #[arg(long, value_name = "LENGTH", help_heading = "Requests")]
    isl: Option<Lengths>,

    /// Tokens of an answer, likewise; exactly so many, unless --natural-end [default: 64]
    #[arg(long, value_name = "LENGTH", help_heading = "Requests")]
    osl: Option<Lengths>,

    /// Prompts and lengths from a file: sharegpt:FILE (JSON) or mooncake:FILE (a trace)
    #[arg(long, value_name = "KIND:FILE", help_heading = "Requests")]
    dataset: Option<Dataset>,

    /// Tokens that prompts share with others: their first, and their template's
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Requests")]
    shared_prefix: usize,

    /// Different such beginnings
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    #[arg(help_heading = "Requests")]
    prefixes: usize,

    /// Turns of a conversation; each has all before it in its prompt
    #[arg(long, value_name = "LENGTH", default_value = "1", help_heading = "Requests")]
    turns: Lengths,

    /// What a user takes between an answer and the next turn, seconds
    #[arg(long, value_name = "S", default_value = "0", value_parser = seconds_or_none)]
    #[arg(help_heading = "Requests")]
    think_time: Duration,

    /// Share of conversations in which the model is told to reason, 0 to 1, the others being told
    /// not to [default: nothing is said]
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "Requests")]
    thinking: Option<f64>,

    /// Share of requests that hang up within the first half of their answer
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    #[arg(help_heading = "Requests")]
    cancel: f64,

    /// Randomness of answers; 0 is greedy. Every request has a seed of its own
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    #[arg(help_heading = "Requests")]
    temperature: f32,

    /// Answers end where the model ends them, at --osl at the latest
    #[arg(long, help_heading = "Requests")]
    natural_end: bool,

    /// The same seed asks the same
    #[arg(long, default_value_t = 0, help_heading = "Requests")]
    seed: u64,
}

#[derive(Args)]
struct OutputArguments {
    /// Write the result for programs, and for `lnserve bench compare`
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,

    /// Write a line for every request
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    csv: Option<PathBuf>,

    /// Write a page with charts that needs nothing else
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,

    /// Show no progress
    #[arg(long, help_heading = "Output")]
    quiet: bool,

    /// Threads that send and read [default: this machine's cores, at most 8]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Output")]
    threads: Option<usize>,
}

/// See `--arrivals`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Spacing {
    Poisson,
    Gamma,
    Constant,
    Ramp,
}

/// See `--dataset`.
#[derive(Clone, Debug)]
enum Dataset {
    ShareGpt(PathBuf),
    Mooncake(PathBuf),
}

impl std::str::FromStr for Dataset {
    type Err = String;

    fn from_str(text: &str) -> Result<Dataset, String> {
        match text.split_once(':') {
            Some(("sharegpt", path)) => Ok(Dataset::ShareGpt(path.into())),
            Some(("mooncake", path)) => Ok(Dataset::Mooncake(path.into())),
            _ => Err("write sharegpt:FILE or mooncake:FILE".to_owned()),
        }
    }
}

fn number_within(text: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    match range.contains(&number) {
        true => Ok(number),
        false => Err(format!("must be from {} to {}", range.start(), range.end())),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    number_within(text, 1e-6..=1e9)
}

fn share(text: &str) -> Result<f64, String> {
    number_within(text, 0.0..=1.0)
}

fn percent(text: &str) -> Result<f64, String> {
    number_within(text, 0.0..=100.0)
}

fn temperature(text: &str) -> Result<f32, String> {
    number_within(text, 0.0..=100.0).map(|number| number as f32)
}

fn seconds(text: &str) -> Result<Duration, String> {
    number_within(text, 1e-3..=1e7).map(Duration::from_secs_f64)
}

fn seconds_or_none(text: &str) -> Result<Duration, String> {
    number_within(text, 0.0..=1e7).map(Duration::from_secs_f64)
}

impl BenchArguments {
    /// # Errors
    /// Flags that contradict each other.
    pub(super) fn decide(self) -> Result<BenchCommand, BenchError> {
        match self.compare {
            Some(BenchSubcommand::Compare(compare)) => Ok(BenchCommand::Compare(CompareCommand {
                before: compare.before,
                after: compare.after,
                regression_max: compare.max_regression,
            })),
            None => Ok(BenchCommand::Measure(Box::new(self.measure.decide()?))),
        }
    }
}
