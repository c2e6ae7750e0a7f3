//! From a model's name to something that answers: checkpoint, text, engine, in the order in which
//! mistakes are cheapest to find.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use engine::{BootError, Engine, EngineConfig, LoadProgress};
use indicatif::ProgressBar;
use thiserror::Error;
use weights::{Checkpoint, LoadError, Uneven};

use crate::config::ModelSource;
use crate::demo::DEMO_FILES;
use crate::progress;
use crate::text::{TextLoadError, TextModel};

/// A model that runs.
pub struct Booted {
    /// The engine; shut it down at the end.
    pub engine: Engine,
    /// Its language.
    pub text: Arc<TextModel>,
}

/// Why a model does not run. Each message tells the whole cause: there is no chain to print.
#[derive(Debug, Error)]
pub enum StartError {
    /// There is nothing there.
    #[error(
        "there is no directory {path}: give a checkpoint's directory, or `demo` for the built-in \
         model"
    )]
    NoSuchModel {
        /// What was given.
        path: PathBuf,
    },
    /// The checkpoint cannot be used.
    #[error("cannot load {model}: {cause}")]
    Load {
        /// The model's name.
        model: String,
        /// What is wrong.
        cause: Box<LoadError>,
    },
    /// Its tokenizer or chat template cannot be used.
    #[error("cannot load {model}: {cause}")]
    Text {
        /// The model's name.
        model: String,
        /// What is wrong.
        cause: Box<TextLoadError>,
    },
    /// The ranks cannot share it.
    #[error("cannot share {model}: {cause}; choose another --tp")]
    Uneven {
        /// The model's name.
        model: String,
        /// What cannot be shared.
        cause: Uneven,
    },
    /// The engine does not start.
    #[error("cannot start {model}: {cause}")]
    Engine {
        /// The model's name.
        model: String,
        /// What is wrong.
        cause: Box<BootError>,
    },
}

/// Opens a model's checkpoint.
///
/// # Errors
/// It is not there, or cannot be used.
pub fn open(model: &ModelSource) -> Result<Checkpoint, StartError> {
    let opened = match model {
        ModelSource::Demo => Checkpoint::embedded("demo", DEMO_FILES),
        ModelSource::Directory(path) if !path.is_dir() => {
            return Err(StartError::NoSuchModel { path: path.clone() });
        }
        ModelSource::Directory(path) => Checkpoint::open(path),
    };
    opened.map_err(|cause| StartError::Load { model: model.name(), cause: Box::new(cause) })
}

/// Opens a model, reads its tokenizer and starts its engine.
///
/// # Errors
/// The first thing that is wrong.
pub fn boot(model: &ModelSource, config: &EngineConfig) -> Result<Booted, StartError> {
    let checkpoint = open(model)?;
    let text = TextModel::from_checkpoint(&checkpoint)
        .map_err(|cause| StartError::Text { model: model.name(), cause: Box::new(cause) })?;
    let shared = checkpoint.spec().check_sharding(config.n_ranks);
    shared.map_err(|cause| StartError::Uneven { model: model.name(), cause })?;
    let cut = checkpoint.check_sharding(config.n_ranks);
    cut.map_err(|cause| StartError::Load { model: model.name(), cause: Box::new(cause) })?;
    let bar = Arc::new(OnceLock::new());
    let engine = engine::boot_watched(Arc::new(checkpoint), config, loading(Arc::clone(&bar)));
    if let Some(bar) = bar.get() {
        bar.finish_and_clear();
    }
    let engine = engine
        .map_err(|cause| StartError::Engine { model: model.name(), cause: Box::new(cause) })?;
    Ok(Booted { engine, text: Arc::new(text) })
}

/// Draws `bar` on the terminal from the first bytes on that are sent to a device, or packed.
fn loading(bar: Arc<OnceLock<ProgressBar>>) -> LoadProgress {
    Arc::new(move |n_sent, n_in_all| {
        bar.get_or_init(|| progress::bar("loading ", n_in_all)).set_position(n_sent);
    })
}

#[cfg(test)]
mod tests {
    use engine::{DeviceKind, EngineConfig};

    use super::*;

    fn config(n_ranks: usize) -> EngineConfig {
        EngineConfig {
            device: DeviceKind::Cpu,
            n_ranks,
            n_threads: Some(1),
            n_slots: 1,
            n_waiting_max: 1,
            n_tokens_per_step: 16,
            n_context_tokens: Some(64),
            kv_dtype: None,
            kv_bytes: None,
            is_deterministic: false,
            rounds_inputs: false,
            overlaps_steps: false,
            caches_prefixes: false,
            policy: engine::Policy::plain(),
            host_kv: None,
            n_candidates_max: 0,
        }
    }

    fn refusal(model: &str, n_ranks: usize) -> String {
        let error = boot(&ModelSource::new(model), &config(n_ranks)).err().expect("refused");
        let chain = std::error::Error::source(&error);
        assert!(chain.is_none(), "{error} would be told twice");
        error.to_string()
    }

    #[test]
    fn what_does_not_start_is_told_in_one_line_with_the_remedy() {
        let message = refusal("/no/such/model", 1);
        assert!(message.starts_with("there is no directory /no/such/model: give"), "{message}");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let message = refusal(source, 1);
        assert!(message.starts_with("cannot load src: "), "{message}");
        assert!(message.contains("config.json: is it a checkpoint directory?"), "{message}");
        let message = refusal("demo", 3);
        assert!(message.starts_with("cannot share demo: "), "{message}");
        assert!(message.ends_with("3 ranks cannot share evenly; choose another --tp"), "{message}");
    }

    #[test]
    fn the_demo_model_boots() {
        let booted = boot(&ModelSource::Demo, &config(2)).expect("boots");
        assert_eq!(booted.engine.handle().info().n_context_tokens, 64);
        booted.engine.shutdown();
    }
}
