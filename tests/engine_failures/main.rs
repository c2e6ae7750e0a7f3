//! A rank that panics, fails or hangs ends the engine with its name and the step; every request is
//! told exactly once, and later ones are refused with the cause. One that is slow is told as such.

mod counting;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use engine::{
    EndReason, Engine, Output, ReaderGone, Request, SamplingParams, SubmitError, Terms, Ticket,
    TokenId,
};

use counting::{Fault, Gate, PATIENCE, SLOW, WAYS, Way, engine, gated};

fn request(first: u32, n_new_max: usize) -> Request {
    Request {
        prompt: vec![TokenId(first)].into(),
        n_new_max,
        stop_tokens: Vec::new().into(),
        sampling: SamplingParams::greedy(),
        n_logprobs: None,
        n_prompt_logprobs: None,
        hashes_logits: false,
        cache_salt: None,
        terms: Terms::ordinary(),
    }
}

fn submit(engine: &Engine, request: Request) -> Result<(Ticket, Receiver<Output>), SubmitError> {
    let (sender, receiver) = channel();
    let deliver = Box::new(move |output| sender.send(output).map_err(|_| ReaderGone));
    engine.handle().submit(request, deliver).map(|ticket| (ticket, receiver))
}

/// Tokens, then the one end; anything after the end is a failure.
fn drain(receiver: &Receiver<Output>) -> (Vec<u32>, EndReason) {
    let mut tokens = Vec::new();
    loop {
        match receiver.recv_timeout(PATIENCE).expect("a request ends") {
            Output::Token { token, .. } => tokens.push(token.0),
            Output::Admitted { n_cached } => assert_eq!(n_cached, 0),
            Output::PromptScores(_) => panic!("nobody asked for scores"),
            Output::Finish(finish) => {
                assert_eq!(finish.n_generated, tokens.len());
                assert!(receiver.try_recv().is_err(), "something came after the end");
                return (tokens, finish.reason);
            }
        }
    }
}

#[test]
fn a_failing_rank_ends_every_request_once_and_names_itself() {
    for way in WAYS {
        for (fault, who, what) in [
            (Fault::Panic, "rank 1, command 4", "the planted panic"),
            (Fault::Fail, "rank 1, command 4", "the planted failure"),
            (Fault::Hang, "rank 0, command 0", "50ms"),
        ] {
            let gate = Gate::default();
            let engine = gated(fault, way, Arc::clone(&gate));
            let held = gate.write().expect("nobody panicked");
            let submitted: Vec<_> =
                (0..5).map_while(|idx| submit(&engine, request(idx * 10, 50)).ok()).collect();
            drop(held);
            // A rank that hangs may be noticed before all are submitted; the gate keeps off the
            // others.
            let is_hang = matches!(fault, Fault::Hang);
            assert!(submitted.len() == 5 || is_hang && !submitted.is_empty(), "{fault:?}");
            for (_ticket, receiver) in &submitted {
                assert_eq!(drain(receiver).1, EndReason::EngineFailed, "{fault:?}");
            }
            let Err(SubmitError::EngineFailed { cause }) = submit(&engine, request(1, 1)) else {
                panic!("{fault:?}: a failed engine took a request");
            };
            assert!(cause.contains(who) && cause.contains(what), "{fault:?}: {cause}");
            assert_eq!(engine.handle().n_live(), 0);
        }
    }
}

#[test]
fn a_slow_rank_is_told_by_the_steps_and_its_peer_waits() {
    for way in WAYS {
        let engine = engine(Fault::Slow, way);
        let (_ticket, receiver) = submit(&engine, request(0, 60)).expect("it is taken");
        assert_eq!(drain(&receiver).1, EndReason::Length);
        let handle = engine.handle();
        drop(engine);
        let steps = handle.steps_since(0);
        let busy = |idx: usize| {
            steps
                .iter()
                .map(|step| step.ranks[idx].served - step.ranks[idx].waited)
                .sum::<Duration>()
        };
        let waited: Duration = steps.iter().map(|step| step.ranks[0].waited).sum();
        let stats = handle.stats();
        assert_eq!(steps.len() as u64, stats.n_steps, "{way:?}");
        assert!(busy(1) >= SLOW * steps.len() as u32, "{way:?}: {:?}", busy(1));
        // Of sixty steps its peer can't have been held up at all of them.
        assert!(waited >= SLOW, "{way:?}: {waited:?}");
        let skews = steps.iter().map(|step| {
            let [first, second] = [0, 1].map(|idx| step.ranks[idx].served - step.ranks[idx].waited);
            first.abs_diff(second)
        });
        assert_eq!(stats.rank_skew, skews.sum::<Duration>(), "{way:?}");
        let told = &stats.ranks[1];
        assert_eq!(told.served - told.waited, busy(1), "{way:?}");
    }
}

#[test]
fn a_full_queue_refuses_and_then_recovers() {
    for way in WAYS {
        let gate = Gate::default();
        let engine = gated(Fault::None, way, Arc::clone(&gate));
        let held = gate.write().expect("nobody panicked");
        // Two slots and four places to wait, and nobody ends.
        let submitted: Vec<_> = (0..6)
            .map(|_| submit(&engine, request(0, 60)).expect("there is room for six"))
            .collect();
        let refused = submit(&engine, request(0, 1)).map(|_| ()).err();
        assert_eq!(refused, Some(SubmitError::QueueFull { n_max: 6 }));
        drop(held);
        for (_ticket, receiver) in &submitted {
            let (tokens, reason) = drain(receiver);
            assert_eq!((tokens, reason), ((1..=60).collect(), EndReason::Length));
        }
        let (_ticket, receiver) = submit(&engine, request(7, 3)).expect("there is room again");
        assert_eq!(drain(&receiver).0, [8, 9, 10]);
    }
}

#[test]
fn a_dropped_ticket_cancels() {
    for way in WAYS {
        let gate = Gate::default();
        let engine = gated(Fault::None, way, Arc::clone(&gate));
        let held = gate.write().expect("nobody panicked");
        let (ticket, receiver) = submit(&engine, request(0, 60)).expect("it is taken");
        drop(ticket);
        drop(held);
        let (tokens, reason) = drain(&receiver);
        assert_eq!(reason, EndReason::Cancelled);
        // The step that was under way may have said one.
        assert!(tokens.len() <= 1, "{tokens:?}");
        assert_eq!(engine.handle().stats().n_pages_used, 0);
    }
}

#[test]
fn a_dropped_reader_cancels() {
    for way in WAYS {
        let gate = Gate::default();
        let engine = gated(Fault::None, way, Arc::clone(&gate));
        let held = gate.write().expect("nobody panicked");
        let (_ticket, gone) = submit(&engine, request(0, 60)).expect("it is taken");
        let (_kept, receiver) = submit(&engine, request(0, 2)).expect("it is taken");
        drop(gone);
        drop(held);
        assert_eq!(drain(&receiver).0, [1, 2]);
        let deadline = Instant::now() + PATIENCE;
        while engine.handle().n_live() > 0 {
            assert!(Instant::now() < deadline, "a request without a reader goes on");
            std::thread::yield_now();
        }
        let stats = engine.handle().stats();
        assert_eq!(stats.n_pages_used, 0);
        // Two for the reader that stayed, one that nobody took.
        assert_eq!(stats.n_generated_tokens, 3);
    }
}

/// The gate opens when their time has passed, so nobody waits for a clock but the test.
#[test]
fn who_is_not_wanted_any_more_ends_and_its_neighbours_do_not() {
    let soon = Duration::from_millis(1);
    let timeout = Terms { timeout: Some(soon), ..Terms::ordinary() };
    let queue_timeout = Terms { queue_timeout: Some(soon), ..Terms::ordinary() };
    for way in WAYS {
        for (n_before, terms, reason) in [
            (2, queue_timeout, EndReason::QueueTimeout),
            (2, timeout, EndReason::DeadlinePassed),
            // It may get a slot, and a token from the step that was under way.
            (1, timeout, EndReason::DeadlinePassed),
        ] {
            let gate = Gate::default();
            let engine = gated(Fault::None, way, Arc::clone(&gate));
            let held = gate.write().expect("nobody panicked");
            let before: Vec<_> = (0..n_before)
                .map(|_| submit(&engine, request(0, 60)).expect("there is room"))
                .collect();
            let late = Request { terms, ..request(0, 60) };
            let (_ticket, receiver) = submit(&engine, late).expect("there is room");
            let submitted = Instant::now();
            while submitted.elapsed() <= soon {
                std::thread::yield_now();
            }
            drop(held);
            let (tokens, ended) = drain(&receiver);
            assert_eq!(ended, reason);
            assert!(tokens.len() <= 2 - n_before, "{tokens:?}");
            for (_ticket, receiver) in &before {
                assert_eq!(drain(receiver), ((1..=60).collect(), EndReason::Length));
            }
        }
    }
}

/// What a row in flight is for is told once: a stop token ends its request although the ranks
/// already run a row after it.
#[test]
fn a_stop_token_ends_an_answer_although_the_next_row_runs() {
    for way in WAYS {
        let engine = engine(Fault::None, way);
        let stopping = Request { stop_tokens: vec![TokenId(8)].into(), ..request(5, 60) };
        let (_ticket, stops) = submit(&engine, stopping).expect("it is taken");
        let (_kept, goes_on) = submit(&engine, request(20, 30)).expect("it is taken");
        assert_eq!(drain(&stops), (vec![6, 7, 8], EndReason::Stop(TokenId(8))));
        assert_eq!(drain(&goes_on), ((21..=50).collect(), EndReason::Length));
        let stats = engine.handle().stats();
        assert_eq!((stats.n_generated_tokens, stats.n_pages_used), (33, 0));
    }
}

#[test]
fn shutting_down_ends_what_runs_and_draining_refuses_what_comes() {
    for way in WAYS {
        let engine = engine(Fault::None, way);
        let (_ticket, receiver) = submit(&engine, request(0, 60)).expect("it is taken");
        engine.handle().drain();
        assert_eq!(
            submit(&engine, request(1, 1)).map(|_| ()).err(),
            Some(SubmitError::ShuttingDown)
        );
        let (tokens, reason) = drain(&receiver);
        assert_eq!((tokens.len(), reason), (60, EndReason::Length));
        engine.shutdown();
    }
}

#[test]
fn what_a_request_breaks_is_named() {
    let engine = engine(Fault::None, Way::OneAfterAnother);
    let long = Request { prompt: vec![TokenId(1); 64].into(), ..request(0, 1) };
    let foreign = request(100, 1);
    let hot = Request {
        sampling: SamplingParams { temperature: f32::NAN, ..SamplingParams::greedy() },
        ..request(0, 1)
    };
    let empty = Request { prompt: Vec::new().into(), ..request(0, 1) };
    for (request, words) in [
        (long, "64 tokens"),
        (foreign, "token id 100"),
        (hot, "temperature is NaN"),
        (empty, "empty"),
        (Request { n_logprobs: Some(21), ..request(0, 1) }, "21 log-probabilities"),
    ] {
        let refused = submit(&engine, request).map(|_| ()).expect_err("it is invalid").to_string();
        assert!(refused.contains(words), "{refused}");
    }
}
