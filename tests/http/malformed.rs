//! Requests that are wrong: each gets its status and a message that names the field and what to
//! do, and the server goes on.

use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, shared, with};

/// What is sent, and what the answer must say.
struct Case {
    path: &'static str,
    body: Value,
    status: u16,
    code: &'static str,
    param: Option<&'static str>,
    words: &'static str,
}

/// A completion with a wrong member.
fn completion(
    members: Value,
    code: &'static str,
    param: &'static str,
    words: &'static str,
) -> Case {
    let body = with(&json!({ "prompt": "a", "max_tokens": 4 }), members);
    Case { path: COMPLETIONS, body, status: 400, code, param: Some(param), words }
}

/// A chat with a wrong member.
fn chat(members: Value, code: &'static str, param: &'static str, words: &'static str) -> Case {
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let body = with(&json!({ "messages": messages, "max_tokens": 4 }), members);
    Case { path: CHAT, body, status: 400, code, param: Some(param), words }
}

fn check(cases: Vec<Case>) {
    for Case { path, body, status, code, param, words } in cases {
        let shown: String = body.to_string().chars().take(200).collect();
        let reply = shared().post(path, &body);
        assert_eq!(reply.status(), status, "{shown}: {}", reply.text());
        let error = reply.json()["error"].clone();
        assert_eq!(error["code"], code, "{shown}: {error}");
        assert_eq!(error["param"].as_str(), param, "{shown}: {error}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(words), "{shown}: {message}");
    }
}

#[test]
fn sampling_out_of_range_or_of_a_wrong_type() {
    let many_biases: serde_json::Map<String, Value> =
        (0..2000).map(|id: u32| (id.to_string(), json!(1))).collect();
    check(vec![
        completion(
            json!({ "temperature": -1 }),
            "invalid_value",
            "temperature",
            "is -1, but must be",
        ),
        completion(json!({ "temperature": "hot" }), "invalid_type", "temperature", "not a string"),
        completion(json!({ "temperature": 1e39 }), "invalid_value", "temperature", "finite"),
        completion(json!({ "top_p": 0 }), "invalid_value", "top_p", "top_p"),
        completion(json!({ "top_p": 1.5 }), "invalid_value", "top_p", "between"),
        completion(json!({ "top_k": -2 }), "invalid_value", "top_k", "0 for all"),
        completion(json!({ "top_k": 1.5 }), "invalid_type", "top_k", "an integer"),
        completion(json!({ "min_p": 2 }), "invalid_value", "min_p", "between 0 and 1"),
        completion(
            json!({ "repetition_penalty": 0 }),
            "invalid_value",
            "repetition_penalty",
            "is 0",
        ),
        completion(
            json!({ "presence_penalty": 3 }),
            "invalid_value",
            "presence_penalty",
            "between",
        ),
        completion(
            json!({ "frequency_penalty": [] }),
            "invalid_type",
            "frequency_penalty",
            "a list",
        ),
        completion(json!({ "seed": 1.5 }), "invalid_type", "seed", "an integer"),
        completion(json!({ "seed": "x" }), "invalid_type", "seed", "not a string"),
        completion(json!({ "logit_bias": [1] }), "invalid_type", "logit_bias", "an object"),
        completion(
            json!({ "logit_bias": { "x": 1 } }),
            "invalid_value",
            "logit_bias.x",
            "token id",
        ),
        completion(json!({ "logit_bias": { "1": 101 } }), "invalid_value", "logit_bias", "100"),
        completion(
            json!({ "logit_bias": { "1": "a" } }),
            "invalid_type",
            "logit_bias.1",
            "a number",
        ),
        completion(
            json!({ "logit_bias": { "512": 1 } }),
            "invalid_value",
            "logit_bias",
            "below 512",
        ),
        completion(json!({ "logit_bias": many_biases }), "too_many_items", "logit_bias", "1024"),
        completion(
            json!({ "min_tokens": 5 }),
            "invalid_value",
            "min_tokens",
            "at most `max_tokens`",
        ),
        completion(json!({ "ignore_eos": 1 }), "invalid_type", "ignore_eos", "a boolean"),
    ]);
}

#[test]
fn bounds_of_length_number_and_scores() {
    let too_long = "context_length_exceeded";
    let mut cases = vec![
        completion(json!({ "max_tokens": -1 }), "invalid_value", "max_tokens", "at least 0"),
        completion(json!({ "max_tokens": 0 }), "invalid_value", "max_tokens", "0 with `echo`"),
        completion(json!({ "max_tokens": "4" }), "invalid_type", "max_tokens", "an integer"),
        completion(json!({ "max_tokens": 1e30 }), "invalid_value", "max_tokens", "64 bits"),
        completion(json!({ "n": 0 }), "invalid_value", "n", "at least 1"),
        completion(json!({ "n": 1000 }), "invalid_value", "n", "between 1 and 128"),
        completion(json!({ "n": true }), "invalid_type", "n", "not a boolean"),
        completion(json!({ "best_of": 4 }), "unsupported", "best_of", "leave it out"),
        completion(json!({ "logprobs": 21 }), "invalid_value", "logprobs", "between 0 and 20"),
        completion(json!({ "logprobs": true }), "invalid_type", "logprobs", "an integer"),
        chat(json!({ "logprobs": 3 }), "invalid_type", "logprobs", "a boolean"),
        chat(json!({ "top_logprobs": 3 }), "unsupported", "top_logprobs", "`logprobs`"),
        chat(
            json!({ "logprobs": true, "top_logprobs": 21 }),
            "invalid_value",
            "top_logprobs",
            "between 0 and 20",
        ),
        chat(json!({ "max_completion_tokens": 0 }), "invalid_value", "max_completion_tokens", "1"),
        completion(json!({ "stream_options": {} }), "unsupported", "stream_options", "`stream`"),
        completion(json!({ "stream": "yes" }), "invalid_type", "stream", "a boolean"),
    ];
    let billion =
        completion(json!({ "max_tokens": 1_000_000_000 }), too_long, "", "1000000000 more");
    let long =
        completion(json!({ "prompt": "a b ".repeat(300) }), too_long, "", "the context holds 256");
    let huge = completion(json!({ "prompt": "a".repeat(1 << 20) }), too_long, "", "1048576 bytes");
    let full =
        completion(json!({ "prompt": vec![65; 256], "max_tokens": null }), too_long, "", "256");
    cases.extend([billion, long, huge, full].map(|case| Case { param: None, ..case }));
    check(cases);
}

#[test]
fn stop_strings_that_are_no_or_too_many() {
    let thousand: Vec<String> = (0..1000).map(|n| format!("stop {n}")).collect();
    let long = "x".repeat(2000);
    check(vec![
        completion(
            json!({ "stop": thousand }),
            "too_many_items",
            "stop",
            "1000 entries, but at most 16",
        ),
        completion(json!({ "stop": [long] }), "too_many_items", "stop", "2000 bytes"),
        completion(json!({ "stop": "" }), "empty_field", "stop", "empty"),
        completion(
            json!({ "stop": ["a", 3] }),
            "invalid_type",
            "stop[1]",
            "a string, not an integer",
        ),
        completion(json!({ "stop": 3 }), "invalid_type", "stop", "a string or a list of strings"),
        completion(
            json!({ "stop_token_ids": ["a"] }),
            "invalid_type",
            "stop_token_ids[0]",
            "integer",
        ),
        completion(
            json!({ "stop_token_ids": [-1] }),
            "invalid_value",
            "stop_token_ids[0]",
            "token id",
        ),
    ]);
}

#[test]
fn prompts_that_are_none() {
    let missing = json!({ "max_tokens": 4 });
    let mut cases = vec![
        completion(json!({ "prompt": "" }), "empty_field", "prompt", "at least one character"),
        completion(json!({ "prompt": [] }), "empty_field", "prompt", "at least one"),
        completion(json!({ "prompt": ["a", ""] }), "empty_field", "prompt[1]", "at least one"),
        completion(json!({ "prompt": [[]] }), "empty_field", "prompt[0]", "at least one"),
        completion(json!({ "prompt": 3 }), "invalid_type", "prompt", "a list of token ids"),
        completion(json!({ "prompt": ["a", 3] }), "invalid_type", "prompt[1]", "not an integer"),
        completion(json!({ "prompt": [1, "a"] }), "invalid_type", "prompt[1]", "an integer"),
        completion(json!({ "prompt": [1, -4] }), "invalid_value", "prompt[1]", "a token id"),
        completion(json!({ "prompt": [1, 512] }), "invalid_value", "prompt[1]", "below 512"),
        completion(json!({ "prompt": [[1], [2, 900]] }), "invalid_value", "prompt[1][1]", "512"),
        completion(json!({ "prompt": vec!["a"; 300] }), "too_many_items", "prompt", "at most 256"),
        completion(json!({ "prompt": vec!["a"; 2000] }), "too_many_items", "prompt", "1024"),
        completion(json!({ "prompt": vec!["a"; 3], "n": 128 }), "too_many_items", "n", "256"),
    ];
    cases.push(Case {
        body: missing,
        ..completion(json!({}), "missing_field", "prompt", "missing")
    });
    check(cases);
}

#[test]
fn messages_that_are_none() {
    let message = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
    let image = json!([{ "type": "image_url", "image_url": { "url": "x" } }]);
    let unsupported = "messages[0].content[0] of type \"image_url\"";
    let mut cases = vec![
        chat(json!({ "messages": [] }), "empty_field", "messages", "at least one message"),
        chat(json!({ "messages": "hi" }), "invalid_type", "messages", "a list"),
        chat(json!({ "messages": ["hi"] }), "invalid_type", "messages[0]", "an object"),
        chat(json!({ "messages": [{ "content": "x" }] }), "empty_field", "messages[0].role", "who"),
        chat(
            json!({ "messages": [{ "role": "oracle", "content": "x" }] }),
            "invalid_value",
            "messages[0].role",
            "one of system",
        ),
        chat(message(json!(3)), "invalid_type", "messages[0].content", "text parts"),
        chat(message(json!([3])), "invalid_type", "messages[0].content[0]", "a text part"),
        chat(
            message(json!([{ "type": "text" }])),
            "empty_field",
            "messages[0].content[0].text",
            "",
        ),
        chat(message(image), "unsupported", unsupported, "text only"),
        chat(
            json!({ "chat_template_kwargs": 1 }),
            "invalid_type",
            "chat_template_kwargs",
            "object",
        ),
        chat(
            json!({ "chat_template_kwargs": { "enable_thinking": "no" } }),
            "invalid_type",
            "chat_template_kwargs.enable_thinking",
            "a boolean",
        ),
    ];
    let body = json!({ "max_tokens": 4 });
    cases.push(Case { body, ..chat(json!({}), "missing_field", "messages", "missing") });
    check(cases);
}

#[test]
fn features_that_are_not_there_are_refused_and_strangers_ignored() {
    check(vec![
        chat(json!({ "functions": [{ "name": "f" }] }), "unsupported", "functions", "`tools`"),
        completion(json!({ "suffix": "x" }), "unsupported", "suffix", "leave it out"),
        completion(json!({ "use_beam_search": true }), "unsupported", "use_beam_search", ""),
        completion(json!({ "prompt_logprobs": 1 }), "unsupported", "prompt_logprobs", "`echo`"),
        completion(
            json!({ "bad_words": ["a longer phrase"] }),
            "unsupported",
            "bad_words: \"a longer phrase\"",
            "one token",
        ),
        Case {
            status: 404,
            ..completion(
                json!({ "model": "nope" }),
                "model_not_found",
                "model",
                "'nope' does not exist",
            )
        },
    ]);
    let strangers = json!({
        "prompt": "a", "max_tokens": 1, "user": "me", "metadata": { "a": 1 }, "foo": [1, 2],
        "tools": [], "response_format": { "type": "text" }, "use_beam_search": false, "best_of": 1,
        "suffix": null, "temperature": null,
    });
    shared().post(COMPLETIONS, &strangers).ok();
}

#[test]
fn formats_and_tools_that_are_none() {
    let format = |kind: &str| json!({ "response_format": { "type": kind } });
    let schema = |schema: Value| json!({ "structured_outputs": { "json": schema } });
    let tool = json!([{ "type": "function", "function": { "name": "f" } }]);
    let outputs = "structured_outputs.json";
    check(vec![
        chat(format("xml"), "invalid_value", "response_format.type", "json_schema"),
        chat(
            format("json_schema"),
            "empty_field",
            "response_format.json_schema.schema",
            "the schema",
        ),
        chat(schema(json!({ "type": "nonsense" })), "invalid_format", outputs, "nonsense"),
        chat(schema(json!("{not JSON")), "invalid_format", outputs, "cannot be compiled"),
        chat(json!({ "guided_regex": "[a" }), "invalid_format", "guided_regex", "compiled"),
        chat(json!({ "guided_grammar": "start: x" }), "invalid_format", "guided_grammar", "x"),
        chat(json!({ "guided_choice": [] }), "empty_field", "guided_choice", "at least one"),
        chat(json!({ "guided_choice": [1] }), "invalid_type", "guided_choice[0]", "a string"),
        completion(json!({ "guided_regex": "[a" }), "invalid_format", "guided_regex", "compiled"),
        chat(
            json!({ "guided_regex": "a", "guided_choice": ["a"] }),
            "unsupported",
            "guided_choice",
            "one format",
        ),
        chat(json!({ "tools": [1] }), "invalid_type", "tools[0]", "an object"),
        chat(json!({ "tools": [{}] }), "empty_field", "tools[0].name", "name"),
        chat(json!({ "tools": [{ "type": "x" }] }), "invalid_value", "tools[0].type", "function"),
        chat(json!({ "tool_choice": "required" }), "missing_field", "tools", "tools"),
        chat(
            json!({ "tools": tool, "tool_choice": { "function": { "name": "g" } } }),
            "invalid_value",
            "tool_choice",
            "one of f",
        ),
        chat(json!({ "tool_choice": "some" }), "invalid_value", "tool_choice", "required"),
        chat(
            json!({ "tools": tool, "tool_choice": "required", "guided_regex": "a" }),
            "unsupported",
            "guided_regex",
            "the call",
        ),
        chat(json!({ "reasoning_effort": "much" }), "invalid_value", "reasoning_effort", "high"),
        chat(json!({ "max_thinking_tokens": -1 }), "invalid_value", "max_thinking_tokens", "0"),
    ]);
}

#[test]
fn bodies_that_are_no_json() {
    let cases: [(&[u8], &str, &str); 7] = [
        (b"", "invalid_json", "EOF"),
        (b"{", "invalid_json", "line 1 column 1"),
        (b"nonsense", "invalid_json", "line 1"),
        (b"[1]", "invalid_json", "must be a JSON object, not a list"),
        (b"{\"prompt\": \"a\"} x", "invalid_json", "trailing"),
        (b"{\"prompt\": \"\xff\xfe\"}", "not_utf8", "the byte at 12"),
        (b"{\"prompt\": \"\\ud800\"}", "invalid_json", "hex escape"),
    ];
    for (body, code, words) in cases {
        for path in [CHAT, COMPLETIONS] {
            let reply = shared().send("POST", path, body);
            assert_eq!(reply.status(), 400, "{body:?}");
            let error = reply.json()["error"].clone();
            assert_eq!(error["code"], code, "{error}");
            assert!(error["message"].as_str().expect("a message").contains(words), "{error}");
        }
    }
    let deep = format!("{{\"prompt\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let reply = shared().send("POST", COMPLETIONS, deep.as_bytes());
    assert_eq!(reply.status(), 400);
    assert!(reply.text().contains("recursion"), "{}", reply.text());
}

#[test]
fn bodies_that_are_too_large_or_compressed() {
    let head = |path: &str, lines: &str| {
        let mut connection = shared().connect();
        let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\n{lines}\r\n\r\n");
        // The answer may come, and the server hang up, before it has read everything.
        let _ = connection.write_raw(head.as_bytes());
        connection.read_reply("POST").expect("answered")
    };
    let reply = head(COMPLETIONS, "Content-Length: 70000000");
    assert_eq!(reply.status(), 413);
    assert_eq!(reply.json()["error"]["code"], "body_too_large");
    let reply = head("/v2/models/demo/generate", "Content-Length: 70000000");
    assert_eq!(reply.status(), 400);
    let words = "request JSON size of 70000000 bytes exceeds the maximum allowed input size of \
                 67108864 bytes. Use --http-max-input-size to increase the limit.";
    assert_eq!(reply.json()["error"], words);
    let reply = head(CHAT, "Content-Encoding: gzip\r\nContent-Length: 0");
    assert_eq!(
        (reply.status(), reply.json()["error"]["code"].as_str()),
        (415, Some("body_encoded"))
    );
    let large = format!("X-Large: {}", "x".repeat(100_000));
    assert_eq!(head(CHAT, &large).status(), 431);
    let many = "X-Many: 1\r\n".repeat(200);
    assert_eq!(head(CHAT, many.trim_end()).status(), 431);
    // None of it hurt.
    assert_eq!(shared().get("/health").status(), 200);
}
