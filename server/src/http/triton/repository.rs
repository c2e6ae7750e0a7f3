//! `POST /v2/repository/index`, and loading and unloading.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Map, Value};

use super::super::body;
use super::super::state::App;
use super::VERSION;
use super::access::boolean;
use super::error::{Refusal, empty, json};
use super::json::members_if_any;
use super::models::{self, ModelState};
use super::node::{list, object};

/// `POST /v2/repository[/R]/index`: `{"ready":true}` leaves out what is not.
pub(super) async fn index(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let body = body::read(&headers, body, &app.config.limits).await?;
    let wanted = members(&body)?;
    let only_ready = wanted.get("ready").map(boolean).transpose()?.unwrap_or(false);
    let state = models::state(&app);
    let models = match state {
        ModelState::Unloading | ModelState::Unavailable if only_ready => &[],
        _ => app.triton.all(),
    };
    Ok(json(&list(models.iter().map(|model| {
        let name = ("name", model.name.as_str().into());
        let version = ("version", VERSION.into());
        let word = ("state", state.word().into());
        match state {
            ModelState::Unavailable => object([name, version, word, ("reason", "unloaded".into())]),
            _ => object([name, version, word]),
        }
    }))))
}

/// `POST /v2/repository/models/M/load`.
pub(super) async fn load(
    State(app): State<App>,
    Path(model): Path<String>,
    (headers, body): (HeaderMap, Body),
) -> Result<Response, Refusal> {
    let body = body::read(&headers, body, &app.config.limits).await?;
    if let Some(parameters) = members(&body)?.get("parameters") {
        let parameters = parameters.as_object().ok_or(Refusal::NotAnObject)?;
        if !parameters.is_empty() {
            return Err(Refusal::LoadParameters);
        }
    }
    models::set_loaded(&app, &model, true)?;
    Ok(empty())
}

/// `POST /v2/repository/models/M/unload`. What `parameters` may say there is about dependents,
/// of which there are none.
pub(super) async fn unload(
    State(app): State<App>,
    Path(model): Path<String>,
) -> Result<Response, Refusal> {
    models::set_loaded(&app, &model, false)?;
    Ok(empty())
}

/// What a body says that may also be empty.
fn members(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    if body.is_empty() { Ok(Map::new()) } else { members_if_any(body) }
}

/// Load and unload of a repository's model.
pub(super) async fn named_repository() -> Refusal {
    Refusal::RepositoryName
}
