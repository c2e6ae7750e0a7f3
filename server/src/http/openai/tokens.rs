//! `POST /tokenize`, `/detokenize` and `GET /tokenizer_info`, as vLLM has them: a text or a
//! conversation to token ids, token ids to text.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Json;
use engine::TokenId;
use minijinja::Value as TemplateValue;
use serde_json::{Value, json};

use super::super::body;
use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::request::{encode, encode_chat};
use super::super::state::{App, AppState};
use super::error::Refusal;
use super::messages::{messages, template_options};
use super::options;
use super::prompts::token_ids;
use super::tools;
use crate::text::SpecialTokens;

/// Token ids of a text or a conversation.
pub(super) async fn tokenize(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    let body = body::read(&headers, body, &app.config.limits).await?;
    Ok(Json(app.off_thread(move |app| encoded(&body, app)).await?))
}

/// What evaluation harnesses ask of a tokenizer that they do not have.
pub(super) async fn info(State(app): State<App>) -> Json<Value> {
    let text = &app.text;
    let stops = text.stop_tokens();
    let prefix = text.prefix_text();
    Json(json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": (!prefix.is_empty()).then_some(prefix),
        "eos_token": text.token_text(stops[stops.len() - 1]),
        "pad_token": null,
        "chat_template": text.chat_template(),
    }))
}

/// Text of token ids.
pub(super) async fn detokenize(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    let body = body::read(&headers, body, &app.config.limits).await?;
    Ok(Json(app.off_thread(move |app| decoded(&body, app)).await?))
}

fn encoded(body: &[u8], app: &AppState) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    options::model_name(&mut fields, app)?;
    let wants_texts = fields.flag("return_token_strs")?;
    let adds_special = fields.boolean("add_special_tokens")?;
    let tokens: Arc<[TokenId]> = match fields.string("prompt")? {
        Some(text) => match adds_special.unwrap_or(true) {
            true => encode(app, &text, SpecialTokens::Add)?,
            false => encode(app, &text, SpecialTokens::Parse)?,
        },
        None => {
            let mut template = template_options(&mut fields)?;
            if let Some(tools) = tools::tools(&mut fields)? {
                let listed = TemplateValue::from_serialize(&tools.listed);
                template.variables.insert("tools".into(), listed);
            }
            let messages = messages(&mut fields, &app.config.limits)?;
            encode_chat(app, &app.text.render_chat(&messages, &template)?)?
        }
    };
    let texts: Option<Vec<String>> =
        wants_texts.then(|| tokens.iter().map(|&token| app.text.token_text(token)).collect());
    Ok(json!({
        "count": tokens.len(),
        "max_model_len": app.engine.info().n_context_tokens,
        "tokens": tokens.iter().map(|token| token.0).collect::<Vec<u32>>(),
        "token_strs": texts,
    }))
}

fn decoded(body: &[u8], app: &AppState) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    options::model_name(&mut fields, app)?;
    let Some(ids) = fields.list("tokens")? else {
        return Err(ApiError::Missing { field: "tokens", remedy: "a list of token ids" });
    };
    let tokens = token_ids("tokens", &ids, app)?;
    Ok(json!({ "prompt": app.text.decode(&tokens, false) }))
}
