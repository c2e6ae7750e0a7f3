//! From what was granted to a plan's rows: candidates are added, tokens are written, the step is
//! remembered.

use super::{Flight, Grant, Scheduler, Scratch};
use crate::budget::Budget;
use crate::{Row, StepPlan};

impl Scheduler {
    /// Adds candidates to the grants of those that decode, oldest first, from what is left of the
    /// step's tokens and of the pages: nobody gives way for a guess.
    pub(super) fn propose(&mut self, budget: &mut Budget, plan: &mut StepPlan) {
        let Some(speculation) = self.limits.speculation else { return };
        let Scheduler { roster, pools, scratch: Scratch { grants, candidates, .. }, .. } = self;
        candidates.clear();
        for grant in grants.iter_mut().filter(|grant| grant.decodes) {
            let sequence = roster.sequence_mut(grant.slot);
            let first = sequence.n_planned() + 1;
            let n_max = speculation.n_candidates_max.min(sequence.n_candidates_max());
            let n_max = pools.n_affordable(grant.slot, first, n_max.min(budget.n_spare()));
            let n_before = candidates.len();
            sequence.propose(n_max, candidates);
            grant.n_candidates = candidates.len() - n_before;
            pools.reserve(grant.slot, first + grant.n_candidates, &mut plan.pages);
            budget.take_spare(grant.n_candidates);
        }
        self.counters.n_proposed_tokens += self.scratch.candidates.len() as u64;
    }

    /// Turns the grants into rows, decode rows first, and remembers the step.
    pub(super) fn write_rows(&mut self, plan: &mut StepPlan) {
        let mut grants = std::mem::take(&mut self.scratch.grants);
        let mut candidates = self.scratch.candidates.as_slice();
        let mut answer_idx = 0;
        let decode = grants.iter().filter(|grant| grant.decodes);
        let prefill = grants.iter().filter(|grant| !grant.decodes);
        for &Grant { slot, n_tokens, n_candidates, .. } in decode.chain(prefill) {
            let sequence = self.roster.sequence_mut(slot);
            let (request, start) = (sequence.id(), sequence.n_planned());
            let n_prompt_left = sequence.prompt().len().saturating_sub(start);
            self.counters.n_prompt_tokens += n_prompt_left.min(n_tokens) as u64;
            let token_idx = plan.tokens.len();
            let (follows, emit) = sequence.plan(n_tokens, answer_idx, &mut plan.tokens);
            sequence.plan_candidates(n_candidates);
            plan.tokens.extend(candidates.split_off(..n_candidates).into_iter().flatten());
            let n_tokens = n_tokens + n_candidates;
            plan.rows.push(Row {
                request,
                slot,
                start,
                n_tokens,
                n_candidates,
                token_idx,
                answer_idx,
                follows,
                emit,
            });
            answer_idx += 1 + n_candidates;
        }
        let n_prompt_tokens = prompt_tokens_beside_answers(&grants);
        grants.clear();
        self.scratch.grants = grants;
        self.counters.n_steps += 1;
        self.counters.n_rows += plan.rows.len() as u64;
        let mut rows = self.scratch.flight_rows.pop().unwrap_or_default();
        rows.extend_from_slice(&plan.rows);
        self.flights.push_back(Flight { step: plan.step, rows, n_prompt_tokens });
    }
}

/// Tokens of rows that do not decode; `None` where none does.
fn prompt_tokens_beside_answers(grants: &[Grant]) -> Option<usize> {
    let prompts = grants.iter().filter(|grant| !grant.decodes);
    let n_prompt_tokens = prompts.map(|grant| grant.n_tokens).sum();
    grants.iter().any(|grant| grant.decodes).then_some(n_prompt_tokens)
}
