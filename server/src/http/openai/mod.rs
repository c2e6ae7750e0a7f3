//! The OpenAI routes, with what vLLM's users expect around them.
//!
//! One endpoint a file, each with the same verbs: `parse` (JSON to checked values), `handle`
//! (submit, then answer at once or as a stream), `render`. Wire types stay in here. Unknown fields
//! are ignored; known ones of a wrong type are refused by name; features that would change the
//! answer and are not there yet are refused too.

mod chat;
mod completions;
mod conversation;
mod error;
mod format;
#[cfg(test)]
mod hostile;
mod intake;
mod logprobs;
mod messages;
mod models;
mod options;
mod prompts;
mod responses;
mod speech;
mod stream;
mod tokens;
mod tools;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};

pub use error::Refusal;

use super::error::ApiError;
use super::observe::Record;
use super::state::App;

/// Everything under `/v1`, and what vLLM has beside it.
pub fn router(app: &App) -> Router<App> {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::retrieve))
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/responses", post(responses::handle))
        .route("/tokenize", post(tokens::tokenize))
        .route("/tokenizer_info", get(tokens::info))
        .route("/detokenize", post(tokens::detokenize))
        .method_not_allowed_fallback(|| async { Refusal(ApiError::WrongMethod) })
        .route_layer(from_fn_with_state(Arc::clone(app), authorize))
}

/// Lets nobody in without a key, where there are keys.
pub(super) async fn authorize(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let tenant = app.config.api_keys.check(request.headers())?;
    if let Some(record) = request.extensions().get::<Arc<Record>>() {
        record.belongs_to(tenant);
    }
    Ok(next.run(request).await)
}
