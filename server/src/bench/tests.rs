//! Whole measurements of a server whose delays are known, in virtual time: every figure is known
//! beforehand.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use super::arrivals::{Arrivals, Pattern};
use super::clock::in_virtual_time;
use super::driver::Stop;
use super::fake::{Fake, Script};
use super::lengths::Lengths;
use super::protocol::Endpoint;
use super::report::Report;
use super::settings::{SearchSettings, SourceSettings};
use super::slo::Slos;
use super::workload::tests::plain;
use super::*;

/// One user, six requests of 20 tokens in and five out.
fn settings() -> Settings {
    Settings {
        url: "http://fake:1".parse().expect("a URL"),
        model: None,
        api_key: None,
        endpoints: vec![Endpoint::Chat],
        arrivals: Arrivals::Closed { n_users: 1 },
        n_requests: Some(6),
        duration: None,
        n_warmup: 0,
        n_in_flight_max: 1000,
        source: SourceSettings::Synthetic {
            n_in: Lengths::Fixed { n: 20 },
            n_out: Lengths::Fixed { n: 5 },
        },
        shape: plain(),
        temperature: 0.0,
        ends_naturally: false,
        slos: Slos::none(),
        search: None,
        n_checked: 0,
        n_repeats: 1,
        seed: 1,
        timeout: Duration::from_secs(60),
        lag_max: Duration::from_millis(10),
        described: Vec::new(),
    }
}

fn try_measure(settings: Settings, script: Script) -> (Result<Measured, BenchError>, Arc<Fake>) {
    in_virtual_time(|clock| async move {
        let (fake, dial) = Fake::start(script, &clock);
        let measured = measure(&settings, (dial, clock), &Stop::default(), &|_: Stage| {}).await;
        (measured, fake)
    })
}

fn measured(settings: Settings, script: Script) -> (Report, Arc<Fake>) {
    let (measured, fake) = try_measure(settings, script);
    (measured.expect("it can be measured").report, fake)
}

/// Within what the histogram keeps.
#[track_caller]
fn assert_near(seen: f64, expected: f64) {
    assert!((seen - expected).abs() <= 1e-3 * expected.abs(), "{seen}, not {expected}");
}

#[test]
fn a_closed_loop_measures_what_the_server_does() {
    let arrivals = Arrivals::Closed { n_users: 2 };
    let (report, fake) = measured(Settings { arrivals, ..settings() }, Script::plain());
    let run = &report.runs[0];
    let figures = &run.figures;
    assert_eq!((figures.n_done, figures.n_failed, figures.n_short), (6, 0, 0));
    for (spread, expected) in [
        (&figures.ttft_ms, 40.0),
        (&figures.tpot_ms, 10.0),
        (&figures.itl_ms, 10.0),
        (&figures.e2e_ms, 80.0),
        (&figures.n_in, 20.0),
        (&figures.n_out, 5.0),
    ] {
        for value in [spread.min, spread.mean, spread.p50, spread.p99, spread.p999, spread.max] {
            assert_near(value, expected);
        }
    }
    assert_eq!((figures.ttft_ms.n, figures.itl_ms.n), (6, 24));
    // Two users, three times 80 ms.
    assert_near(figures.duration_s, 0.24);
    assert_near(figures.output_tokens_per_s, 30.0 / 0.24);
    assert_near(figures.total_tokens_per_s, 150.0 / 0.24);
    assert_near(figures.requests_per_s, 25.0);
    assert_eq!((figures.send_lag_ms.max, run.invalid.len()), (0.0, 0));
    assert!(report.has_exact_prompts && figures.is_counted);
    let texts = fake.bodies.lock().iter().map(|body| body["messages"].to_string()).collect();
    let texts: std::collections::BTreeSet<String> = texts;
    assert_eq!(texts.len(), 6, "no prompt comes twice");
}

#[test]
fn every_protocol_is_measured_alike() {
    let endpoints = Endpoint::ALL.to_vec();
    let (report, _) = measured(Settings { endpoints, ..settings() }, Script::plain());
    assert_eq!(report.runs.len(), 5);
    for run in &report.runs {
        let figures = &run.figures;
        assert_eq!((figures.n_done, figures.n_output_tokens), (6, 30), "{:?}", run.endpoint);
        assert_near(figures.e2e_ms.mean, 80.0);
        assert_eq!(figures.ttft_ms.n, if run.endpoint.streams() { 6 } else { 0 });
        if run.endpoint.streams() {
            assert_near(figures.ttft_ms.mean, 40.0);
            assert_near(figures.tpot_ms.mean, 10.0);
        }
    }
    assert_eq!(report.row("E2E p50, ms"), ["80.00"; 5]);
    // A whole answer has no first token.
    assert_eq!(report.row("TTFT p50, ms"), ["40.00", "40.00", "40.00", "-", "-"]);
}

#[test]
fn a_server_that_falls_behind_is_charged_for_all_that_waits() {
    // One at a time takes 80 ms, and one comes every 50.
    let slow = |n_in_flight_max| Settings {
        arrivals: Arrivals::Open(Pattern::Constant { rate: 20.0 }),
        n_in_flight_max,
        ..settings()
    };
    let last_wait = 5.0 * (80.0 - 50.0) + 40.0;
    let (report, _) = measured(slow(1000), Script { n_slots: 1, ..Script::plain() });
    let figures = &report.runs[0].figures;
    assert_near(figures.ttft_ms.max, last_wait);
    assert_near(figures.ttft_uncorrected_ms.max, last_wait);
    let split = figures.split.as_ref().expect("the server tells");
    assert_near(split.queue_ms.max, 150.0);
    assert_near(split.prefill_ms.mean, 40.0);
    assert_eq!(split.network_ms.max, 0.0);
    assert_eq!(report.invalid(), [""; 0]);
    // Held back by the generator, the same wait is its own, and the run invalid.
    let (report, _) = measured(slow(1), Script::plain());
    let figures = &report.runs[0].figures;
    assert_near(figures.ttft_ms.max, last_wait);
    assert_near(figures.ttft_uncorrected_ms.max, 40.0);
    assert_near(figures.send_lag_ms.max, 150.0);
    assert!(report.invalid()[0].contains("requests were sent 150"), "{:?}", report.invalid());
}

#[test]
fn the_way_there_and_back_is_told_apart() {
    let network = Duration::from_millis(7);
    let (report, _) = measured(settings(), Script { network, ..Script::plain() });
    let figures = &report.runs[0].figures;
    assert_near(figures.ttft_ms.mean, 47.0);
    let split = figures.split.as_ref().expect("the server tells");
    assert_near(split.network_ms.mean, 7.0);
    assert_near(split.prefill_ms.mean, 40.0);
}

#[test]
fn refusals_are_counted_by_status_and_do_not_hide() {
    let script = Script { refuses_every: Some(3), ..Script::plain() };
    let slos = Slos { limits: vec!["ttft=50".parse().expect("a limit")], percentile: 90.0 };
    let (report, _) = measured(Settings { slos, ..settings() }, script);
    let figures = &report.runs[0].figures;
    assert_eq!((figures.n_done, figures.n_failed), (4, 2));
    let refused = &figures.failures["429"];
    assert_eq!((refused.n, &*refused.words), (2, "the queue is full"));
    let goodput = figures.goodput.as_ref().expect("there is a limit");
    assert_eq!((goodput.n_good, goodput.is_met), (4, false));
    let script = Script { refuses_every: Some(1), ..Script::plain() };
    let (none, _) = try_measure(settings(), script);
    let message = none.expect_err("all are refused").to_string();
    assert_eq!(message, "none of 6 requests was answered: 429: the queue is full");
}

#[test]
fn hanging_up_is_noticed_by_the_server_and_counted_apart() {
    let mut settings = settings();
    settings.shape.cancelled = 1.0;
    let (report, fake) = measured(settings, Script::plain());
    let figures = &report.runs[0].figures;
    assert_eq!((figures.n_done, figures.n_cancelled, figures.n_failed), (0, 6, 0));
    assert!((6..=18).contains(&figures.n_output_tokens), "{}", figures.n_output_tokens);
    assert!(fake.n_gone.load(Ordering::Relaxed) >= 5, "the last may not have been seen yet");
}

#[test]
fn an_answer_that_never_ends_has_failed() {
    let timeout = Duration::from_millis(55);
    let (none, _) = try_measure(Settings { timeout, ..settings() }, Script::plain());
    let message = none.expect_err("none ends in time").to_string();
    assert!(message.contains("timeout: no end after 0.055 s"), "{message}");
}

#[test]
fn answers_that_depend_on_the_load_are_found_out() {
    let loaded =
        || Settings { arrivals: Arrivals::Closed { n_users: 3 }, n_checked: 4, ..settings() };
    let (report, _) = measured(loaded(), Script::plain());
    assert_eq!(report.runs[0].answers.n_checked, 4);
    assert_eq!(report.n_differences(), 0);
    let (report, _) = measured(loaded(), Script { leaks: true, ..Script::plain() });
    assert!(report.n_differences() > 0);
    let difference = &report.runs[0].answers.differences[0];
    assert!(difference.alone.starts_with('0'), "alone there is nobody beside: {difference:?}");
}

#[test]
fn a_conversation_brings_all_that_was_said() {
    let mut settings = settings();
    settings.shape.n_turns = Lengths::Fixed { n: 3 };
    settings.shape.think_time = Duration::from_millis(500);
    settings.n_requests = Some(3);
    let (report, fake) = measured(settings, Script::plain());
    let bodies = fake.bodies.lock();
    let roles = |body: &Value| {
        let messages = body["messages"].as_array().expect("a list").iter();
        messages.map(|one| one["role"].as_str().expect("a role").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(roles(&bodies[0]), ["user"]);
    assert_eq!(roles(&bodies[2]), ["user", "assistant", "user", "assistant", "user"]);
    assert_eq!(bodies[1]["messages"][0], bodies[0]["messages"][0]);
    let said = format!(" {}", bodies[0]["seed"]).repeat(5);
    assert_eq!(bodies[1]["messages"][1]["content"], said);
    // Three answers of 80 ms and two pauses of 500.
    assert_near(report.runs[0].figures.duration_s, 1.24);
    assert_near(report.runs[0].figures.ttft_ms.max, 40.0);
}

#[test]
fn the_highest_rate_is_what_the_server_can_do() {
    // One at a time takes 80 ms: at 12.5 a second it just keeps up, above that the wait grows.
    let limits = vec!["ttft=60".parse().expect("a limit")];
    let settings = Settings {
        arrivals: Arrivals::Open(Pattern::Constant { rate: 2.0 }),
        n_requests: Some(100),
        slos: Slos { limits, percentile: 99.0 },
        search: Some(SearchSettings { from: 2.0, precision: 0.05 }),
        ..settings()
    };
    let (report, _) = measured(settings, Script { n_slots: 1, ..Script::plain() });
    let found = report.search.expect("it was looked for");
    let (rate, too_high) = (found.rate.expect("some"), found.too_high.expect("some"));
    assert!(rate <= 12.6 && 12.5 <= too_high, "{rate} to {too_high}");
    assert!(too_high - rate <= 0.05 * rate);
}

#[test]
fn a_search_learns_nothing_of_a_generator_that_lags() {
    // The server takes 80 ms and keeps its limit at any rate; the generator has one of two requests
    // under way, so that above 25 a second it is late itself.
    let limits = vec!["ttft=1000000".parse().expect("a limit")];
    let settings = Settings {
        arrivals: Arrivals::Open(Pattern::Constant { rate: 10.0 }),
        n_requests: Some(100),
        n_in_flight_max: 2,
        slos: Slos { limits, percentile: 99.0 },
        search: Some(SearchSettings { from: 10.0, precision: 0.05 }),
        ..settings()
    };
    let (report, _) = measured(settings, Script::plain());
    let found = report.search.as_ref().expect("it was looked for");
    assert_eq!((found.rate, found.too_high), (Some(20.0), None), "of 40 nothing was learned");
    assert_eq!(found.unmeasured, Some(40.0));
    assert_eq!(report.runs.len(), 4, "10, 20, and 40 twice");
    assert_eq!(report.invalid().len(), 2, "{:?}", report.invalid());
}

#[test]
fn a_duration_ends_the_sending_and_not_what_runs() {
    let settings = Settings {
        arrivals: Arrivals::Open(Pattern::Constant { rate: 10.0 }),
        n_requests: None,
        duration: Some(Duration::from_secs(2)),
        n_warmup: 3,
        n_repeats: 2,
        ..settings()
    };
    let (report, fake) = measured(settings, Script::plain());
    for run in &report.runs {
        assert_eq!((run.figures.n_done, run.figures.n_requests), (20, 20));
        assert_near(run.figures.duration_s, 1.98);
    }
    assert_eq!(fake.bodies.lock().len(), 2 * (3 + 20), "warm-ups are sent, and do not count");
    let interval = &report.intervals[0].figures[1];
    assert_eq!(interval.0, "output tokens/s");
    assert_near(interval.1.mean, 100.0 / 1.98);
    assert!(interval.1.half_width.expect("two repeats") < 1e-9);
}

#[test]
fn without_a_tokenizer_prompts_are_nearly_as_long() {
    let n_in = Lengths::Fixed { n: 300 };
    let source = SourceSettings::Synthetic { n_in, n_out: Lengths::Fixed { n: 5 } };
    let script = Script { has_tokenizer: false, ..Script::plain() };
    let (report, _) = measured(Settings { source, ..settings() }, script);
    assert!(!report.has_exact_prompts);
    assert_near(report.runs[0].figures.n_in.mean, 300.0);
}

#[test]
fn who_is_not_there_is_named_with_the_remedy() {
    let model = Some("gone".to_owned());
    let (none, _) = try_measure(Settings { model, ..settings() }, Script::plain());
    let message = none.expect_err("no such model").to_string();
    let expected = "the server has no model \"gone\"; it has fake, other: choose one with --model";
    assert_eq!(message, expected);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime starts");
    // Nobody listens there, and nobody takes it by chance.
    let address = "127.0.0.1:1";
    let url = format!("http://{address}").parse().expect("a URL");
    let settings = Settings { url, ..settings() };
    let none = runtime.block_on(async {
        let real = (client::Dial::Tcp, clock::Clock::real());
        measure(&settings, real, &Stop::default(), &|_: Stage| {}).await
    });
    let message = none.expect_err("nobody listens").to_string();
    assert!(message.starts_with(&format!("nobody answers at {address}: ")), "{message}");
    assert!(message.ends_with("start the server, or correct --url"), "{message}");
}

#[test]
fn what_became_worse_is_told_from_what_is_chance() {
    let with_gap = |ms| {
        let script = Script { gap: Duration::from_millis(ms), ..Script::plain() };
        measured(Settings { n_repeats: 3, ..settings() }, script).0
    };
    let (before, after) = (with_gap(10), with_gap(12));
    let comparison = compare::compare(&before, &after);
    assert_eq!(comparison.warnings, [""; 0]);
    let row = |name: &str| {
        let row = comparison.rows.iter().find(|row| row.name == name);
        row.unwrap_or_else(|| panic!("no {name}"))
    };
    let tpot = row("chat, TPOT mean, ms");
    assert_near(tpot.worse_percent, 20.0);
    assert_eq!(tpot.is_certain, Some(true));
    // 80 ms became 88.
    let rate = row("chat, output tokens/s");
    assert_near(rate.change_percent, -100.0 / 11.0);
    assert_near(rate.worse_percent, 100.0 / 11.0);
    assert_eq!(row("chat, TTFT mean, ms").is_certain, Some(false));
    assert_near(comparison.worst().expect("something is worse").worse_percent, 20.0);
    let same = compare::compare(&before, &before);
    assert_eq!(same.worst(), None, "nothing differs by more than chance");
    let mut other = after.clone();
    other.settings.push(("seed".into(), "2".into()));
    other.runs[1].invalid.push("it lagged".into());
    let warnings = compare::compare(&other, &after).warnings;
    let expected = ["the older is invalid: run 2: it lagged", "seed: 2 before, not said after"];
    assert_eq!(warnings, expected);
}
