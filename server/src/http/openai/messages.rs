//! The `messages` of a chat, made into what the template takes: one text each, never null.

use std::collections::BTreeMap;

use minijinja::Value as TemplateValue;
use serde_json::{Map, Value};

use super::super::error::ApiError;
use super::super::fields::{Fields, at_most, wrong_type};
use super::super::limits::HttpLimits;
use crate::text::{ChatMessage, TemplateOptions, Thinking};

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// Reads `messages`.
pub(super) fn messages(
    fields: &mut Fields,
    limits: &HttpLimits,
) -> Result<Vec<ChatMessage>, ApiError> {
    let remedy = "a list of messages, each with `role` and `content`";
    let Some(items) = fields.list("messages")? else {
        return Err(ApiError::Missing { field: "messages", remedy });
    };
    if items.is_empty() {
        return Err(ApiError::Empty { field: "messages".into(), remedy: "at least one message" });
    }
    at_most("messages", "messages", items.len(), limits.n_messages_max)?;
    items.into_iter().enumerate().map(|(idx, item)| message(idx, item)).collect()
}

/// Reads what concerns the template: `chat_template_kwargs`, `reasoning_effort` where those do not
/// say whether to reason, `add_generation_prompt`.
pub(super) fn template_options(fields: &mut Fields) -> Result<TemplateOptions, ApiError> {
    let mut options = TemplateOptions::answer();
    if let Some(add) = fields.boolean("add_generation_prompt")? {
        options.add_generation_prompt = add;
    }
    options.thinking = effort(fields, "reasoning_effort")?;
    let Some(mut variables) = fields.object("chat_template_kwargs")? else { return Ok(options) };
    for name in ["enable_thinking", "thinking"] {
        if let Some(is_on) = variables.boolean(name)? {
            options.thinking = Some(if is_on { Thinking::On } else { Thinking::Off });
        }
    }
    options.variables = template_values(variables.into_members());
    Ok(options)
}

/// OpenAI's words for how much to reason. The family knows on and off.
pub(super) fn effort(fields: &mut Fields, name: &str) -> Result<Option<Thinking>, ApiError> {
    match fields.string(name)?.as_deref() {
        None => Ok(None),
        Some("none" | "minimal") => Ok(Some(Thinking::Off)),
        Some("low" | "medium" | "high" | "xhigh" | "max") => Ok(Some(Thinking::On)),
        Some(other) => {
            let range = "none, minimal, low, medium, high, xhigh or max";
            Err(fields.out_of_range(name, format!("{other:?}"), range))
        }
    }
}

fn message(idx: usize, item: Value) -> Result<ChatMessage, ApiError> {
    let path = format!("messages[{idx}]");
    let Value::Object(members) = item else {
        return Err(wrong_type(path, "an object", &item));
    };
    let mut fields = Fields::nested(&path, members);
    let role = match fields.string("role")? {
        // OpenAI's newer name for it.
        Some(role) if role == "developer" => "system".to_owned(),
        Some(role) if ROLES.contains(&role.as_str()) => role,
        Some(role) => {
            let range = format!("one of {}", ROLES.join(", "));
            return Err(fields.out_of_range("role", format!("{role:?}"), &range));
        }
        None => {
            let remedy = "who says it: system, user, assistant or tool";
            return Err(ApiError::Empty { field: fields.path("role"), remedy });
        }
    };
    let content = content(&mut fields)?;
    if let Some(calls) = fields.list("tool_calls")? {
        let read = |(idx, call)| tool_call(&format!("{path}.tool_calls[{idx}]"), call);
        let calls: Vec<Value> =
            calls.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
        fields.put("tool_calls", calls.into());
    }
    Ok(ChatMessage { role, content, extra: template_values(fields.into_members()) })
}

/// A call that the model made before: templates want its arguments as the object that they are, and
/// OpenAI sends them as text.
fn tool_call(path: &str, call: Value) -> Result<Value, ApiError> {
    let Value::Object(mut members) = call else {
        return Err(wrong_type(path.into(), "an object", &call));
    };
    let Some(function) = members.get_mut("function").and_then(Value::as_object_mut) else {
        let remedy = "the function that was called, with `name` and `arguments`";
        return Err(ApiError::Empty { field: format!("{path}.function"), remedy });
    };
    match function.get("name") {
        Some(Value::String(_)) => {}
        other => {
            let field = format!("{path}.function.name");
            return Err(wrong_type(field, "a string", other.unwrap_or(&Value::Null)));
        }
    }
    let parsed = match function.get("arguments") {
        // What the model wrote need not be JSON.
        Some(Value::String(text)) => serde_json::from_str::<Map<String, Value>>(text).ok(),
        _ => None,
    };
    if let Some(arguments) = parsed {
        function.insert("arguments".into(), arguments.into());
    }
    Ok(Value::Object(members))
}

/// A string, null, or a list of text parts, which are put together as they are.
fn content(fields: &mut Fields) -> Result<String, ApiError> {
    let path = fields.path("content");
    match fields.take("content") {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            let part = |(idx, item)| part(&format!("{path}[{idx}]"), item);
            parts.into_iter().enumerate().map(part).collect()
        }
        Some(other) => Err(wrong_type(path, "a string, null or a list of text parts", &other)),
    }
}

fn part(path: &str, item: Value) -> Result<String, ApiError> {
    let members = match item {
        Value::String(text) => return Ok(text),
        Value::Object(members) => members,
        other => return Err(wrong_type(path.into(), "a text part", &other)),
    };
    let mut fields = Fields::nested(path, members);
    let kind = fields.string("type")?.unwrap_or_else(|| "text".into());
    // What the model refused before, as OpenAI's own answers have it.
    let name = if kind == "refusal" { "refusal" } else { "text" };
    if kind != name {
        let remedy = "the model reads text only: send parts of type `text`";
        return Err(ApiError::Unsupported { field: format!("{path} of type {kind:?}"), remedy });
    }
    let remedy = "the part's text, as a string";
    fields.string(name)?.ok_or_else(|| ApiError::Empty { field: fields.path(name), remedy })
}

fn template_values(members: Map<String, Value>) -> BTreeMap<String, TemplateValue> {
    let value = |(name, value)| (name, TemplateValue::from_serialize(value));
    members.into_iter().map(value).collect()
}
