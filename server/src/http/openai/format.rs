//! The format that a request wants its answer in: OpenAI's `response_format`, and vLLM's
//! `structured_outputs` with its older names.

use serde_json::Value;

use super::super::error::ApiError;
use super::super::fields::{Fields, at_most, wrong_type};
use super::super::state::AppState;
use crate::guide::{CompiledFormat, Format};
use std::sync::Arc;

/// Choices of a format at most.
const N_CHOICES_MAX: usize = 1024;

/// vLLM's older names for one member each of `structured_outputs`.
const GUIDED: [(&str, &str); 4] = [
    ("guided_json", "json"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "grammar"),
];

/// A format, and the field that it came in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) field: String,
    pub(super) format: Format,
}

impl Wanted {
    /// Compiles it.
    pub(super) fn compile(&self, app: &AppState) -> Result<Arc<CompiledFormat>, ApiError> {
        app.compile(&self.field, &self.format)
    }
}

/// Reads the format; `None` where text is as good as anything.
///
/// # Errors
/// Two are asked for, or what is asked for is none.
pub(super) fn wanted(fields: &mut Fields) -> Result<Option<Wanted>, ApiError> {
    let mut all = Vec::new();
    if let Some(mut format) = fields.object("response_format")? {
        all.extend(response_format(&mut format)?);
    }
    if let Some(mut outputs) = fields.object("structured_outputs")? {
        for kind in ["json", "regex", "choice", "grammar"] {
            all.extend(named(&mut outputs, kind, kind)?);
        }
        if outputs.flag("json_object")? {
            let field = outputs.path("json_object");
            all.push(Wanted { field, format: Format::JsonObject });
        }
    }
    for (name, kind) in GUIDED {
        all.extend(named(fields, name, kind)?);
    }
    match all.len() {
        0 | 1 => Ok(all.pop()),
        _ => {
            let remedy = "one format is kept at a time: leave out the others";
            Err(ApiError::Unsupported { field: all.remove(1).field, remedy })
        }
    }
}

/// `{"type": …}` as `response_format` has it, and the Responses API's `text.format`, which puts the
/// schema beside the type.
pub(super) fn response_format(format: &mut Fields) -> Result<Option<Wanted>, ApiError> {
    let kind = format.string("type")?;
    match kind.as_deref() {
        None => {
            let remedy = "text, json_object or json_schema";
            Err(ApiError::Empty { field: format.path("type"), remedy })
        }
        Some("text") => Ok(None),
        Some("json_object") => {
            Ok(Some(Wanted { field: format.path("type"), format: Format::JsonObject }))
        }
        Some("json_schema") => {
            let schema = match format.object("json_schema")? {
                Some(mut inner) => schema(&mut inner, "schema")?,
                None => schema(format, "schema")?,
            };
            match schema {
                Some(wanted) => Ok(Some(wanted)),
                None => Err(ApiError::Empty {
                    field: format.path("json_schema.schema"),
                    remedy: "the schema, as an object",
                }),
            }
        }
        Some(other) => {
            let range = "text, json_object or json_schema";
            Err(format.out_of_range("type", format!("{other:?}"), range))
        }
    }
}

/// A schema: an object, or `true`.
fn schema(fields: &mut Fields, name: &str) -> Result<Option<Wanted>, ApiError> {
    let field = fields.path(name);
    match fields.take(name) {
        None => Ok(None),
        Some(value @ (Value::Object(_) | Value::Bool(_))) => {
            Ok(Some(Wanted { field, format: Format::JsonSchema(value) }))
        }
        Some(other) => Err(wrong_type(field, "an object", &other)),
    }
}

fn named(fields: &mut Fields, name: &str, kind: &str) -> Result<Option<Wanted>, ApiError> {
    let field = fields.path(name);
    let format = match kind {
        "json" => match fields.take(name) {
            None => None,
            // vLLM takes the schema's text, too.
            Some(Value::String(text)) => {
                let schema = serde_json::from_str(&text).map_err(|error| {
                    ApiError::Uncompilable { field: field.clone(), problem: error.to_string() }
                })?;
                Some(Format::JsonSchema(schema))
            }
            Some(schema) => Some(Format::JsonSchema(schema)),
        },
        "regex" => fields.string(name)?.map(Format::Regex),
        "grammar" => fields.string(name)?.map(Format::Grammar),
        _ => match fields.list(name)? {
            None => None,
            Some(items) => Some(Format::Choice(choices(&field, items)?)),
        },
    };
    Ok(format.map(|format| Wanted { field, format }))
}

fn choices(field: &str, items: Vec<Value>) -> Result<Vec<String>, ApiError> {
    at_most(field, "choices", items.len(), N_CHOICES_MAX)?;
    if items.is_empty() {
        return Err(ApiError::Empty { field: field.into(), remedy: "at least one choice" });
    }
    let choice = |(idx, item)| match item {
        Value::String(text) if !text.is_empty() => Ok(text),
        Value::String(_) => {
            Err(ApiError::Empty { field: format!("{field}[{idx}]"), remedy: "a text" })
        }
        other => Err(wrong_type(format!("{field}[{idx}]"), "a string", &other)),
    };
    items.into_iter().enumerate().map(choice).collect()
}
