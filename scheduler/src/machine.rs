//! The state machine itself: events to effects, state to plans. Policy lives in the modules that it
//! calls; this one only keeps their order.
//!
//! **Results arrive later than plans.** A sequence whose row is in flight keeps its slot and its
//! pages until the row lands, whatever happened to it meanwhile: its end is told at once, and it is
//! retired when the result arrives. Today one step is in flight at most ([`Scheduler::plan`]
//! asserts it); everything below counts rows in flight all the same.
//!
//! Overlapped steps would lift that assertion, let a decode row name an earlier row instead of its
//! token, and keep `preempt` from victims in flight.

use std::collections::VecDeque;

use crate::budget::{Budget, decodes};
use crate::pages::Pools;
use crate::roster::{Place, Roster};
use crate::stats::{Counters, Stats};
use crate::{
    Admission, Effect, Event, FinishReason, Limits, Request, RequestId, Row, SlotIdx, StepId,
    StepPlan, StepResult, TokenId, admission, preempt,
};

/// Decides what runs next. See the crate's page for the protocol.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    roster: Roster,
    pools: Pools,
    /// Planned, not completed; in order.
    flights: VecDeque<Flight>,
    counters: Counters,
    scratch: Scratch,
}

/// What is remembered of a planned step.
#[derive(Debug)]
struct Flight {
    step: StepId,
    rows: Vec<Row>,
}

/// Tokens granted to a running sequence in the step that is being planned.
#[derive(Clone, Copy, Debug)]
struct Grant {
    slot: SlotIdx,
    n_tokens: usize,
    decodes: bool,
}

/// Vectors kept between steps, so that a steady step does not allocate.
#[derive(Debug, Default)]
struct Scratch {
    grants: Vec<Grant>,
    flight_rows: Vec<Row>,
    plan: Option<StepPlan>,
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
            limits,
            flights: VecDeque::new(),
            counters: Counters::default(),
            scratch: Scratch::default(),
        }
    }

    /// Takes note of an event; appends what follows from it to `effects`.
    ///
    /// Each request that arrives ends in exactly one `Finish` or `Refuse`. A cancelled request
    /// ends at once, also when its row is in flight; that row's result is dropped when it comes.
    ///
    /// # Panics
    /// If a request arrives twice, or a result is not that of the oldest planned step.
    pub fn apply(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Arrive(request) => self.arrive(request, effects),
            Event::Cancel(request) => self.cancel(request, effects),
            Event::Complete(result) => self.complete(&result, effects),
        }
    }

    /// The next step; `None` if there is nothing to run, until something arrives.
    ///
    /// # Panics
    /// If the last plan is not completed.
    pub fn plan(&mut self) -> Option<StepPlan> {
        assert!(self.flights.is_empty(), "{:?} is not completed", self.flights[0].step);
        if self.roster.n_live() == 0 {
            return None;
        }
        let mut plan = self.scratch.plan.take().unwrap_or_else(StepPlan::empty);
        plan.step = StepId(self.counters.n_steps);
        let running = self.roster.running().iter().map(|&slot| self.roster.sequence(slot));
        let mut budget = Budget::new(self.limits.n_tokens_per_step, running);
        self.grant_running(&mut budget, &mut plan);
        self.admit_waiting(&mut budget, &mut plan);
        self.write_rows(&mut plan);
        Some(plan)
    }

    /// Takes a plan's vectors back once no rank reads it, for the next plan to use.
    pub fn recycle(&mut self, mut plan: StepPlan) {
        plan.admitted.clear();
        plan.pages.clear();
        plan.rows.clear();
        plan.tokens.clear();
        self.scratch.plan = Some(plan);
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
        let n_live = self.roster.n_live() as u64;
        assert_eq!(n_arrived, n_live + n_finished + n_cancelled, "every request is accounted for");
    }

    fn arrive(&mut self, request: Request, effects: &mut Vec<Effect>) {
        if let Some(refusal) = admission::refusal(&request, &self.limits, &self.roster) {
            self.counters.n_refused += 1;
            effects.push(Effect::Refuse { request: request.id, refusal });
            return;
        }
        self.counters.n_arrived += 1;
        self.roster.arrive(request, &self.limits);
    }

    fn cancel(&mut self, request: RequestId, effects: &mut Vec<Effect>) {
        match self.roster.find(request) {
            None => return,
            Some(Place::Waiting(queue_idx)) => self.roster.withdraw(queue_idx),
            Some(Place::Running(slot)) => self.end(slot),
        }
        self.counters.n_cancelled += 1;
        effects.push(Effect::Finish { request, reason: FinishReason::Cancelled });
    }

    fn complete(&mut self, result: &StepResult, effects: &mut Vec<Effect>) {
        let flight = self.flights.pop_front();
        let Some(Flight { step, mut rows }) = flight.filter(|flight| flight.step == result.step)
        else {
            panic!("{:?} was not planned, or not next", result.step);
        };
        assert_eq!(result.tokens.len(), rows.len(), "results of {step:?}, one a row");
        for (row_idx, (row, &token)) in rows.iter().zip(&result.tokens).enumerate() {
            assert_eq!(token.is_some(), row.emit.samples(), "{step:?}, row {row_idx}: {token:?}");
            self.land(row, token.map(|token| (token, row_idx)), effects);
        }
        rows.clear();
        self.scratch.flight_rows = rows;
    }

    /// A row has run, and its sequence may have ended before or end by it.
    fn land(&mut self, row: &Row, sampled: Option<(TokenId, usize)>, effects: &mut Vec<Effect>) {
        let sequence = self.roster.sequence_mut(row.slot);
        sequence.land(row);
        if sequence.has_ended() {
            self.retire(row.slot);
            return;
        }
        self.pools.commit(row.slot, sequence.n_computed());
        if let Some((token, row_idx)) = sampled {
            sequence.push(token);
            self.counters.n_generated_tokens += 1;
            effects.push(Effect::Token { request: row.request, token, row_idx });
        }
        if let Some(reason) = sequence.finish_reason() {
            self.counters.n_finished += 1;
            self.end(row.slot);
            effects.push(Effect::Finish { request: row.request, reason });
        }
    }

    /// A running sequence ends: for its reader now, for its slot and pages when nothing flies.
    fn end(&mut self, slot: SlotIdx) {
        self.roster.end(slot);
        self.retire(slot);
    }

    /// Frees what an ended sequence holds, unless a row in flight still uses it.
    fn retire(&mut self, slot: SlotIdx) {
        if self.roster.sequence(slot).n_rows_in_flight() > 0 {
            return;
        }
        self.pools.forfeit(slot);
        self.roster.vacate(slot);
    }

    /// Grants tokens to those that run, oldest first, and reserves their pages. Whoever is
    /// preempted on the way is younger than all that were granted something.
    fn grant_running(&mut self, budget: &mut Budget, plan: &mut StepPlan) {
        let mut age_idx = 0;
        while let Some(&slot) = self.roster.running().get(age_idx) {
            age_idx += 1;
            let n_offered = budget.offer(self.roster.sequence(slot));
            let Scheduler { roster, pools, counters, .. } = self;
            let n_tokens = preempt::make_room(slot, n_offered, roster, pools, counters);
            self.grant(slot, n_tokens, budget, plan);
        }
    }

    /// Admits from the head of the queue while there are slots, pages and tokens. Nobody, where
    /// somebody was preempted: the last victim is at the head, it needs no less than it gave, and a
    /// page of that is taken.
    fn admit_waiting(&mut self, budget: &mut Budget, plan: &mut StepPlan) {
        while let Some(newcomer) = self.roster.next_waiting() {
            if budget.is_spent() || !admission::has_room(newcomer, &self.roster, &self.pools) {
                return;
            }
            let Some(slot) = self.roster.admit() else { return };
            let sequence = self.roster.sequence(slot);
            plan.admitted.push(Admission { request: sequence.id(), slot });
            let n_tokens = self.pools.n_affordable(slot, 0, budget.offer(sequence));
            assert!(n_tokens > 0, "{:?} was admitted for nothing", sequence.id());
            self.grant(slot, n_tokens, budget, plan);
        }
    }

    fn grant(&mut self, slot: SlotIdx, n_tokens: usize, budget: &mut Budget, plan: &mut StepPlan) {
        if n_tokens == 0 {
            return;
        }
        let sequence = self.roster.sequence(slot);
        budget.take(sequence, n_tokens);
        self.pools.reserve(slot, sequence.n_planned() + n_tokens, &mut plan.pages);
        let decodes = decodes(sequence);
        self.scratch.grants.push(Grant { slot, n_tokens, decodes });
    }

    /// Turns the grants into rows, decode rows first, and remembers the step.
    fn write_rows(&mut self, plan: &mut StepPlan) {
        let mut grants = std::mem::take(&mut self.scratch.grants);
        assert!(!grants.is_empty(), "the oldest sequence can always go on");
        let decode = grants.iter().filter(|grant| grant.decodes);
        let prefill = grants.iter().filter(|grant| !grant.decodes);
        for &Grant { slot, n_tokens, .. } in decode.chain(prefill) {
            let sequence = self.roster.sequence_mut(slot);
            let (request, start) = (sequence.id(), sequence.n_planned());
            let n_prompt_left = sequence.prompt().len().saturating_sub(start);
            self.counters.n_prompt_tokens += n_prompt_left.min(n_tokens) as u64;
            let token_idx = plan.tokens.len();
            let emit = sequence.plan(n_tokens, &mut plan.tokens);
            plan.rows.push(Row { request, slot, start, n_tokens, token_idx, emit });
        }
        grants.clear();
        self.scratch.grants = grants;
        self.counters.n_steps += 1;
        self.counters.n_rows += plan.rows.len() as u64;
        let mut rows = std::mem::take(&mut self.scratch.flight_rows);
        rows.extend_from_slice(&plan.rows);
        self.flights.push_back(Flight { step: plan.step, rows });
    }
}

#[cfg(test)]
mod tests;
