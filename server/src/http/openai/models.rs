//! `GET /v1/models`, `GET /v1/models/NAME`.

use axum::extract::{Path, State};
use axum::response::Json;
use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::state::{App, AppState};
use super::error::Refusal;

/// All names that the model answers to.
pub(super) async fn list(State(app): State<App>) -> Json<Value> {
    let models: Vec<Value> = app.config.names.iter().map(|name| render(&app, name)).collect();
    Json(json!({ "object": "list", "data": models }))
}

/// One of them.
pub(super) async fn retrieve(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    if !app.is_served(&name) {
        return Err(ApiError::UnknownModel { name }.into());
    }
    Ok(Json(render(&app, &name)))
}

fn render(app: &AppState, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": app.created,
        "owned_by": "lnserve",
        "root": app.name(),
        "parent": null,
        "max_model_len": app.engine.info().n_context_tokens,
    })
}
