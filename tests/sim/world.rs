//! One simulated life of a scheduler: random limits, random requests, random moments; after every
//! event each rule that callers rely on is checked against a model of what should be.
//!
//! A message that begins with "wrong" says that a rule broke, one with "stuck" that nothing moves;
//! any other is the scheduler's own assertion.

mod bounds;
mod checks;
mod faults;
mod time;
mod turns;

use std::collections::BTreeMap;

use scheduler::{
    Effect, Event, FinishReason, Limits, Moment, Refusal, Request, RequestId, Row, Scheduler,
    StepPlan, StepResult, TokenId,
};

use crate::draw;
use crate::life::{Act, Kind};
use crate::model::{Known, Rank};
use crate::random::Random;
use crate::sights::Sights;
use bounds::run_alone;
use turns::Turns;

/// Turns for which a guided request may wait for what may follow its last token.
const N_HELD_MAX: usize = 3;

/// A scheduler, a rank, and what should be true of them.
pub(crate) struct World {
    random: Random,
    limits: Limits,
    scheduler: Scheduler,
    rank: Rank,
    /// Requests taken and not ended. Ids count up, so the first is the oldest.
    live: BTreeMap<RequestId, Expected>,
    /// Every request that was taken.
    known: BTreeMap<RequestId, Known>,
    beginnings: Vec<Vec<TokenId>>,
    /// The step that runs.
    flight: Option<Flight>,
    /// The step that runs next.
    next: Option<StepPlan>,
    /// Plans are made ahead about once in so many chances.
    ahead_in: usize,
    /// Requests are guided about once in so many chances.
    guided_in: usize,
    n_requests: u64,
    last_admitted: Option<RequestId>,
    turns: Turns,
    n_acts: u64,
    /// What the clock says, and the latest that it ever said.
    clock: u64,
    latest: u64,
    /// Whom the last event found expired, as the scheduler told.
    expired: Vec<Effect>,
    pub(crate) sights: Sights,
    /// What happened, in words.
    pub(crate) story: Vec<String>,
}

/// What should become of a request.
struct Expected {
    request: Request,
    /// Its prompt, then what it generates when it runs alone.
    tokens: Vec<TokenId>,
    reason: FinishReason,
    n_known: usize,
    /// Tokens that rows in flight sample, at most.
    n_late: usize,
    /// Positions in planned rows.
    n_computed: usize,
    n_scored: usize,
    /// Turns since its last token, while it is not known what may follow that.
    held: Option<usize>,
    was_preempted: bool,
    /// Whose share it takes.
    tenant: usize,
    /// Of priority, as it came.
    level: u32,
    /// The step at which it has risen to the first level.
    due: u64,
    /// Whether it has a slot, and whether it ever had.
    runs: bool,
    has_begun: bool,
    /// Positions computed for it at least once.
    n_served: usize,
    deadline: Deadline,
}

/// When a request must have ended.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    /// The step from which this holds.
    from: u64,
    /// The step by which it must have ended.
    step: u64,
}

struct Flight {
    began_act: u64,
    plan: StepPlan,
    tokens: Vec<Option<TokenId>>,
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        let limits = draw::limits(&mut random);
        let beginnings = draw::beginnings(&mut random, &limits);
        World {
            scheduler: Scheduler::new(limits.clone()),
            rank: Rank::new(&limits),
            limits,
            live: BTreeMap::new(),
            known: BTreeMap::new(),
            beginnings,
            flight: None,
            next: None,
            ahead_in: [1, 1, 2, 1_000_000][random.within(0, 3)],
            guided_in: [2, 5, 1_000_000, 1_000_000][random.within(0, 3)],
            n_requests: 0,
            last_admitted: None,
            turns: Turns::default(),
            n_acts: 0,
            clock: 1000,
            latest: 0,
            expired: Vec::new(),
            sights: Sights::default(),
            story: Vec::new(),
            random,
        }
    }

    /// Something happens.
    pub(crate) fn act(&mut self, act: Act) {
        self.random = Random::new(act.seed);
        self.n_acts += 1;
        self.tick();
        match act.kind {
            Kind::Arrive => self.arrive(),
            Kind::Cancel => self.cancel_any(),
            Kind::Advance => self.advance(),
            Kind::Jump => self.jump(),
            Kind::FailRow => self.fail_row(),
            Kind::FailRank => self.fail_rank(),
        }
    }

    /// Lets everything end.
    pub(crate) fn end(&mut self) {
        while !self.live.is_empty() || self.flight.is_some() {
            self.tick();
            self.advance();
        }
        assert!(self.scheduler.plan().is_none(), "wrong: a plan for nobody");
        assert_eq!(self.n_pages_used(), 0, "wrong: nobody holds pages");
        self.note_counters();
    }

    /// Remembers what this scheduler did.
    fn note_counters(&mut self) {
        let counters = self.scheduler.stats().counters;
        self.sights.n_steps += counters.n_steps;
        self.sights.n_preemptions += counters.n_preemptions;
    }

    fn arrive(&mut self) {
        let id = RequestId(self.n_requests);
        let mut request = draw::request(&mut self.random, id, &self.limits, &self.beginnings);
        request.is_guided = self.random.one_in(self.guided_in);
        request.terms = draw::terms(&mut self.random, &self.limits, self.clock);
        if self.random.one_in(4)
            && let Some(sibling) = self.live.values().nth(self.random.within(0, 5))
        {
            draw::sibling(&mut self.random, &mut request, &sibling.request);
        }
        self.n_requests += 1;
        let expected = self.expected_refusal(&request);
        let effects = self.apply(Event::Arrive(request.clone()));
        if let Some(refusal) = expected {
            assert_eq!(effects, [Effect::Refuse { request: id, refusal }], "wrong: refusal");
            match refusal {
                Refusal::QueueFull => self.sights.n_refused_queue += 1,
                Refusal::TooLong { .. } | Refusal::EmptyPrompt => self.sights.n_refused_length += 1,
            }
            return self.settle();
        }
        assert_eq!(effects, [], "wrong: {request:?} should be taken");
        let n_tokens_end = self.n_tokens_end(&request);
        let (tokens, reason) = run_alone(&self.limits, &request, n_tokens_end);
        let (tenant, level, due) = self.turn(&request);
        let deadline = self.deadline(&request, due);
        self.join(tenant);
        let expected = Expected {
            n_known: request.prompt.len(),
            n_late: 0,
            tokens,
            reason,
            n_computed: 0,
            n_scored: 0,
            held: None,
            was_preempted: false,
            tenant,
            level,
            due,
            runs: false,
            has_begun: false,
            n_served: 0,
            deadline,
            request,
        };
        let (tokens, salt) = (expected.tokens.clone(), expected.request.cache_salt.clone());
        self.known.insert(id, Known { tokens, salt });
        self.live.insert(id, expected);
        self.settle();
    }

    /// Plans a step, or completes the one that runs and starts the next.
    fn advance(&mut self) {
        self.allow_some();
        if self.flight.is_none() || (self.next.is_none() && self.random.one_in(self.ahead_in)) {
            self.next = self.plan();
        }
        let flight = self.flight.take();
        // As the engine does: the next step starts before anybody looks at the results.
        if let Some(mut plan) = self.next.take() {
            if let Some(before) = &flight {
                plan.settle(&before.tokens);
            }
            self.start(plan);
        }
        if let Some(flight) = flight {
            self.complete(flight);
        }
    }

    fn start(&mut self, plan: StepPlan) {
        for row in &plan.rows {
            // Who ended meanwhile runs for nothing.
            let Some(expected) = self.live.get(&row.request) else { continue };
            let n_own = row.n_tokens - row.n_candidates;
            let Some(tokens) = expected.tokens.get(row.start..row.start + n_own) else {
                panic!("wrong: {row:?} is beyond its end");
            };
            assert_eq!(&plan.row_tokens(row)[..n_own], tokens, "wrong: tokens of {row:?}");
        }
        let tokens = self.rank.run(&plan, &self.known);
        self.flight = Some(Flight { began_act: self.n_acts, plan, tokens });
    }

    fn plan(&mut self) -> Option<StepPlan> {
        let before = self.scheduler.stats();
        let plan = self.scheduler.plan();
        self.sights.n_events += 1;
        self.scheduler.check();
        let stats = self.scheduler.stats();
        let n_admitted = plan.as_ref().map_or(0, |plan| plan.admitted.len());
        let n_preempted = (stats.counters.n_preemptions - before.counters.n_preemptions) as usize;
        assert_eq!(stats.n_running + n_preempted, before.n_running + n_admitted, "wrong: running");
        assert!(n_preempted == 0 || n_admitted <= 1, "wrong: a victim returns at once");
        let Some(plan) = plan else {
            let is_held = self.live.values().any(|expected| expected.held.is_some());
            let is_stuck = self.flight.is_none() && !self.live.is_empty() && !is_held;
            assert!(!is_stuck, "stuck: no plan and nothing runs while requests live");
            return None;
        };
        if self.flight.is_some() {
            self.sights.n_ahead += 1;
            self.sights.n_preempted_ahead += n_preempted as u64;
        } else {
            self.sights.n_sat_out += u64::from(plan.rows.len() < stats.n_running);
        }
        self.story.push(format!("plan {:?} {:?}", plan.admitted, plan.rows));
        self.check_turns(&plan, n_preempted);
        self.check_plan(&plan);
        Some(plan)
    }

    fn complete(&mut self, flight: Flight) {
        let Flight { began_act, plan, tokens } = flight;
        self.sights.n_late += u64::from(self.n_acts - began_act >= 3);
        let pages_before = self.n_pages_used();
        let took_us = self.random.within(0, 100) as u64;
        let result = StepResult { step: plan.step, tokens: tokens.clone(), took_us };
        let effects = self.apply(Event::Complete(result));
        let mut wanted = Vec::new();
        for row in &plan.rows {
            wanted.extend(self.expected_effects(row, &tokens[row.answer_range()]));
        }
        assert_eq!(effects, wanted, "wrong: effects");
        self.settle();
        let all_live = plan.rows.iter().all(|row| self.live.contains_key(&row.request));
        let gives_back = self.n_pages_used() < pages_before;
        self.sights.n_windowed_give_backs += u64::from(gives_back && all_live);
        if !self.random.one_in(4) {
            self.scheduler.recycle(plan);
        }
    }

    fn expected_effects(&mut self, row: &Row, sampled: &[Option<TokenId>]) -> Vec<Effect> {
        let request = row.request;
        // Ended in flight: its end was told.
        let Some(expected) = self.live.get_mut(&request) else {
            self.sights.n_rows_for_nothing += 1;
            return Vec::new();
        };
        let mut effects = Vec::new();
        expected.n_late -= if row.emit.samples() { row.n_answers() } else { 0 };
        for (token, answer_idx) in sampled.iter().map_while(|token| *token).zip(row.answer_idx..) {
            let Some(&alone) = expected.tokens.get(expected.n_known) else {
                let stops = matches!(expected.reason, FinishReason::Stop(_));
                assert!(stops, "wrong: {row:?} generates past the end");
                self.sights.n_stopped_early += 1;
                break;
            };
            assert_eq!(token, alone, "wrong: {row:?} does not see what it sees alone");
            expected.n_known += 1;
            expected.held = expected.request.is_guided.then_some(0);
            effects.push(Effect::Token { request, token, answer_idx });
        }
        let n_accepted = effects.len().saturating_sub(1);
        expected.n_computed -= row.n_candidates - n_accepted;
        self.sights.n_accepted += n_accepted as u64;
        self.sights.n_rejected += u64::from(sampled.contains(&None) && row.n_candidates > 0);
        let n_prompt = expected.request.prompt.len();
        let is_done = row.emit.samples() || expected.request.n_new_max == 0;
        let is_computed = row.start + row.n_tokens >= n_prompt;
        if is_done && expected.n_known == expected.tokens.len() && is_computed {
            let reason = expected.reason;
            effects.push(Effect::Finish { request, reason });
            let asked = expected.request.scores_prompt;
            assert_eq!(expected.n_scored, if asked { n_prompt } else { 0 }, "wrong: scores");
            let deadline = expected.deadline;
            let mut told = expected.tokens.clone();
            self.live.remove(&request);
            // Somebody goes on from here.
            if self.random.one_in(2) {
                told.resize(self.limits.n_context_tokens, TokenId(0));
                let beginning_idx = self.random.within(0, self.beginnings.len() - 1);
                self.beginnings[beginning_idx] = told;
            }
            let n_steps = self.n_steps();
            assert!(n_steps <= deadline.step, "stuck: {request:?} ends after {deadline:?}");
            if self.limits.n_tenants > 1 && deadline.step < u64::MAX {
                let percent = 100 * (n_steps - deadline.from) / (deadline.step - deadline.from);
                self.sights.deadline_percent_max = self.sights.deadline_percent_max.max(percent);
            }
            match reason {
                FinishReason::Stop(_) => self.sights.n_stopped += 1,
                _ => self.sights.n_full += 1,
            }
        }
        effects
    }

    /// Applies an event.
    fn apply(&mut self, event: Event) -> Vec<Effect> {
        assert_eq!(self.expired, [], "who had expired was not looked at");
        self.story.push(format!("at {}: {event:?}", self.clock));
        let mut effects = Vec::new();
        self.scheduler.apply(event, Moment(self.clock), &mut effects);
        self.latest = self.latest.max(self.clock);
        self.sights.n_events += 1;
        self.scheduler.check();
        let is_expiry = |effect: &Effect| {
            use FinishReason::{DeadlinePassed, QueueTimeout};
            matches!(effect, Effect::Finish { reason: DeadlinePassed | QueueTimeout, .. })
        };
        let n_others = effects.iter().position(is_expiry).unwrap_or(effects.len());
        self.expired = effects.split_off(n_others);
        effects
    }

    fn n_pages_used(&self) -> usize {
        self.scheduler.stats().n_pages_used()
    }

    fn n_steps(&self) -> u64 {
        self.scheduler.stats().counters.n_steps
    }
}
