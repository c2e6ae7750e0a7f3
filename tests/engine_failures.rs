//! A rank that panics, fails or hangs ends the engine with its name and the step; every request is
//! told exactly once, and later ones are refused with the cause.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use engine::rank::{RankCommand, RankReply, RowOutput, StepOutput};
use engine::{
    EndReason, Engine, EngineInfo, Output, ReaderGone, Request, SamplingParams, SubmitError, Terms,
    Ticket, TokenId,
};
use parallel::{PoolConfig, RankPool, RankWorker, Seat, World};
use scheduler::{GroupLimits, Limits, Priorities, SlotIdx, StepPlan};

const VOCAB_SIZE: usize = 100;

/// Nothing takes longer that comes at all, on any machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a slow rank takes for a step at least.
const SLOW: Duration = Duration::from_millis(2);

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// Rank 1 panics at its fifth command.
    Panic,
    /// Rank 1 returns an error at its fifth command.
    Fail,
    /// Rank 1 works at every step for [`SLOW`].
    Slow,
    /// Rank 0 never answers its first command. None is before it that would have to be in time, and
    /// of ranks that are equally far the first is named, so it does not matter how far rank 1 is.
    Hang,
}

type Gate = Arc<RwLock<()>>;

/// A model that counts: the token after `t` is `t + 1`.
struct Counting {
    seat: Seat,
    fault: Fault,
    /// A step waits while the test holds it for writing: nothing ends before the test says so.
    gate: Gate,
    n_commands: usize,
    /// What each slot drew last, as devices keep it.
    last: HashMap<SlotIdx, u32>,
    /// The step that was submitted and has not landed.
    behind: Option<StepPlan>,
}

#[derive(Debug, thiserror::Error)]
#[error("the planted failure")]
struct Planted;

impl RankWorker for Counting {
    type Command = RankCommand;
    type Reply = RankReply;
    type Error = Planted;

    fn handle(&mut self, command: RankCommand) -> Result<RankReply, Planted> {
        self.n_commands += 1;
        match (self.fault, self.seat.rank.idx(), self.n_commands) {
            (Fault::Panic, 1, 5) => panic!("the planted panic"),
            (Fault::Fail, 1, 5) => return Err(Planted),
            (Fault::Hang, 0, 1) => loop {
                std::thread::park();
            },
            _ => {}
        }
        let output = match command {
            RankCommand::Step(input) => {
                assert!(self.behind.is_none(), "a step that was submitted has not landed");
                Some(self.step(&input.plan, false)?)
            }
            RankCommand::Submit(input) => self
                .behind
                .replace(input.plan.clone())
                .map(|plan| self.step(&plan, true))
                .transpose()?,
            RankCommand::Land => {
                let plan = self.behind.take().expect("a step was submitted");
                Some(self.step(&plan, true)?)
            }
            RankCommand::Probe(_) => return Err(Planted),
        };
        Ok(RankReply::Stepped(output.filter(|_| self.seat.rank.idx() == 0)))
    }
}

impl Counting {
    /// A row that follows another takes its token from its slot where steps are submitted: the
    /// plan does not have it then.
    fn step(&mut self, plan: &StepPlan, is_submitted: bool) -> Result<StepOutput, Planted> {
        drop(self.gate.read());
        let began = Instant::now();
        while matches!(self.fault, Fault::Slow)
            && self.seat.rank.idx() == 1
            && began.elapsed() < SLOW
        {
            std::thread::yield_now();
        }
        // As the model does: no rank gets past a step without the others.
        self.seat.communicator.all_reduce_sum(&mut [0.0]).map_err(|_| Planted)?;
        let rows = plan.rows.iter().map(|row| {
            let last = match row.follows {
                Some(_) if is_submitted => self.last[&row.slot],
                _ => plan.row_tokens(row).last().expect("a row has tokens").0,
            };
            let next = (last + 1) % VOCAB_SIZE as u32;
            self.last.insert(row.slot, next);
            let token = row.emit.samples().then_some(TokenId(next));
            RowOutput { token, ..RowOutput::default() }
        });
        Ok(StepOutput { rows: rows.collect() })
    }
}

/// How steps follow each other: every rule holds for all ways.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    OneAfterAnother,
    /// The next is planned while one runs.
    Planned,
    /// And submitted.
    Submitted,
}

const WAYS: [Way; 3] = [Way::OneAfterAnother, Way::Planned, Way::Submitted];

fn engine(fault: Fault, way: Way) -> Engine {
    gated(fault, way, Gate::default())
}

fn gated(fault: Fault, way: Way, gate: Gate) -> Engine {
    let config = PoolConfig {
        world: World::new(2),
        n_floats_max: 1,
        build_deadline: PATIENCE,
        deadline: match fault {
            Fault::Hang => Duration::from_millis(50),
            _ => PATIENCE,
        },
    };
    let build = move |seat| {
        let (gate, last) = (Arc::clone(&gate), HashMap::new());
        Ok::<_, Planted>(Counting { seat, fault, gate, n_commands: 0, last, behind: None })
    };
    let pool = RankPool::spawn(config, build).expect("the ranks start");
    let limits = Limits {
        n_slots: 2,
        n_waiting_max: 4,
        n_tokens_per_step: 16,
        n_context_tokens: 64,
        page_tokens: 16,
        priorities: Priorities::single(),
        n_tenants: 1,
        latency: None,
        prefix_cache: None,
        host_tier: None,
        speculation: None,
        groups: vec![GroupLimits { n_pages: 8, window: None }],
    };
    let spec = Arc::new(weights::presets::preset("tiny").expect("a preset"));
    let info = EngineInfo {
        spec,
        groups: Vec::new(),
        device: engine::DeviceKind::Cpu,
        n_context_tokens: 64,
        vocab_size: VOCAB_SIZE,
        n_slots: 2,
        n_waiting_max: 4,
        n_tokens_per_step: 16,
        page_tokens: 16,
        n_ranks: 2,
        overlaps_steps: way != Way::OneAfterAnother,
        launches_ahead: way == Way::Submitted,
        policy: engine::Policy::plain(),
        page_bytes: vec![1],
        host_kv_bytes: 0,
    };
    Engine::start(pool, limits, info)
}

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
