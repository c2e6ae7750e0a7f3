//! Which path leads where.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::json;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::error::ApiError;
use super::observe::{REQUEST_ID, observe};
use super::state::App;
use super::{openai, page, triton};
use crate::metrics;

/// All routes.
pub fn router(app: &App) -> Router {
    let common = Router::new()
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics_text))
        .method_not_allowed_fallback(|| async { openai::Refusal(ApiError::WrongMethod) });
    let all = Router::new()
        .merge(common)
        .merge(openai::router(app))
        .merge(triton::router(app))
        .merge(page::router(app))
        .fallback(unknown_path);
    let all = match app.config.allowed_origins.as_slice() {
        [] => all,
        origins => all.layer(cors(origins)),
    };
    all.layer(from_fn_with_state(Arc::clone(app), observe)).with_state(Arc::clone(app))
}

/// What a port of its own has for who reads metrics.
pub fn metrics_router(app: &App) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .method_not_allowed_fallback(|| async { openai::Refusal(ApiError::WrongMethod) })
        .fallback(unknown_path)
        .with_state(Arc::clone(app))
}

/// What browsers are told where the operator allowed pages of some origins to ask. Without it there
/// is not even an answer to their first question.
fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let origin = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().cloned()),
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID])
}

/// For load balancers that know vLLM's word for it.
async fn health(State(app): State<App>) -> Response {
    match app.ready() {
        Ok(()) => StatusCode::OK.into_response(),
        Err(error) => openai::Refusal(error).into_response(),
    }
}

async fn version() -> Json<serde_json::Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

async fn metrics_text(State(app): State<App>) -> impl IntoResponse {
    app.metrics.http_in_flight(app.in_flight.n());
    let stats = app.engine.stats();
    let newest = app.engine.steps_since(stats.n_steps.saturating_sub(1)).pop();
    app.metrics.newest_step(newest.as_ref().filter(|_| stats.n_running > 0));
    let text = app.metrics.render(&stats, app.engine.info());
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

async fn unknown_path(request: Request) -> Response {
    if request.uri().path().starts_with("/v2") {
        triton::Refusal::from(ApiError::UnknownPath).into_response()
    } else {
        openai::Refusal(ApiError::UnknownPath).into_response()
    }
}
