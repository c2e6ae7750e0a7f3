//! `/v1/completions`: prompts in every form, answers whole and streamed, scores.

use serde_json::{Value, json};

use super::{COMPLETIONS, numbers, shared, strings, with};

/// A request that draws, and whose answer is long enough to be interesting.
fn drawn() -> Value {
    json!({ "prompt": "What is 27 + 58?", "max_tokens": 24, "temperature": 0.9, "seed": 11,
            "ignore_eos": true })
}

fn ask(body: &Value) -> Value {
    shared().post(COMPLETIONS, body).ok()
}

/// Streamed chunks put together as one response's choices.
fn streamed(body: &Value) -> (Vec<Value>, Option<Value>) {
    let body = with(body, json!({ "stream": true }));
    let mut choices: Vec<Value> = Vec::new();
    let mut usage = None;
    for chunk in shared().stream(COMPLETIONS, &body).values() {
        assert_eq!(chunk["object"], "text_completion");
        if let Some(total) = chunk.get("usage") {
            usage = Some(total.clone());
        }
        for part in chunk["choices"].as_array().expect("a list") {
            let idx = part["index"].as_u64().expect("an index") as usize;
            while choices.len() <= idx {
                choices.push(Value::Null);
            }
            merge(&mut choices[idx], part);
        }
    }
    (choices, usage)
}

/// Strings and lists are put end to end, objects member by member; else what is not null stays.
fn merge(whole: &mut Value, part: &Value) {
    match (whole, part) {
        (_, Value::Null) => {}
        (Value::String(whole), Value::String(part)) => whole.push_str(part),
        (Value::Array(whole), Value::Array(part)) => whole.extend(part.iter().cloned()),
        (Value::Object(whole), Value::Object(part)) => {
            for (name, value) in part {
                merge(whole.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (whole, part) => *whole = part.clone(),
    }
}

#[test]
fn an_answer_has_openais_shape() {
    let answer = ask(&with(&drawn(), json!({ "model": "test/model" })));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], "test/model");
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["logprobs"], Value::Null);
    assert!(choice.get("token_ids").is_none());
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 24);
    let n_prompt = usage["prompt_tokens"].as_u64().expect("a count");
    assert_eq!(usage["total_tokens"], n_prompt + 24);
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let cases = [
        json!({}),
        json!({ "temperature": 0 }),
        json!({ "n": 3, "return_token_ids": true }),
        json!({ "logprobs": 3, "return_token_ids": true }),
        json!({ "echo": true }),
        json!({ "echo": true, "logprobs": 2, "n": 2, "return_token_ids": true }),
        json!({ "echo": true, "logprobs": 2, "max_tokens": 0 }),
        json!({ "prompt": ["What is 3 + 4?", "Take 5 away from 9."], "n": 2, "logprobs": 0 }),
        json!({ "stop": ["1", "7", "="], "logprobs": 1, "max_tokens": 60 }),
        json!({ "ignore_eos": false, "skip_special_tokens": false, "max_tokens": 60 }),
        json!({ "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5,
                "top_k": 40, "top_p": 0.9, "min_p": 0.01, "min_tokens": 3 }),
    ];
    for members in cases {
        let body = with(&drawn(), members.clone());
        let whole = ask(&body);
        let (choices, usage) = streamed(&body);
        assert_eq!(json!(choices), whole["choices"], "{members}");
        assert_eq!(usage, None, "{members}");
        let wants_usage = with(&body, json!({ "stream_options": { "include_usage": true } }));
        let usage = streamed(&wants_usage).1.map(without_details);
        assert_eq!(usage, Some(without_details(whole["usage"].clone())), "{members}");
    }
}

/// What the cache has is another matter from one request to the next.
fn without_details(mut usage: Value) -> Value {
    let details = usage.as_object_mut().expect("counts").remove("prompt_tokens_details");
    assert!(details.is_some_and(|details| details["cached_tokens"].is_u64()));
    usage
}

/// A page has 16 tokens, and one token at least is computed.
#[test]
fn usage_says_how_much_of_the_prompt_was_known() {
    let cached = |usage: &Value| usage["prompt_tokens_details"]["cached_tokens"].as_u64();
    for n in [1, 2] {
        let salt = format!("how much of the prompt was known: {n}");
        let prompts = [vec![3; 40], vec![4; 33], vec![5; 16]];
        let members = json!({ "prompt": prompts, "cache_salt": salt, "n": n, "max_tokens": 2 });
        let body = with(&drawn(), members);
        assert_eq!(cached(&ask(&body)["usage"]), Some(0), "n = {n}");
        assert_eq!(cached(&ask(&body)["usage"]), Some(32 + 32), "n = {n}");
        let wants_usage = with(&body, json!({ "stream_options": { "include_usage": true } }));
        assert_eq!(streamed(&wants_usage).1.as_ref().and_then(cached), Some(64), "n = {n}");
    }
}

#[test]
fn usage_can_come_with_every_chunk() {
    let options = json!({ "include_usage": true, "continuous_usage_stats": true });
    let body = with(&drawn(), json!({ "stream": true, "stream_options": options }));
    let mut n_before = 0;
    let chunks = shared().stream(COMPLETIONS, &body).values();
    for chunk in &chunks {
        let n = chunk["usage"]["completion_tokens"].as_u64().expect("every chunk counts");
        assert!(n >= n_before, "{chunk}");
        n_before = n;
    }
    assert_eq!(n_before, 24);
    assert_eq!(chunks.last().expect("chunks")["choices"], json!([]));
}

#[test]
fn a_stream_ends_with_its_reason_and_done() {
    let events: Vec<String> =
        shared().stream(COMPLETIONS, &with(&drawn(), json!({ "stream": true }))).collect();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    assert_eq!(events.iter().filter(|event| event.contains("\"length\"")).count(), 1);
    assert!(events[events.len() - 2].contains("\"finish_reason\":\"length\""));
}

#[test]
fn token_ids_are_as_good_as_text() {
    let from_text = ask(&with(&drawn(), json!({ "return_token_ids": true })));
    let choice = &from_text["choices"][0];
    let ids = choice["prompt_token_ids"].clone();
    assert_eq!(numbers(&choice["token_ids"]).len(), 24);
    let body = with(&drawn(), json!({ "prompt": ids, "return_token_ids": true }));
    assert_eq!(ask(&body)["choices"], from_text["choices"]);
    let nested = with(&body, json!({ "prompt": [ids, ids] }));
    let both = ask(&nested);
    for idx in [0, 1] {
        assert_eq!(both["choices"][idx]["text"], choice["text"]);
    }
}

#[test]
fn choices_are_ordered_by_prompt_then_answer() {
    let prompts = ["What is 3 + 4?", "Take 5 away from 9."];
    let members = json!({ "prompt": prompts, "n": 2, "return_token_ids": true });
    let together = ask(&with(&drawn(), members.clone()));
    let choices = together["choices"].as_array().expect("a list");
    assert_eq!(choices.len(), 4);
    let echoed = ask(&with(&drawn(), with(&members, json!({ "echo": true }))));
    for (prompt_idx, prompt) in prompts.iter().enumerate() {
        let alone = ask(&with(&drawn(), json!({ "prompt": prompt, "n": 2 })));
        for n in [0, 1] {
            let choice = &choices[2 * prompt_idx + n];
            assert_eq!(choice["index"], 2 * prompt_idx + n);
            assert_eq!(choice["text"], alone["choices"][n]["text"], "{prompt} {n}");
            let text = choice["text"].as_str().expect("text");
            let with_prompt = &echoed["choices"][2 * prompt_idx + n];
            assert_eq!(with_prompt["text"], format!("{prompt}{text}"));
            assert_eq!(with_prompt["prompt_token_ids"], choice["prompt_token_ids"]);
        }
        assert_ne!(alone["choices"][0]["text"], alone["choices"][1]["text"], "{prompt}");
    }
}

#[test]
fn the_same_seed_draws_the_same() {
    let text =
        |seed: u64| ask(&with(&drawn(), json!({ "seed": seed })))["choices"][0]["text"].clone();
    assert_eq!(text(5), text(5));
    assert_ne!(text(5), text(6));
}

#[test]
fn a_stop_string_ends_the_answer_wherever_tokens_are_cut() {
    let answer = ask(&with(&drawn(), json!({ "logprobs": 0, "max_tokens": 60 })));
    let choice = &answer["choices"][0];
    let text = choice["text"].as_str().expect("text");
    let tokens = strings(&choice["logprobs"]["tokens"]);
    // From the middle of one token to the middle of a later one, of printable text.
    let mut n_tried = 0;
    let mut start = 0;
    for pair in tokens.windows(2) {
        let joint = start + pair[0].len();
        start = joint;
        let (from, to) = (joint.saturating_sub(1), joint + 1);
        let is_plain = text.is_ascii() && to <= text.len();
        if !is_plain {
            continue;
        }
        let stop = &text[from..to];
        let expected = &text[..text.find(stop).expect("it is there")];
        let body = with(&drawn(), json!({ "stop": stop, "max_tokens": 60 }));
        let stopped = ask(&body);
        assert_eq!(stopped["choices"][0]["text"], expected, "stop {stop:?}");
        assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
        assert_eq!(stopped["choices"][0]["stop_reason"], stop);
        // Nothing is generated beyond it.
        let n_tokens = stopped["usage"]["completion_tokens"].as_u64().expect("a count") as usize;
        assert!(tokens[..n_tokens].concat().contains(stop), "stop {stop:?}");
        assert!(!tokens[..n_tokens - 1].concat().contains(stop), "stop {stop:?}");
        let kept = ask(&with(&body, json!({ "include_stop_str_in_output": true })));
        assert_eq!(kept["choices"][0]["text"], format!("{expected}{stop}"));
        n_tried += 1;
        if n_tried == 6 {
            return;
        }
    }
    assert!(n_tried > 0, "no text to stop in: {text:?}");
}

#[test]
fn a_stop_token_ends_the_answer_and_is_counted() {
    let answer = ask(&with(&drawn(), json!({ "return_token_ids": true })));
    let ids = numbers(&answer["choices"][0]["token_ids"]);
    let stop = ids[ids.len() / 2];
    let n_kept = ids.iter().position(|&id| id == stop).expect("it is there") + 1;
    let body = with(&drawn(), json!({ "stop_token_ids": [stop], "return_token_ids": true }));
    let choice = ask(&body)["choices"][0].clone();
    assert_eq!(numbers(&choice["token_ids"]), ids[..n_kept]);
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["stop_reason"], stop);
}

#[test]
fn an_echoed_prompt_is_scored_like_the_answer_was() {
    let greedy =
        with(&drawn(), json!({ "temperature": 0, "logprobs": 2, "return_token_ids": true }));
    let answer = ask(&greedy);
    let choice = &answer["choices"][0];
    let prompt_ids = numbers(&choice["prompt_token_ids"]);
    let ids = [prompt_ids.clone(), numbers(&choice["token_ids"])].concat();
    // The whole as a prompt, to be scored and nothing else.
    let body = json!({ "prompt": ids, "echo": true, "logprobs": 2, "max_tokens": 0 });
    let scored = ask(&body);
    let logprobs = &scored["choices"][0]["logprobs"];
    assert_eq!(scored["usage"]["completion_tokens"], 0);
    let given = logprobs["token_logprobs"].as_array().expect("a list");
    assert_eq!(given.len(), ids.len());
    assert_eq!((&given[0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
    assert!(given[1..].iter().all(|logprob| logprob.as_f64().is_some_and(|l| l <= 0.0)));
    let generated = choice["logprobs"]["token_logprobs"].as_array().expect("a list");
    // Bit for bit: how a token is come by does not change its score.
    assert_eq!(given[prompt_ids.len()..], generated[..]);
    let sum = |list: &[Value]| list.iter().filter_map(Value::as_f64).sum::<f64>();
    assert!(sum(generated) < 0.0);
    // Greedy tokens are the likeliest, and the alternatives include the token's own.
    for (idx, top) in
        logprobs["top_logprobs"].as_array().expect("a list").iter().enumerate().skip(1)
    {
        let best = top.as_object().expect("a map").values().filter_map(Value::as_f64);
        let best = best.fold(f64::MIN, |best, logprob| if logprob > best { logprob } else { best });
        let own = given[idx].as_f64().expect("a number");
        assert!(best >= own, "{idx}");
        assert!(idx < prompt_ids.len() || best == own, "{idx}: {best} {own}");
    }
    // Offsets count the characters of the tokens before.
    let tokens = strings(&logprobs["tokens"]);
    let mut n_chars = 0;
    for (token, offset) in tokens.iter().zip(numbers(&logprobs["text_offset"])) {
        assert_eq!(offset, n_chars);
        n_chars += token.chars().count() as u64;
    }
}

#[test]
fn an_echo_alone_gives_the_prompt_back() {
    let body = json!({ "prompt": "What is 1 + 1?", "echo": true, "max_tokens": 0 });
    let choice = ask(&body)["choices"][0].clone();
    assert_eq!(choice["text"], "What is 1 + 1?");
    assert_eq!(choice["finish_reason"], "length");
}

#[test]
fn biased_tokens_come_or_stay_away() {
    let ids = |members: Value| {
        let body = with(&drawn(), with(&json!({ "return_token_ids": true }), members));
        numbers(&ask(&body)["choices"][0]["token_ids"])
    };
    assert_eq!(ids(json!({ "logit_bias": { "65": 100 } })), [65; 24]);
    let first = ids(json!({ "temperature": 0 }))[0];
    let without = ids(json!({ "temperature": 0, "logit_bias": { first.to_string(): -100 } }));
    assert!(!without.contains(&first), "{first} in {without:?}");
    let bias: serde_json::Map<String, Value> =
        (0..300).map(|id: u32| (id.to_string(), json!(0.0))).collect();
    assert_eq!(ids(json!({ "temperature": 0, "logit_bias": bias }))[0], first);
}

#[test]
fn forbidden_words_stay_away() {
    let greedy = with(&drawn(), json!({ "temperature": 0, "logprobs": 0 }));
    let tokens = |body: &Value| -> Vec<String> {
        let answer = ask(body);
        let tokens = strings(&answer["choices"][0]["logprobs"]["tokens"]);
        tokens.into_iter().map(str::to_owned).collect()
    };
    let written = tokens(&greedy);
    let is_word = |token: &&String| !token.trim().is_empty() && !token.contains('<');
    let word = written.iter().find(is_word).expect("something").trim();
    let without = tokens(&with(&greedy, json!({ "bad_words": [word] })));
    assert!(without.iter().all(|token| token.trim() != word), "{word:?} in {without:?}");
}

#[test]
fn null_asks_for_what_the_context_leaves() {
    let answer = ask(&with(&drawn(), json!({ "max_tokens": null })));
    assert_eq!(answer["usage"]["total_tokens"], 256);
    let mut body = drawn();
    body.as_object_mut().expect("an object").remove("max_tokens");
    assert_eq!(ask(&body)["usage"]["completion_tokens"], 16);
}

#[test]
fn an_answer_is_as_long_as_its_least() {
    // End of sequence is all but certain, yet has to wait.
    let body = with(
        &drawn(),
        json!({ "ignore_eos": false, "logit_bias": { "509": 100 }, "min_tokens": 7 }),
    );
    let answer = ask(&body);
    assert_eq!(answer["usage"]["completion_tokens"], 8);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0]["stop_reason"], Value::Null);
}
