//! What a request may expect: whether it is taken, how far it gets, by when it has ended.

use scheduler::{FinishReason, Limits, Refusal, Request, TokenId};

use super::{N_HELD_MAX, World};
use crate::model::next_token;

impl World {
    /// Its tenant, and the step at which it has risen to the first level.
    pub(super) fn turn(&self, request: &Request) -> (usize, u64) {
        let priorities = &self.limits.priorities;
        let level = match request.terms.priority {
            level if (1..=priorities.n_levels).contains(&level) => level,
            _ => priorities.default_level,
        };
        let n_steps = u64::from((level - 1) * priorities.n_steps_a_level);
        (request.terms.tenant.idx() % self.limits.n_tenants, self.n_steps() + n_steps)
    }

    /// The step by which it must have ended: of several tenants it depends on what they do.
    pub(super) fn deadline(&self, request: &Request, due: u64) -> u64 {
        // Every token of a guided request may hold it for as many steps, and others behind it; who
        // waits for its own token lets one step of others pass.
        let delay = match self.limits.speculation {
            _ if self.guided_in < 1_000_000 => 2 + N_HELD_MAX as u64,
            Some(_) => 2,
            None => 1,
        };
        let n_live_max = self.limits.n_slots + self.limits.n_waiting_max;
        let n_tokens = match (self.has_turns(), self.limits.n_tenants) {
            (false, _) => {
                let live = self.live.values().map(|older| self.n_tokens_end(&older.request));
                live.sum::<usize>() + self.n_tokens_end(request) + self.live.len()
            }
            // Once it is due, whoever is before it or has begun may be first twice: until it is
            // displaced by one that begins, and from its return on.
            (true, 1) => 2 * (n_live_max + 1) * (self.n_sequence_max() + 1),
            _ => return u64::MAX,
        };
        due + n_tokens as u64 * delay + 2
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
