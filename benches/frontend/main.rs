//! What the HTTP side costs where the model costs nothing: the product's server and engine loop
//! over a script, the server's threads on one processor, engine and clients on the other.
//!
//! Three questions, each for all protocols: how many tokens a second it streams when the next step
//! comes as soon as the one before has been read by everybody (`throughput`); how many short
//! requests it answers (`requests`); and how late a token is at 256 clients when a step yields one
//! for each of them every 20 ms (`lateness`). The last counts from the moment that the step is
//! done, so the engine's own handing over is in it. Beside it stands how late events are that a
//! thread writes which does nothing else: what the kernel takes for 256 packets to 256 sockets,
//! one after the other. The rest is what the frontend adds.

mod bare;
mod load;
mod stub;

use std::future::Future;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use benches::Report;
use harness::serving::pin;
use rustix::process::setpriority_process;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use bare::Bare;
use load::{Connection, request};
use stub::{Beat, Stub};

/// Readers at once.
const N_STREAMS: usize = 256;

/// Tokens of each of their answers.
const N_TOKENS: usize = 1500;

/// The same where steps take their time.
const N_PACED_TOKENS: usize = 80;

/// How often lateness is measured.
const N_ROUNDS: usize = 5;

/// What a step takes then.
const STEP: Duration = Duration::from_millis(20);

/// Connections that ask one short question after the other.
const N_ASKERS: usize = 64;

/// Questions of each.
const N_QUESTIONS: usize = 150;

/// What may be asked for alone, by name; and so may each way.
const PARTS: [&str; 3] = ["throughput", "requests", "lateness"];

/// As `nice` counts.
const LOWEST_PRIORITY: i32 = 19;

/// The processor of the server's threads, and that of all others.
const SERVER_CPU: usize = 1;
const CLIENT_CPU: usize = 0;

/// How often clients look for what has come, where that is not at once.
const LOOK_INTERVAL: Duration = Duration::from_micros(100);

/// How soon clients read what has come.
#[derive(Clone, Copy, Debug)]
enum Pace {
    Prompt,
    AtIntervals,
}

/// A way to ask: its name, its path, and the members of its body but for the number of tokens.
type Way = (&'static str, &'static str, &'static str);

const STREAMS: [Way; 3] = [
    ("completions", "/v1/completions", r#""prompt":"What is 27 + 58?","stream":true"#),
    (
        "chat",
        "/v1/chat/completions",
        r#""messages":[{"role":"user","content":"What is 27 + 58?"}],"stream":true"#,
    ),
    ("generate_stream", "/v2/models/demo/generate_stream", r#""text_input":"a","stream":true"#),
];

const QUESTIONS: [Way; 4] = [
    ("completions", "/v1/completions", r#""prompt":"What is 27 + 58?""#),
    (
        "chat",
        "/v1/chat/completions",
        r#""messages":[{"role":"user","content":"What is 27 + 58?"}]"#,
    ),
    ("generate", "/v2/models/demo/generate", r#""text_input":"What is 27 + 58?""#),
    ("infer", "/v2/models/demo/infer", ""),
];

fn main() -> anyhow::Result<()> {
    if std::env::args().any(|argument| argument == "--list") {
        return Ok(());
    }
    pin(CLIENT_CPU);
    let report = Report::new("frontend");
    let clients = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stub = Stub::start(N_STREAMS, SERVER_CPU);
    let arguments: Vec<_> = std::env::args().collect();
    let is_asked_for = |one: &str| arguments.iter().any(|argument| argument == one);
    let names_ways = STREAMS.iter().chain(&QUESTIONS).any(|way| is_asked_for(way.0));
    let names_parts = PARTS.into_iter().any(is_asked_for);
    let wants = |way: &Way, part: &str| {
        (!names_ways || is_asked_for(way.0)) && (!names_parts || is_asked_for(part))
    };
    for way in STREAMS.into_iter().filter(|way| wants(way, "throughput")) {
        throughput(&report, &clients, &stub, way)?;
    }
    for way in QUESTIONS.into_iter().filter(|way| wants(way, "requests")) {
        requests(&report, &clients, &stub, way)?;
    }
    for way in STREAMS.into_iter().filter(|way| wants(way, "lateness")) {
        lateness(&report, &clients, &stub, way)?;
    }
    Ok(())
}

fn body((_, path, members): Way, n_tokens: usize, seed: usize) -> Vec<u8> {
    if path.ends_with("/infer") {
        let tensor = |name: &str, kind: &str, value: &str| {
            format!(r#"{{"name":"{name}","datatype":"{kind}","shape":[1,1],"data":[{value}]}}"#)
        };
        let text = tensor("text_input", "BYTES", "\"What is 27 + 58?\"");
        let length = tensor("max_tokens", "INT32", &n_tokens.to_string());
        return request(path, &format!(r#"{{"inputs":[{text},{length}]}}"#));
    }
    let lasts = if path.starts_with("/v1") { r#","ignore_eos":true"# } else { "" };
    let body = format!(r#"{{{members},"max_tokens":{n_tokens},"seed":{seed}{lasts}}}"#);
    request(path, &body)
}

/// Runs one task for each of `n` connections, which are open before any begins.
fn each<T: Send + 'static, F>(
    (clients, pace): (&Runtime, Pace),
    (stub, n): (&Stub, usize),
    task: impl Fn(usize, Connection) -> F + Send + Sync,
) -> anyhow::Result<Vec<(usize, T)>>
where
    F: Future<Output = anyhow::Result<(usize, T)>> + Send + 'static,
{
    as_clients(clients, async {
        let mut connections = Vec::new();
        for _ in 0..n {
            connections.push(Connection::open(stub.address()).await?);
        }
        let mut tasks = JoinSet::new();
        for (idx, connection) in connections.into_iter().enumerate() {
            tasks.spawn(task(idx, connection));
        }
        match pace {
            Pace::Prompt => tasks.join_all().await.into_iter().collect(),
            Pace::AtIntervals => at_intervals(tasks).await,
        }
    })
}

/// Runs clients on a thread to which whatever else is on its processor, the engine above all, goes
/// before.
fn as_clients<T: Send>(
    clients: &Runtime,
    task: impl Future<Output = anyhow::Result<T>> + Send,
) -> anyhow::Result<T> {
    let run = || {
        setpriority_process(None, LOWEST_PRIORITY)?;
        clients.block_on(task)
    };
    thread::scope(|scope| scope.spawn(run).join().expect("clients do not panic"))
}

/// When each event of each stream was here.
fn stream_all(
    clients: (&Runtime, Pace),
    stub: &Stub,
    (way, n_tokens): (Way, usize),
) -> anyhow::Result<Vec<(usize, Vec<Instant>)>> {
    each(clients, (stub, N_STREAMS), |idx, mut connection| {
        let beat = Arc::clone(stub.beat());
        async move {
            let body = body(way, n_tokens, idx);
            let moments = connection.stream(&body, |n_events| beat.heard(n_events)).await?;
            Ok((idx, moments))
        }
    })
}

fn throughput(report: &Report, clients: &Runtime, stub: &Stub, way: Way) -> anyhow::Result<()> {
    stub.beat().follow(Beat::AsRead { n_readers: N_STREAMS });
    let spent = stub.server_seconds();
    let heard = stream_all((clients, Pace::Prompt), stub, (way, N_TOKENS))?;
    let spent = stub.server_seconds() - spent;
    let firsts = heard.iter().map(|(_, moments)| moments[0]).max().expect("there are streams");
    let n_late = |moments: &[Instant]| moments.iter().filter(|at| **at > firsts).count();
    let lasts = heard.iter().filter_map(|(_, moments)| moments.last()).max();
    let seconds = (*lasts.expect("there are streams") - firsts).as_secs_f64();
    let n_tokens: usize = heard.iter().map(|(_, moments)| n_late(moments)).sum();
    report.row(&format!("{} tokens, {N_STREAMS} streams", way.0), n_tokens as f64 / seconds, "/s");
    let n_in_all = (N_STREAMS * N_TOKENS) as f64;
    report.row(&format!("{} a token's time", way.0), 1e6 * spent / n_in_all, "us");
    Ok(())
}

fn requests(report: &Report, clients: &Runtime, stub: &Stub, way: Way) -> anyhow::Result<()> {
    stub.beat().follow(Beat::AtOnce);
    let (began, spent) = (Instant::now(), stub.server_seconds());
    each((clients, Pace::Prompt), (stub, N_ASKERS), |idx, mut connection| async move {
        for _ in 0..N_QUESTIONS {
            connection.ask(&body(way, 1, idx)).await?;
        }
        Ok((idx, ()))
    })?;
    let n_asked = (N_ASKERS * N_QUESTIONS) as f64;
    let per_second = n_asked / began.elapsed().as_secs_f64();
    report.row(&format!("{} requests, {N_ASKERS} at once", way.0), per_second, "/s");
    let spent = stub.server_seconds() - spent;
    report.row(&format!("{} a request's time", way.0), 1e6 * spent / n_asked, "us");
    Ok(())
}

/// How late tokens are, beside what the kernel takes for as many bare writes. The two take turns,
/// and of all rounds the middle one counts: what else the machine did in one is neither's.
fn lateness(report: &Report, clients: &Runtime, stub: &Stub, way: Way) -> anyhow::Result<()> {
    const SHARES: [(&str, f64); 2] = [("median", 0.5), ("p99", 0.99)];
    let (mut ours, mut bare) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let mut spent = [0.0, 0.0];
    for _ in 0..N_ROUNDS {
        for (idx, rounds) in [&mut bare, &mut ours].into_iter().enumerate() {
            let (mut late_us, seconds) = match idx {
                0 => bare_lateness_us(clients)?,
                _ => lateness_us(clients, stub, way)?,
            };
            spent[idx] += seconds;
            late_us.sort_by(f64::total_cmp);
            for ((_, share), of_rounds) in SHARES.iter().zip(rounds) {
                of_rounds.push(late_us[((late_us.len() - 1) as f64 * share) as usize]);
            }
        }
    }
    let middle = |mut rounds: Vec<f64>| {
        rounds.sort_by(f64::total_cmp);
        rounds[N_ROUNDS / 2]
    };
    for (((name, _), ours), bare) in SHARES.into_iter().zip(ours).zip(bare) {
        let (ours, bare) = (middle(ours), middle(bare));
        report.row(&format!("{} a token is late, {name}", way.0), ours, "us");
        report.row(&format!("bare writes are late, {name}"), bare, "us");
        report.row(&format!("{} adds, {name}", way.0), ours - bare, "us");
    }
    let [bare_us, ours_us] = spent.map(|seconds| 1e6 * seconds / N_ROUNDS as f64);
    report.row(&format!("{} a paced token's time", way.0), ours_us, "us");
    report.row("a bare write's time", bare_us, "us");
    Ok(())
}

/// How late events are, and the seconds that one takes the server's threads.
fn lateness_us(clients: &Runtime, stub: &Stub, way: Way) -> anyhow::Result<(Vec<f64>, f64)> {
    stub.beat().follow(Beat::Every(STEP));
    let heard = stream_all((clients, Pace::AtIntervals), stub, (way, N_PACED_TOKENS))?;
    let said = stub.beat().said(N_STREAMS);
    let mut late_us: Vec<f64> = Vec::new();
    for (idx, heard) in &heard {
        anyhow::ensure!(heard.len() >= said[*idx].len(), "an event a token");
        // While others' prompts are still being read, or others are over, a step is easier.
        let pairs = said[*idx].iter().zip(heard).filter(|(said, _)| said.n_tokens == N_STREAMS);
        late_us.extend(pairs.map(|(said, heard)| (*heard - said.at).as_secs_f64() * 1e6));
    }
    anyhow::ensure!(late_us.len() > N_STREAMS * N_PACED_TOKENS / 2, "too few steps were full");
    Ok((late_us, stub.beat().seconds_a_token(N_STREAMS)))
}

/// The same of a thread that does nothing but write.
fn bare_lateness_us(clients: &Runtime) -> anyhow::Result<(Vec<f64>, f64)> {
    let (bare, streams) = Bare::start((N_STREAMS, N_PACED_TOKENS), STEP, SERVER_CPU)?;
    let heard = as_clients(clients, async {
        let mut tasks = JoinSet::new();
        for stream in streams {
            let mut connection = Connection::over(stream)?;
            tasks.spawn(async move { connection.stream(b"nobody reads this", |_| {}).await });
        }
        at_intervals(tasks).await
    })?;
    let (said, seconds) = bare.finish()?;
    let late = |(said, heard): (&Instant, Instant)| (heard - *said).as_secs_f64() * 1e6;
    let seconds_a_write = seconds / (N_STREAMS * N_PACED_TOKENS) as f64;
    let late_us = heard.into_iter().flat_map(|heard| said.iter().zip(heard).map(late)).collect();
    Ok((late_us, seconds_a_write))
}

/// What all of the tasks come to, whose thread looks for what has come at intervals: to be woken by
/// each event would take the server's time, and to look all the time its core's, where two
/// processors share one. So an event may be heard by the interval too late.
async fn at_intervals<T: 'static>(mut tasks: JoinSet<anyhow::Result<T>>) -> anyhow::Result<Vec<T>> {
    let mut all = Vec::new();
    while !tasks.is_empty() {
        while let Some(done) = tasks.try_join_next() {
            all.push(done??);
        }
        thread::sleep(LOOK_INTERVAL);
        tokio::task::yield_now().await;
    }
    Ok(all)
}
