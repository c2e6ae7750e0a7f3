//! Everything that the operator decides, read once: the command line and the environment become
//! typed parts. No other module reads either.

mod arguments;
pub mod bench;
mod callers;
mod connections;
mod reuse;
mod size;
mod traces;
mod turns;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{CommandFactory, Parser};
use engine::{DeviceKind, EngineConfig, KvDtype, Policy};
use weights::synthetic::SyntheticFormat;

use crate::http::HttpLimits;
use crate::text::Thinking;
use crate::traces::TraceSettings;
use arguments::{Arguments, CommandArguments};

pub use callers::Callers;
pub use size::{ByteSize, SizeError};

/// What one run of the program is to do, and how it speaks.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where logs go and how much.
    pub log: LogSettings,
    /// Standard output is a terminal that may show colours.
    pub has_colour: bool,
    /// The thing to do.
    pub command: Command,
}

/// The program's log, always on standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A filter as `tracing` reads it: `info`, or `warn,server=debug`.
    pub filter: String,
    /// One JSON object a line instead of text.
    pub is_json: bool,
    /// Standard error is a terminal that may show colours.
    pub has_colour: bool,
}

/// The thing to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Serve a model over HTTP.
    Serve(Box<ServeCommand>),
    /// Talk to a model in the terminal.
    Chat(ChatCommand),
    /// Show what a model is and what it would take.
    Inspect(InspectCommand),
    /// Show what a model takes of each GPU.
    Plan(PlanCommand),
    /// Look a checkpoint over for damage.
    Verify(VerifyCommand),
    /// Cut a checkpoint for its ranks.
    Shard(ShardCommand),
    /// Write a synthetic checkpoint.
    Synth(SynthCommand),
    /// Measure a server.
    Bench(bench::BenchCommand),
}

/// A model that can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The model that is part of the program.
    Demo,
    /// A checkpoint's directory.
    Directory(PathBuf),
}

/// `lnserve serve`.
#[derive(Clone, Debug)]
pub struct ServeCommand {
    /// What to serve.
    pub model: ModelSource,
    /// Address to listen on.
    pub host: String,
    /// TCP port; 0 takes a free one.
    pub port: u16,
    /// TCP port for gRPC, if there is to be one; 0 takes a free one.
    pub grpc_port: Option<u16>,
    /// TCP port for metrics alone, if there is to be one; 0 takes a free one.
    pub metrics_port: Option<u16>,
    /// Names that requests may use for the model; none takes the model's own.
    pub served_model_names: Vec<String>,
    /// Who may ask.
    pub callers: Callers,
    /// Bounds of connections, bodies and requests.
    pub limits: HttpLimits,
    /// Whether chat answers are told apart into reasoning and content.
    pub splits_reasoning: bool,
    /// Whether a browser gets a page at `/`.
    pub has_page: bool,
    /// What is traced, if anything is.
    pub traces: Option<TraceSettings>,
    /// The engine.
    pub engine: EngineConfig,
}

/// `lnserve chat`.
#[derive(Clone, Debug)]
pub struct ChatCommand {
    /// What to talk to.
    pub model: ModelSource,
    /// One question; `None` reads questions from standard input.
    pub prompt: Option<String>,
    /// The system message.
    pub system: Option<String>,
    /// Reasoning; `None` leaves it to the model's chat template.
    pub thinking: Option<Thinking>,
    /// Overrides the recommended sampling.
    pub sampling: ChatSampling,
    /// The engine.
    pub engine: EngineConfig,
}

/// What the operator says about sampling; the rest is as recommended for the model family.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatSampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// Seed of the draws.
    pub seed: u64,
    /// Tokens of an answer at most; `None` takes what the context holds.
    pub n_new_max: Option<usize>,
}

/// `lnserve inspect`.
#[derive(Clone, Debug)]
pub struct InspectCommand {
    /// A directory, `demo`, a preset's name or a configuration file.
    pub model: String,
    /// Weight format that sizes are computed for where there are no weights.
    pub format: SyntheticFormat,
    /// The engine that the memory plan is made for.
    pub engine: EngineConfig,
}

/// `lnserve plan`.
#[derive(Clone, Debug)]
pub struct PlanCommand {
    /// A directory, `demo`, a preset's name or a configuration file.
    pub model: String,
    /// Weight format where there are no weights.
    pub format: SyntheticFormat,
    /// The engine, on devices that need not be there.
    pub engine: EngineConfig,
    /// Memory of each device, as `nvidia-smi` counts it.
    pub device_bytes: u64,
    /// For programs.
    pub is_json: bool,
}

/// `lnserve verify`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyCommand {
    /// A checkpoint's directory.
    pub dir: PathBuf,
    /// Threads that read.
    pub n_threads: usize,
}

/// `lnserve shard`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardCommand {
    /// A checkpoint's directory.
    pub dir: PathBuf,
    /// Ranks to cut it for.
    pub n_ranks: usize,
    /// Where to write.
    pub out: PathBuf,
}

/// `lnserve synth`.
#[derive(Clone, Debug)]
pub struct SynthCommand {
    /// A preset's name or a configuration file.
    pub config: String,
    /// Where to write.
    pub out: PathBuf,
    /// Weight format.
    pub format: SyntheticFormat,
    /// Shards at most; `None` keeps them at 5 GB, as published checkpoints are.
    pub n_shards: Option<usize>,
    /// Weights are holes that take no room on the disk.
    pub is_sparse: bool,
    /// Decides all values.
    pub seed: u64,
}

impl Settings {
    /// Reads this process's command line and environment. Prints help, or what is wrong, and exits
    /// (with 2) where there is nothing to do.
    pub fn read() -> Settings {
        let command_line = std::env::args_os().collect();
        let rust_log = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
        let mut settings =
            Settings::parse(command_line, rust_log).unwrap_or_else(|error| error.exit());
        let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        settings.has_colour = wants_colour && std::io::stdout().is_terminal();
        settings.log.has_colour = wants_colour && std::io::stderr().is_terminal();
        settings
    }

    /// Parses a command line, the program's name first. No command is `serve demo`; `rust_log`
    /// is the log's filter where the command line and `LNSERVE_LOG` name none.
    ///
    /// # Errors
    /// Usage errors, and `--help` and `--version`, as `clap` has them.
    pub fn parse(
        mut command_line: Vec<OsString>,
        rust_log: Option<String>,
    ) -> Result<Settings, clap::Error> {
        let mut arguments = Arguments::try_parse_from(&command_line)?;
        if arguments.command.is_none() {
            command_line.push("serve".into());
            arguments = Arguments::try_parse_from(&command_line)?;
        }
        let Arguments { command, log, log_format } = arguments;
        let command = match command.expect("`serve` was put in") {
            CommandArguments::Serve(serve) => Command::Serve(Box::new(serve.into())),
            CommandArguments::Chat(chat) => Command::Chat(chat.into()),
            CommandArguments::Inspect(inspect) => Command::Inspect(inspect.into()),
            CommandArguments::Plan(plan) => Command::Plan(plan.into()),
            CommandArguments::Verify(verify) => Command::Verify(verify.into()),
            CommandArguments::Shard(shard) => Command::Shard(shard.into()),
            CommandArguments::Synth(synth) => Command::Synth(synth.into()),
            CommandArguments::Bench(bench) => Command::Bench(bench.decide().map_err(|error| {
                Arguments::command().error(clap::error::ErrorKind::ValueValidation, error)
            })?),
        };
        let is_json = log_format == arguments::LogFormat::Json;
        let filter = log.or(rust_log).unwrap_or_else(|| command.default_log_filter().to_owned());
        let log = LogSettings { filter, is_json, has_colour: false };
        Ok(Settings { log, has_colour: false, command })
    }
}

impl ServeCommand {
    /// Ports that it listens on.
    pub fn n_ports(&self) -> usize {
        1 + usize::from(self.grpc_port.is_some())
    }
}

impl Command {
    /// A server tells of its life; the others speak to a person.
    fn default_log_filter(&self) -> &'static str {
        match self {
            Command::Serve(_) => "info",
            Command::Chat(_)
            | Command::Inspect(_)
            | Command::Plan(_)
            | Command::Verify(_)
            | Command::Shard(_)
            | Command::Synth(_)
            | Command::Bench(_) => "warn",
        }
    }
}

impl ModelSource {
    /// `demo`, or a path.
    pub fn new(model: &str) -> ModelSource {
        match model {
            "demo" => ModelSource::Demo,
            path => ModelSource::Directory(PathBuf::from(path)),
        }
    }

    /// What the model is called where the operator does not say: `demo`, or the directory's name.
    pub fn name(&self) -> String {
        match self {
            ModelSource::Demo => "demo".to_owned(),
            ModelSource::Directory(path) => {
                let absolute = path.canonicalize().unwrap_or_else(|_| path.clone());
                let name = absolute.file_name().map(|name| name.to_string_lossy().into_owned());
                name.unwrap_or_else(|| path.display().to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests;
