//! `tools` and `tool_choice`: what the model may call, and the format of an answer that must.

mod python;

use serde_json::{Map, Value, json};

use super::super::error::ApiError;
use super::super::fields::{Fields, at_most, wrong_type};
use super::format::Wanted;
use crate::guide::Format;

/// Tools of a request; OpenAI's own bound.
const N_TOOLS_MAX: usize = 128;

/// Calls in one answer that must call.
const N_CALLS_MAX: usize = 16;

/// Tools that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tools {
    /// As they go into the template: `{"type": "function", "function": {…}}`.
    pub(super) listed: Vec<Value>,
    /// The names that must be called one of, if the answer must be calls.
    required: Option<Vec<String>>,
    /// An answer may have several calls.
    pub(super) is_parallel: bool,
}

/// Reads the tools; `None` where there are none, or none are to be called.
///
/// # Errors
/// A tool is no function with a name, or the choice names none of them.
pub(super) fn tools(fields: &mut Fields) -> Result<Option<Tools>, ApiError> {
    let items = fields.list("tools")?.unwrap_or_default();
    at_most("tools", "tools", items.len(), N_TOOLS_MAX)?;
    let listed: Vec<Value> = items
        .into_iter()
        .enumerate()
        .map(|(idx, item)| tool(idx, item))
        .collect::<Result<_, _>>()?;
    let is_parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    let names: Vec<String> = listed.iter().map(|tool| name(tool).to_owned()).collect();
    let required = match choice(fields)? {
        Choice::None => return Ok(None),
        Choice::Auto => None,
        Choice::Required if names.is_empty() => return Err(without_tools()),
        Choice::Required => Some(names),
        Choice::Named(chosen) if names.contains(&chosen) => Some(vec![chosen]),
        Choice::Named(_) if names.is_empty() => return Err(without_tools()),
        Choice::Named(chosen) => {
            let range = format!("one of {}", names.join(", "));
            return Err(fields.out_of_range("tool_choice", format!("{chosen:?}"), &range));
        }
    };
    // A tool that is named is called once.
    let is_named = required.as_ref().is_some_and(|names| names.len() < listed.len());
    let is_parallel = is_parallel && !is_named;
    Ok((!listed.is_empty()).then_some(Tools { listed, required, is_parallel }))
}

impl Tools {
    /// The format of an answer that must be calls, if it must: in the form that `template` asks
    /// for, where the calls can be written so.
    pub(super) fn format(&self, template: &str) -> Option<Wanted> {
        let required = self.required.as_ref()?;
        let n_calls_max = if self.is_parallel { N_CALLS_MAX } else { 1 };
        let written = python::is_form_of(template).then(|| {
            let is_chosen = |tool: &&Value| required.iter().any(|one| one == name(tool));
            let chosen = self.listed.iter().filter(is_chosen);
            let tools: Vec<_> =
                chosen.map(|tool| (name(tool), &tool["function"]["parameters"])).collect();
            python::grammar(&tools, n_calls_max)
        });
        let grammar = written.flatten().unwrap_or_else(|| self.json_grammar(required, n_calls_max));
        Some(Wanted { field: "tools".into(), format: Format::Grammar(grammar) })
    }

    /// Whether the answer must be calls.
    pub(super) fn must_be_called(&self) -> bool {
        self.required.is_some()
    }

    fn json_grammar(&self, required: &[String], n_calls_max: usize) -> String {
        let mut calls = Vec::new();
        let mut definitions = Map::new();
        for tool in self.listed.iter().filter(|tool| required.iter().any(|one| one == name(tool))) {
            let key = format!("tool{}", calls.len());
            let mut parameters = match &tool["function"]["parameters"] {
                Value::Null => json!({"type": "object", "properties": {}}),
                given => given.clone(),
            };
            move_references(&mut parameters, &format!("#/$defs/{key}"));
            calls.push(json!({
                "type": "object",
                "properties": {
                    "name": {"const": name(tool)},
                    "arguments": {"$ref": format!("#/$defs/{key}")},
                },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            }));
            definitions.insert(key, parameters);
        }
        let schema = json!({
            "x-guidance": {"whitespace_pattern": " ?", "coerce_one_of": true},
            "type": "array",
            "minItems": 1,
            "maxItems": n_calls_max,
            "items": {"anyOf": calls},
            "$defs": definitions,
        });
        format!("start: \"<TOOLCALL>\" calls \"</TOOLCALL>\"\ncalls: %json {schema}\n")
    }
}

enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

fn choice(fields: &mut Fields) -> Result<Choice, ApiError> {
    let range = "none, auto, required or a function's name";
    match fields.take("tool_choice") {
        None => Ok(Choice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => Ok(Choice::None),
            "auto" => Ok(Choice::Auto),
            "required" => Ok(Choice::Required),
            _ => Err(fields.out_of_range("tool_choice", format!("{word:?}"), range)),
        },
        Some(Value::Object(members)) => {
            let mut named = Fields::nested("tool_choice", members);
            let kind = named.string("type")?.unwrap_or_else(|| "function".into());
            if kind != "function" {
                return Err(named.out_of_range("type", format!("{kind:?}"), "function"));
            }
            // The Responses API puts the name beside the type.
            let name = match named.object("function")? {
                Some(mut function) => function.string("name")?,
                None => named.string("name")?,
            };
            let field = named.path("function.name");
            let remedy = "the name of the function to call";
            Ok(Choice::Named(name.ok_or(ApiError::Empty { field, remedy })?))
        }
        Some(other) => Err(wrong_type("tool_choice".into(), "a string or an object", &other)),
    }
}

fn without_tools() -> ApiError {
    ApiError::Missing { field: "tools", remedy: "the tools that `tool_choice` chooses from" }
}

/// A tool as chat completions have it; the Responses API's is flat.
fn tool(idx: usize, item: Value) -> Result<Value, ApiError> {
    let path = format!("tools[{idx}]");
    let Value::Object(mut members) = item else {
        return Err(wrong_type(path, "an object", &item));
    };
    let kind = members.remove("type");
    if kind.as_ref().is_some_and(|kind| kind != "function") {
        let field = format!("{path}.type");
        let value = kind.unwrap_or_default().to_string();
        return Err(ApiError::OutOfRange { field, value, range: "function".into() });
    }
    let (path, function) = match members.remove("function") {
        Some(Value::Object(function)) => (format!("{path}.function"), function),
        Some(other) => return Err(wrong_type(format!("{path}.function"), "an object", &other)),
        None => (path, members),
    };
    match function.get("name") {
        Some(Value::String(name)) if !name.is_empty() => {}
        Some(Value::String(_)) | None => {
            let remedy = "the function's name";
            return Err(ApiError::Empty { field: format!("{path}.name"), remedy });
        }
        Some(other) => return Err(wrong_type(format!("{path}.name"), "a string", other)),
    }
    match function.get("parameters") {
        None | Some(Value::Null | Value::Object(_)) => {}
        Some(other) => return Err(wrong_type(format!("{path}.parameters"), "a schema", other)),
    }
    Ok(json!({"type": "function", "function": function}))
}

fn name(tool: &Value) -> &str {
    tool["function"]["name"].as_str().unwrap_or_default()
}

/// A schema's references to itself, now that it lies elsewhere.
fn move_references(schema: &mut Value, to: &str) {
    match schema {
        Value::Object(members) => {
            for (key, value) in members.iter_mut() {
                match value {
                    Value::String(reference) if key == "$ref" && reference.starts_with('#') => {
                        *reference = format!("{to}{}", &reference[1..]);
                    }
                    value => move_references(value, to),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, to)),
        _ => {}
    }
}
