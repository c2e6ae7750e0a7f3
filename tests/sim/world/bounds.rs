//! What a request may expect: whether it is taken, how far it gets, by when it has ended.

use scheduler::{FinishReason, Limits, Refusal, Request, TokenId};

use super::{Deadline, Expected, N_HELD_MAX, World};
use crate::model::next_token;

impl World {
    /// Its tenant, its level, and the step at which it has risen to the first one.
    pub(super) fn turn(&self, request: &Request) -> (usize, u32, u64) {
        let priorities = &self.limits.priorities;
        let level = match request.terms.priority {
            level if (1..=priorities.n_levels).contains(&level) => level,
            _ => priorities.default_level,
        };
        let n_steps = u64::from((level - 1) * priorities.n_steps_a_level);
        (request.terms.tenant.idx() % self.limits.n_tenants, level, self.n_steps() + n_steps)
    }

    /// When it must have ended: of several tenants it depends on what they were served when it is
    /// due ([`World::set_deadlines`]).
    pub(super) fn deadline(&self, request: &Request, due: u64) -> Deadline {
        let n_live_max = self.limits.n_slots + self.limits.n_waiting_max;
        let n_tokens = match (self.has_turns(), self.limits.n_tenants) {
            (false, _) => {
                let live = self.live.values().map(|older| self.n_tokens_end(&older.request));
                live.sum::<usize>() + self.n_tokens_end(request) + self.live.len()
            }
            // Once it is due, whoever is before it or has begun may be first twice: until it is
            // displaced by one that begins, and from its return on.
            (true, 1) => 2 * (n_live_max + 1) * (self.n_sequence_max() + 1),
            _ => return Deadline { from: due, step: u64::MAX },
        };
        Deadline { from: due, step: due + n_tokens as u64 * self.n_steps_a_token() + 2 }
    }

    /// Steps that pass at most for one token of the first that runs.
    fn n_steps_a_token(&self) -> u64 {
        // Every token of a guided request may hold it for as many steps, and others behind it; who
        // waits for its own token lets one step of others pass.
        match self.limits.speculation {
            _ if self.guided_in < 1_000_000 => 2 + N_HELD_MAX as u64,
            Some(_) => 2,
            None => 1,
        }
    }

    /// Of several tenants: who has just risen to the first level, by `n_steps`, knows from now on
    /// when it must have ended.
    ///
    /// It is the turn of another tenant only while that one was served no more than its own, which
    /// is served no more meanwhile than those of its own that have begun or go before it still
    /// lack. Every turn is served one token at once. So turns of others are counted; each of those
    /// that begin, and of those that live now, may be the first that runs twice: until it is
    /// displaced by one that begins, and from its return on. And the first that runs goes on.
    pub(super) fn set_deadlines(&mut self, n_steps: u64) {
        if self.limits.n_tenants == 1 {
            return;
        }
        let is_due = |one: &Expected| one.deadline.step == u64::MAX && one.due <= n_steps;
        let n_live: u64 =
            self.live.values().map(|one| self.n_tokens_end(&one.request) as u64 + 1).sum();
        let mut deadlines = Vec::new();
        for (&id, one) in self.live.iter().filter(|(_, one)| is_due(one)) {
            let is_before = |other: &Expected, other_id| (other.due, other_id) < (one.due, id);
            let own = self.live.iter().filter(|&(&other_id, other)| {
                other.tenant == one.tenant && (other.has_begun || is_before(other, other_id))
            });
            let lacks = |other: &Expected| self.n_tokens_end(&other.request) - other.n_served;
            let n_own = own.map(|(_, other)| lacks(other) as u64).sum::<u64>();
            let served = &self.turns.served;
            let others = (0..served.len()).filter(|&tenant| tenant != one.tenant);
            let n_turns = |tenant| (served[one.tenant] + n_own + 1).saturating_sub(served[tenant]);
            let n_turns: u64 = others.map(n_turns).sum();
            let n_tokens = 2 * (n_live + n_turns * (self.n_sequence_max() as u64 + 1));
            let step = n_steps + n_tokens * self.n_steps_a_token() + 2;
            deadlines.push((id, Deadline { from: n_steps, step }));
        }
        for (id, deadline) in deadlines {
            self.live.get_mut(&id).expect("it lives").deadline = deadline;
        }
    }

    pub(super) fn expected_refusal(&self, request: &Request) -> Option<Refusal> {
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

    pub(super) fn n_tokens_end(&self, request: &Request) -> usize {
        request.prompt.len().saturating_add(request.n_new_max).min(self.n_sequence_max())
    }

    /// The longest sequence that could run alone, found by trying every length.
    pub(super) fn n_sequence_max(&self) -> usize {
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
pub(super) fn run_alone(
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
