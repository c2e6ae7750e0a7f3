//! Formats, bounds on the reasoning, calls of tools: over sockets, from a model that knows nothing
//! of them and keeps to them all the same.

use std::sync::OnceLock;
use std::thread;

use harness::http::Client;
use harness::serving::{ServerSettings, TestServer};
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, with};

/// Tools take room in the prompt.
fn shared() -> &'static Client {
    static SERVER: OnceLock<TestServer> = OnceLock::new();
    let settings = || ServerSettings { n_context_tokens: 1024, ..ServerSettings::roomy() };
    &SERVER.get_or_init(|| TestServer::start(settings())).client
}

fn question(members: Value) -> Value {
    let body = json!({ "messages": [{ "role": "user", "content": "What is 27 + 58?" }],
                       "temperature": 0, "max_tokens": 150 });
    with(&body, members)
}

fn off() -> Value {
    json!({ "chat_template_kwargs": { "enable_thinking": false } })
}

fn message(body: &Value) -> (Value, Value) {
    let answer = shared().post(CHAT, body).ok();
    let choice = &answer["choices"][0];
    (choice["message"].clone(), choice["finish_reason"].clone())
}

/// A streamed message, put together as OpenAI's clients do.
fn streamed(body: &Value) -> (Value, Value) {
    let chunks = shared().stream(CHAT, &with(body, json!({ "stream": true }))).values();
    let (mut content, mut reasoning, mut end) = (String::new(), String::new(), Value::Null);
    let mut calls: Vec<Value> = Vec::new();
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("a list")) {
        let delta = &choice["delta"];
        content.push_str(delta["content"].as_str().unwrap_or_default());
        reasoning.push_str(delta["reasoning"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            assert_eq!(call["index"], calls.len(), "one after the other: {call}");
            calls.push(call["function"].clone());
        }
        if !choice["finish_reason"].is_null() {
            end = choice["finish_reason"].clone();
        }
    }
    (json!({ "content": content, "reasoning": reasoning, "calls": calls }), end)
}

/// A whole message in the same words.
fn plain(message: &Value) -> Value {
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    let calls: Vec<Value> = calls.iter().map(|call| call["function"].clone()).collect();
    let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
    json!({ "content": text("content"), "reasoning": text("reasoning"), "calls": calls })
}

#[test]
fn an_answer_keeps_its_schema_with_and_without_reasoning() {
    let schema = json!({
        "type": "object",
        "properties": { "sum": { "type": "integer" }, "sure": { "type": "boolean" } },
        "required": ["sum", "sure"], "additionalProperties": false,
    });
    let format = json!({ "response_format": { "type": "json_schema",
        "json_schema": { "name": "sum", "schema": schema } } });
    for members in [off(), json!({})] {
        let body = with(&question(format.clone()), members.clone());
        let (message, end) = message(&body);
        let content = message["content"].as_str().expect("an answer");
        let value: Value = serde_json::from_str(content).expect("JSON");
        assert!(value["sum"].is_i64() && value["sure"].is_boolean(), "{content}");
        assert_eq!(value.as_object().expect("an object").len(), 2);
        assert_eq!(end, "stop");
        let reasons = message["reasoning"].as_str().is_some_and(|text| text.contains("85"));
        assert_eq!(reasons, members == json!({}), "{message}");
        assert_eq!(streamed(&body), (plain(&message), end));
    }
}

/// Whether a text is in a format.
type Keeps = fn(&str) -> bool;

#[test]
fn every_kind_of_format_is_kept_by_every_answer() {
    let cases: [(Value, Keeps); 6] = [
        (json!({ "guided_choice": ["maybe", "never"] }), |text| ["maybe", "never"].contains(&text)),
        (json!({ "guided_regex": "[xyz]{3}" }), |text| {
            text.len() == 3 && text.bytes().all(|byte| b"xyz".contains(&byte))
        }),
        (json!({ "guided_grammar": "start: \"a\" start \"b\" | \"-\"" }), |text| {
            text.len() % 2 == 1 && text.contains('-')
        }),
        (json!({ "guided_json": { "enum": [1, "two"] } }), |text| {
            [r#"1"#, r#""two""#].contains(&text)
        }),
        (json!({ "structured_outputs": { "regex": "(no ){2}" } }), |text| text == "no no "),
        (json!({ "structured_outputs": { "choice": ["é😀"] } }), |text| text == "é😀"),
    ];
    for (format, keeps) in cases {
        let body = with(&question(format.clone()), off());
        let several = json!({ "n": 3, "temperature": 1, "seed": 5, "ignore_eos": true });
        let answer = shared().post(CHAT, &with(&body, several)).ok();
        for choice in answer["choices"].as_array().expect("a list") {
            let text = choice["message"]["content"].as_str().expect("a text");
            let is_whole = choice["finish_reason"] == "stop";
            assert!(keeps(text) || !is_whole, "{format}: {text:?}");
        }
        let prompt = json!({ "prompt": "27 + 58 =", "max_tokens": 60, "temperature": 0 });
        let answer = shared().post(COMPLETIONS, &with(&prompt, format.clone())).ok();
        let choice = &answer["choices"][0];
        let text = choice["text"].as_str().expect("a text");
        assert!(keeps(text) || choice["finish_reason"] == "length", "{format}: {text:?}");
    }
}

#[test]
fn reasoning_is_counted_bounded_and_switched() {
    let free = shared().post(CHAT, &question(json!({}))).ok();
    let n_reasoning = free["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64();
    let n_reasoning = n_reasoning.expect("counted");
    assert!(n_reasoning > 10, "{free}");
    for n_max in [0, 3, 7] {
        let body = question(json!({ "max_thinking_tokens": n_max }));
        let answer = shared().post(CHAT, &body).ok();
        let message = &answer["choices"][0]["message"];
        let n = answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64();
        // What opens and closes it comes on top.
        let n = n.expect("counted");
        assert!(n <= n_max + 8 && n < n_reasoning, "{n_max}: {answer}");
        assert!(!message["content"].as_str().expect("an answer").is_empty(), "{answer}");
        let whole = free["choices"][0]["message"]["reasoning"].as_str().expect("reasoning");
        let cut = message["reasoning"].as_str().unwrap_or_default();
        assert!(whole.starts_with(cut.trim_end()), "{cut:?} of {whole:?}");
    }
    let enough = question(json!({ "thinking_token_budget": n_reasoning + 1 }));
    let (bounded, _) = message(&enough);
    assert_eq!(bounded, free["choices"][0]["message"], "a bound that is not met changes nothing");
    let (none, _) = message(&question(json!({ "reasoning_effort": "none" })));
    assert!(none.get("reasoning").is_none(), "{none}");
}

#[test]
fn a_bound_on_reasoning_is_exact_for_each_answer_in_any_company() {
    let asked = |n_max: u64, n: u64| {
        let members =
            json!({ "max_thinking_tokens": n_max, "n": n, "temperature": 1.0, "seed": 5 });
        question(members)
    };
    let ids = |n_max| -> Vec<Value> {
        let asked = with(&asked(n_max, 1), json!({ "return_token_ids": true }));
        let answer = shared().post(CHAT, &asked).ok();
        answer["choices"][0]["token_ids"].as_array().expect("asked for").clone()
    };
    // Two tokens open the reasoning and two close it, on a line of its own.
    const N_OPENING: usize = 2;
    let (free, closed) = (ids(1000), ids(0));
    let closing = &closed[N_OPENING..N_OPENING + 2];
    for n_max in [1, 2, 5, 6, 9] {
        let (n_said, bounded) = (N_OPENING + n_max, ids(n_max as u64));
        assert_eq!(bounded[..n_said], free[..n_said], "all that the bound of {n_max} allows");
        let rest = &bounded[n_said..];
        let is_closed = rest.starts_with(closing) || rest[1..].starts_with(closing);
        assert!(is_closed, "and nothing more: {rest:?}");
    }
    let choices = |answer: Value| answer["choices"].clone();
    let alone: Vec<Value> =
        [2, 5, 9].map(|n_max| choices(shared().post(CHAT, &asked(n_max, 3)).ok())).into();
    let one = choices(shared().post(CHAT, &asked(5, 1)).ok());
    assert_eq!(alone[1][0]["message"], one[0]["message"], "the first of three is the only one");
    thread::scope(|scope| {
        let together: Vec<_> = (0..12)
            .map(|idx| {
                let n_max = [2, 5, 9][idx % 3];
                scope.spawn(move || choices(shared().post(CHAT, &asked(n_max, 3)).ok()))
            })
            .collect();
        for (idx, answer) in together.into_iter().enumerate() {
            let answer = answer.join().expect("it is answered");
            assert_eq!(answer, alone[idx % 3]);
        }
    });
}

#[test]
fn an_answer_that_must_call_calls() {
    let tools = json!([
        { "type": "function", "function": { "name": "add", "parameters": {
            "type": "object",
            "properties": { "a": { "$ref": "#/$defs/digit" }, "b": { "$ref": "#/$defs/digit" } },
            "required": ["a", "b"], "additionalProperties": false,
            "$defs": { "digit": { "type": "integer", "minimum": 0, "maximum": 9 } } } } },
        { "type": "function", "function": { "name": "noop" } },
    ]);
    let named = json!({ "type": "function", "function": { "name": "add" } });
    for (choice, members) in
        [(json!("required"), off()), (named.clone(), off()), (named, json!({}))]
    {
        let body = question(json!({ "tools": tools, "tool_choice": choice }));
        let body = with(&body, members);
        let (message, end) = message(&body);
        let calls = message["tool_calls"].as_array().expect("calls");
        assert_eq!(end, "tool_calls", "{message}");
        assert!(message["content"].is_null(), "{message}");
        for call in calls {
            assert_eq!(call["type"], "function");
            assert!(call["id"].as_str().expect("an id").starts_with("call_"));
            let arguments = call["function"]["arguments"].as_str().expect("a text");
            let arguments: Value = serde_json::from_str(arguments).expect("JSON");
            if call["function"]["name"] == "add" {
                let digit = |name: &str| (0..=9).contains(&arguments[name].as_i64().expect("one"));
                assert!(digit("a") && digit("b"), "{arguments}");
            } else {
                assert_eq!(call["function"]["name"], "noop");
                assert!(choice == "required", "{call}");
            }
        }
        if choice != "required" {
            assert_eq!(calls.len(), 1, "{message}");
        }
        assert_eq!(streamed(&body), (plain(&message), end));
    }
    // Free to answer, it answers as it always does.
    let (message, end) = message(&with(&question(json!({ "tools": tools })), off()));
    assert!(message.get("tool_calls").is_none() && end == "stop", "{message}");
}
