//! What an OpenTelemetry collector is told: a double of one reads the protocol's own messages, by
//! the project's own definitions of them.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::serving::{ServerSettings, TestServer};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::{Value, json};
use server::http::Outcome;
use server::traces::TraceSettings;

use super::{CHAT, COMPLETIONS, with};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A collector that answers everything with one status, or nothing at all.
struct Collector {
    address: SocketAddr,
    messages: Receiver<ExportTraceServiceRequest>,
}

impl Collector {
    fn new(status: Option<&'static str>) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        let (sender, messages) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, sender) = (stream.expect("it is there"), sender.clone());
                thread::spawn(move || take(stream, status, &sender));
            }
        });
        Collector { address, messages }
    }

    fn settings(&self, request_share: f64, step_share: f64) -> ServerSettings {
        let endpoint = format!("http://{}", self.address).parse().expect("a collector's address");
        let traces = Some(TraceSettings { endpoint, request_share, step_share });
        ServerSettings { traces, ..ServerSettings::roomy() }
    }

    /// Drains a server, which sends all that is left, and reads it.
    fn spans(&self, mut server: TestServer) -> Vec<Span> {
        server.app.shutdown.begin();
        assert_eq!(server.outcome(), Outcome::Drained);
        let mut spans = Vec::new();
        for message in self.messages.try_iter() {
            for resource in message.resource_spans {
                let told_by = resource.resource.expect("who tells").attributes;
                assert_eq!(text(&told_by, "service.name"), "lnserve");
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        spans
    }
}

/// Answers the requests of a connection.
fn take(
    stream: TcpStream,
    status: Option<&'static str>,
    sender: &Sender<ExportTraceServiceRequest>,
) {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let mut writer = stream;
    loop {
        let (mut head, mut n_body) = (Vec::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(length) = line.strip_prefix("content-length: ") {
                n_body = length.parse().expect("a length");
            }
            head.push(line);
        }
        assert_eq!(head[0], "post /v1/traces http/1.1");
        assert!(head.contains(&"content-type: application/x-protobuf".to_owned()), "{head:?}");
        let mut body = vec![0; n_body];
        reader.read_exact(&mut body).expect("the whole message");
        let message = ExportTraceServiceRequest::decode(&body[..]).expect("a message of OTLP");
        // Whoever wanted it may be gone.
        let _ = sender.send(message);
        let Some(status) = status else {
            // Until the client has had enough.
            let _ = reader.read_line(&mut String::new());
            return;
        };
        let reply = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        writer.write_all(reply.as_bytes()).expect("the client reads");
    }
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> &'a AnyValue {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    let value = found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref());
    value.unwrap_or_else(|| panic!("no {key} in {attributes:?}"))
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    let AnyValue::StringValue(text) = value(attributes, key) else { panic!("{key} is a text") };
    text
}

fn number(span: &Span, key: &str) -> u64 {
    let AnyValue::IntValue(n) = value(&span.attributes, key) else { panic!("{key} is a number") };
    u64::try_from(*n).expect("a count")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn asked_by(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

pub(crate) fn question() -> Value {
    json!({ "prompt": "a", "max_tokens": 12, "ignore_eos": true, "temperature": 0 })
}

/// The steps that link to a span.
fn steps_of(spans: &[Span], request: &Span) -> BTreeSet<u64> {
    let links_to = |step: &&Span| {
        let is_it = |link: &&_| -> bool {
            let link: &opentelemetry_proto::tonic::trace::v1::span::Link = link;
            link.span_id == request.span_id && link.trace_id == request.trace_id
        };
        step.links.iter().filter(is_it).count() == 1
    };
    let steps = spans.iter().filter(|span| span.name == "step").filter(links_to);
    steps.map(|step| number(step, "lnserve.step")).collect()
}

#[test]
fn a_request_is_traced_from_its_caller_to_the_steps_that_served_it() {
    let collector = Collector::new(Some("200 OK"));
    let server = TestServer::start(collector.settings(0.0, 1.0));
    let client = server.client.with_header("traceparent", &asked_by("01"));
    let client = client.with_header("tracestate", "vendor=asks");
    let usage = client.post(COMPLETIONS, &with(&question(), json!({ "n": 2 }))).ok();
    let records = server.app.engine.steps_since(0);
    let spans = collector.spans(server);

    let request = spans.iter().find(|span| span.kind() == SpanKind::Server).expect("its span");
    assert_eq!(request.name, "POST /v1/completions");
    assert_eq!(
        (hex(&request.trace_id), hex(&request.parent_span_id)),
        (TRACE.into(), CALLER.into())
    );
    assert_eq!(request.trace_state, "vendor=asks");
    assert_eq!(number(request, "gen_ai.usage.output_tokens"), 24);
    let n_prompt = usage["usage"]["prompt_tokens"].as_u64().expect("a count");
    // Of each answer's prompt.
    assert_eq!(number(request, "gen_ai.usage.input_tokens"), 2 * n_prompt);
    assert_eq!(number(request, "http.response.status_code"), 200);
    assert_eq!(text(&request.attributes, "lnserve.outcome"), "length");

    let mut linked = BTreeSet::new();
    for choice in 0..2 {
        let part = |name: &str| {
            let mut same = spans
                .iter()
                .filter(|span| span.name == name && number(span, "lnserve.choice") == choice);
            let part = same.next().unwrap_or_else(|| panic!("no {name} of {choice}"));
            assert!(same.next().is_none(), "{name} of {choice} twice");
            assert_eq!(part.parent_span_id, request.span_id);
            assert_eq!(part.trace_id, request.trace_id);
            part
        };
        let (queue, prefill, decode) = (part("queue"), part("prefill"), part("decode"));
        let moments = [
            request.start_time_unix_nano,
            queue.start_time_unix_nano,
            queue.end_time_unix_nano,
            prefill.end_time_unix_nano,
            decode.end_time_unix_nano,
            request.end_time_unix_nano,
        ];
        assert!(moments.is_sorted(), "{moments:?}");
        assert_eq!(queue.end_time_unix_nano, prefill.start_time_unix_nano);
        assert_eq!(prefill.end_time_unix_nano, decode.start_time_unix_nano);
        assert_eq!(number(decode, "lnserve.n_generated"), 12);
        let first = number(decode, "lnserve.step.first");
        assert_eq!(number(prefill, "lnserve.step.last"), first);
        // A token a step.
        let steps: BTreeSet<u64> = (first..=number(decode, "lnserve.step.last")).collect();
        assert_eq!(steps.len(), 12);
        linked.extend(steps);
    }
    let told = steps_of(&spans, request);
    assert!(told.is_superset(&linked), "{told:?} lacks some of {linked:?}");
    for step in spans.iter().filter(|span| span.name == "step") {
        assert_ne!(step.trace_id, request.trace_id, "a step serves many, and is part of none");
        let took_ns = step.end_time_unix_nano - step.start_time_unix_nano;
        let record = &records[number(step, "lnserve.step") as usize];
        assert_eq!(u128::from(took_ns), record.took.as_nanos(), "{record:?}");
        let n_tokens = number(step, "lnserve.step.decode_tokens");
        assert_eq!(n_tokens, record.n_decode_tokens as u64, "{record:?}");
    }
}

/// By the clock on the wall.
fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later");
    u64::try_from(now.as_nanos()).expect("it is not much later")
}

#[test]
fn spans_are_as_long_as_what_they_tell_of_and_at_its_time() {
    const WAITED: Duration = Duration::from_millis(30);
    let collector = Collector::new(Some("200 OK"));
    let server = TestServer::start(collector.settings(1.0, 1.0));
    let began_ns = now_ns();
    let held = server.hold_engine();
    thread::scope(|scope| {
        scope.spawn(|| server.client.post(COMPLETIONS, &question()).ok());
        server.wait_until("it waits", |app| app.engine.n_live() == 2);
        // Every span that holds this is at least so long, however slow the machine is.
        thread::sleep(WAITED);
        drop(held);
    });
    let spans = collector.spans(server);
    let ended_ns = now_ns();
    // A moment by both clocks is read from one after the other: what lies between moves all spans
    // of a request to later, by less than the whole test takes.
    let latest_ns = ended_ns + (ended_ns - began_ns);
    for span in &spans {
        let (from, to) = (span.start_time_unix_nano, span.end_time_unix_nano);
        assert!(began_ns <= from && from <= to && to <= latest_ns, "{span:?}");
    }
    let named = |name: &str| {
        let mut same = spans.iter().filter(|span| span.name == name);
        same.next().unwrap_or_else(|| panic!("no {name} in {spans:?}"))
    };
    let took = |name: &str| {
        let span = named(name);
        Duration::from_nanos(span.end_time_unix_nano - span.start_time_unix_nano)
    };
    let whole = took("POST /v1/completions");
    assert!(whole >= WAITED, "{whole:?}");
    let parts: Duration = ["queue", "prefill", "decode"].map(took).iter().sum();
    assert!(parts <= whole, "{parts:?} of {whole:?}");
}

#[test]
fn who_asks_decides_whether_it_is_traced_and_else_the_operator() {
    let collector = Collector::new(Some("200 OK"));
    let server = TestServer::start(collector.settings(1.0, 0.0));
    let unwanted = server.client.with_header("traceparent", &asked_by("00"));
    unwanted.post(COMPLETIONS, &question()).ok();
    // What is no `traceparent` decides nothing.
    let broken = server.client.with_header("traceparent", "00-none-none-01");
    broken.post(CHAT, &json!({ "messages": [] }));
    assert_eq!(server.client.get("/health").status(), 200);
    let spans = collector.spans(server);
    let [request] = &spans[..] else { panic!("one span: {spans:?}") };
    assert_eq!(request.name, "POST /v1/chat/completions");
    assert_eq!(number(request, "http.response.status_code"), 400);
    assert!(request.parent_span_id.is_empty());
    assert_ne!(hex(&request.trace_id), TRACE);
    assert!(request.status.as_ref().is_none_or(|status| status.code == 0), "the caller's mistake");
}

#[test]
fn every_so_many_steps_are_traced() {
    let collector = Collector::new(Some("200 OK"));
    let server = TestServer::start(collector.settings(1.0, 0.25));
    let long = with(&question(), json!({ "max_tokens": 100 }));
    server.client.post(COMPLETIONS, &long).ok();
    let n_steps = server.app.engine.stats().n_steps;
    let spans = collector.spans(server);
    let steps = spans.iter().filter(|span| span.name == "step");
    let told: Vec<u64> = steps.map(|step| number(step, "lnserve.step")).collect();
    assert_eq!(told.len() as u64, n_steps / 4, "{told:?} of {n_steps}");
    let count = told.iter().fold(HashMap::new(), |mut count, step| {
        *count.entry(step).or_insert(0) += 1;
        count
    });
    assert!(count.values().all(|&n| n == 1), "{told:?}");
}

#[test]
fn what_a_collector_does_not_take_is_counted_and_costs_nobody_anything() {
    let metric = |server: &TestServer, name: &str| {
        let text = server.client.get("/metrics").text();
        let line = text.lines().find(|line| line.starts_with(name)).expect("it is there");
        line.rsplit(' ').next().expect("a value").parse::<u64>().expect("a count")
    };
    let collector = Collector::new(Some("400 Bad Request"));
    let server = TestServer::start(collector.settings(1.0, 0.0));
    server.client.post(COMPLETIONS, &question()).ok();
    server.wait_until("four spans are lost", |_| {
        metric(&server, "lnserve_trace_failed_spans_total ") == 4
    });
    assert_eq!(metric(&server, "lnserve_trace_sent_spans_total "), 0);
    assert_eq!(metric(&server, "lnserve_trace_dropped_spans_total "), 0);

    let silent = Collector::new(None);
    let server = TestServer::start(silent.settings(1.0, 1.0));
    server.client.post(COMPLETIONS, &question()).ok();
    silent.messages.recv().expect("it was told of something, and says nothing");
    for _ in 0..8 {
        server.client.post(COMPLETIONS, &question()).ok();
    }
    assert_eq!(metric(&server, "lnserve_trace_sent_spans_total "), 0);
}
