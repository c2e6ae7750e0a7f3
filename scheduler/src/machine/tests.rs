//! The protocol of [`Scheduler`]: what callers may rely on and what they may not do. Behaviour is
//! in `tests/scenarios`, everything at once in `tests/sim`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::{Emit, GroupLimits, Priorities, Terms};

const NOW: Moment = Moment(7);

fn scheduler(n_waiting_max: usize) -> Scheduler {
    Scheduler::new(Limits {
        n_slots: 4,
        n_waiting_max,
        n_tokens_per_step: 32,
        n_context_tokens: 256,
        page_tokens: 4,
        priorities: Priorities::single(),
        n_tenants: 1,
        latency: None,
        prefix_cache: None,
        host_tier: None,
        speculation: None,
        groups: vec![
            GroupLimits { n_pages: 256, window: None },
            GroupLimits { n_pages: 32, window: Some(9) },
        ],
    })
}

fn request(id: u64) -> Request {
    Request {
        id: RequestId(id),
        prompt: (0..6).map(TokenId).collect(),
        n_new_max: 200,
        stop_tokens: [].into(),
        scores_prompt: false,
        cache_salt: None,
        is_guided: false,
        terms: Terms::ordinary(),
    }
}

fn arrive(scheduler: &mut Scheduler, ids: std::ops::Range<u64>) {
    let mut effects = Vec::new();
    for id in ids {
        scheduler.apply(Event::Arrive(request(id)), NOW, &mut effects);
    }
    assert_eq!(effects, []);
}

fn complete(scheduler: &mut Scheduler, plan: &StepPlan, effects: &mut Vec<Effect>) {
    let token = |row: &Row| row.emit.samples().then_some(TokenId(1));
    let tokens = plan.rows.iter().map(token).collect();
    let result = StepResult { step: plan.step, tokens, took_us: 1 };
    scheduler.apply(Event::Complete(result), NOW, effects);
}

/// The message of the assertion that `act` breaks.
fn complaint(act: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(act)).expect_err("the scheduler should object");
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().expect("a message")).to_owned(),
    }
}

#[test]
fn steps_count_up_and_only_when_something_runs() {
    let mut scheduler = scheduler(4);
    assert_eq!(scheduler.plan(), None);
    arrive(&mut scheduler, 0..1);
    for step in 0..5 {
        let plan = scheduler.plan().expect("a request runs");
        assert_eq!(plan.step, StepId(step));
        complete(&mut scheduler, &plan, &mut Vec::new());
    }
}

#[test]
fn tokens_are_known_until_the_end() {
    let mut scheduler = scheduler(4);
    arrive(&mut scheduler, 0..2);
    let plan = scheduler.plan().expect("two requests wait");
    complete(&mut scheduler, &plan, &mut Vec::new());
    let prompt: Vec<TokenId> = (0..6).map(TokenId).collect();
    let tokens = scheduler.request_tokens(RequestId(1));
    assert_eq!(tokens, Some((&prompt[..], &[TokenId(1)][..])));
    scheduler.apply(Event::Cancel(RequestId(1)), NOW, &mut Vec::new());
    assert_eq!(scheduler.request_tokens(RequestId(1)), None);
}

#[test]
fn stats_count_what_happened() {
    let mut scheduler = scheduler(4);
    arrive(&mut scheduler, 0..6);
    for _ in 0..3 {
        let plan = scheduler.plan().expect("requests run");
        complete(&mut scheduler, &plan, &mut Vec::new());
    }
    scheduler.apply(Event::Cancel(RequestId(0)), NOW, &mut Vec::new());
    let mut refused = request(9);
    refused.prompt = [].into();
    scheduler.apply(Event::Arrive(refused), NOW, &mut Vec::new());
    let stats = scheduler.stats();
    assert_eq!((stats.n_running, stats.n_waiting), (3, 2));
    // Two pages each: eight positions.
    assert_eq!((stats.n_pages_used(), stats.n_pages()), (12, 288));
    let expected = Counters {
        n_arrived: 6,
        n_refused: 1,
        n_finished: 0,
        n_cancelled: 1,
        n_queue_timeouts: 0,
        n_deadlines_passed: 0,
        n_steps: 3,
        n_rows: 12,
        n_prompt_tokens: 24,
        n_cached_tokens: 0,
        n_host_tokens: 0,
        n_pages_out: 0,
        n_pages_in: 0,
        n_shared_tokens: 0,
        n_generated_tokens: 12,
        n_proposed_tokens: 0,
        n_accepted_tokens: 0,
        n_preemptions: 0,
        n_lost_tokens: 0,
    };
    assert_eq!(stats.counters, expected);
}

#[test]
fn a_step_planned_ahead_is_settled_with_what_the_one_before_sampled() {
    let mut scheduler = scheduler(4);
    arrive(&mut scheduler, 0..2);
    let first = scheduler.plan().expect("two requests wait");
    let mut second = scheduler.plan().expect("one step ahead");
    assert!(second.rows.iter().all(|row| row.start == 6 && row.n_tokens == 1));
    let tokens = vec![Some(TokenId(40)), Some(TokenId(41))];
    second.settle(&tokens);
    assert_eq!(second.tokens, [TokenId(40), TokenId(41)]);
    let result = StepResult { step: first.step, tokens, took_us: 1 };
    scheduler.apply(Event::Complete(result), NOW, &mut Vec::new());
    complete(&mut scheduler, &second, &mut Vec::new());
    let (_, generated) = scheduler.request_tokens(RequestId(1)).expect("it runs");
    assert_eq!(generated, [TokenId(41), TokenId(1)]);
    scheduler.check();
}

/// A decode step's vectors are those of the step before, and the queue's length is no matter.
#[test]
fn a_steady_step_grows_nothing() {
    let mut scheduler = scheduler(2000);
    arrive(&mut scheduler, 0..2000);
    let mut effects = Vec::with_capacity(16);
    let first = scheduler.plan().expect("requests wait");
    complete(&mut scheduler, &first, &mut effects);
    let addresses = |plan: &StepPlan| (plan.rows.as_ptr(), plan.tokens.as_ptr());
    let first_addresses = addresses(&first);
    scheduler.recycle(first);
    let generated = |scheduler: &Scheduler| {
        let (_, generated) = scheduler.request_tokens(RequestId(0)).expect("it runs");
        generated.as_ptr()
    };
    let generated_first = generated(&scheduler);
    for _ in 0..190 {
        let plan = scheduler.plan().expect("requests run");
        assert!(plan.rows.iter().all(|row| row.emit == Emit::Sample && row.n_tokens == 1));
        assert_eq!(addresses(&plan), first_addresses);
        effects.clear();
        complete(&mut scheduler, &plan, &mut effects);
        scheduler.recycle(plan);
        assert_eq!(generated(&scheduler), generated_first);
    }
    scheduler.check();
}

#[test]
fn breaches_of_protocol_are_named() {
    let planned = || {
        let mut scheduler = scheduler(4);
        arrive(&mut scheduler, 0..1);
        let plan = scheduler.plan().expect("a request waits");
        (scheduler, plan)
    };
    let result =
        |step, tokens| Event::Complete(StepResult { step: StepId(step), tokens, took_us: 1 });

    let (mut scheduler, _) = planned();
    scheduler.plan().expect("one step ahead");
    let message = complaint(|| drop(scheduler.plan()));
    assert!(message.contains("StepId(0) is not completed"), "{message}");

    let (mut scheduler, _) = planned();
    let never_planned = result(1, vec![Some(TokenId(1))]);
    let message = complaint(|| scheduler.apply(never_planned, NOW, &mut Vec::new()));
    assert!(message.contains("StepId(1) was not planned"), "{message}");

    let (mut scheduler, plan) = planned();
    complete(&mut scheduler, &plan, &mut Vec::new());
    let message = complaint(|| complete(&mut scheduler, &plan, &mut Vec::new()));
    assert!(message.contains("StepId(0) was not planned"), "{message}");

    let (mut scheduler, _) = planned();
    let message = complaint(|| scheduler.apply(result(0, vec![None]), NOW, &mut Vec::new()));
    assert!(message.contains("StepId(0), row 0"), "{message}");

    let (mut scheduler, _) = planned();
    let message = complaint(|| scheduler.apply(result(0, Vec::new()), NOW, &mut Vec::new()));
    assert!(message.contains("one a row"), "{message}");

    let (mut scheduler, _) = planned();
    let mut ahead = scheduler.plan().expect("one step ahead");
    let message = complaint(|| ahead.settle(&[None]));
    assert!(message.contains("follows one that samples"), "{message}");

    let (mut scheduler, _) = planned();
    let message = complaint(|| scheduler.apply(Event::Arrive(request(0)), NOW, &mut Vec::new()));
    assert!(message.contains("RequestId(0) arrives twice"), "{message}");
}
