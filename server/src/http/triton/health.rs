//! `GET /v2/health/live`, `/v2/health/ready`, `/v2/models/M[/versions/V]/ready`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::super::state::App;
use super::models;
use super::target::Target;

/// The process lives: it answers.
pub(super) async fn live() -> Response {
    probe(true, "")
}

/// The server can take requests.
pub(super) async fn ready(State(app): State<App>) -> Response {
    probe(app.ready().is_ok(), "")
}

/// The model can.
pub(super) async fn model_ready(State(app): State<App>, target: Target) -> Response {
    let is_ready = models::is_ready(&app, &target.model, target.version.as_deref());
    probe(is_ready, r#"{"error":"Model version not ready"}"#)
}

fn probe(is_ready: bool, complaint: &'static str) -> Response {
    let (status, body) =
        if is_ready { (StatusCode::OK, "") } else { (StatusCode::BAD_REQUEST, complaint) };
    (status, [(CONTENT_TYPE, "text/plain")], body).into_response()
}
