//! What all requests share.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::http::HeaderValue;
use engine::{EngineHandle, TokenId};
use tokio::sync::Semaphore;

use super::auth::ApiKeys;
use super::error::ApiError;
use super::limits::HttpLimits;
use super::page::{Feed, PageConfig};
use super::shutdown::{InFlight, Phase, Shutdown};
use super::triton::Models;
use crate::guide::{CompiledFormat, Format, Formats, GuideParts};
use crate::metrics::Metrics;
use crate::text::TextModel;
use crate::traces::Traces;

/// What the operator decides about serving.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Names that requests may use; at least one. The first one is shown in answers and metrics.
    pub names: Vec<String>,
    /// The keys that callers may show; none lets everybody in.
    pub api_keys: ApiKeys,
    /// Origins whose pages may ask from a browser: `*`, or some; none by default.
    pub allowed_origins: Vec<HeaderValue>,
    /// Whether chat answers are told apart into reasoning and content.
    pub splits_reasoning: bool,
    /// The page at `/` and what it watches; `None` serves neither.
    pub page: Option<PageConfig>,
    /// Bounds.
    pub limits: HttpLimits,
    /// Who is told what requests waited for, if anybody is.
    pub traces: Option<Traces>,
}

/// Shared by all requests, as `Arc`.
pub type App = Arc<AppState>;

/// What all requests share.
pub struct AppState {
    /// Runs them.
    pub engine: EngineHandle,
    /// Knows their language.
    pub text: Arc<TextModel>,
    /// What the operator decided.
    pub config: ServeConfig,
    /// Counts them.
    pub metrics: Metrics,
    /// Ends them.
    pub shutdown: Shutdown,
    /// Those whose answers are not complete.
    pub in_flight: InFlight,
    /// When serving began, in seconds since 1970.
    pub created: u64,
    /// The same moment for durations.
    pub began: Instant,
    /// What Triton's clients turn and count.
    pub triton: Models,
    /// Compiles the formats that answers must keep.
    pub formats: Formats,
    /// What guides share.
    pub guide_parts: Arc<GuideParts>,
    /// Bytes of the vocabulary's longest token; at least one.
    pub n_token_bytes_max: usize,
    /// Tells those who watch what the node does.
    pub feed: Feed,
    tokenizers: Arc<Semaphore>,
}

impl AppState {
    /// For an engine and its checkpoint's text model.
    ///
    /// # Panics
    /// The configuration has no name or a limit that serves nobody.
    pub fn new(engine: EngineHandle, text: Arc<TextModel>, config: ServeConfig) -> App {
        config.limits.check();
        let name = config.names.first().expect("a model has a name");
        let vocabulary = (0..engine.info().vocab_size as u32).map(TokenId);
        let vocab_size = engine.info().vocab_size;
        let n_token_bytes = vocabulary.map(|token| text.token_bytes(token).len()).max();
        Arc::new(AppState {
            metrics: Metrics::new(name, config.traces.as_ref()),
            shutdown: Shutdown::new(config.limits.drain_notice),
            in_flight: InFlight::new(),
            created: now_unix_s(),
            began: Instant::now(),
            triton: Models::new(&config.names),
            n_token_bytes_max: n_token_bytes.unwrap_or(0).max(1),
            formats: Formats::new(Arc::clone(&text), vocab_size),
            guide_parts: Arc::new(GuideParts::new(Arc::clone(&text), vocab_size)),
            tokenizers: Arc::new(Semaphore::new(config.limits.n_tokenizer_threads)),
            feed: Feed::new(),
            engine,
            text,
            config,
        })
    }

    /// The model's first name.
    pub fn name(&self) -> &str {
        &self.config.names[0]
    }

    /// Whether the model answers to a name.
    pub fn is_served(&self, name: &str) -> bool {
        self.config.names.iter().any(|served| served == name)
    }

    /// `Ok` while requests are wanted, else why they are not: what health checks are told.
    pub fn ready(&self) -> Result<(), ApiError> {
        match self.shutdown.phase() {
            Phase::Serving => self.takes_requests(),
            Phase::Leaving | Phase::Draining | Phase::Forced => Err(ApiError::ShuttingDown),
        }
    }

    /// `Ok` while requests are taken, else why they are not. Those that come before whoever sends
    /// them has seen that they are not wanted any more are taken.
    pub fn takes_requests(&self) -> Result<(), ApiError> {
        if self.shutdown.phase() > Phase::Leaving {
            return Err(ApiError::ShuttingDown);
        }
        self.engine.ready()?;
        match self.triton.is_loaded() {
            true => Ok(()),
            false => Err(ApiError::ModelUnloaded { name: self.name().to_owned() }),
        }
    }

    /// Compiles a format that came in `field`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn compile(&self, field: &str, format: &Format) -> Result<Arc<CompiledFormat>, ApiError> {
        self.formats.compile(format).map_err(|error| ApiError::Uncompilable {
            field: field.into(),
            problem: error.to_string(),
        })
    }

    /// Seconds since 1970, for answers that say when they were made.
    pub fn created_now(&self) -> u64 {
        now_unix_s()
    }

    /// Does work that takes a processor for a while, away from the threads that serve sockets.
    /// At most `n_tokenizer_threads` such pieces run at once.
    ///
    /// # Errors
    /// The work's own, or [`ApiError::Internal`] where it panics.
    pub async fn off_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&AppState) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let semaphore = Arc::clone(&self.tokenizers);
        let permit = semaphore.acquire_owned().await.expect("the semaphore is never closed");
        let app = Arc::clone(self);
        let working = tokio::task::spawn_blocking(move || {
            // Held until the work is done, even when the client is gone by then.
            let _permit = permit;
            work(&app)
        });
        working.await.unwrap_or_else(|panic| {
            tracing::error!(%panic, "preparing a request failed");
            Err(ApiError::Internal)
        })
    }
}

impl fmt::Debug for AppState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppState").field("config", &self.config).finish_non_exhaustive()
    }
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
