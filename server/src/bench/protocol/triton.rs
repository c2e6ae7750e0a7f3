//! Triton's generate, generate_stream and infer, with the tensor names of TensorRT-LLM's ensemble.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::super::ask::Ask;
use super::{Asking, Piece, Waits, error_words};

/// Inputs of one element each: name, data type, value.
fn inputs(asking: &Asking, ask: &Ask) -> Vec<(&'static str, &'static str, Value)> {
    let mut inputs = vec![
        ("text_input", "BYTES", json!(ask.text())),
        ("max_tokens", "INT32", json!(ask.n_out)),
        ("temperature", "FP32", json!(asking.temperature)),
        ("seed", "UINT64", json!(ask.seed)),
        ("exclude_input_in_output", "BOOL", json!(true)),
        ("return_num_input_tokens", "BOOL", json!(true)),
        ("return_num_output_tokens", "BOOL", json!(true)),
        ("return_perf_metrics", "BOOL", json!(true)),
    ];
    if !asking.ends_naturally {
        inputs.push(("min_tokens", "INT32", json!(ask.n_out)));
        inputs.push(("ignore_eos", "BOOL", json!(true)));
    }
    inputs
}

pub(super) fn generate(asking: &Asking, ask: &Ask, is_stream: bool) -> Value {
    let mut members: Map<String, Value> =
        inputs(asking, ask).into_iter().map(|(name, _, value)| (name.to_owned(), value)).collect();
    members.insert("stream".to_owned(), is_stream.into());
    Value::Object(members)
}

pub(super) fn infer(asking: &Asking, ask: &Ask) -> Value {
    let inputs: Vec<Value> = inputs(asking, ask)
        .into_iter()
        .map(|(name, data_type, value)| {
            json!({ "name": name, "shape": [1, 1], "datatype": data_type, "data": [value] })
        })
        .collect();
    json!({ "inputs": inputs })
}

pub(super) fn read_generate(data: &str) -> Result<Piece, String> {
    let value = parse(data)?;
    let text = value["text_output"].as_str();
    let text = text.ok_or_else(|| format!("an answer without text_output: {data}"))?;
    Ok(piece(text, |name| first(&value[name])))
}

pub(super) fn read_infer(data: &str) -> Result<Piece, String> {
    let value = parse(data)?;
    let outputs = value["outputs"].as_array().ok_or("an answer without outputs")?;
    let find = |name: &str| {
        let output = outputs.iter().find(|output| output["name"] == name);
        output.and_then(|output| first(&output["data"]))
    };
    let text = find("text_output");
    let text = text.as_ref().and_then(Value::as_str).ok_or("an answer without text_output")?;
    Ok(piece(text, find))
}

fn parse(data: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
    match value["error"].is_null() {
        true => Ok(value),
        false => Err(error_words(data)),
    }
}

/// A value that may stand in lists.
fn first(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Array(values) => values.first().and_then(first),
        value => Some(value.clone()),
    }
}

fn piece(text: &str, find: impl Fn(&str) -> Option<Value>) -> Piece {
    let count = |name| find(name).and_then(|value| value.as_u64()).map(|n| n as usize);
    let moment = |name| {
        let ns = find(name)?.as_i64().filter(|&ns| ns > 0)?;
        Some(Duration::from_nanos(ns as u64))
    };
    let waits = || {
        let (arrived, scheduled, token) = (
            moment("arrival_time_ns")?,
            moment("first_scheduled_time_ns")?,
            moment("first_token_time_ns")?,
        );
        Some(Waits {
            prepare: Duration::ZERO,
            queue: scheduled.checked_sub(arrived)?,
            prefill: token.checked_sub(scheduled)?,
        })
    };
    let n_new = count("num_output_tokens");
    Piece {
        text: text.to_owned(),
        // A response a token, even where it makes no text; but the end may come alone.
        has_token: n_new.is_none_or(|n| n > 0),
        is_answer: true,
        n_prompt: count("num_input_tokens"),
        n_cached: None,
        n_out: None,
        n_new,
        is_last: false,
        waits: waits(),
    }
}
