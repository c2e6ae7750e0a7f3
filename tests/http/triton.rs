//! `generate` and `generate_stream` as a real Triton with a TensorRT-LLM ensemble answers them.

use serde_json::{Value, json};

use super::{COMPLETIONS, shared, with};

const GENERATE: &str = "/v2/models/ensemble/generate";
const STREAM: &str = "/v2/models/ensemble/generate_stream";

fn question() -> Value {
    json!({ "text_input": "What is 27 + 58?", "max_tokens": 12 })
}

#[test]
fn an_answer_has_tritons_shape() {
    let reply = shared().post(GENERATE, &question());
    let text = reply.ok()["text_output"].clone();
    let body = format!(r#"{{"model_name":"ensemble","model_version":"1","text_output":{text}}}"#);
    assert_eq!(reply.text(), body);
    assert_eq!(reply.head.header("content-type"), Some("application/json"));
    assert_eq!(reply.head.header("transfer-encoding"), Some("chunked"));
    // Greedy, and what the other protocol says.
    let openai = json!({ "prompt": "What is 27 + 58?", "max_tokens": 12, "temperature": 0 });
    assert_eq!(shared().post(COMPLETIONS, &openai).ok()["choices"][0]["text"], text);
    for path in ["/v2/models/demo/generate", "/v2/models/demo/versions/1/generate"] {
        let answer = shared().post(path, &question()).ok();
        assert_eq!((&answer["model_name"], &answer["text_output"]), (&json!("demo"), &text));
    }
}

#[test]
fn every_way_to_say_the_same_is_understood() {
    let expected = shared().post(GENERATE, &question()).ok();
    let text = "What is 27 + 58?";
    let parameters = json!({ "max_tokens": 12, "temperature": 0 });
    let cases = [
        json!({ "text_input": [text], "max_tokens": 12 }),
        json!({ "text_input": text, "max_tokens": [12] }),
        json!({ "text_input": text, "parameters": parameters }),
        json!({ "text_input": text, "sampling_param_max_tokens": 12 }),
        json!({ "text_input": text,
                "sampling_parameters": "{\"max_tokens\":12,\"temperature\":\"0\"}" }),
        json!({ "text_input": text, "max_tokens": 12, "top_k": 1, "temperature": 0.7 }),
        json!({ "text_input": text, "max_tokens": 12, "stream": true, "stop_words": "" }),
        json!({ "text_input": text, "max_tokens": 12, "stop_words": [], "bad_words": [""] }),
        json!({ "text_input": text, "max_tokens": 12, "end_id": 1_048_576, "pad_id": 5,
                "accumulate_tokens": true, "triton_x": 1, "priority": "high", "beam_width": 1 }),
        json!({ "text_input": text, "max_tokens": 12, "id": "" }),
    ];
    for body in cases {
        assert_eq!(shared().post(GENERATE, &body).ok(), expected, "{body}");
    }
    let named = shared().post(GENERATE, &with(&question(), json!({ "id": "42" })));
    assert!(named.text().starts_with(r#"{"id":"42","model_name""#), "{}", named.text());
}

#[test]
fn an_answer_tells_what_it_is_asked_for() {
    let answer = shared()
        .post(
            GENERATE,
            &with(
                &question(),
                json!({ "return_log_probs": true, "return_finish_reason": true, "end_id": 1_048_576,
                        "ignore_eos": true, "return_num_input_tokens": true,
                        "return_num_output_tokens": true, "exclude_input_in_output": false }),
            ),
        )
        .ok();
    let logprobs: Vec<f64> = answer["output_log_probs"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    assert_eq!(logprobs.len(), 12);
    let sum = answer["cum_log_probs"].as_f64().expect("a number");
    assert!((sum - logprobs.iter().sum::<f64>()).abs() < 1e-3, "{sum} {logprobs:?}");
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(answer["num_output_tokens"], 12);
    assert!(answer["num_input_tokens"].as_u64().is_some_and(|n| n > 4));
    assert!(answer["text_output"].as_str().expect("text").starts_with("What is 27 + 58?"));
    let several =
        with(&question(), json!({ "num_return_sequences": 2, "temperature": 1.0, "seed": 1 }));
    let several = shared().post(GENERATE, &several).ok();
    assert_eq!(several["text_output"].as_array().map(Vec::len), Some(2));
    let one = with(&question(), json!({ "max_tokens": 1, "return_log_probs": true }));
    assert!(shared().post(GENERATE, &one).ok()["output_log_probs"].is_number());
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let cases = [
        json!({}),
        json!({ "temperature": 0.9, "random_seed": 7, "max_tokens": 40 }),
        json!({ "stop_words": ["5", "="], "max_tokens": 40 }),
        json!({ "exclude_input_in_output": false }),
    ];
    for members in cases {
        let body = with(&question(), members.clone());
        let whole = shared().post(GENERATE, &body).ok();
        let stream = shared().stream(STREAM, &with(&body, json!({ "stream": true })));
        assert_eq!(stream.head.status, 200);
        let content_type = stream.head.header("content-type");
        assert_eq!(content_type, Some("text/event-stream; charset=utf-8"));
        let events: Vec<String> = stream.collect();
        assert!(events.iter().all(|event| event != "[DONE]"), "{events:?}");
        let texts = events.iter().map(|event| {
            let event: Value = serde_json::from_str(event).expect("events are JSON");
            assert_eq!(event["model_version"], "1");
            event["text_output"].as_str().expect("text").to_owned()
        });
        assert_eq!(texts.collect::<String>(), whole["text_output"], "{members}");
        let at_once: Vec<Value> = shared().stream(STREAM, &body).values();
        assert_eq!(at_once, [whole], "{members}");
    }
}

#[test]
fn lists_are_a_batch() {
    let one = with(&question(), json!({ "ignore_eos": true }));
    let one = shared().post(GENERATE, &one).ok()["text_output"].clone();
    let text = "What is 27 + 58?";
    let two = json!({ "text_input": [text, text], "max_tokens": [12, 3],
                      "ignore_eos": [true, true] });
    let answer = shared().post(GENERATE, &two).ok();
    let texts = answer["text_output"].as_array().expect("a list");
    assert_eq!((texts.len(), &texts[0]), (2, &one));
    let [long, short] = [0, 1].map(|idx| texts[idx].as_str().expect("text"));
    assert!(long.starts_with(short) && short.len() < long.len(), "{answer}");
    assert_eq!(shared().stream(STREAM, &two).values(), [answer]);
    let many = json!({ "text_input": vec!["a"; 17], "max_tokens": vec![1; 17] });
    let many = shared().post(GENERATE, &many);
    let words = "[request id: <id_unknown>] inference request batch-size must be <= 16 for \
                 'ensemble'";
    assert_eq!((many.status(), many.json()), (400, json!({ "error": words })));
}

/// A body, the status it gets, and words of the error.
const MISTAKES: &[(&str, u16, &str)] = &[
    ("", 500, "failed to parse the request JSON buffer: The document is empty. at 0"),
    ("{", 500, "failed to parse the request JSON buffer: Missing a name for object member. at 1"),
    ("not json", 500, "failed to parse the request JSON buffer: Invalid value. at 1"),
    ("[1]", 500, "attempt to get members for non-object"),
    ("{}", 400, "expected number of inputs between 2 and"),
    (
        r#"{"text_input":"a"}"#,
        400,
        "missing required input(s) ['max_tokens']. Please provide all required input(s).",
    ),
    (
        r#"{"text_input":3,"max_tokens":4}"#,
        500,
        "Unable to parse JSON bytes array: attempt to access JSON non-string as string",
    ),
    (
        r#"{"text_input":null,"max_tokens":4}"#,
        500,
        "Unable to parse JSON bytes array: attempt to access JSON non-string as string",
    ),
    (
        r#"{"text_input":["a","b"],"max_tokens":4}"#,
        400,
        "[request id: <id_unknown>] input 'text_input' batch size does not match other inputs \
         for 'ensemble'",
    ),
    (
        r#"{"id":"r","text_input":"a","text_input":"b","max_tokens":4}"#,
        400,
        "[request id: r] input 'text_input' already exists in request",
    ),
    (
        r#"{"text_input":"a","max_tokens":"4"}"#,
        500,
        "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer",
    ),
    (
        r#"{"text_input":"a","max_tokens":4.5}"#,
        500,
        "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer",
    ),
    (
        r#"{"text_input":"a","max_tokens":4,"stream":"false"}"#,
        500,
        "Unable to parse 'data': attempt to access JSON non-boolean as boolean",
    ),
    (
        r#"{"text_input":"a","max_tokens":4,"temperature":"1"}"#,
        500,
        "Unable to parse 'data': attempt to access JSON non-number as double",
    ),
    (
        r#"{"text_input":"a","max_tokens":4,"seed":-1}"#,
        500,
        "Unable to parse 'data': attempt to access JSON non-unsigned-integer as unsigned-integer",
    ),
    (
        r#"{"text_input":"a","max_tokens":4,"id":42}"#,
        500,
        "Unable to parse 'id': attempt to access JSON non-string as string",
    ),
    (
        r#"{"text_input":"a","max_tokens":4,"parameters":3}"#,
        500,
        "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as \
         object",
    ),
    (
        r#"{"text_input":"a","max_tokens":4,"thing":{}}"#,
        400,
        "parameter 'thing' has invalid type. It should be either 'int', 'bool', or 'string'.",
    ),
    (
        r#"{"text_input":"a","max_tokens":4,"parameters":{"thing":null}}"#,
        400,
        "Converting keyword: 'parameters': parameter 'thing' has invalid type. It should be \
         either 'int', 'bool', or 'string'.",
    ),
];

#[test]
fn mistakes_are_answered_as_triton_answers_them() {
    for path in [GENERATE, STREAM] {
        for (body, status, words) in MISTAKES {
            let reply = shared().send("POST", path, body.as_bytes());
            assert_eq!(reply.status(), *status, "{path} {body}: {}", reply.text());
            assert_eq!(reply.head.header("content-type"), Some("application/json"), "{body}");
            let error = reply.json()["error"].as_str().expect("an error").to_owned();
            assert!(error.contains(words), "{path} {body}: {error}");
        }
    }
}

#[test]
fn what_the_model_refuses_looks_like_its_answer() {
    let cases = [
        (json!({ "max_tokens": 0 }), "`max_tokens` is 0, but must be at least 1"),
        (json!({ "temperature": -1 }), "`temperature` is -1"),
        (json!({ "beam_width": 2 }), "`beam_width` is not supported"),
        (json!({ "text_input": "a b ".repeat(400) }), "the context holds 256 tokens"),
        (json!({ "stop_words": vec!["x"; 17] }), "at most 16"),
    ];
    for (members, words) in cases {
        let body = with(&question(), members);
        let whole = shared().post(GENERATE, &body);
        assert_eq!(
            (whole.status(), whole.head.header("transfer-encoding")),
            (400, Some("chunked"))
        );
        assert!(whole.json()["error"].as_str().expect("an error").contains(words), "{words}");
        let stream = shared().stream(STREAM, &body);
        assert_eq!(stream.head.status, 400);
        let content_type = stream.head.header("content-type");
        assert_eq!(content_type, Some("text/event-stream; charset=utf-8"));
        assert_eq!(stream.values(), [whole.json()]);
    }
    // More than fits is cut, as TensorRT-LLM does it.
    let body = with(
        &question(),
        json!({ "max_tokens": 1_000_000_000, "ignore_eos": true,
                                         "return_num_output_tokens": true }),
    );
    let answer = shared().post(GENERATE, &body).ok();
    assert!(answer["num_output_tokens"].as_u64().is_some_and(|n| n > 200 && n < 256));
}

#[test]
fn models_and_versions_that_are_not_there() {
    let cases = [
        ("/v2/models/nope/generate", "Request for unknown model: 'nope' is not found"),
        ("/v2/models/nope/generate_stream", "Request for unknown model: 'nope' is not found"),
        (
            "/v2/models/ensemble/versions/99/generate",
            "Request for unknown model: 'ensemble' version 99 is not found",
        ),
    ];
    for (path, words) in cases {
        let reply = shared().post(path, &question());
        assert_eq!((reply.status(), reply.json()["error"].as_str()), (404, Some(words)), "{path}");
    }
    let gzip = shared().with_header("Content-Encoding", "gzip").post(GENERATE, &question());
    assert_eq!(gzip.status(), 400);
    let words = "Unsupported content-encoding, only 'identity' is supported.";
    assert_eq!(gzip.json()["error"], words);
}
