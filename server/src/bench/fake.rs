//! A server of known delays, in memory and in virtual time, so that what is measured of it is known
//! beforehand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use super::client::Dial;
use super::clock::Clock;
use crate::http::body::{chunked, one_chunk};
use crate::http::sse;

/// How it behaves.
#[derive(Clone, Debug)]
pub(super) struct Script {
    /// From a slot to the first token.
    pub(super) prefill: Duration,
    /// Between tokens.
    pub(super) gap: Duration,
    /// Before anything, and not accounted for.
    pub(super) network: Duration,
    /// Requests that run at once.
    pub(super) n_slots: usize,
    /// Every so manieth request is refused.
    pub(super) refuses_every: Option<usize>,
    /// Answers say how many run beside them.
    pub(super) leaks: bool,
    /// It counts tokens when asked.
    pub(super) has_tokenizer: bool,
}

/// The server, and what it saw.
pub(super) struct Fake {
    pub(super) script: Script,
    clock: Clock,
    slots: Semaphore,
    n_running: AtomicUsize,
    n_requests: AtomicUsize,
    /// Bodies of generations, in the order of their arrival.
    pub(super) bodies: Mutex<Vec<Value>>,
    /// Streams whose reader went away.
    pub(super) n_gone: AtomicUsize,
}

impl Script {
    /// 40 ms to the first token, 10 ms to each other, room for all.
    pub(super) fn plain() -> Script {
        Script {
            prefill: Duration::from_millis(40),
            gap: Duration::from_millis(10),
            network: Duration::ZERO,
            n_slots: 1000,
            refuses_every: None,
            leaks: false,
            has_tokenizer: true,
        }
    }
}

impl Fake {
    /// Starts it within a runtime.
    pub(super) fn start(script: Script, clock: &Clock) -> (Arc<Fake>, Dial) {
        let (sender, mut connections) = mpsc::channel(16);
        let fake = Arc::new(Fake {
            slots: Semaphore::new(script.n_slots),
            script,
            clock: clock.clone(),
            n_running: AtomicUsize::new(0),
            n_requests: AtomicUsize::new(0),
            bodies: Mutex::default(),
            n_gone: AtomicUsize::new(0),
        });
        let router = Router::new()
            .route("/v1/models", get(models))
            .route("/tokenize", post(tokenize))
            .route("/v1/chat/completions", post(generate))
            .route("/v1/completions", post(generate))
            .route("/v2/models/fake/generate_stream", post(generate))
            .route("/v2/models/fake/generate", post(generate))
            .route("/v2/models/fake/infer", post(generate))
            .with_state(Arc::clone(&fake));
        tokio::spawn(async move {
            while let Some(stream) = connections.recv().await {
                let service = TowerToHyperService::new(router.clone());
                let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    // A client that hangs up is no fault.
                    let _ = serving.await;
                });
            }
        });
        (fake, Dial::Memory(sender))
    }

    async fn sleep(&self, duration: Duration) {
        self.clock.sleep_until(self.clock.now() + duration).await;
    }
}

async fn models() -> Json<Value> {
    Json(json!({ "data": [{ "id": "fake" }, { "id": "other" }] }))
}

/// A token a word; a conversation has four more around it.
async fn tokenize(State(fake): State<Arc<Fake>>, body: Bytes) -> Response {
    if !fake.script.has_tokenizer {
        return StatusCode::NOT_FOUND.into_response();
    }
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    Json(json!({ "count": n_prompt(&body) })).into_response()
}

fn n_prompt(body: &Value) -> usize {
    let n_words = |text: &Value| text.as_str().map_or(0, |text| text.split_whitespace().count());
    match body["messages"].as_array() {
        Some(messages) => 4 + messages.iter().map(|one| n_words(&one["content"])).sum::<usize>(),
        None => {
            n_words(&body["prompt"])
                + n_words(&body["text_input"])
                + n_words(input(body, "text_input"))
        }
    }
}

fn input<'a>(body: &'a Value, name: &str) -> &'a Value {
    let inputs = body["inputs"].as_array();
    let found = inputs.and_then(|all| all.iter().find(|one| one["name"] == name));
    found.map_or(&Value::Null, |one| &one["data"][0])
}

async fn generate(State(fake): State<Arc<Fake>>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    fake.bodies.lock().push(body.clone());
    let number = 1 + fake.n_requests.fetch_add(1, Ordering::Relaxed);
    if fake.script.refuses_every.is_some_and(|n| number.is_multiple_of(n)) {
        let error = json!({ "error": { "message": "the queue is full" } });
        return (StatusCode::TOO_MANY_REQUESTS, Json(error)).into_response();
    }
    fake.sleep(fake.script.network).await;
    let arrived = fake.clock.now();
    fake.slots.acquire().await.expect("it is never closed").forget();
    let queued = fake.clock.now() - arrived;
    let n_beside = fake.n_running.fetch_add(1, Ordering::Relaxed);
    fake.sleep(fake.script.prefill).await;
    let timing = format!(
        "prepare;dur=0, queue;dur={}, prefill;dur={}",
        queued.as_secs_f64() * 1e3,
        fake.script.prefill.as_secs_f64() * 1e3
    );
    let mut response = answer(&fake, body, n_beside).await;
    let timing = HeaderValue::from_str(&timing).expect("numbers");
    response.headers_mut().insert("server-timing", timing);
    response
}

async fn answer(fake: &Arc<Fake>, body: Value, n_beside: usize) -> Response {
    let n_wanted = body["max_tokens"].as_u64().or(input(&body, "max_tokens").as_u64());
    let n_out = n_wanted.expect("a length") as usize;
    let word = match fake.script.leaks {
        true => format!(" {n_beside}"),
        false => format!(" {}", body["seed"]),
    };
    if !body["inputs"].is_null() || body["stream"] == false {
        fake.sleep(fake.script.gap * (n_out as u32 - 1)).await;
        fake.leave();
        let text = word.repeat(n_out);
        let infer = json!([{ "name": "text_output", "data": [text] },
            { "name": "num_output_tokens", "data": [n_out] }]);
        let whole = json!({ "text_output": text, "num_output_tokens": n_out, "outputs": infer });
        return one_chunk(whole.to_string().into_bytes()).into_response();
    }
    let (chunks, out) = chunked(16);
    let fake = Arc::clone(fake);
    tokio::spawn(async move {
        for idx in 0..n_out {
            if idx > 0 {
                fake.sleep(fake.script.gap).await;
            }
            let piece = json!({ "choices": [{ "delta": { "content": word }, "text": word }],
                "text_output": word, "num_output_tokens": 1 });
            if chunks.write(sse::event(&piece)).await.is_err() {
                fake.n_gone.fetch_add(1, Ordering::Relaxed);
                fake.leave();
                return;
            }
        }
        let usage = json!({ "prompt_tokens": n_prompt(&body), "completion_tokens": n_out });
        if body["text_input"].is_null() {
            let _ = chunks.write(sse::event(&json!({ "choices": [], "usage": usage }))).await;
            let _ = chunks.write(sse::DONE).await;
        }
        fake.leave();
    });
    sse::response(out)
}

impl Fake {
    fn leave(&self) {
        self.n_running.fetch_sub(1, Ordering::Relaxed);
        self.slots.add_permits(1);
    }
}
