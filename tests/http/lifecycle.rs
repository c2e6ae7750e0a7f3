//! Clients that leave, a server that is full, locked, or going away.

use std::time::Duration;

use harness::http::EventStream;
use harness::serving::{HeldEngine, ServerSettings, TestServer};
use serde_json::{Value, json};
use server::http::{HttpLimits, Outcome};

use super::{CHAT, COMPLETIONS, with};

const GENERATE: &str = "/v2/models/demo/generate";

/// Room for an answer that takes a while.
fn spacious() -> ServerSettings {
    ServerSettings { n_context_tokens: 1024, ..ServerSettings::roomy() }
}

/// An answer as long as the context.
fn long() -> Value {
    json!({ "prompt": "a", "max_tokens": 1000, "ignore_eos": true, "temperature": 0 })
}

/// Eight of them.
fn eight() -> Value {
    with(&long(), json!({ "n": 8 }))
}

/// Starts a stream and reads its first event; the engine stands, so there is more to come.
fn under_way(server: &TestServer, held: &HeldEngine, body: &Value) -> EventStream {
    let mut stream = server.client.stream(COMPLETIONS, &with(body, json!({ "stream": true })));
    // One that takes it in, one that tells of it, and one more in case a step is ahead.
    held.make_steps(3);
    stream.next().expect("a first event");
    stream
}

fn metric(server: &TestServer, name: &str) -> f64 {
    let text = server.client.get("/metrics").text();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

#[test]
fn a_client_that_leaves_cancels_its_request() {
    let server = TestServer::start(spacious());
    let held = server.hold_engine();
    // In the middle of a stream.
    drop(under_way(&server, &held, &eight()));
    server.wait_until("its leaving was noticed", |app| app.in_flight.n() == 0);
    drop(held);
    server.expect_idle();
    // While it waits for a whole answer.
    let held = server.hold_engine();
    let mut connection = server.client.connect();
    connection.write("POST", COMPLETIONS, &[], eight().to_string().as_bytes()).expect("open");
    server.wait_until("it has begun", |app| app.engine.n_live() == 9);
    drop(connection);
    server.wait_until("its leaving was noticed", |app| app.in_flight.n() == 0);
    drop(held);
    server.expect_idle();
    let aborted = metric(&server, "lnserve_generations_total{finished_reason=\"abort\"}");
    assert_eq!(aborted, 16.0, "all ended by leaving, not by being complete");
}

#[test]
fn a_reader_that_does_not_read_holds_nobody_up() {
    let server = TestServer::start(spacious());
    let mut idle = server
        .client
        .stream(COMPLETIONS, &with(&eight(), json!({ "stream": true, "logprobs": 20 })));
    let first = idle.next().expect("a first event");
    let answer = server.client.post(COMPLETIONS, &eight()).ok();
    assert_eq!(answer["usage"]["completion_tokens"], 8000);
    let events: Vec<String> = idle.collect();
    assert!(first.contains("logprobs") && events.len() > 4000, "{}", events.len());
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    server.expect_idle();
}

#[test]
fn a_full_server_says_when_to_come_back() {
    // One slot for what holds the engine.
    let server = TestServer::start(ServerSettings { n_slots: 2, n_waiting_max: 1, ..spacious() });
    let held = server.hold_engine();
    let running = under_way(&server, &held, &long());
    let waiting = server.client.stream(COMPLETIONS, &with(&long(), json!({ "stream": true })));
    let refused = server.client.post(COMPLETIONS, &long());
    assert_eq!(refused.status(), 429, "{}", refused.text());
    assert_eq!(refused.head.header("retry-after"), Some("1"));
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    let refused = server.client.post(GENERATE, &json!({ "text_input": "a", "max_tokens": 3 }));
    assert_eq!((refused.status(), refused.head.header("retry-after")), (429, Some("1")));
    assert!(refused.json()["error"].is_string());
    assert_eq!(metric(&server, "lnserve_http_errors_total{error=\"queue_full\"}"), 2.0);
    drop((running, waiting));
    drop(held);
    server.expect_idle();
    let short = with(&long(), json!({ "max_tokens": 2 }));
    assert_eq!(server.client.post(COMPLETIONS, &short).status(), 200);
}

#[test]
fn a_key_opens_everything_but_probes() {
    let settings = ServerSettings { api_key: Some("sesame".into()), ..ServerSettings::roomy() };
    let server = TestServer::start(settings);
    let right = server.client.with_header("Authorization", "Bearer sesame");
    let wrong = server.client.with_header("Authorization", "Bearer sesamo");
    for path in ["/health", "/metrics", "/version", "/v2/health/live", "/v2/health/ready"] {
        assert_eq!(server.client.get(path).status(), 200, "{path}");
    }
    let chat = json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 1 });
    let generate = json!({ "text_input": "a", "max_tokens": 1 });
    for (path, body) in
        [(CHAT, chat), (COMPLETIONS, json!({ "prompt": "a" })), (GENERATE, generate)]
    {
        for client in [&server.client, &wrong] {
            let reply = client.post(path, &body);
            assert_eq!(reply.status(), 401, "{path}");
            assert!(reply.text().contains("Authorization: Bearer"), "{path}: {}", reply.text());
            assert_eq!(reply.json()["error"].is_string(), path == GENERATE, "{path}");
        }
        assert_eq!(right.post(path, &body).status(), 200, "{path}");
    }
    assert_eq!(server.client.get("/v1/models").status(), 401);
    assert_eq!(right.get("/v1/models").status(), 200);
}

#[test]
fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let limits = HttpLimits { drain_timeout: Duration::from_secs(3600), ..HttpLimits::STANDARD };
    let mut server = TestServer::start(ServerSettings { limits, ..spacious() });
    let held = server.hold_engine();
    let stream = under_way(&server, &held, &long());
    server.app.shutdown.begin();
    let cases = [("/v2/health/live", 200), ("/v2/health/ready", 400), ("/health", 503)];
    for (path, status) in cases {
        assert_eq!(server.client.get(path).status(), status, "{path}");
    }
    assert_eq!(server.client.get("/v2/models/demo/ready").status(), 400);
    let refused = server.client.post(COMPLETIONS, &json!({ "prompt": "a" }));
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.json()["error"]["code"], "shutting_down");
    let refused = server.client.post(GENERATE, &json!({ "text_input": "a", "max_tokens": 1 }));
    assert_eq!(refused.status(), 503);
    drop(held);
    let events: Vec<String> = stream.collect();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    assert!(events[events.len() - 2].contains("\"length\""), "{:?}", events.last());
    assert_eq!(server.outcome(), Outcome::Drained);
    server.expect_idle();
}

#[test]
fn whoever_sends_requests_is_told_before_they_are_refused() {
    // Nothing here waits for the notice to run out: the test ends it itself.
    let limits = HttpLimits { drain_notice: Duration::from_secs(3600), ..HttpLimits::STANDARD };
    let mut server = TestServer::start(ServerSettings { limits, ..spacious() });
    let short = json!({ "prompt": "a", "max_tokens": 2 });
    let kept = server.client.post(COMPLETIONS, &short);
    assert_eq!(kept.head.header("connection"), None);
    server.app.shutdown.begin();
    for (path, status) in [("/v2/health/ready", 400), ("/health", 503), ("/v2/health/live", 200)] {
        assert_eq!(server.client.get(path).status(), status, "{path}");
    }
    assert_eq!(server.client.get("/v1/node").json()["now"]["phase"], "leaving");
    let taken = server.client.post(COMPLETIONS, &short);
    assert_eq!(taken.status(), 200, "{}", taken.text());
    assert_eq!(taken.head.header("connection"), Some("close"), "the next one goes elsewhere");
    let generate = json!({ "text_input": "a", "max_tokens": 1 });
    assert_eq!(server.client.post(GENERATE, &generate).status(), 200);
    server.app.shutdown.drain();
    assert_eq!(server.outcome(), Outcome::Drained);
}

#[test]
fn a_drain_gives_up_at_its_deadline_or_when_told_twice() {
    let drain_timeout = Duration::from_millis(20);
    let limits = HttpLimits { drain_timeout, ..HttpLimits::STANDARD };
    let mut server = TestServer::start(ServerSettings { limits, ..spacious() });
    let held = server.hold_engine();
    let stream = under_way(&server, &held, &long());
    server.app.shutdown.begin();
    assert_eq!(server.outcome(), Outcome::DeadlinePassed { n_cut: 1 });
    drop((stream, held));

    let mut server = TestServer::start(spacious());
    let held = server.hold_engine();
    let stream = under_way(&server, &held, &long());
    server.app.shutdown.begin();
    server.app.shutdown.begin();
    assert_eq!(server.outcome(), Outcome::Forced);
    drop((stream, held));
}

#[test]
fn a_stream_whose_engine_stops_says_so() {
    let mut server = TestServer::start(spacious());
    let held = server.hold_engine();
    let stream = under_way(&server, &held, &long());
    server.stop_engine(held);
    let events: Vec<String> = stream.collect();
    let [.., error, done] = events.as_slice() else { panic!("{events:?}") };
    assert!(error.contains("\"code\":\"shutting_down\""), "{error}");
    assert_eq!(done, "[DONE]");
    assert_eq!(server.client.post(COMPLETIONS, &long()).status(), 503);
    assert_eq!(server.client.get("/v2/health/ready").status(), 400);
}
