//! The state machine itself: events to effects, state to plans. Policy lives in the modules that it
//! calls; this one only keeps their order.
//!
//! **Results arrive later than plans**: a step may be planned while the one before it runs, and
//! nothing that is planned waits for a token's value.
//! - A row whose token is in flight names the row that samples it ([`Row::follows`]); whoever
//!   starts the step has the token by then.
//! - An end by length is known ahead, and no row is planned beyond it. A stop token is seen when it
//!   lands: if a further row of its sequence is in flight, that row runs for nothing, and its
//!   result is dropped.
//! - What a guided request may sample depends on all its tokens: no row of it samples while a token
//!   of it is in flight, or before [`Event::Allow`] has answered the last one. It is the row that
//!   waits; steps go on for others.
//! - A sequence that speculates is not planned ahead of its tokens. Its rows of decoding carry
//!   candidates, where the step has tokens and the pools have pages that nobody else wants; those
//!   that were right land with the row, the pages of the others come back.
//! - Ranks run plans in order. So whatever ends, finished or cancelled, gives its slot and pages
//!   back at once, and so does whoever is preempted: the next plan's writes come after all that is
//!   in flight. A preempted sequence is not admitted before its rows have landed.

mod displace;
mod rows;

use std::collections::VecDeque;

use crate::budget::{Budget, decodes};
use crate::pace::Pace;
use crate::pages::Pools;
use crate::queue::QueuePlace;
use crate::roster::{Place, Roster};
use crate::stats::{Counters, Stats};
use crate::turn::Turn;
use crate::{
    Admission, Effect, Event, FinishReason, Limits, Moment, Request, RequestId, Row, SlotIdx,
    StepId, StepPlan, StepResult, TokenId, admission, preempt,
};

/// Steps planned and not completed at most: one that runs, one that runs next.
const N_FLIGHTS_MAX: usize = 2;

/// Decides what runs next. See the crate's page for the protocol.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    roster: Roster,
    pools: Pools,
    /// Planned, not completed; in order.
    flights: VecDeque<Flight>,
    counters: Counters,
    pace: Pace,
    /// The latest moment that was ever told: time does not go back, whatever a clock does.
    now: Moment,
    /// Who found no room last.
    last_attempt: Option<Attempt>,
    scratch: Scratch,
}

/// What is remembered of a planned step.
#[derive(Debug)]
struct Flight {
    step: StepId,
    rows: Vec<Row>,
    /// Tokens of rows that do not decode, where others do: nobody waits for a step without.
    n_prompt_tokens: Option<usize>,
}

/// Somebody found no room. Nobody asks again before pages are given back or the queue changes, nor
/// the same before pages are: so whoever waits costs a step nothing.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    turn: Turn,
    n_returns: u64,
    n_changes: u64,
    /// How many would have given way.
    n_victims: usize,
}

/// Tokens granted to a running sequence in the step that is being planned.
#[derive(Clone, Copy, Debug)]
struct Grant {
    slot: SlotIdx,
    n_tokens: usize,
    decodes: bool,
    n_candidates: usize,
}

/// Vectors kept between steps, so that a steady step does not allocate.
#[derive(Debug, Default)]
struct Scratch {
    grants: Vec<Grant>,
    /// Of all grants, in their order.
    candidates: Vec<TokenId>,
    flight_rows: Vec<Vec<Row>>,
    plans: Vec<StepPlan>,
}

impl Scheduler {
    /// Nothing runs, nothing waits, all pages are free.
    ///
    /// # Panics
    /// If the limits do not fit each other; the message says why they must.
    pub fn new(limits: Limits) -> Scheduler {
        limits.check();
        Scheduler {
            roster: Roster::new(&limits),
            pools: Pools::new(&limits),
            pace: Pace::new(limits.latency, limits.n_tokens_per_step),
            limits,
            flights: VecDeque::new(),
            counters: Counters::default(),
            now: Moment::default(),
            last_attempt: None,
            scratch: Scratch::default(),
        }
    }

    /// Takes note of an event and of the time; appends what follows from them to `effects`.
    ///
    /// Each request that arrives ends in exactly one `Finish` or `Refuse`. A request that is
    /// cancelled, or that nobody wants any more by `now`, ends at once, also when rows of it are in
    /// flight; their results are dropped when they come. A `now` before the last one is taken for
    /// the last one.
    ///
    /// # Panics
    /// If a request arrives twice, or a result is not that of the oldest planned step.
    pub fn apply(&mut self, event: Event, now: Moment, effects: &mut Vec<Effect>) {
        match event {
            Event::Arrive(request) => self.arrive(request, effects),
            Event::Cancel(request) => self.cancel(request, effects),
            Event::Allow(request) => {
                if let Some(place) = self.roster.find(request) {
                    self.roster.at_mut(place).allow();
                }
            }
            Event::Complete(result) => self.complete(&result, effects),
        }
        self.now = self.now.max(now);
        self.expire(effects);
    }

    /// The next step, also while the last one runs; `None` if there is nothing to run, until
    /// something arrives, lands or is allowed. A plan that is made while a step runs is to be
    /// [settled](StepPlan::settle) with that step's tokens before it starts.
    ///
    /// # Panics
    /// If two plans are not completed.
    pub fn plan(&mut self) -> Option<StepPlan> {
        assert!(self.flights.len() < N_FLIGHTS_MAX, "{:?} is not completed", self.flights[0].step);
        if self.roster.n_live() == 0 {
            return None;
        }
        let mut plan = self.scratch.plans.pop().unwrap_or_else(StepPlan::empty);
        plan.step = StepId(self.counters.n_steps);
        let displaces = self.displace();
        let running = self.roster.running().iter().map(|&slot| self.roster.sequence(slot));
        let mut budget = Budget::new(self.limits.n_tokens_per_step, &self.pace, running);
        let n_preemptions = self.counters.n_preemptions;
        self.grant_running(&mut budget, &mut plan);
        // Where somebody had to give way for want of pages, nobody comes.
        if self.counters.n_preemptions == n_preemptions {
            self.admit_waiting(&mut budget, &mut plan, displaces);
        }
        if self.scratch.grants.is_empty() {
            let is_waited_for = !self.flights.is_empty() || self.roster.holds_any();
            assert!(is_waited_for, "the oldest sequence can always go on, unless it is held");
            self.recycle(plan);
            return None;
        }
        self.propose(&mut budget, &mut plan);
        plan.moves.append(&mut self.pools.moves);
        self.counters.count_moves(&plan.moves);
        self.write_rows(&mut plan);
        Some(plan)
    }

    /// Takes a plan's vectors back once no rank reads it, for a later plan to use.
    pub fn recycle(&mut self, mut plan: StepPlan) {
        plan.admitted.clear();
        plan.pages.clear();
        plan.moves.clear();
        plan.rows.clear();
        plan.tokens.clear();
        if self.scratch.plans.len() < N_FLIGHTS_MAX {
            self.scratch.plans.push(plan);
        }
    }

    /// A snapshot of gauges and counters.
    pub fn stats(&self) -> Stats {
        Stats::new(&self.roster, &self.pools, &self.counters)
    }

    /// A request's prompt and generated tokens; `None` once it has ended.
    pub fn request_tokens(&self, request: RequestId) -> Option<(&[TokenId], &[TokenId])> {
        let sequence = self.roster.at(self.roster.find(request)?);
        Some((sequence.prompt(), sequence.generated()))
    }

    /// Asserts every invariant; tests call it after each event. Slow.
    pub fn check(&self) {
        self.roster.check(&self.limits);
        self.pools.check(|slot| self.roster.span(slot));
        let n_rows: usize = self.flights.iter().map(|flight| flight.rows.len()).sum();
        assert_eq!(self.roster.n_rows_in_flight(), n_rows, "rows in flight");
        let Counters { n_arrived, n_finished, n_cancelled, .. } = self.counters;
        let n_expired = self.counters.n_queue_timeouts + self.counters.n_deadlines_passed;
        let n_live = self.roster.n_live() as u64;
        let n_ended = n_finished + n_cancelled + n_expired;
        assert_eq!(n_arrived, n_live + n_ended, "every request is accounted for");
    }

    fn arrive(&mut self, request: Request, effects: &mut Vec<Effect>) {
        if let Some(refusal) = admission::refusal(&request, &self.limits, &self.roster) {
            self.counters.n_refused += 1;
            effects.push(Effect::Refuse { request: request.id, refusal });
            return;
        }
        self.counters.n_arrived += 1;
        self.roster.arrive(request, self.counters.n_steps, &self.limits);
    }

    fn cancel(&mut self, request: RequestId, effects: &mut Vec<Effect>) {
        let Some(place) = self.roster.find(request) else { return };
        self.end(place);
        self.counters.n_cancelled += 1;
        effects.push(Effect::Finish { request, reason: FinishReason::Cancelled });
    }

    /// Ends what nobody wants any more. While anything lives, steps are planned and completed, so
    /// nothing outlives its deadline by more than a step.
    fn expire(&mut self, effects: &mut Vec<Effect>) {
        while let Some(request) = self.roster.expired(self.now) {
            let place = self.roster.find(request).expect("only those that live can expire");
            let reason = self.roster.at(place).expiry_reason(self.now);
            self.end(place);
            self.counters.count_expired(reason);
            effects.push(Effect::Finish { request, reason });
        }
    }

    fn complete(&mut self, result: &StepResult, effects: &mut Vec<Effect>) {
        let flight = self.flights.pop_front();
        let Some(Flight { step, mut rows, n_prompt_tokens }) =
            flight.filter(|flight| flight.step == result.step)
        else {
            panic!("{:?} was not planned, or not next", result.step);
        };
        let n_answers = rows.last().map_or(0, |row| row.answer_range().end);
        assert_eq!(result.tokens.len(), n_answers, "results of {step:?}, one a row and candidate");
        for (row_idx, row) in rows.iter().enumerate() {
            let tokens = &result.tokens[row.answer_range()];
            let samples = row.emit.samples();
            assert_eq!(tokens[0].is_some(), samples, "{step:?}, row {row_idx}: {tokens:?}");
            self.land(row, tokens, effects);
        }
        rows.clear();
        self.scratch.flight_rows.push(rows);
        if let Some(n_prompt_tokens) = n_prompt_tokens {
            self.pace.learn(n_prompt_tokens, result.took_us);
        }
    }

    /// A row has run, and its sequence may have ended before or end by it.
    fn land(&mut self, row: &Row, sampled: &[Option<TokenId>], effects: &mut Vec<Effect>) {
        let Some(place) = self.roster.landing(row) else { return };
        let sequence = self.roster.at_mut(place);
        let mut n_pushed = 0;
        for (token, answer_idx) in sampled.iter().map_while(|token| *token).zip(row.answer_idx..) {
            sequence.push(token);
            n_pushed += 1;
            effects.push(Effect::Token { request: row.request, token, answer_idx });
            // What was guessed behind a stop token is nobody's.
            if sequence.is_stopped() {
                break;
            }
        }
        let n_accepted = usize::saturating_sub(n_pushed, 1);
        self.counters.n_generated_tokens += n_pushed as u64;
        self.counters.n_accepted_tokens += n_accepted as u64;
        sequence.land(row, n_accepted);
        if let Place::Running(slot) = place {
            let read = |range, tokens: &mut Vec<TokenId>| sequence.read(range, tokens);
            self.pools.commit(slot, sequence.n_computed(), &read);
            self.pools.truncate(slot, sequence.n_planned());
        }
        if let Some(reason) = sequence.finish_reason() {
            self.counters.n_finished += 1;
            self.end(place);
            effects.push(Effect::Finish { request: row.request, reason });
        }
    }

    /// A request ends, and gives back what it holds.
    fn end(&mut self, place: Place) {
        self.roster.end(place);
        if let Place::Running(slot) = place {
            self.pools.forfeit(slot);
        }
    }

    /// Grants tokens to those that run, in turn, and reserves their pages. Whoever is preempted on
    /// the way is behind all that were granted something.
    fn grant_running(&mut self, budget: &mut Budget, plan: &mut StepPlan) {
        let mut order_idx = 0;
        while let Some(&slot) = self.roster.running().get(order_idx) {
            order_idx += 1;
            let n_offered = budget.offer(self.roster.sequence(slot));
            let Scheduler { roster, pools, counters, .. } = self;
            let n_tokens = preempt::make_room(slot, n_offered, roster, pools, counters);
            if n_tokens > 0 {
                let sequence = self.roster.sequence(slot);
                budget.take(sequence, n_tokens);
                let decodes = decodes(sequence);
                self.grant(Grant { slot, n_tokens, decodes, n_candidates: 0 }, plan);
            }
        }
    }

    /// Admits whose turn it is while there are slots, pages and tokens. Where somebody gave way,
    /// only the one for whom that was: else it might be the victim that comes back.
    fn admit_waiting(
        &mut self,
        budget: &mut Budget,
        plan: &mut StepPlan,
        displaces: Option<QueuePlace>,
    ) {
        while !budget.is_spent() && self.roster.has_free_slot() && self.is_worth_asking() {
            let next = displaces.or_else(|| self.roster.queue().next(self.counters.n_steps));
            let Some(place) = next else { return };
            let newcomer = self.roster.queue().at(place);
            // Who is held may find all but its last token in the cache, and have nothing to do.
            if newcomer.n_rows_in_flight() > 0 || newcomer.is_held() {
                return;
            }
            let (turn, n_returns) = (newcomer.turn(), self.pools.n_returns());
            let asked = self.last_attempt.map(|last| (last.turn, last.n_returns));
            if asked == Some((turn, n_returns)) {
                return;
            }
            let Some(beginning) = self.pools.beginning(newcomer, &self.roster) else { return };
            let running = (&self.roster, self.roster.running());
            if !admission::has_room(newcomer, beginning, running, &self.pools) {
                let n_changes = self.roster.queue().n_changes();
                self.last_attempt = Some(Attempt { turn, n_returns, n_changes, n_victims: 0 });
                return;
            }
            let slot = self.roster.admit(place);
            let sequence = self.roster.sequence_mut(slot);
            let n_cached = self.pools.begin(slot, sequence.cache_salt(), beginning, plan);
            *self.counters.n_begun_tokens(beginning) += n_cached as u64;
            self.counters.n_host_tokens += self.pools.n_back(beginning) as u64;
            sequence.adopt(n_cached);
            plan.admitted.push(Admission { request: sequence.id(), slot, n_cached });
            let n_offered = budget.offer_newcomer(sequence);
            let n_tokens = self.pools.n_affordable(slot, n_cached, n_offered);
            assert!(n_tokens > 0, "{:?} was admitted for nothing", sequence.id());
            budget.take_newcomer(n_tokens);
            self.grant(Grant { slot, n_tokens, decodes: false, n_candidates: 0 }, plan);
            if displaces.is_some() {
                return;
            }
        }
    }

    /// Whether there may be more room, or somebody else to ask, than when there was none.
    fn is_worth_asking(&self) -> bool {
        self.last_attempt.is_none_or(|last| {
            let now = (self.pools.n_returns(), self.roster.queue().n_changes());
            (last.n_returns, last.n_changes) != now
        })
    }

    /// Reserves what a grant's row writes.
    fn grant(&mut self, grant: Grant, plan: &mut StepPlan) {
        let end = self.roster.sequence(grant.slot).n_planned() + grant.n_tokens;
        self.pools.reserve(grant.slot, end, &mut plan.pages);
        // At once, so that the next turn in the same step is another tenant's.
        self.roster.serve(grant.slot, end);
        self.scratch.grants.push(grant);
    }
}

#[cfg(test)]
mod tests;
