//! The page at `/` and what it watches.

use harness::http::Connection;
use harness::serving::{ServerSettings, TestServer};
use serde_json::{Value, json};
use server::http::page::N_WATCHERS_MAX;

use super::{COMPLETIONS, shared};

const NODE: &str = "/v1/node";
const EVENTS: &str = "/v1/node/events";

/// Somebody who watches.
struct Watcher {
    connection: Connection,
    text: String,
}

impl Watcher {
    fn new(server: &TestServer) -> Watcher {
        let mut connection = server.client.connect();
        connection.write("GET", EVENTS, &[], b"").expect("open");
        let head = connection.read_head().expect("an answer");
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some("text/event-stream; charset=utf-8"));
        Watcher { connection, text: String::new() }
    }

    /// The next event's kind and value; `None` at the end.
    fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (kind, data) = event.split_once('\n').expect("two lines");
                let kind = kind.strip_prefix("event: ").expect("a kind").to_owned();
                let data = data.strip_prefix("data: ").expect("data");
                let event = (kind, serde_json::from_str(data).expect("JSON"));
                self.text = rest.to_owned();
                return Some(event);
            }
            let chunk = self.connection.read_chunk().expect("open")?;
            self.text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        }
    }
}

#[test]
fn the_page_and_its_files_are_served_and_loaded_from_here_only() {
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
        ("/page/app.js", "text/javascript; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
    ] {
        let reply = shared().get(path);
        assert_eq!(reply.status(), 200, "{path}");
        assert_eq!(reply.head.header("content-type"), Some(kind), "{path}");
        let policy = reply.head.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.head.header("x-content-type-options"), Some("nosniff"), "{path}");
    }
    assert_eq!(shared().get("/page/none.js").status(), 404);
    assert_eq!(shared().send("POST", "/", b"").status(), 405);
    assert_eq!(shared().send("POST", NODE, b"").status(), 405);
}

#[test]
fn an_operator_may_want_no_page() {
    let server = TestServer::start(ServerSettings { has_page: false, ..ServerSettings::roomy() });
    for path in ["/", "/page/app.js", NODE, EVENTS] {
        let reply = server.client.get(path);
        assert_eq!(reply.status(), 404, "{path}");
        assert_eq!(reply.json()["error"]["code"], "unknown_path", "{path}");
    }
}

#[test]
fn the_page_comes_without_a_key_and_the_node_does_not() {
    let api_key = Some("sesame".to_owned());
    let server = TestServer::start(ServerSettings { api_key, ..ServerSettings::roomy() });
    assert_eq!(server.client.get("/").status(), 200);
    for path in [NODE, EVENTS] {
        assert_eq!(server.client.get(path).status(), 401, "{path}");
    }
    let client = server.client.with_header("Authorization", "Bearer sesame");
    assert_eq!(client.get(NODE).ok()["model"], "demo");
}

#[test]
fn the_node_says_what_it_is_and_what_it_did() {
    let server = TestServer::start(ServerSettings { n_ranks: 2, ..ServerSettings::roomy() });
    let body = json!({ "prompt": "What is 27 + 58?", "max_tokens": 5, "ignore_eos": true });
    let usage = server.client.post(COMPLETIONS, &body).ok()["usage"].clone();
    server.expect_idle();
    let node = server.client.get(NODE).ok();
    let blocks = node["blocks"].as_array().expect("a list");
    assert_eq!(blocks.len(), 12);
    assert_eq!(blocks[0], json!({ "n_kv_heads": 4, "n_q_heads": 8, "ffn": 512 }));
    assert_eq!(blocks.iter().filter(|block| **block == json!({})).count(), 2, "empty ones");
    assert_eq!(node["groups"], json!([{ "n_blocks": 7 }]));
    let now = &node["now"];
    assert_eq!(now["phase"], "serving");
    // A prompt in one step, and a step for each token after the first.
    let steps = now["steps"].as_array().expect("a list");
    assert_eq!((steps.len(), &now["n_steps"]), (5, &json!(5)));
    assert_eq!(steps[0]["prefill_rows"], 1);
    assert_eq!(steps[0]["prefill_tokens"], usage["prompt_tokens"]);
    assert_eq!((&steps[0]["decode_rows"], &steps[4]["decode_rows"]), (&json!(0), &json!(1)));
    assert_eq!(now["tokens"]["generated"], 5);
    let number = |value: &Value| value.as_f64().expect("a number");
    for (idx, step) in steps.iter().enumerate() {
        assert_eq!(step["idx"], idx);
        let ranks = step["ranks"].as_array().expect("a list");
        assert_eq!(ranks.len(), 2);
        for rank in ranks {
            // A rank exchanges within its work, and waits within that.
            let times = [&rank["served_ms"], &rank["exchanged_ms"], &rank["waited_ms"]];
            assert!(times.map(number).is_sorted_by(|a, b| a >= b), "{step}");
        }
    }
    let exchanged = number(&now["ranks"][0]["exchanged_ms"]);
    assert!(exchanged > 0.0, "ranks exchange what each sub-block leaves");
    assert_eq!(now["latency"]["first_token"]["n"], 1);
    assert_eq!(now["latency"]["token_gap"]["n"], 4);
    assert!(number(&now["latency"]["total"]["p50_ms"]) > 0.0);
}

#[test]
fn who_watches_sees_every_step_and_nobody_waits_for_them() {
    let server = TestServer::start(ServerSettings::roomy());
    let mut watcher = Watcher::new(&server);
    // One that never reads on.
    let _asleep = Watcher::new(&server);
    let (kind, node) = watcher.next().expect("an event");
    assert_eq!((&*kind, &node["now"]["n_steps"]), ("node", &json!(0)));
    let body = json!({ "prompt": "a", "max_tokens": 30, "ignore_eos": true });
    server.client.post(COMPLETIONS, &body).ok();
    let mut seen = 0;
    while seen < 30 {
        let (kind, state) = watcher.next().expect("an event");
        assert_eq!(kind, "state");
        for step in state["steps"].as_array().expect("a list") {
            let idx = step["idx"].as_u64().expect("a count");
            assert!(idx <= seen, "step {seen} is left out");
            seen = seen.max(idx + 1);
        }
    }
    // A server that goes away does not wait for them either.
    server.app.shutdown.begin();
    while watcher.next().is_some() {}
    server.wait_until("all have left", |app| app.feed.n_watchers() == 0);
}

#[test]
fn there_are_so_many_watchers_and_no_more() {
    let server = TestServer::start(ServerSettings::roomy());
    let watchers: Vec<Watcher> = (0..N_WATCHERS_MAX).map(|_| Watcher::new(&server)).collect();
    let refused = server.client.get(EVENTS);
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.json()["error"]["code"], "too_many_watchers");
    assert_eq!(refused.head.header("retry-after"), Some("1"));
    drop(watchers);
    server.wait_until("their leaving was noticed", |app| app.feed.n_watchers() == 0);
    Watcher::new(&server).next().expect("an event");
}
