//! One simulated life of a scheduler: random limits, random requests, random moments; after every
//! event each rule that callers rely on is checked against a model of what should be.
//!
//! A message that begins with "wrong" says that a rule broke, one with "stuck" that nothing moves;
//! any other is the scheduler's own assertion.

mod checks;

use std::collections::BTreeMap;

use scheduler::{
    Effect, Event, FinishReason, Limits, Moment, Refusal, Request, RequestId, Row, Scheduler,
    StepPlan, StepResult, TokenId,
};

use crate::draw;
use crate::model::{Known, Rank, next_token};
use crate::random::Random;
use crate::sights::Sights;

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
    pub(crate) sights: Sights,
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
    /// The step by which it must have ended.
    deadline: u64,
}

struct Flight {
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
            random,
            live: BTreeMap::new(),
            known: BTreeMap::new(),
            beginnings,
            flight: None,
            next: None,
            ahead_in: 1,
            guided_in: 1,
            n_requests: 0,
            last_admitted: None,
            sights: Sights::default(),
        }
    }

    /// Lives through `n_events` random events, then lets everything end.
    pub(crate) fn live(&mut self, n_events: u64) {
        let arrivals_in = self.random.within(2, 8);
        let cancels_in = self.random.within(5, 60);
        self.ahead_in = [1, 1, 2, 1_000_000][self.random.within(0, 3)];
        self.guided_in = [2, 5, 1_000_000, 1_000_000][self.random.within(0, 3)];
        while self.sights.n_events < n_events {
            if self.random.one_in(arrivals_in) {
                self.arrive();
            } else if self.random.one_in(cancels_in) {
                self.cancel();
            } else {
                self.advance();
            }
        }
        while !self.live.is_empty() || self.flight.is_some() {
            self.advance();
        }
        assert!(self.scheduler.plan().is_none(), "wrong: a plan for nobody");
        let stats = self.scheduler.stats();
        assert_eq!(stats.n_pages_used(), 0, "wrong: nobody holds pages");
        self.sights.n_steps = stats.counters.n_steps;
        self.sights.n_preemptions = stats.counters.n_preemptions;
    }

    fn arrive(&mut self) {
        let id = RequestId(self.n_requests);
        let mut request = draw::request(&mut self.random, id, &self.limits, &self.beginnings);
        request.is_guided = self.random.one_in(self.guided_in);
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
            return;
        }
        assert_eq!(effects, [], "wrong: {request:?} should be taken");
        let n_tokens_end = self.n_tokens_end(&request);
        let (tokens, reason) = run_alone(&self.limits, &request, n_tokens_end);
        let n_ahead: usize =
            self.live.values().map(|older| self.n_tokens_end(&older.request)).sum();
        let n_ahead_and_own = (n_ahead + n_tokens_end + self.live.len()) as u64;
        // Every token of a guided request may hold it for as many steps, and others behind it; who
        // waits for its own token lets one step of others pass.
        let delay = match self.limits.speculation {
            _ if self.guided_in < 1_000_000 => 2 + N_HELD_MAX as u64,
            Some(_) => 2,
            None => 1,
        };
        let expected = Expected {
            n_known: request.prompt.len(),
            n_late: 0,
            tokens,
            reason,
            n_computed: 0,
            n_scored: 0,
            held: None,
            was_preempted: false,
            deadline: self.n_steps() + n_ahead_and_own * delay + 2,
            request,
        };
        let (tokens, salt) = (expected.tokens.clone(), expected.request.cache_salt.clone());
        self.known.insert(id, Known { tokens, salt });
        self.live.insert(id, expected);
    }

    fn expected_refusal(&self, request: &Request) -> Option<Refusal> {
        let n_prompt = request.prompt.len();
        let n_max = self.n_sequence_max() - usize::from(request.n_new_max > 0);
        if n_prompt == 0 {
            Some(Refusal::EmptyPrompt)
        } else if n_prompt > n_max {
            Some(Refusal::TooLong { n_prompt, n_max })
        } else if self.live.len() >= self.limits.n_slots + self.limits.n_waiting_max {
            Some(Refusal::QueueFull)
        } else {
            None
        }
    }

    fn cancel(&mut self) {
        // Now and then one that has ended, or never was.
        let request = RequestId(self.random.next() % (self.n_requests + 2));
        let request = match self.live.keys().nth(self.random.within(0, 6)) {
            Some(&id) => id,
            None => request,
        };
        let planned = self.flight.iter().map(|flight| &flight.plan).chain(&self.next);
        let was_in_flight = planned.flat_map(|plan| &plan.rows).any(|row| row.request == request);
        let effects = self.apply(Event::Cancel(request));
        let Some(expected) = self.live.remove(&request) else {
            assert_eq!(effects, [], "wrong: {request:?} does not live");
            return;
        };
        let reason = FinishReason::Cancelled;
        assert_eq!(effects, [Effect::Finish { request, reason }], "wrong: cancel");
        self.sights.n_cancelled_in_flight += u64::from(was_in_flight);
        self.sights.n_cancelled_waiting += u64::from(!was_in_flight && expected.n_computed == 0);
    }

    /// Says of some requests what may follow their last tokens: of each after some turns.
    fn allow_some(&mut self) {
        let mut allowed = Vec::new();
        for (&request, expected) in &mut self.live {
            let Some(n_turns) = &mut expected.held else { continue };
            *n_turns += 1;
            if *n_turns > N_HELD_MAX || self.random.one_in(2) {
                expected.held = None;
                allowed.push(request);
            }
        }
        for request in allowed {
            let effects = self.apply(Event::Allow(request));
            assert_eq!(effects, [], "wrong: {request:?} is only allowed to go on");
        }
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
        self.flight = Some(Flight { plan, tokens });
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
        assert!(n_preempted == 0 || n_admitted == 0, "wrong: a victim returns at once");
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
        self.check_plan(&plan);
        Some(plan)
    }

    fn complete(&mut self, flight: Flight) {
        let Flight { plan, tokens } = flight;
        let pages_before = self.n_pages_used();
        let result = StepResult { step: plan.step, tokens: tokens.clone(), took_us: 1 };
        let effects = self.apply(Event::Complete(result));
        let mut wanted = Vec::new();
        for row in &plan.rows {
            wanted.extend(self.expected_effects(row, &tokens[row.answer_range()]));
        }
        assert_eq!(effects, wanted, "wrong: effects");
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
            assert!(self.n_steps() <= deadline, "stuck: {request:?} ends after {deadline}");
            match reason {
                FinishReason::Stop(_) => self.sights.n_stopped += 1,
                _ => self.sights.n_full += 1,
            }
        }
        effects
    }

    /// Applies an event.
    fn apply(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.scheduler.apply(event, Moment(0), &mut effects);
        self.sights.n_events += 1;
        self.scheduler.check();
        effects
    }

    fn n_pages_used(&self) -> usize {
        self.scheduler.stats().n_pages_used()
    }

    fn n_steps(&self) -> u64 {
        self.scheduler.stats().counters.n_steps
    }

    fn n_tokens_end(&self, request: &Request) -> usize {
        request.prompt.len().saturating_add(request.n_new_max).min(self.n_sequence_max())
    }

    /// The longest sequence that could run alone, found by trying every length.
    fn n_sequence_max(&self) -> usize {
        let page_tokens = self.limits.page_tokens;
        let fits = |query: usize| {
            self.limits.groups.iter().all(|group| {
                let window = group.window.unwrap_or(usize::MAX);
                let first_idx = (query + 1).saturating_sub(window) / page_tokens;
                query / page_tokens - first_idx < group.n_pages
            })
        };
        (0..self.limits.n_context_tokens).take_while(|&query| fits(query)).count()
    }
}

/// Tokens and end of a request that nothing disturbs.
fn run_alone(
    limits: &Limits,
    request: &Request,
    n_tokens_end: usize,
) -> (Vec<TokenId>, FinishReason) {
    let mut tokens = request.prompt.to_vec();
    while tokens.len() < n_tokens_end {
        let token = next_token(limits, &tokens);
        tokens.push(token);
        if request.stop_tokens.contains(&token) {
            return (tokens, FinishReason::Stop(token));
        }
    }
    (tokens, FinishReason::Length)
}
