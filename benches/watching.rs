//! What watching costs: the throughput of the demo model while eight watch the node and metrics are
//! read twice a second, over what it is while nobody does. Turns alternate in one process, so that
//! the machine's moods fall on both; of the ratios of neighbouring turns the median is told, with
//! an interval that holds it in 95 of 100 runs: two of the sorted ratios, whatever their spread.
//!
//! `cargo bench --bench watching [-- --json]`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use benches::Report;
use harness::serving::{ServerSettings, TestServer};
use serde_json::json;

const N_WATCHERS: usize = 8;
const N_PAIRS: usize = 100;

/// Of a hundred sorted values, the 40th and the 61st have the median between them with 95 %.
const INTERVAL: [usize; 2] = [39, 60];

const N_CALLERS: usize = 4;
const N_ANSWER_TOKENS: usize = 200;
const N_ANSWERS_A_CALLER: usize = 1;

/// Time between two readings of the metrics.
const SCRAPE: Duration = Duration::from_millis(500);

fn main() {
    let report = Report::new("watching");
    let server = TestServer::start(ServerSettings::roomy());
    // Pages are touched, caches are warm.
    tokens_per_s(&server);
    let mut ratios: Vec<f64> = (0..N_PAIRS).map(|pair| ratio(&server, pair % 2 == 0)).collect();
    ratios.sort_by(f64::total_cmp);
    let median = (ratios[N_PAIRS / 2 - 1] + ratios[N_PAIRS / 2]) / 2.0;
    report.row("watched / unwatched, median", median, "");
    report.row("95 % interval from", ratios[INTERVAL[0]], "");
    report.row("to", ratios[INTERVAL[1]], "");
    report.row("lower quartile", ratios[N_PAIRS / 4], "");
    report.row("upper quartile", ratios[3 * N_PAIRS / 4], "");
}

/// One turn with watchers and one without, in either order.
fn ratio(server: &TestServer, is_watched_first: bool) -> f64 {
    let watched = || {
        let watchers = Watchers::new(server);
        let rate = tokens_per_s(server);
        watchers.leave(server);
        rate
    };
    if is_watched_first {
        let watched = watched();
        watched / tokens_per_s(server)
    } else {
        let unwatched = tokens_per_s(server);
        watched() / unwatched
    }
}

fn tokens_per_s(server: &TestServer) -> f64 {
    let body = json!({
        "prompt": "a", "max_tokens": N_ANSWER_TOKENS, "ignore_eos": true, "temperature": 0,
    });
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..N_CALLERS {
            scope.spawn(|| {
                for _ in 0..N_ANSWERS_A_CALLER {
                    server.client.post("/v1/completions", &body).ok();
                }
            });
        }
    });
    (N_CALLERS * N_ANSWERS_A_CALLER * N_ANSWER_TOKENS) as f64 / began.elapsed().as_secs_f64()
}

/// Those who watch, on threads of their own.
struct Watchers {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watchers {
    /// Comes back when all are told.
    fn new(server: &TestServer) -> Watchers {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for _ in 0..N_WATCHERS {
            let mut connection = server.client.connect();
            connection.write("GET", "/v1/node/events", &[], b"").expect("it reads");
            assert_eq!(connection.read_head().expect("it answers").status, 200);
            let is_over = Arc::clone(&is_over);
            threads.push(thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    connection.read_chunk().expect("it goes on").expect("it goes on");
                }
            }));
        }
        let (client, over) = (server.client.clone(), Arc::clone(&is_over));
        threads.push(thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(client.get("/metrics").status(), 200);
                thread::sleep(SCRAPE);
            }
        }));
        Watchers { is_over, threads }
    }

    fn leave(self, server: &TestServer) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no watcher panics");
        }
        server.wait_until("all have left", |app| app.feed.n_watchers() == 0);
    }
}
