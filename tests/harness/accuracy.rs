//! How many held-out problems the demo model solves, asked through the HTTP API as a user would.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::KvDtype;
use serde::Deserialize;
use serde_json::json;

use crate::http::Client;
use crate::serving::{ServerSettings, TestServer};

/// Problems asked at once.
const N_CONCURRENT: usize = 32;

/// Enough for any working that ends; the longest that the model was trained on has 132 tokens.
const N_TOKENS_MAX: usize = 250;

/// A question that the model has not seen in training.
#[derive(Debug, Deserialize)]
pub struct Problem {
    /// In words.
    pub question: String,
    /// The one right answer.
    pub answer: i64,
}

/// A way to run the demo model.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Tensor-parallel ranks.
    pub n_ranks: usize,
    /// Element type of the cache.
    pub kv_dtype: KvDtype,
}

/// Positions of the demo's answers that hang on their roundings: problem, of which every second is
/// answered without thinking, and tokens of the answer before it. The float64 oracle's best logit
/// leads there by 2.3 nats, but how activations round moves that lead by 1.6 nats from run to run
/// (`tests/golden/README.md`).
pub const HANGING: [(usize, usize); 1] = [(33, 6)];

/// The committed problems, all of them.
pub fn problems() -> Vec<Problem> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/arithmetic.jsonl");
    let text = std::fs::read_to_string(path).expect("the problems are committed");
    text.lines().map(|line| serde_json::from_str(line).expect("a problem a line")).collect()
}

/// A server that can take all questions of a round.
pub fn serve(setup: Setup) -> TestServer {
    TestServer::start(ServerSettings {
        n_ranks: setup.n_ranks,
        n_threads: None,
        kv_dtype: Some(setup.kv_dtype),
        n_slots: N_CONCURRENT,
        n_context_tokens: 512,
        ..ServerSettings::roomy()
    })
}

/// Share of the problems whose answer is right, greedily decoded.
pub fn accuracy(client: &Client, problems: &[Problem], is_thinking: bool) -> f64 {
    let (next, n_right) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..N_CONCURRENT {
            scope.spawn(|| {
                while let Some(problem) = problems.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if answer(client, &problem.question, is_thinking) == Some(problem.answer) {
                        n_right.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    n_right.into_inner() as f64 / problems.len() as f64
}

/// The last number of the answer; what is thought does not count.
fn answer(client: &Client, question: &str, is_thinking: bool) -> Option<i64> {
    let system = if is_thinking { "detailed thinking on" } else { "detailed thinking off" };
    let body = json!({
        "model": "demo",
        "temperature": 0,
        "max_tokens": N_TOKENS_MAX,
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": question},
        ],
    });
    let reply = client.post("/v1/chat/completions", &body).ok();
    let content = reply["choices"][0]["message"]["content"].as_str()?;
    let numbers = content.split(|c: char| !c.is_ascii_digit() && c != '-');
    numbers.filter_map(|number| number.parse().ok()).next_back()
}
