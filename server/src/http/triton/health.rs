//! `GET /v2/health/live`, `/v2/health/ready`, `/v2/models/M[/versions/V]/ready`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::super::state::{App, AppState};
use super::{VERSION, is_served};

/// The process lives: it answers.
pub(super) async fn live() -> Response {
    probe(true, "")
}

/// The server can take requests.
pub(super) async fn ready(State(app): State<App>) -> Response {
    probe(app.ready().is_ok(), "")
}

/// The model can.
pub(super) async fn model_ready(State(app): State<App>, Path(model): Path<String>) -> Response {
    model_probe(&app, &model, VERSION)
}

/// A version of it can.
pub(super) async fn version_ready(
    State(app): State<App>,
    Path((model, version)): Path<(String, String)>,
) -> Response {
    model_probe(&app, &model, &version)
}

fn model_probe(app: &AppState, model: &str, version: &str) -> Response {
    let is_ready = is_served(app, model) && version == VERSION && app.ready().is_ok();
    probe(is_ready, r#"{"error":"Model version not ready"}"#)
}

fn probe(is_ready: bool, complaint: &'static str) -> Response {
    let (status, body) =
        if is_ready { (StatusCode::OK, "") } else { (StatusCode::BAD_REQUEST, complaint) };
    (status, [(CONTENT_TYPE, "text/plain")], body).into_response()
}
