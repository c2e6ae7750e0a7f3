//! What watching costs: the throughput of the demo model while eight watch the node and metrics are
//! read twice a second, over what it is while nobody does. Callers never pause; turns alternate in
//! one process and are short, so that the machine's moods fall on both, and many. Of the ratios of
//! neighbouring turns the median is told, with an interval that holds it in 95 of 100 runs: two of
//! the sorted ratios, whatever their spread.
//!
//! Watchers are there before their turn begins and stay until it is over. They share the machine's
//! cores with the server, so beside the ratio it is told what the processor did for the server's
//! threads (those of sockets, watchers and metrics; the model has its own), and what for watchers.
//!
//! `cargo bench --bench watching [-- --json]`

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use benches::Report;
use harness::serving::{ServerSettings, TestServer};
use serde_json::json;

const N_WATCHERS: usize = 8;
const N_PAIRS: usize = 150;

/// Of 150 sorted values, the 63rd and the 88th have the median between them with 95 %: the number
/// of values below it is binomial, 75 with a deviation of 6.1.
const INTERVAL: [usize; 2] = [62, 87];

/// A turn, which has one reading of the metrics in it.
const TURN: Duration = SCRAPE;

/// Before a turn, for what came or left to settle.
const SETTLE: Duration = Duration::from_millis(20);

const N_CALLERS: usize = 4;
const N_ANSWER_TOKENS: usize = 200;

/// Time between two readings of the metrics.
const SCRAPE: Duration = Duration::from_millis(500);

/// Watchers whose coming is timed.
const N_COMING: usize = 40;

/// Threads of the server that are not the model's.
const SERVING: &str = "tokio";

/// Threads of those who watch.
const WATCHING: &str = "watcher";

/// A turn, and what the processor did meanwhile, as shares of one core.
struct Turn {
    tokens_per_s: f64,
    serving: f64,
    watching: f64,
}

fn main() {
    let report = Report::new("watching");
    let server = TestServer::start(ServerSettings::roomy());
    let coming = coming(&server);
    let is_over = AtomicBool::new(false);
    let pairs: Vec<[Turn; 2]> = thread::scope(|scope| {
        for _ in 0..N_CALLERS {
            scope.spawn(|| call(&server, &is_over));
        }
        // Pages are touched, caches are warm.
        turn(&server);
        let pairs = (0..N_PAIRS).map(|idx| pair(&server, idx % 2 == 0)).collect();
        is_over.store(true, Ordering::Relaxed);
        pairs
    });

    let of_pairs = |value: fn(&[Turn; 2]) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let ratios = of_pairs(|[watched, unwatched]| watched.tokens_per_s / unwatched.tokens_per_s);
    report.row("watched / unwatched, median", median(&ratios), "");
    report.row("95 % interval from", ratios[INTERVAL[0]], "");
    report.row("to", ratios[INTERVAL[1]], "");
    report.row("the server's threads, unwatched", median(&of_pairs(|[_, it]| it.serving)), "cores");
    report.row("watched", median(&of_pairs(|[it, _]| it.serving)), "cores");
    let added = of_pairs(|[watched, unwatched]| watched.serving - unwatched.serving);
    report.row("what watching adds, median", median(&added), "cores");
    report.row("95 % interval from", added[INTERVAL[0]], "cores");
    report.row("to", added[INTERVAL[1]], "cores");
    report.row("the watchers' own", median(&of_pairs(|[it, _]| it.watching)), "cores");
    report.row("tokens/s, unwatched", median(&of_pairs(|[_, it]| it.tokens_per_s)), "");
    report.row("a watcher's coming, the server's part", coming * 1e3, "ms");
}

/// The middle of sorted values.
fn median(sorted: &[f64]) -> f64 {
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// One turn with watchers and one without, in either order.
fn pair(server: &TestServer, is_watched_first: bool) -> [Turn; 2] {
    let watched = || {
        let watchers = Watchers::new(server);
        let turn = turn(server);
        watchers.leave(server);
        turn
    };
    if is_watched_first {
        let watched = watched();
        [watched, turn(server)]
    } else {
        let unwatched = turn(server);
        [watched(), unwatched]
    }
}

/// Asks for one answer after the other.
fn call(server: &TestServer, is_over: &AtomicBool) {
    let body = json!({
        "prompt": "a", "max_tokens": N_ANSWER_TOKENS, "ignore_eos": true, "temperature": 0,
    });
    while !is_over.load(Ordering::Relaxed) {
        server.client.post("/v1/completions", &body).ok();
    }
}

fn turn(server: &TestServer) -> Turn {
    thread::sleep(SETTLE);
    let n_generated = || server.app.engine.stats().n_generated_tokens;
    let before = (n_generated(), used_by(SERVING), used_by(WATCHING));
    let began = Instant::now();
    thread::sleep(TURN);
    let (n_tokens, took) = (n_generated() - before.0, began.elapsed());
    let share = |name, before| (used_by(name).saturating_sub(before)).div_duration_f64(took);
    Turn {
        tokens_per_s: n_tokens as f64 / took.as_secs_f64(),
        serving: share(SERVING, before.1),
        watching: share(WATCHING, before.2),
    }
}

/// Seconds that the server's threads take for a watcher that comes and is told all there is.
fn coming(server: &TestServer) -> f64 {
    let before = used_by(SERVING);
    for _ in 0..N_COMING {
        let mut stream = watch(server);
        read_first_event(&mut stream);
        stream.shutdown(Shutdown::Both).expect("it is open");
        server.wait_until("it has left", |app| app.feed.n_watchers() == 0);
    }
    used_by(SERVING).saturating_sub(before).as_secs_f64() / N_COMING as f64
}

/// What the processor did so far for this process' threads whose names begin so.
fn used_by(name: &str) -> Duration {
    let threads = fs::read_dir("/proc/self/task").expect("Linux tells of threads");
    let used = |thread: fs::DirEntry| {
        // It may have ended meanwhile.
        let is_it = fs::read_to_string(thread.path().join("comm")).ok()?.starts_with(name);
        let told = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let ns = told.split(' ').next()?.parse().ok()?;
        is_it.then_some(Duration::from_nanos(ns))
    };
    threads.filter_map(|thread| used(thread.ok()?)).sum()
}

fn watch(server: &TestServer) -> TcpStream {
    let mut stream = TcpStream::connect(server.client.address()).expect("the server accepts");
    stream.write_all(b"GET /v1/node/events HTTP/1.1\r\nHost: test\r\n\r\n").expect("it reads");
    stream
}

fn read_first_event(stream: &mut TcpStream) {
    let (mut read, mut room) = (Vec::new(), [0; 64 << 10]);
    // The end of an event, and of the chunk that it came in.
    while !read.ends_with(b"\n\n\r\n") {
        let n_bytes = stream.read(&mut room).expect("the server tells");
        assert_ne!(n_bytes, 0, "the server tells");
        read.extend_from_slice(&room[..n_bytes]);
    }
    assert!(read.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&read));
}

/// Those who watch, on threads of their own.
struct Watchers {
    is_over: Arc<AtomicBool>,
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Watchers {
    /// Comes back when all are told.
    fn new(server: &TestServer) -> Watchers {
        let is_over = Arc::new(AtomicBool::new(false));
        let (mut streams, mut threads) = (Vec::new(), Vec::new());
        let named = || thread::Builder::new().name(WATCHING.into());
        for _ in 0..N_WATCHERS {
            let mut stream = watch(server);
            read_first_event(&mut stream);
            streams.push(stream.try_clone().expect("a socket"));
            let hear = move || {
                let mut room = vec![0; 64 << 10];
                // Until it is told to leave.
                while stream.read(&mut room).is_ok_and(|n_bytes| n_bytes > 0) {}
            };
            threads.push(named().spawn(hear).expect("a thread starts"));
        }
        let (mut connection, over) = (server.client.connect(), Arc::clone(&is_over));
        let scrape = move || {
            while !over.load(Ordering::Relaxed) {
                connection.write("GET", "/metrics", &[], b"").expect("it reads");
                assert_eq!(connection.read_reply("GET").expect("it answers").head.status, 200);
                thread::park_timeout(SCRAPE);
            }
        };
        threads.push(named().spawn(scrape).expect("a thread starts"));
        Watchers { is_over, streams, threads }
    }

    fn leave(self, server: &TestServer) {
        self.is_over.store(true, Ordering::Relaxed);
        self.streams.iter().for_each(|stream| stream.shutdown(Shutdown::Both).expect("it is open"));
        for thread in self.threads {
            thread.thread().unpark();
            thread.join().expect("no watcher panics");
        }
        server.wait_until("all have left", |app| app.feed.n_watchers() == 0);
    }
}
