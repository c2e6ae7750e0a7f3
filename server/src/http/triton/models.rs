//! The names under which the model is served, whether it is loaded, and what was asked of each.
//!
//! All names are one model's: unloading one of them unloads all. Its weights stay where they are;
//! what runs is finished, nothing new is taken, and loading takes requests again at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::error::ApiError;
use super::super::state::AppState;
use super::VERSION;
use super::error::Refusal;
use super::settings::Settings;
use super::statistics::Statistics;

/// Triton's clients for TensorRT-LLM ask for this name, whatever the model is called.
pub(super) const ENSEMBLE: &str = "ensemble";

/// What Triton's side of the server keeps between requests.
#[derive(Debug)]
pub struct Models {
    models: Vec<Model>,
    is_loaded: AtomicBool,
    pub(super) settings: Settings,
}

/// A name of the model.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) statistics: Arc<Statistics>,
}

/// Where a name stands between loaded and unloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ModelState {
    Ready,
    /// Nothing new is taken, something still runs.
    Unloading,
    Unavailable,
}

impl Models {
    /// For a model of these names; it is loaded.
    pub fn new(names: &[String]) -> Models {
        let mut names = names.to_vec();
        names.push(ENSEMBLE.to_owned());
        names.sort();
        names.dedup();
        let models = names.into_iter().map(|name| Model { name, statistics: Arc::default() });
        Models {
            models: models.collect(),
            is_loaded: AtomicBool::new(true),
            settings: Settings::default(),
        }
    }

    /// Whether requests are taken as far as Triton's clients decide it.
    pub fn is_loaded(&self) -> bool {
        self.is_loaded.load(Ordering::SeqCst)
    }

    pub(super) fn set_loaded(&self, is_loaded: bool) {
        self.is_loaded.store(is_loaded, Ordering::SeqCst);
    }

    /// All names, sorted.
    pub(super) fn all(&self) -> &[Model] {
        &self.models
    }

    /// A name's, whether loaded or not.
    pub(super) fn named(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.name == name)
    }
}

/// A model that can be asked.
///
/// # Errors
/// It is not there, has no such version, or is unloaded.
pub(super) fn find<'a>(
    app: &'a AppState,
    name: &str,
    version: Option<&str>,
) -> Result<&'a Model, Refusal> {
    let unknown = || Refusal::from(ApiError::UnknownModel { name: name.to_owned() });
    let model = app.triton.named(name).ok_or_else(unknown)?;
    if !app.triton.is_loaded() {
        return Err(Refusal::Unloaded { name: name.to_owned() });
    }
    match version {
        None | Some(VERSION) => Ok(model),
        Some(version) => {
            let (name, version) = (name.to_owned(), version.to_owned());
            Err(ApiError::UnknownVersion { name, version }.into())
        }
    }
}

/// Whether a model takes requests.
pub(super) fn is_ready(app: &AppState, name: &str, version: Option<&str>) -> bool {
    find(app, name, version).is_ok() && app.ready().is_ok()
}

/// Where the model stands.
pub(super) fn state(app: &AppState) -> ModelState {
    match (app.triton.is_loaded(), app.engine.n_live()) {
        (true, _) => ModelState::Ready,
        (false, 0) => ModelState::Unavailable,
        (false, _) => ModelState::Unloading,
    }
}

impl ModelState {
    /// Triton's word.
    pub(super) fn word(self) -> &'static str {
        match self {
            ModelState::Ready => "READY",
            ModelState::Unloading => "UNLOADING",
            ModelState::Unavailable => "UNAVAILABLE",
        }
    }
}

/// Rows that a batch may have: as many as may run at once.
pub(super) fn n_batch_max(app: &AppState) -> usize {
    app.engine.info().n_slots
}

/// Loads or unloads.
///
/// # Errors
/// There is no such model to load. Unloading what is not there is done already.
pub(super) fn set_loaded(app: &AppState, name: &str, is_loaded: bool) -> Result<(), Refusal> {
    match app.triton.named(name) {
        Some(_) => {
            tracing::info!(name, is_loaded, "asked to load or unload");
            app.triton.set_loaded(is_loaded);
            Ok(())
        }
        None if is_loaded => Err(Refusal::NotInRepository { name: name.to_owned() }),
        None => Ok(()),
    }
}
