//! `lnserve bench` against a real server. What it measures depends on the machine; that its counts
//! are the server's, that its parts add up and that its answers hold does not.

use std::time::Duration;

use harness::serving::{ServerSettings, TestServer};
use server::bench::arrivals::{Arrivals, Pattern};
use server::bench::client::Dial;
use server::bench::clock::Clock;
use server::bench::driver::Stop;
use server::bench::lengths::Lengths;
use server::bench::protocol::Endpoint;
use server::bench::report::{Report, SCHEMA};
use server::bench::settings::SourceSettings;
use server::bench::slo::Slos;
use server::bench::workload::Shape;
use server::bench::{Measured, Settings, html, measure};

/// Three users, nine requests of 40 tokens in and 6 out.
fn settings(server: &TestServer) -> Settings {
    Settings {
        url: format!("http://{}", server.client.address()).parse().expect("a URL"),
        model: None,
        api_key: None,
        endpoints: vec![Endpoint::Chat],
        arrivals: Arrivals::Closed { n_users: 3 },
        n_requests: Some(9),
        duration: None,
        n_warmup: 1,
        n_in_flight_max: 100,
        source: SourceSettings::Synthetic {
            n_in: Lengths::Fixed { n: 40 },
            n_out: Lengths::Fixed { n: 6 },
        },
        shape: Shape {
            n_turns: Lengths::Fixed { n: 1 },
            think_time: Duration::ZERO,
            thinking: None,
            cancelled: 0.0,
            n_prefix: 0,
            n_prefixes: 1,
        },
        temperature: 0.0,
        ends_naturally: false,
        slos: Slos::none(),
        search: None,
        n_checked: 3,
        n_repeats: 1,
        seed: 5,
        timeout: Duration::from_secs(600),
        lag_max: Duration::from_secs(600),
        described: Vec::new(),
    }
}

fn measured(settings: &Settings) -> Measured {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let real = (Dial::Tcp, Clock::real());
    let measuring = async { measure(settings, real, &Stop::default(), &|_| {}).await };
    runtime.block_on(measuring).expect("it can be measured")
}

#[test]
fn every_protocol_is_counted_split_and_answered_alike() {
    let server = TestServer::start(ServerSettings::roomy());
    let settings = Settings { endpoints: Endpoint::ALL.to_vec(), ..settings(&server) };
    let Measured { report, samples } = measured(&settings);
    assert!(report.has_exact_prompts, "the server counts tokens");
    for (run, samples) in report.runs.iter().zip(&samples) {
        let (endpoint, figures) = (run.endpoint, &run.figures);
        assert_eq!(
            (figures.n_done, figures.n_failed),
            (9, 0),
            "{endpoint:?}: {:?}",
            figures.failures
        );
        assert!(figures.is_counted, "{endpoint:?}");
        assert_eq!(figures.n_prompt_tokens, 9 * 40, "{endpoint:?}: prompts are as long as asked");
        assert_eq!((figures.n_output_tokens, figures.n_short), (9 * 6, 0), "{endpoint:?}");
        assert_eq!(run.answers.n_checked, 3);
        assert_eq!(run.answers.differences, [], "{endpoint:?}");
        if !endpoint.streams() {
            assert_eq!((figures.ttft_ms.n, &figures.split), (0, &None));
            continue;
        }
        let split = figures.split.as_ref().expect("the server tells of its waits");
        assert_eq!(split.n, 9, "{endpoint:?}: of every request");
        for sample in samples {
            let waits = sample.waits.expect("told");
            let first = sample.first_event.expect("it streams") - sample.began;
            let told = waits.prepare + waits.queue + waits.prefill;
            assert!(waits.prefill > Duration::ZERO, "{endpoint:?}: {waits:?}");
            assert!(
                told <= first,
                "{endpoint:?}: the server waited {told:?}, the client {first:?}"
            );
        }
    }
    server.expect_idle();
}

#[test]
fn hanging_up_under_load_leaves_nothing_behind() {
    let server = TestServer::start(ServerSettings::roomy());
    let mut settings = settings(&server);
    settings.arrivals = Arrivals::Open(Pattern::Poisson { rate: 1000.0 });
    settings.n_requests = Some(24);
    settings.shape.cancelled = 0.5;
    settings.shape.thinking = Some(0.5);
    let Measured { report, .. } = measured(&settings);
    let figures = &report.runs[0].figures;
    assert_eq!((figures.n_requests, figures.n_failed), (24, 0), "{:?}", figures.failures);
    assert!((1..24).contains(&figures.n_cancelled), "{}", figures.n_cancelled);
    assert_eq!(report.n_differences(), 0);
    server.expect_idle();
}

#[test]
fn turns_and_shared_beginnings_are_found_in_the_cache() {
    let server = TestServer::start(ServerSettings::roomy());
    let mut settings = settings(&server);
    settings.arrivals = Arrivals::Closed { n_users: 1 };
    settings.shape.n_turns = Lengths::Fixed { n: 3 };
    settings.n_warmup = 0;
    settings.n_checked = 0;
    let Measured { samples, .. } = measured(&settings);
    for sample in &samples[0] {
        let n_cached = sample.n_cached.expect("the server says");
        // A page is the template's own, which all conversations begin with.
        assert_eq!(n_cached > 16, sample.turn > 0, "turn {}: {n_cached}", sample.turn);
    }
    settings.shape.n_turns = Lengths::Fixed { n: 1 };
    settings.shape.n_prefix = 60;
    settings.source = SourceSettings::Synthetic {
        n_in: Lengths::Fixed { n: 100 },
        n_out: Lengths::Fixed { n: 6 },
    };
    settings.seed = 6;
    let Measured { samples, .. } = measured(&settings);
    let n_cached: Vec<usize> = samples[0].iter().filter_map(|sample| sample.n_cached).collect();
    assert!(n_cached[0] <= 16, "{n_cached:?}");
    assert_eq!(n_cached[1..], [48; 8], "three pages of 16: the template's end is behind them");
}

#[test]
fn what_is_written_is_read_again() {
    let server = TestServer::start(ServerSettings::roomy());
    let settings = Settings { n_repeats: 2, n_checked: 0, ..settings(&server) };
    let Measured { report, samples } = measured(&settings);
    let path = std::env::temp_dir().join(format!("lnserve-bench-{}.json", std::process::id()));
    let text = serde_json::to_string(&report).expect("it is JSON");
    std::fs::write(&path, &text).expect("a file can be written");
    let read = Report::read(&path).expect("it is what was written");
    assert_eq!(read.runs.len(), 2);
    for (written, read) in report.runs.iter().zip(&read.runs) {
        let (one, other) = (&written.figures, &read.figures);
        assert_eq!((one.n_done, one.n_output_tokens), (other.n_done, other.n_output_tokens));
        for (one, other) in [(&one.ttft_ms, &other.ttft_ms), (&one.e2e_ms, &other.e2e_ms)] {
            // A number in decimal may differ in its last bit.
            assert!((one.mean / other.mean - 1.0).abs() < 1e-12 && one.n == other.n);
        }
    }
    std::fs::write(&path, text.replace(SCHEMA, "else")).expect("a file can be written");
    let message = Report::read(&path).expect_err("something else").to_string();
    std::fs::remove_file(&path).expect("it is there");
    assert!(message.contains("it is not what `lnserve bench --json` writes"), "{message}");
    let page = html::page(&report);
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("NaN"));
    assert!(page.contains("prefers-color-scheme:dark"));
    let csv = server::bench::csv::of(&report, &samples);
    assert_eq!(csv.lines().count(), 1 + 18);
    let n_columns = |line: &str| line.split(',').count();
    assert!(csv.lines().all(|line| n_columns(line) == 19), "{csv}");
}

#[test]
fn timing_is_told_to_those_who_ask_and_to_nobody_else() {
    let server = TestServer::start(ServerSettings::roomy());
    let body = serde_json::json!({ "model": "demo", "prompt": "1 + 1", "max_tokens": 2 });
    let path = crate::COMPLETIONS;
    let silent = server.client.post(path, &body);
    assert_eq!(silent.head.header("server-timing"), None);
    let asking = server.client.with_header("X-Server-Timing", "1");
    let told = asking.post(path, &body);
    let timing = told.head.header("server-timing").expect("it was asked for").to_owned();
    let names: Vec<&str> =
        timing.split(", ").filter_map(|metric| Some(metric.split_once(";dur=")?.0)).collect();
    assert_eq!(names, ["prepare", "queue", "prefill"], "{timing}");
    let refused = asking.post(path, &serde_json::json!({ "prompt": 1.5 }));
    assert_eq!(refused.head.header("server-timing"), None, "there was no token");
}
