//! A response's `instructions` and `input`, made into what the template takes.

use minijinja::Value as TemplateValue;
use serde_json::{Map, Value, json};

use super::super::super::error::ApiError;
use super::super::super::fields::{Fields, at_most, wrong_type};
use super::super::super::limits::HttpLimits;
use crate::text::ChatMessage;

const KINDS: &str = "a text or a list of items";

/// Reads the conversation.
pub(in super::super) fn messages(
    fields: &mut Fields,
    limits: &HttpLimits,
) -> Result<Vec<ChatMessage>, ApiError> {
    let mut messages = Vec::new();
    if let Some(text) = fields.string("instructions")? {
        messages.push(ChatMessage::new("system", text));
    }
    match fields.take("input") {
        None => return Err(ApiError::Missing { field: "input", remedy: KINDS }),
        Some(Value::String(text)) => messages.push(ChatMessage::new("user", text)),
        Some(Value::Array(items)) => {
            at_most("input", "items", items.len(), limits.n_messages_max)?;
            if items.is_empty() {
                return Err(ApiError::Empty { field: "input".into(), remedy: "at least one item" });
            }
            for (idx, item) in items.into_iter().enumerate() {
                let path = format!("input[{idx}]");
                let Value::Object(members) = item else {
                    return Err(wrong_type(path, "an object", &item));
                };
                add(&mut messages, &mut Fields::nested(&path, members))?;
            }
        }
        Some(other) => return Err(wrong_type("input".into(), KINDS, &other)),
    }
    Ok(messages)
}

fn add(messages: &mut Vec<ChatMessage>, item: &mut Fields) -> Result<(), ApiError> {
    let kind = item.string("type")?.unwrap_or_else(|| "message".into());
    match kind.as_str() {
        "message" => message(messages, item),
        "function_call" => {
            add_call(messages, call(item)?);
            Ok(())
        }
        "function_call_output" => {
            let mut message = ChatMessage::new("tool", text(item, "output")?);
            if let Some(id) = item.string("call_id")? {
                message.extra.insert("tool_call_id".into(), id.into());
            }
            messages.push(message);
            Ok(())
        }
        // What the model thought before is not shown to it again.
        "reasoning" => Ok(()),
        other => {
            let range = "message, function_call, function_call_output or reasoning";
            Err(item.out_of_range("type", format!("{other:?}"), range))
        }
    }
}

fn message(messages: &mut Vec<ChatMessage>, item: &mut Fields) -> Result<(), ApiError> {
    let role = match item.string("role")?.as_deref() {
        Some("developer" | "system") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some(other) => {
            let range = "user, assistant, system or developer";
            return Err(item.out_of_range("role", format!("{other:?}"), range));
        }
        None => {
            let remedy = "who says it: user, assistant, system or developer";
            return Err(ApiError::Empty { field: item.path("role"), remedy });
        }
    };
    let content = text(item, "content")?;
    match messages.first_mut() {
        // The template has one place for it, at the beginning.
        Some(first) if role == "system" && first.role == "system" && !content.is_empty() => {
            first.content = format!("{}\n\n{content}", first.content);
        }
        _ => messages.push(ChatMessage::new(role, content)),
    }
    Ok(())
}

/// A text, or parts of text.
fn text(item: &mut Fields, name: &str) -> Result<String, ApiError> {
    let path = item.path(name);
    match item.take(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            let part = |(idx, part)| text_part(&format!("{path}[{idx}]"), part);
            parts.into_iter().enumerate().map(part).collect()
        }
        Some(other) => Err(wrong_type(path, "a text or a list of parts", &other)),
    }
}

fn text_part(path: &str, part: Value) -> Result<String, ApiError> {
    let Value::Object(members) = part else {
        return Err(wrong_type(path.into(), "an object", &part));
    };
    let mut fields = Fields::nested(path, members);
    let kind = fields.string("type")?.unwrap_or_default();
    if !matches!(kind.as_str(), "input_text" | "output_text" | "text" | "refusal") {
        let remedy = "the model reads text only: send parts of type `input_text`";
        return Err(ApiError::Unsupported { field: format!("{path} of type {kind:?}"), remedy });
    }
    let remedy = "the part's text, as a string";
    let name = if kind == "refusal" { "refusal" } else { "text" };
    fields.string(name)?.ok_or_else(|| ApiError::Empty { field: fields.path(name), remedy })
}

/// A call as chat templates know it.
fn call(item: &mut Fields) -> Result<Value, ApiError> {
    let Some(name) = item.string("name")? else {
        let remedy = "the name of the function that was called";
        return Err(ApiError::Empty { field: item.path("name"), remedy });
    };
    let text = item.string("arguments")?.unwrap_or_default();
    let arguments = serde_json::from_str::<Map<String, Value>>(&text);
    let arguments = arguments.map_or(Value::String(text), Value::Object);
    let function = json!({"name": name, "arguments": arguments});
    Ok(json!({"id": item.string("call_id")?, "type": "function", "function": function}))
}

/// Calls that follow each other, or what was said before them, are one turn.
fn add_call(messages: &mut Vec<ChatMessage>, call: Value) {
    if messages.last().is_none_or(|last| last.role != "assistant") {
        messages.push(ChatMessage::new("assistant", ""));
    }
    let Some(last) = messages.last_mut() else { return };
    let before = last.extra.remove("tool_calls");
    let mut calls: Vec<TemplateValue> =
        before.and_then(|calls| calls.try_iter().ok()).into_iter().flatten().collect();
    calls.push(TemplateValue::from_serialize(call));
    last.extra.insert("tool_calls".into(), TemplateValue::from(calls));
}
