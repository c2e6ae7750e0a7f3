//! The `prompt` of a completion: a string, token ids, or a list of either.

use std::sync::Arc;

use engine::TokenId;
use serde_json::Value;

use super::super::error::ApiError;
use super::super::fields::{Fields, at_most, wrong_type};
use super::super::request::encode;
use super::super::state::AppState;
use super::options::token_id;
use crate::text::SpecialTokens;

/// A prompt, tokenized.
#[derive(Clone, Debug)]
pub(super) struct Prompt {
    /// At least one.
    pub(super) tokens: Arc<[TokenId]>,
    /// The text as it was sent, where it was text.
    pub(super) text: Option<String>,
}

const KINDS: &str = "a string, a list of strings, a list of token ids or a list of such lists";

/// Reads and tokenizes `prompt`; `add_special_tokens: false` leaves out the sequence's beginning.
pub(super) fn prompts(fields: &mut Fields, app: &AppState) -> Result<Vec<Prompt>, ApiError> {
    let special = match fields.boolean("add_special_tokens")?.unwrap_or(true) {
        true => SpecialTokens::Add,
        false => SpecialTokens::Parse,
    };
    match fields.take("prompt") {
        None => Err(ApiError::Missing { field: "prompt", remedy: KINDS }),
        Some(Value::String(text)) => Ok(vec![from_text("prompt", text, special, app)?]),
        Some(Value::Array(items)) => listed(items, special, app),
        Some(other) => Err(wrong_type("prompt".into(), KINDS, &other)),
    }
}

fn listed(
    items: Vec<Value>,
    special: SpecialTokens,
    app: &AppState,
) -> Result<Vec<Prompt>, ApiError> {
    match items.first() {
        None => return Err(empty("prompt")),
        Some(Value::Number(_)) => return Ok(vec![from_ids("prompt", &items, app)?]),
        Some(_) => at_most("prompt", "prompts", items.len(), app.config.limits.n_prompts_max)?,
    }
    let read = |(idx, item)| {
        let field = format!("prompt[{idx}]");
        match item {
            Value::String(text) => from_text(&field, text, special, app),
            Value::Array(ids) => from_ids(&field, &ids, app),
            other => Err(wrong_type(field, "a string or a list of token ids", &other)),
        }
    };
    items.into_iter().enumerate().map(read).collect()
}

fn from_text(
    field: &str,
    text: String,
    special: SpecialTokens,
    app: &AppState,
) -> Result<Prompt, ApiError> {
    if text.is_empty() {
        return Err(empty(field));
    }
    let tokens = encode(app, &text, special)?;
    Ok(Prompt { tokens, text: Some(text) })
}

fn from_ids(field: &str, ids: &[Value], app: &AppState) -> Result<Prompt, ApiError> {
    if ids.is_empty() {
        return Err(empty(field));
    }
    Ok(Prompt { tokens: token_ids(field, ids, app)?.into(), text: None })
}

/// Token ids that the vocabulary has.
pub(super) fn token_ids(
    field: &str,
    ids: &[Value],
    app: &AppState,
) -> Result<Vec<TokenId>, ApiError> {
    let vocab_size = app.engine.info().vocab_size;
    let mut tokens = Vec::with_capacity(ids.len());
    for (idx, value) in ids.iter().enumerate() {
        let field = format!("{field}[{idx}]");
        let token = token_id(&field, value)?;
        if token.idx() >= vocab_size {
            let range = format!("below {vocab_size}, the size of the vocabulary");
            return Err(ApiError::OutOfRange { field, value: token.0.to_string(), range });
        }
        tokens.push(token);
    }
    Ok(tokens)
}

fn empty(field: &str) -> ApiError {
    ApiError::Empty { field: field.into(), remedy: "at least one character or token" }
}
