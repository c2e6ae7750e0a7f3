//! The KServe v2 routes as Triton answers them: health and generation. Names, statuses and texts of
//! errors are Triton's own (2.51), since clients match on them.
//!
//! It knows nothing of `/v1`. The rest of Triton's routes belongs here too.

mod error;
mod generate;
mod health;
mod inputs;
mod json;
mod options;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};

pub use error::Refusal;

use super::error::ApiError;
use super::state::{App, AppState, ENSEMBLE};
use error::ProbeRefusal;

/// The only version that a model has.
const VERSION: &str = "1";

/// Everything under `/v2`. Health is open to all; the rest asks for the key.
pub fn router(app: &App) -> Router<App> {
    // A GET route also takes HEAD in axum; Triton's probes do not.
    let probe = |handler| get(handler).head(wrong_probe).fallback(wrong_probe);
    let health = Router::new()
        .route("/v2/health/live", get(health::live).head(wrong_probe).fallback(wrong_probe))
        .route("/v2/health/ready", probe(health::ready));
    let models = Router::new()
        .route(
            "/v2/models/{model}/ready",
            get(health::model_ready).head(wrong_probe).fallback(wrong_probe),
        )
        .route(
            "/v2/models/{model}/versions/{version}/ready",
            get(health::version_ready).head(wrong_probe).fallback(wrong_probe),
        )
        .route("/v2/models/{model}/generate", post(generate::whole))
        .route("/v2/models/{model}/versions/{version}/generate", post(generate::whole_version))
        .route("/v2/models/{model}/generate_stream", post(generate::stream))
        .route(
            "/v2/models/{model}/versions/{version}/generate_stream",
            post(generate::stream_version),
        )
        .method_not_allowed_fallback(|| async { Refusal::from(ApiError::WrongMethod) })
        .route_layer(from_fn_with_state(Arc::clone(app), authorize));
    health.merge(models)
}

/// Whether a model answers to a name.
fn is_served(app: &AppState, name: &str) -> bool {
    name == ENSEMBLE || app.is_served(name)
}

async fn wrong_probe() -> ProbeRefusal {
    ProbeRefusal(ApiError::WrongMethod)
}

async fn authorize(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    if let Some(key) = &app.config.api_key {
        key.check(request.headers()).map_err(Refusal::from)?;
    }
    Ok(next.run(request).await)
}
