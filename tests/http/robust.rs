//! Clients that are slow, stop, or only stay: the memory that they take is bounded, and others are
//! served as if they were not there. Tests that measure have a process to themselves.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use engine::TokenId;
use harness::grpc::Channel;
use harness::http::Connection;
use harness::serving::{ServerSettings, TestServer};
use harness::{alone, part, play, resident_bytes};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use server::http::HttpLimits;
use server::http::triton::grpc::protocol::{ServerLiveRequest, ServerLiveResponse};

use super::COMPLETIONS;

/// What the script says.
const SAYS: &str = "The sum is 85.";

/// What the process may take beside what a test's clients do: buffers that grow once.
const N_OTHER_BYTES: usize = 24 << 20;

/// A time that a test waits out.
const SHORT: Duration = Duration::from_millis(50);

/// A head that goes on.
const HALF_A_HEAD: &[u8] = b"POST /v1/completions HTTP/1.1\r\nHost: slow\r\nX-Slow: ";

fn server(settings: ServerSettings) -> TestServer {
    TestServer::scripted(SAYS, settings)
}

fn limited(limits: HttpLimits) -> TestServer {
    server(ServerSettings { limits, ..ServerSettings::roomy() })
}

/// Somebody else is served.
fn expect_served(server: &TestServer) {
    let answer = server.client.post(COMPLETIONS, &json!({ "prompt": "a", "max_tokens": 5 })).ok();
    assert_eq!(answer["usage"]["completion_tokens"], 5);
}

/// Bytes that the process has more than before, and how many each of `n` may take.
fn expect_growth(before: usize, (n, n_bytes_each): (usize, usize)) {
    let grown = resident_bytes().saturating_sub(before);
    println!("{grown} bytes more for {n}: {} each", grown / n);
    let n_bytes_max = n * n_bytes_each + N_OTHER_BYTES;
    assert!(grown <= n_bytes_max, "{grown} bytes more for {n}, at most {n_bytes_max}");
}

/// A value of the server's metrics, seen without a request.
fn metric(server: &TestServer, name: &str) -> f64 {
    let engine = &server.app.engine;
    let text = server.app.metrics.render(&engine.stats(), engine.info());
    let line = text.lines().find(|line| line.starts_with(name)).expect("it is there");
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

fn n_cut(server: &TestServer, reason: &str) -> f64 {
    metric(server, &format!("lnserve_connections_cut_total{{reason=\"{reason}\"}}"))
}

/// Requests of a route that were answered with 200.
fn n_answered(server: &TestServer, route: &str) -> f64 {
    let name = format!("lnserve_http_requests_total{{route=\"{route}\",status=\"200\"}}");
    let engine = &server.app.engine;
    let text = server.app.metrics.render(&engine.stats(), engine.info());
    let line = text.lines().find(|line| line.starts_with(&name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

/// Waits for the other side to close.
fn expect_closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // Reset is closed too: there were bytes that nobody read.
    let read = stream.read_to_end(&mut rest);
    assert!(read.is_err() || rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

fn begun(server: &TestServer, bytes: &[u8]) -> Connection {
    let mut connection = server.client.connect();
    connection.write_raw(bytes).expect("the server reads, or will");
    connection
}

/// An answer of so many tokens, eight times.
fn eight_of(n_tokens: usize) -> String {
    json!({ "prompt": "a", "max_tokens": n_tokens, "n": 8, "stream": true }).to_string()
}

#[test]
fn a_slow_reader_gets_all_of_it_and_costs_no_more_than_its_tokens() {
    const N_TOKENS: usize = 10_000;
    /// A token that waits, with what is known of it.
    const N_TOKEN_BYTES: usize = 512;
    alone("robust::a_slow_reader_gets_all_of_it_and_costs_no_more_than_its_tokens", || {
        let settings = ServerSettings { n_context_tokens: 1 << 16, ..ServerSettings::roomy() };
        let server = server(settings);
        expect_served(&server);
        let before = resident_bytes();
        let mut slow = server.client.connect();
        let body = eight_of(N_TOKENS);
        slow.write("POST", COMPLETIONS, &[], body.as_bytes()).expect("the server reads");
        // All is said, and hardly anything was read: the rest waits, and holds up nobody.
        server.wait_until("the engine is through", |app| {
            app.engine.n_live() == 0 && app.engine.stats().n_steps >= N_TOKENS as u64
        });
        expect_growth(before, (8 * N_TOKENS, N_TOKEN_BYTES));
        assert_eq!(slow.read_head().expect("it is answered").status, 200);
        let (mut n_chunks, mut n_events, mut last) = (0, 0, Vec::new());
        while let Some(chunk) = slow.read_chunk().expect("it ends with a last chunk") {
            n_chunks += 1;
            if n_chunks % 4096 == 0 {
                expect_served(&server);
            }
            n_events += chunk.windows(6).filter(|six| six == b"data: ").count();
            last = chunk;
        }
        assert!(last.ends_with(b"data: [DONE]\n\n"));
        assert!(n_events > 8 * N_TOKENS, "{n_events}");
        expect_growth(before, (8 * N_TOKENS, N_TOKEN_BYTES));
        server.expect_idle();
    });
}

#[test]
fn a_reader_that_stops_is_given_up() {
    let limits = HttpLimits { write_timeout: SHORT, ..HttpLimits::STANDARD };
    let settings = ServerSettings { n_context_tokens: 1 << 20, ..ServerSettings::roomy() };
    let server = server(ServerSettings { limits, ..settings });
    let mut idle = server.client.connect();
    // More than the sockets' buffers and the test's patience hold.
    let body = eight_of(1 << 19);
    idle.write("POST", COMPLETIONS, &[], body.as_bytes()).expect("the server reads");
    server.wait_until("it is given up", |_| n_cut(&server, "write_timeout") == 1.0);
    server.expect_idle();
    expect_served(&server);
    let aborted = metric(&server, "lnserve_generations_total{finished_reason=\"abort\"}");
    assert_eq!(aborted, 8.0);
}

#[test]
fn half_a_body_holds_nobody_up_and_takes_what_has_come() {
    const N: usize = 64;
    /// Of the 64 MiB that each announces.
    const N_BYTES_EACH: usize = 256 << 10;
    alone("robust::half_a_body_holds_nobody_up_and_takes_what_has_come", || {
        let server = server(ServerSettings::roomy());
        expect_served(&server);
        let before = resident_bytes();
        let head =
            "POST /v1/completions HTTP/1.1\r\nHost: slow\r\nContent-Length: 67108864\r\n\r\n";
        let half = [head.as_bytes(), &[b' '; 1024]].concat();
        let connections: Vec<_> = (0..N).map(|_| begun(&server, &half)).collect();
        server.wait_until("all are being read", |app| app.in_flight.n() == N);
        expect_served(&server);
        expect_growth(before, (N, N_BYTES_EACH));
        drop(connections);
        server.expect_idle();
    });
}

/// The protocol's own code makes room for what a message announces: room that nobody has written to
/// is no memory yet.
#[test]
fn half_a_message_holds_nobody_up_and_takes_what_has_come() {
    const N: usize = 64;
    /// Of the 64 MiB that each announces: the most that a message may have.
    const N_BYTES_EACH: usize = 128 << 10;
    alone("robust::half_a_message_holds_nobody_up_and_takes_what_has_come", || {
        let server = server(ServerSettings { has_grpc: true, ..ServerSettings::roomy() });
        let address = server.grpc.expect("it listens for gRPC");
        let n_announced = HttpLimits::STANDARD.n_body_bytes_max as u32;
        let live = async |channel: &Channel| {
            let request = ServerLiveRequest::default();
            let answer: ServerLiveResponse = channel.ask("ServerLive", &request).await.expect("ok");
            assert!(answer.live);
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.expect("a runtime starts").block_on(async {
            let channel = Channel::open(address).await;
            live(&channel).await;
            expect_served(&server);
            let before = resident_bytes();
            let mut calls = Vec::new();
            for idx in 0..N {
                let method = if idx % 2 == 0 { "ModelInfer" } else { "ModelStreamInfer" };
                let mut call = channel.call(method).await;
                call.begin(n_announced, &[0; 1024]);
                calls.push(call);
            }
            server.wait_until("all are being read", |app| app.in_flight.n() == N);
            // It comes behind what they sent, on the same connection.
            live(&channel).await;
            expect_served(&server);
            expect_growth(before, (N, N_BYTES_EACH));
            drop(calls);
            server.expect_idle();
            live(&channel).await;
        });
    });
}

#[test]
fn half_a_body_is_answered_in_time() {
    let server = limited(HttpLimits { body_timeout: SHORT, ..HttpLimits::STANDARD });
    for path in [COMPLETIONS, "/v2/models/demo/generate"] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: slow\r\nContent-Length: 100\r\n\r\n{{");
        let reply = begun(&server, head.as_bytes()).read_reply("POST").expect("it is answered");
        assert_eq!(reply.status(), 408, "{}", reply.text());
        assert!(reply.text().contains("did not arrive in full"), "{}", reply.text());
    }
    let late = metric(&server, "lnserve_http_errors_total{error=\"body_incomplete\"}");
    assert_eq!(late, 2.0);
    server.expect_idle();
}

#[test]
fn heads_that_never_end_hold_nobody_up() {
    const N: usize = 500;
    const N_BYTES_EACH: usize = 48 << 10;
    alone("robust::heads_that_never_end_hold_nobody_up", || {
        let server = server(ServerSettings::roomy());
        expect_served(&server);
        let before = resident_bytes();
        let connections: Vec<_> = (0..N).map(|_| begun(&server, HALF_A_HEAD)).collect();
        let open = || metric(&server, "lnserve_open_connections");
        server.wait_until("all are open", |_| open() >= N as f64);
        expect_served(&server);
        expect_growth(before, (N, N_BYTES_EACH));
        drop(connections);
        server.wait_until("all are closed", |_| open() == 0.0);
    });
}

#[test]
fn heads_that_never_end_are_given_up() {
    let server = limited(HttpLimits { head_timeout: SHORT, ..HttpLimits::STANDARD });
    let address = server.client.address();
    let half: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(address).expect("the server accepts");
            // Those that are given up before may say so.
            let _ = std::io::Write::write_all(&mut stream, HALF_A_HEAD);
            stream
        })
        .collect();
    let silent = TcpStream::connect(address).expect("the server accepts");
    half.into_iter().for_each(expect_closed);
    expect_closed(silent);
    server.wait_until("all are counted", |_| n_cut(&server, "silent") == 21.0);
    assert_eq!(server.app.in_flight.n(), 0);
}

#[test]
fn grpc_clients_that_say_nothing_are_given_up() {
    let limits = HttpLimits { head_timeout: SHORT, n_streams_max: 7, ..HttpLimits::STANDARD };
    let server = server(ServerSettings { limits, has_grpc: true, ..ServerSettings::roomy() });
    // Nothing at all, half of the first words, and all of them but no answer to a ping.
    let until_closed = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(server.grpc.expect("it listens")).expect("it accepts");
        stream.write_all(bytes).expect("the server reads");
        let mut told = Vec::new();
        // Reset is closed, too.
        let _ = stream.read_to_end(&mut told);
        told
    };
    until_closed(b"");
    until_closed(b"PRI * HTTP/2");
    server.wait_until("both are counted", |_| n_cut(&server, "silent") == 2.0);
    const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let told = until_closed(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", EMPTY_SETTINGS].concat());
    // RFC 9113, 6.5: the first frame is settings, of which the third kind bounds calls at once.
    let n_bytes = usize::from(told[2]);
    assert_eq!((told[0], told[1], told[3]), (0, 0, 4), "{told:?}");
    let settings = &told[9..9 + n_bytes];
    assert!(settings.chunks(6).any(|one| one == [0, 3, 0, 0, 0, 7]), "{settings:?}");
    let pinged = told[9 + n_bytes..].windows(5).any(|five| five == [0, 0, 8, 6, 0]);
    assert!(pinged, "it was asked whether it is there: {told:?}");
}

#[test]
fn an_answer_that_waits_for_its_client_keeps_its_place() {
    /// Of which the sockets hold a part.
    const N_ANSWER_BYTES: usize = 12 << 20;
    let head_timeout = Duration::from_secs(3600);
    let limits = HttpLimits { n_connections_max: 1, head_timeout, ..HttpLimits::STANDARD };
    let server = limited(limits);
    let mut slow = server.client.connect();
    let n_bytes = |id: u32| server.app.text.token_bytes(TokenId(id)).len();
    let vocabulary = 0..server.app.engine.info().vocab_size as u32;
    let longest = vocabulary.max_by_key(|id| n_bytes(*id)).expect("there are tokens");
    let tokens = vec![longest; N_ANSWER_BYTES / n_bytes(longest) + 1];
    let body = json!({ "tokens": tokens }).to_string();
    slow.write("POST", "/detokenize", &[], body.as_bytes()).expect("the server reads");
    server.wait_until("it is answered", |app| {
        app.in_flight.n() == 0 && n_answered(&server, "/detokenize") == 1.0
    });
    thread::scope(|scope| {
        let newcomer = scope.spawn(|| server.client.get("/v2/health/live").status());
        let reply = slow.read_reply("POST").expect("it stays until it is read");
        assert_eq!(reply.status(), 200);
        assert!(reply.body.len() > N_ANSWER_BYTES, "{}", reply.body.len());
        assert_eq!(newcomer.join().expect("it is answered"), 200);
    });
    assert_eq!(n_cut(&server, "gave_way"), 1.0);
}

/// Connections that the limit of open files has room for in a process, at most `n_max`.
fn n_possible(n_max: usize) -> usize {
    const N_OTHER_FILES: usize = 512;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    setrlimit(Resource::Nofile, raised).expect("the soft limit may be the hard one");
    let n_files = maximum.map_or(usize::MAX, |maximum| maximum as usize);
    let n = n_max.min(n_files.saturating_sub(N_OTHER_FILES));
    println!("{n} connections, of {n_max} that the test wants; {n_files} files may be open");
    n
}

#[test]
fn ten_thousand_idle_connections_cost_little() {
    const NAME: &str = "robust::ten_thousand_idle_connections_cost_little";
    const N_WANTED: usize = 10_000;
    const N_BYTES_EACH: usize = 16 << 10;
    if let Some(address) = part() {
        // The clients, whose files are not the server's.
        let connect = |_| TcpStream::connect(&address).expect("the server accepts");
        let _idle: Vec<_> = (0..n_possible(N_WANTED)).map(connect).collect();
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    alone(NAME, || {
        let n = n_possible(N_WANTED);
        // None is given up while the test goes on.
        let head_timeout = Duration::from_secs(3600);
        let server = limited(HttpLimits { head_timeout, ..HttpLimits::STANDARD });
        expect_served(&server);
        let before = resident_bytes();
        let clients = play(NAME, &server.client.address().to_string());
        let open = || metric(&server, "lnserve_open_connections");
        server.wait_until("all are open", |_| open() >= n as f64);
        for _ in 0..20 {
            expect_served(&server);
        }
        expect_growth(before, (n, N_BYTES_EACH));
        drop(clients);
        server.wait_until("all are closed", |_| open() == 0.0);
        assert_eq!(n_cut(&server, "gave_way"), 0.0);
    });
}

#[test]
fn a_newcomer_gets_the_place_of_who_only_stays() {
    const N_MAX: usize = 8;
    let head_timeout = Duration::from_secs(3600);
    let limits = HttpLimits { n_connections_max: N_MAX, head_timeout, ..HttpLimits::STANDARD };
    let server = limited(limits);
    // Two that work, whose answers come when the engine goes on; the others only stay.
    let held = server.hold_engine();
    let asked = json!({ "prompt": "a", "max_tokens": 5 }).to_string();
    let mut working: Vec<_> = (0..2).map(|_| server.client.connect()).collect();
    for connection in &mut working {
        connection.write("POST", COMPLETIONS, &[], asked.as_bytes()).expect("the server reads");
    }
    server.wait_until("both are in the engine", |app| app.engine.n_live() == 3);
    let half: Vec<_> = (0..3).map(|_| begun(&server, HALF_A_HEAD)).collect();
    let silent: Vec<_> = (0..3).map(|_| server.client.connect()).collect();
    let open = || metric(&server, "lnserve_open_connections");
    server.wait_until("all places are taken", |_| open() == N_MAX as f64);
    for n_gave_way in 1..=20 {
        assert_eq!(server.client.get("/v2/health/live").status(), 200);
        // Its own connection is closed behind it, which may make room for the next.
        assert!(n_cut(&server, "gave_way") <= f64::from(n_gave_way));
    }
    assert!(n_cut(&server, "gave_way") >= 1.0);
    drop(held);
    for connection in &mut working {
        let reply = connection.read_reply("POST").expect("who works stays");
        assert_eq!(reply.ok()["usage"]["completion_tokens"], 5);
    }
    drop((half, silent));
    server.expect_idle();
}
