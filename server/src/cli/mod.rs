//! The program's commands, one a file: each takes its typed part of the settings and speaks to the
//! person at the terminal. No command knows another.

pub mod bench;
pub mod chat;
mod files;
pub mod inspect;
mod interrupts;
pub mod plan;
pub mod serve;
pub mod shard;
pub mod synth;
mod table;
pub mod verify;

use std::io;
use std::path::{Path, PathBuf};

use engine::{MemoryError, SubmitError};
use thiserror::Error;
use weights::{ConfigError, LoadError, ModelSpec, Uneven, presets};

use crate::bench::BenchError;
use crate::boot::StartError;
use crate::config::{Command, Settings};
use crate::text::TextError;

/// Why a command failed: one line that names the thing and the remedy.
#[derive(Debug, Error)]
pub enum CliError {
    /// The model does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Neither a preset nor a file.
    #[error("{name} is neither a file nor a preset; the presets are {presets}")]
    NoSuchConfig {
        /// What was given.
        name: String,
        /// The presets' names.
        presets: String,
    },
    /// A configuration that describes no model.
    #[error("{path}: {cause}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        cause: Box<ConfigError>,
    },
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Load(Box<LoadError>),
    /// Ranks cannot share the model.
    #[error("{0}; choose another --tp")]
    Uneven(#[from] Uneven),
    /// It does not fit.
    #[error(transparent)]
    Memory(Box<MemoryError>),
    /// It does not fit, which has been shown.
    #[error("{model} does not fit: {reason}")]
    DoesNotFit {
        /// The model.
        model: String,
        /// What is lacking, and what to change.
        reason: String,
    },
    /// A checkpoint is broken, which has been shown.
    #[error("{dir} is broken in {n_problems} places: fetch the files that are named again")]
    Broken {
        /// Its directory.
        dir: PathBuf,
        /// Places.
        n_problems: usize,
    },
    /// The prompt cannot be made.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The engine refuses the request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The engine failed while it answered.
    #[error("the engine failed while it answered: run again with --log info")]
    EngineFailed,
    /// Serving failed.
    #[error("{0:#}")]
    Serve(#[from] anyhow::Error),
    /// There is no measurement.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// Answers were others under load, which has been shown.
    #[error(
        "{n_differences} answers were others under load than alone: the server's answers depend on \
         what runs beside them (--check-answers 0 does not look)"
    )]
    AnswersDiffer {
        /// How many.
        n_differences: usize,
    },
    /// The load generator itself was too slow, which has been shown.
    #[error("the run is invalid, for the reasons above: its figures say nothing of the server")]
    InvalidRun,
    /// A figure became worse.
    #[error("{name} is worse by {worse_percent:.1} %, {percent} % are allowed")]
    Regressed {
        /// The figure.
        name: String,
        /// By how much.
        worse_percent: f64,
        /// By how much it may be.
        percent: f64,
    },
    /// A signal ended it.
    #[error("{name}: nothing was left behind")]
    Interrupted {
        /// Which, as people know it.
        name: &'static str,
        /// What a shell reports for a program that it ended.
        status: u8,
    },
    /// A file, a socket or the terminal.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
}

impl CliError {
    /// What the program ends with.
    pub fn status(&self) -> u8 {
        match self {
            CliError::Interrupted { status, .. } => *status,
            _ => 1,
        }
    }
}

impl From<LoadError> for CliError {
    fn from(error: LoadError) -> CliError {
        CliError::Load(Box::new(error))
    }
}

impl From<MemoryError> for CliError {
    fn from(error: MemoryError) -> CliError {
        CliError::Memory(Box::new(error))
    }
}

/// Does what the settings say.
///
/// # Errors
/// Why it could not be done.
pub fn run(settings: Settings) -> Result<(), CliError> {
    match settings.command {
        Command::Serve(command) => Ok(serve::run(&command)?),
        Command::Chat(command) => chat::run(command, settings.has_colour),
        Command::Inspect(command) => inspect::run(&command, settings.has_colour),
        Command::Plan(command) => plan::run(&command, settings.has_colour),
        Command::Verify(command) => verify::run(&command, settings.has_colour),
        Command::Shard(command) => shard::run(&command),
        Command::Synth(command) => synth::run(&command),
        Command::Bench(command) => bench::run(&command, settings.has_colour),
    }
}

/// A model by its configuration file or its preset's name; a file goes first.
fn model_spec(name: &str) -> Result<ModelSpec, CliError> {
    let path = Path::new(name);
    if path.is_file() {
        let text = std::fs::read_to_string(path).map_err(io_error(name))?;
        return ModelSpec::from_config_json(&text)
            .map_err(|cause| CliError::Config { path: path.to_owned(), cause: Box::new(cause) });
    }
    presets::preset(name).ok_or_else(|| CliError::NoSuchConfig {
        name: name.to_owned(),
        presets: presets::preset_names().collect::<Vec<_>>().join(", "),
    })
}

fn io_error(what: &str) -> impl FnOnce(io::Error) -> CliError {
    |source| CliError::Io { what: what.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_found_by_preset_or_file_and_else_the_presets_are_named() {
        assert_eq!(model_spec("tiny").expect("a preset"), presets::preset("tiny").expect("tiny"));
        let message = model_spec("tinny").expect_err("unknown").to_string();
        assert!(message.starts_with("tinny is neither a file nor a preset"), "{message}");
        assert!(message.contains("tiny, bench-0.6b"), "{message}");
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/config.json");
        assert!(model_spec(demo).is_ok());
        let not_a_config = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let message = model_spec(not_a_config).expect_err("TOML").to_string();
        assert!(message.contains("Cargo.toml: not a valid configuration"), "{message}");
    }
}
