//! Two hundred streams at once, of which many are hung up on: every one ends exactly once, says
//! what it says alone, and leaves nothing behind.

use std::thread;

use harness::http::Client;
use harness::random::Random;
use harness::seed;
use harness::serving::{ServerSettings, TestServer};
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, with};

const N_STREAMS: usize = 200;

/// About three of the sixteen slots' sequences at full length: some are sent back to the queue.
const KV_BYTES: u64 = 1 << 20;

/// Requests that the crowd repeats.
fn requests() -> Vec<(&'static str, Value)> {
    let chat = |content: &str, seed: u64| {
        let messages = json!([{ "role": "user", "content": content }]);
        (CHAT, json!({ "messages": messages, "max_tokens": 60, "temperature": 0.8, "seed": seed }))
    };
    let completion = |prompt: &str, n_max: usize, seed: u64| {
        let sampling = json!({ "temperature": 1.0, "seed": seed, "ignore_eos": true });
        (COMPLETIONS, with(&json!({ "prompt": prompt, "max_tokens": n_max }), sampling))
    };
    vec![
        chat("What is 27 + 58?", 1),
        chat("What is 27 + 58?", 2),
        chat("Multiply 37 by 42.", 3),
        chat("Take 5 away from 9, then add 100.", 4),
        completion("What is", 40, 5),
        completion("The answer is 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15", 10, 6),
        completion("a", 90, 7),
        completion("Please subtract 7 from 8", 1, 8),
    ]
}

/// Reads a stream to its end, and checks that it ends once. Returns its tokens and its text.
fn read(client: &Client, (path, body): &(&'static str, Value)) -> (Vec<Value>, String) {
    let mut events: Vec<String> = client.stream(path, &streamed(body)).collect();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let (mut tokens, mut text, mut n_ends) = (Vec::new(), String::new(), 0);
    for event in events {
        let event: Value = serde_json::from_str(&event).expect("events are JSON");
        let choice = &event["choices"][0];
        tokens.extend(choice["token_ids"].as_array().expect("asked for").iter().cloned());
        for part in [&choice["text"], &choice["delta"]["content"], &choice["delta"]["reasoning"]] {
            text.push_str(part.as_str().unwrap_or_default());
        }
        assert_eq!(n_ends, 0, "something after the end: {event}");
        n_ends += usize::from(!choice["finish_reason"].is_null());
    }
    assert_eq!(n_ends, 1);
    (tokens, text)
}

fn streamed(body: &Value) -> Value {
    with(body, json!({ "stream": true, "return_token_ids": true }))
}

#[test]
fn everyone_in_a_crowd_is_served_as_if_alone() {
    let seed = seed();
    println!("SEED={seed}");
    let server =
        TestServer::start(ServerSettings { kv_bytes: Some(KV_BYTES), ..ServerSettings::roomy() });
    let requests = requests();
    let alone: Vec<_> = requests.iter().map(|request| read(&server.client, request)).collect();
    let mut random = Random::new(seed);
    let plans: Vec<(usize, Option<usize>)> = (0..N_STREAMS)
        .map(|_| {
            let hangs_up = random.below(3) == 0;
            let n_events = random.below(20);
            (random.below(requests.len()), hangs_up.then_some(n_events))
        })
        .collect();
    thread::scope(|scope| {
        for (request_idx, hangs_up_after) in plans {
            let (client, request) = (&server.client, &requests[request_idx]);
            let expected = &alone[request_idx];
            scope.spawn(move || match hangs_up_after {
                Some(n_events) => {
                    let stream = client.stream(request.0, &streamed(&request.1));
                    stream.take(n_events).for_each(drop);
                }
                None => assert_eq!(&read(client, request), expected, "SEED={seed} {request:?}"),
            });
        }
    });
    server.expect_idle();
    let metrics = server.client.get("/metrics").text();
    let ended = metrics.lines().filter(|line| line.starts_with("lnserve_generations_total{"));
    let n_ended: f64 = ended
        .map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number"))
        .sum();
    assert_eq!(n_ended as usize, N_STREAMS + alone.len(), "each ended once: {metrics}");
}
