//! Bodies that are written, and answers as servers write them.

use serde_json::{Value, json};

use super::super::ask::{Message, Role};
use super::*;

fn asking(endpoint: Endpoint) -> Asking {
    Asking { endpoint, model: "a/b".into(), temperature: 0.0, ends_naturally: false }
}

fn ask() -> Ask {
    let message = |role, text: &str| Message { role, text: text.into() };
    let messages = vec![message(Role::System, "Be brief."), message(Role::User, "Why?")];
    Ask { messages, n_out: 7, seed: 3, cancel_after: None }
}

fn body(endpoint: Endpoint) -> Value {
    serde_json::from_slice(&asking(endpoint).body(&ask())).expect("JSON")
}

#[test]
fn each_protocol_is_asked_for_the_same() {
    let chat = body(Endpoint::Chat);
    assert_eq!(chat["messages"][1], json!({ "role": "user", "content": "Why?" }));
    let completion = body(Endpoint::Completions);
    assert_eq!(completion["prompt"], "Be brief.\nWhy?");
    for openai in [chat, completion] {
        assert_eq!((&openai["max_tokens"], &openai["min_tokens"]), (&json!(7), &json!(7)));
        assert_eq!(openai["stream_options"]["include_usage"], true);
        assert_eq!((&openai["seed"], &openai["model"]), (&json!(3), &json!("a/b")));
    }
    for (endpoint, is_stream) in [(Endpoint::Generate, false), (Endpoint::GenerateStream, true)] {
        let body = body(endpoint);
        assert_eq!(body["text_input"], "Be brief.\nWhy?");
        assert_eq!((&body["stream"], &body["max_tokens"]), (&json!(is_stream), &json!(7)));
    }
    let infer = body(Endpoint::Infer);
    let max_tokens = infer["inputs"].as_array().expect("a list").iter();
    let max_tokens: Vec<&Value> =
        max_tokens.filter(|input| input["name"] == "max_tokens").collect();
    let expected =
        json!({ "name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "data": [7] });
    assert_eq!(max_tokens, [&expected]);
    let natural = Asking { ends_naturally: true, ..asking(Endpoint::Chat) };
    let natural: Value = serde_json::from_slice(&natural.body(&ask())).expect("JSON");
    assert!(natural["min_tokens"].is_null() && natural["ignore_eos"].is_null());
}

#[test]
fn paths_name_the_model_where_the_protocol_does() {
    let cases = [
        (Endpoint::Chat, "/v1/chat/completions"),
        (Endpoint::Completions, "/v1/completions"),
        (Endpoint::Generate, "/v2/models/a%2Fb/generate"),
        (Endpoint::GenerateStream, "/v2/models/a%2Fb/generate_stream"),
        (Endpoint::Infer, "/v2/models/a%2Fb/infer"),
    ];
    for (endpoint, path) in cases {
        assert_eq!(endpoint.path("a/b"), path);
    }
}

#[test]
fn openai_events_are_read() {
    let chat = asking(Endpoint::Chat);
    let read = |data: Value| chat.read(&data.to_string()).expect("an event");
    let role = read(json!({ "choices": [{ "delta": { "role": "assistant", "content": "" } }] }));
    assert_eq!(role, Piece { is_answer: true, ..Piece::default() }, "nothing to read yet");
    let delta = json!({ "content": "b", "reasoning": "a", "reasoning_content": "a" });
    let token = read(json!({ "choices": [{ "delta": delta }] }));
    assert_eq!((&*token.text, token.has_token), ("ab", true), "one name of the reasoning counts");
    let text = read(json!({ "choices": [{ "text": "c" }], "usage": null }));
    assert_eq!(text.text, "c");
    let usage = json!({ "prompt_tokens": 5, "completion_tokens": 2,
        "prompt_tokens_details": { "cached_tokens": 1 } });
    let last = read(json!({ "choices": [], "usage": usage }));
    assert_eq!((last.n_prompt, last.n_cached, last.n_out), (Some(5), Some(1), Some(2)));
    assert!(chat.read("[DONE]").expect("the last word").is_last);
    let broke = json!({ "error": { "message": "engine failed", "code": 500 } }).to_string();
    assert_eq!(chat.read(&broke), Err("engine failed".into()));
    assert!(chat.read("{").is_err() && chat.read("{}").is_err());
}

#[test]
fn triton_answers_are_read() {
    let answer = json!({ "text_output": "a", "num_input_tokens": 4, "num_output_tokens": [1],
        "arrival_time_ns": 1_000, "first_scheduled_time_ns": 4_000, "first_token_time_ns": 9_000 });
    let piece = asking(Endpoint::GenerateStream).read(&answer.to_string()).expect("a piece");
    let us = Duration::from_micros;
    let waits = Waits { prepare: us(0), queue: us(3), prefill: us(5) };
    assert_eq!((piece.n_prompt, piece.n_new, piece.waits), (Some(4), Some(1), Some(waits)));
    let outputs = json!([{ "name": "text_output", "datatype": "BYTES", "data": ["b"] },
        { "name": "num_output_tokens", "data": [2] }]);
    let piece = asking(Endpoint::Infer).read(&json!({ "outputs": outputs }).to_string());
    let piece = piece.expect("a whole answer");
    assert_eq!((&*piece.text, piece.n_new, piece.waits), ("b", Some(2), None));
    let refused = json!({ "error": "no such model" }).to_string();
    for endpoint in [Endpoint::Generate, Endpoint::Infer] {
        assert_eq!(asking(endpoint).read(&refused), Err("no such model".into()));
        assert!(asking(endpoint).read("{}").is_err());
    }
}

#[test]
fn errors_have_words_in_every_form() {
    let cases = [
        (json!({ "error": "a" }).to_string(), "a"),
        (json!({ "error": { "message": "b" } }).to_string(), "b"),
        (json!({ "message": "c" }).to_string(), "c"),
        (" plain ".to_owned(), "plain"),
    ];
    for (body, words) in cases {
        assert_eq!(error_words(&body), words);
    }
    assert_eq!(error_words(&"x".repeat(9000)).len(), N_ERROR_CHARS_MAX);
}
