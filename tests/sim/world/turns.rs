//! Whose turn it is, by a model of its own: at every admission nobody waits who goes before, and
//! who gave way was the last in turn. What tenants are served stays within the bound.

use std::sync::Arc;

use scheduler::{RequestId, Row, StepPlan};

use super::{Expected, World};

/// What is known of turns besides the requests' own.
#[derive(Default)]
pub(super) struct Turns {
    /// By tenant, in tokens.
    pub(super) served: Vec<u64>,
    /// What the tenant had been served whose turn it was last.
    served_last: u64,
    /// Of pairs of tenants that have waited at the first level together, the least and the greatest
    /// that the one was ahead of the other since.
    contests: Vec<(usize, usize, i64, i64)>,
}

/// Who goes first: levels below the first, whether it never had a slot, what its tenant was served,
/// when it has risen to the first level, when it came.
type Key = (u64, bool, u64, u64, RequestId);

impl World {
    /// Whether requests differ in more than their arrival. Else narrower bounds hold.
    pub(super) fn has_turns(&self) -> bool {
        self.limits.n_tenants > 1 || self.limits.priorities.n_levels > 1
    }

    /// A request is about to be taken.
    pub(super) fn join(&mut self, tenant: usize) {
        self.turns.served.resize(self.limits.n_tenants, 0);
        let is_in_line = |other: &&Expected| !other.has_begun && other.tenant == tenant;
        if !self.live.values().any(|other| is_in_line(&other)) {
            let served = &mut self.turns.served[tenant];
            *served = self.turns.served_last.max(*served);
        }
    }

    fn key(&self, id: RequestId, n_steps: u64) -> Key {
        let one = &self.live[&id];
        let n_steps_a_level = u64::from(self.limits.priorities.n_steps_a_level);
        let n_below = one.due.saturating_sub(n_steps).div_ceil(n_steps_a_level);
        let served = if one.has_begun { 0 } else { self.turns.served[one.tenant] };
        (n_below, !one.has_begun, served, one.due, id)
    }

    /// Those of a plan, in which so many gave way.
    pub(super) fn check_turns(&mut self, plan: &StepPlan, n_preempted: usize) {
        let running = self.live.iter().filter(|(_, one)| one.runs);
        let mut running: Vec<_> = running.map(|(&id, one)| (one.due, id)).collect();
        running.sort_unstable();
        let victims = running.split_off(running.len() - n_preempted);
        for (_, id) in &victims {
            self.live.get_mut(id).expect("it lives").runs = false;
        }
        self.check_displaced(plan, &victims);
        self.set_deadlines(plan.step.0);
        self.check_contests(plan.step.0);
        let enters = |row: &&Row| plan.admitted.iter().any(|one| one.request == row.request);
        for row in plan.rows.iter().filter(|row| !enters(row)) {
            assert!(self.live[&row.request].runs, "wrong: {row:?} of who gave way");
            self.serve(row);
        }
        for admission in &plan.admitted {
            let id = admission.request;
            assert!(!self.live[&id].runs, "wrong: {admission:?} of who runs");
            // For whom somebody gave way was looked at before the others were served.
            if victims.is_empty() {
                self.check_turn(id, plan.step.0);
            }
            let one = self.live.get_mut(&id).expect("it lives");
            if !one.has_begun {
                let served = self.turns.served[one.tenant];
                self.turns.served_last = self.turns.served_last.max(served);
            }
            (one.runs, one.has_begun) = (true, true);
            one.n_served = one.n_served.max(admission.n_cached);
            if let Some(row) = plan.rows.iter().find(|row| row.request == id) {
                self.serve(row);
            }
        }
        if self.has_turns() {
            self.check_first_goes_on(plan);
        }
        if plan.admitted.is_empty() && n_preempted == 0 {
            self.check_nobody_is_in_the_way(plan);
        }
    }

    /// Where somebody comes when others gave way, they were of lower levels than that one.
    fn check_displaced(&mut self, plan: &StepPlan, victims: &[(u64, RequestId)]) {
        let Some(admission) = plan.admitted.first().filter(|_| !victims.is_empty()) else { return };
        self.check_turn(admission.request, plan.step.0);
        let (newcomer, n_below) =
            (&self.live[&admission.request], |id| self.key(id, plan.step.0).0);
        for &(_, id) in victims {
            let is_lower = newcomer.level < self.live[&id].level;
            let is_still = n_below(admission.request) < n_below(id);
            assert!(is_lower && is_still, "wrong: {id:?} gives way to {admission:?}, no higher");
            assert!(!newcomer.has_begun, "wrong: {admission:?} has begun and displaces {id:?}");
        }
        let is_for_a_slot = self.limits.groups.is_empty();
        assert!(victims.len() <= 1 || !is_for_a_slot, "wrong: {victims:?} for one slot");
        self.sights.n_displaced += victims.len() as u64;
    }

    /// Where pages are no matter and a step has tokens left, nobody waits for a slot while one of a
    /// lower level, as it came and now, has it.
    fn check_nobody_is_in_the_way(&self, plan: &StepPlan) {
        let n_guessed: usize = plan.rows.iter().map(|row| row.n_candidates).sum();
        let n_left = self.limits.n_tokens_per_step + n_guessed - plan.tokens.len();
        if !self.limits.groups.is_empty() || self.limits.latency.is_some() || n_left == 0 {
            return;
        }
        let waiting = self.live.iter().filter(|(_, one)| !one.runs);
        let first = waiting.map(|(&id, _)| id).min_by_key(|&id| self.key(id, plan.step.0));
        let running = self.live.iter().filter(|(_, one)| one.runs);
        let last = running.max_by_key(|(id, one)| (one.due, **id)).map(|(&id, _)| id);
        let (Some(first), Some(last)) = (first, last) else { return };
        let (waits, runs) = (&self.live[&first], &self.live[&last]);
        // It may wait for its prompt.
        let prompt = &waits.request.prompt;
        let is_sibling = |one: &Expected| one.runs && Arc::ptr_eq(&one.request.prompt, prompt);
        if waits.has_begun || self.live.values().any(is_sibling) {
            return;
        }
        let n_below = |id| self.key(id, plan.step.0).0;
        let is_in_the_way = waits.level < runs.level && n_below(first) < n_below(last);
        assert!(!is_in_the_way, "wrong: {first:?} waits while {last:?} of a lower level runs");
    }

    /// Nobody waits that goes before.
    fn check_turn(&mut self, id: RequestId, n_steps: u64) {
        let key = self.key(id, n_steps);
        for (&other, _) in self.live.iter().filter(|(_, other)| !other.runs) {
            let before = self.key(other, n_steps);
            assert!(key <= before, "wrong: {id:?}, {key:?}, passes {before:?}");
            self.sights.n_passed_older += u64::from(other < id);
        }
    }

    fn serve(&mut self, row: &Row) {
        let one = self.live.get_mut(&row.request).expect("it lives");
        let end = row.start + row.n_tokens - row.n_candidates;
        let n_new = end.saturating_sub(one.n_served);
        one.n_served += n_new;
        self.turns.served[one.tenant] += n_new as u64;
    }

    fn check_first_goes_on(&self, plan: &StepPlan) {
        let running = self.live.iter().filter(|(_, one)| one.runs);
        let Some((id, first)) = running.min_by_key(|(id, one)| (one.due, **id)) else { return };
        let runs = plan.rows.iter().any(|row| row.request == *id);
        assert!(runs || !self.goes_on(first), "stuck: {id:?}, the first that runs, gets no row");
    }

    /// Two tenants that wait at the first level all the time are served alike, but for what those
    /// that have begun may still be.
    fn check_contests(&mut self, n_steps: u64) {
        let waits = |tenant: usize| {
            let mut newcomers = self.live.iter().filter(|(_, one)| !one.has_begun);
            newcomers.any(|(&id, one)| one.tenant == tenant && self.key(id, n_steps).0 == 0)
        };
        let waiting: Vec<usize> = (0..self.limits.n_tenants).filter(|&one| waits(one)).collect();
        let mut contests = Vec::new();
        for (idx, &one) in waiting.iter().enumerate() {
            for &other in &waiting[idx + 1..] {
                let served = &self.turns.served;
                let ahead = served[one] as i64 - served[other] as i64;
                let before = self.turns.contests.iter().find(|c| (c.0, c.1) == (one, other));
                let (least, most) =
                    before.map_or((ahead, ahead), |c| (c.2.min(ahead), c.3.max(ahead)));
                let n_begun_max = match self.limits.priorities.n_levels {
                    1 => self.limits.n_slots,
                    _ => self.limits.n_slots + self.limits.n_waiting_max,
                };
                let bound = 2 * (n_begun_max * self.n_sequence_max()) as i64;
                assert!(
                    most - least <= bound,
                    "wrong: tenant {one} and {other}: {least} to {most}"
                );
                contests.push((one, other, least, most));
            }
        }
        self.sights.n_contests += contests.len() as u64;
        self.turns.contests = contests;
    }
}
