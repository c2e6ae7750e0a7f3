//! Bodies of strangers: a million of them, each wrong in some way, are read or refused in few
//! words.

use serde_json::json;

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::limits::HttpLimits;
use super::responses::input;
use super::{format, messages, options, tools};

const N_CASES: u64 = 1_000_000;

/// What stands in for something else.
const WORDS: [&str; 24] = [
    "null",
    "true",
    "-1",
    "0",
    "1e400",
    "18446744073709551616",
    "0.5",
    "\"\"",
    "\"é😀\"",
    "\"\\ud800\"",
    "[]",
    "{}",
    "[[[[[[[[",
    "{\"a\":",
    "\"required\"",
    "\"function\"",
    "\"refusal\"",
    "\"json_schema\"",
    "{\"type\":\"text\",\"text\":\"x\"}",
    "{\"$ref\":\"#\"}",
    ",",
    "}",
    "\"",
    "\u{0}",
];

/// Bodies that are right, each with many members.
fn bodies() -> Vec<Vec<u8>> {
    let function = json!({"name": "f", "parameters": {"type": "object", "required": ["a"],
        "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/x"}}, "$defs": {"x": {}}}});
    let call = json!({"id": "c", "type": "function",
        "function": {"name": "f", "arguments": "{\"a\":1}"}});
    let chat = json!({
        "messages": [{"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "u"}]},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "1"}],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "chat_template_kwargs": {"enable_thinking": true}, "reasoning_effort": "low",
    });
    let formats = json!({
        "messages": [{"role": "user", "content": "u"}], "n": 2, "best_of": 2, "stream": true,
        "stream_options": {"include_usage": true}, "cache_salt": "s", "modalities": ["text"],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
        "tools": [{"type": "function", "name": "f"}], "tool_choice": "required",
    });
    let response = json!({
        "instructions": "s", "structured_outputs": {"choice": ["a", "b"]},
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "u"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "1"}],
    });
    [chat, formats, response].map(|body| body.to_string().into_bytes()).into()
}

fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

/// One to three changes: a byte, a piece that is gone, doubled or another.
fn break_some(body: &mut Vec<u8>, state: &mut u64) {
    for _ in 0..1 + next(state) % 3 {
        let at = next(state) % body.len();
        let end = body.len().min(at + 1 + next(state) % 12);
        match next(state) % 5 {
            0 => body[at] = next(state) as u8,
            1 if end - at < body.len() => drop(body.drain(at..end)),
            2 => {
                let piece = body[at..end].to_vec();
                body.splice(at..at, piece);
            }
            // A value, so that what comes of it is often JSON still.
            _ => {
                let word = WORDS[next(state) % WORDS.len()];
                let colon = body[at..].iter().position(|&byte| byte == b':').map(|n| at + n + 1);
                let begin = colon.unwrap_or(at);
                let n_old = body[begin..].iter().position(|byte| b",}]".contains(byte));
                body.splice(begin..begin + n_old.unwrap_or(0), word.bytes());
            }
        }
    }
}

/// All readers that need no model.
fn read(body: &[u8]) -> Result<(), ApiError> {
    let limits = HttpLimits::STANDARD;
    let mut fields = Fields::parse(body)?;
    options::refuse_unsupported(&mut fields)?;
    options::delivery(&mut fields)?;
    options::n_choices(&mut fields, &limits)?;
    options::cache_salt(&mut fields)?;
    messages::template_options(&mut fields)?;
    format::wanted(&mut fields)?;
    if let Some(tools) = tools::tools(&mut fields)? {
        for template in ["", "<TOOLCALL>[f(a=1)]</TOOLCALL>"] {
            assert_eq!(tools.format(template).is_some(), tools.must_be_called());
        }
    }
    if fields.get("input").is_some() {
        return input::messages(&mut fields, &limits).map(drop);
    }
    messages::messages(&mut fields, &limits).map(drop)
}

#[test]
fn a_million_bodies_are_read_or_refused() {
    let mut state = 20_261_122;
    let bodies = bodies();
    for body in &bodies {
        read(body).expect("it is right before it is broken");
    }
    let (mut n_read, mut n_malformed, mut n_refused) = (0, 0, 0);
    for case in 0..N_CASES {
        let mut body = bodies[(case % 3) as usize].clone();
        break_some(&mut body, &mut state);
        match read(&body) {
            Ok(()) => n_read += 1,
            Err(ApiError::NotJson { .. } | ApiError::NotUtf8 { .. }) => n_malformed += 1,
            Err(error) => {
                n_refused += 1;
                let words = error.to_string();
                let n_most = 300 + 4 * body.len();
                assert!(words.len() <= n_most, "case {case}: {words}");
            }
        }
    }
    let counts = (n_read, n_malformed, n_refused);
    assert!([n_read, n_malformed, n_refused].iter().all(|&n| n > N_CASES / 20), "{counts:?}");
}
