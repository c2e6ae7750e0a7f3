//! From a model's name to something that answers: checkpoint, text, engine, in the order in which
//! mistakes are cheapest to find.

use std::path::PathBuf;
use std::sync::Arc;

use engine::{BootError, Engine, EngineConfig};
use thiserror::Error;
use weights::{Checkpoint, LoadError, Uneven};

use crate::config::ModelSource;
use crate::demo::DEMO_FILES;
use crate::text::{TextLoadError, TextModel};

/// A model that runs.
pub struct Booted {
    /// The engine; shut it down at the end.
    pub engine: Engine,
    /// Its language.
    pub text: Arc<TextModel>,
}

/// Why a model does not run.
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
    #[error("cannot load {model}: {source}")]
    Load {
        /// The model's name.
        model: String,
        /// What is wrong.
        source: Box<LoadError>,
    },
    /// Its tokenizer or chat template cannot be used.
    #[error("cannot load {model}: {source}")]
    Text {
        /// The model's name.
        model: String,
        /// What is wrong.
        source: Box<TextLoadError>,
    },
    /// The ranks cannot share it.
    #[error("cannot share {model}: {source}; choose another --tp")]
    Uneven {
        /// The model's name.
        model: String,
        /// What cannot be shared.
        source: Uneven,
    },
    /// The engine does not start.
    #[error("cannot start {model}: {source}")]
    Engine {
        /// The model's name.
        model: String,
        /// What is wrong.
        source: Box<BootError>,
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
    opened.map_err(|source| StartError::Load { model: model.name(), source: Box::new(source) })
}

/// Opens a model, reads its tokenizer and starts its engine.
///
/// # Errors
/// The first thing that is wrong.
pub fn boot(model: &ModelSource, config: &EngineConfig) -> Result<Booted, StartError> {
    let checkpoint = open(model)?;
    let text = TextModel::from_checkpoint(&checkpoint)
        .map_err(|source| StartError::Text { model: model.name(), source: Box::new(source) })?;
    let shared = checkpoint.spec().check_sharding(config.n_ranks);
    shared.map_err(|source| StartError::Uneven { model: model.name(), source })?;
    let engine = engine::boot(Arc::new(checkpoint), config)
        .map_err(|source| StartError::Engine { model: model.name(), source: Box::new(source) })?;
    Ok(Booted { engine, text: Arc::new(text) })
}
