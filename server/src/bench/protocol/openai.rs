//! OpenAI's chat completions and completions, with what vLLM and others add to fix an answer's
//! length.

use serde_json::{Value, json};

use super::super::ask::Ask;
use super::{Asking, Piece, error_words};

pub(super) fn chat(asking: &Asking, ask: &Ask) -> Value {
    let messages: Vec<Value> = ask
        .messages
        .iter()
        .map(|message| json!({ "role": message.role.word(), "content": &*message.text }))
        .collect();
    common(asking, ask, ("messages", messages.into()))
}

pub(super) fn completion(asking: &Asking, ask: &Ask) -> Value {
    common(asking, ask, ("prompt", ask.text().into()))
}

fn common(asking: &Asking, ask: &Ask, (name, prompt): (&str, Value)) -> Value {
    let mut body = json!({
        "model": asking.model,
        "max_tokens": ask.n_out,
        "temperature": asking.temperature,
        "seed": ask.seed,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    body[name] = prompt;
    if !asking.ends_naturally {
        body["ignore_eos"] = true.into();
        body["min_tokens"] = ask.n_out.into();
    }
    body
}

pub(super) fn read(data: &str) -> Result<Piece, String> {
    if data == "[DONE]" {
        return Ok(Piece { is_last: true, ..Piece::default() });
    }
    let value: Value = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
    if !value["error"].is_null() {
        return Err(error_words(data));
    }
    let choices = value["choices"].as_array().ok_or("an event without choices")?;
    let mut piece = Piece { is_answer: !choices.is_empty(), ..Piece::default() };
    for choice in choices {
        let delta = &choice["delta"];
        // The reasoning may come under both of its names.
        let reasoning = delta["reasoning_content"].as_str().or(delta["reasoning"].as_str());
        let content = delta["content"].as_str().or(choice["text"].as_str());
        for text in [reasoning, content].into_iter().flatten() {
            piece.text.push_str(text);
        }
        // Some servers send the role, or the end, in an event of its own.
        let is_token = !piece.text.is_empty() || delta["tool_calls"].is_array();
        piece.has_token |= is_token;
    }
    let usage = &value["usage"];
    let count = |value: &Value| value.as_u64().map(|n| n as usize);
    piece.n_prompt = count(&usage["prompt_tokens"]);
    piece.n_cached = count(&usage["prompt_tokens_details"]["cached_tokens"]);
    piece.n_out = count(&usage["completion_tokens"]);
    Ok(piece)
}
