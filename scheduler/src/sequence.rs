//! One request's life: its tokens, how far they are computed, what its next row yields, its end.
//!
//! It does not know pages, queues or other sequences.

use std::ops::Range;
use std::sync::Arc;

use crate::lookup::Lookup;
use crate::turn::Turn;
use crate::{Emit, FinishReason, Limits, Moment, Request, RequestId, Row, TenantId, TokenId};

/// Stands in a plan where the row before is still computing the token; settling the plan puts the
/// computed one there.
const UNKNOWN: TokenId = TokenId(0);

/// A request that has been taken.
///
/// Positions `.. n_computed` have their KV in pages; `n_in_flight` more are being computed by
/// planned steps. Tokens `.. n_tokens()` are known; `n_late` more will be, when those steps land. A
/// sequence with one token to compute decodes; one with more prefills, be it its prompt or what a
/// preemption threw away.
#[derive(Debug)]
pub(crate) struct Sequence {
    request: Request,
    turn: Turn,
    level: u32,
    tenant: TenantId,
    generated: Vec<TokenId>,
    /// Prompt and generated tokens at which it ends.
    n_tokens_end: usize,
    n_computed: usize,
    n_in_flight: usize,
    n_rows_in_flight: usize,
    /// Tokens that rows in flight sample, at most: as if every candidate were right.
    n_late: usize,
    /// Result of the last planned step that is the last of them.
    late_answer_idx: usize,
    /// Where what may come next is looked up. A sequence that has this is not planned ahead of its
    /// tokens: before they are known there is nothing to look up, nor is it known how many a row
    /// with candidates yields.
    lookup: Option<Lookup>,
    speculates: bool,
    /// Rows in flight, the first to land, whose KV was lost to a preemption. What they sample
    /// holds.
    n_void_rows: usize,
    /// Prompt positions whose scores were delivered; a preemption does not undo that.
    n_scored: usize,
    /// It is guided, and nobody has said yet what may follow its last token.
    is_held: bool,
    has_begun: bool,
    /// Positions that were computed for it, or found, at least once.
    n_served: usize,
}

impl Sequence {
    pub(crate) fn new(request: Request, turn: Turn, limits: &Limits) -> Sequence {
        let n_tokens_end = request.prompt.len().saturating_add(request.n_new_max);
        // What may follow a guess of a guided one is not known.
        let speculates = limits.speculation.is_some() && !request.is_guided;
        Sequence {
            level: limits.priorities.level(request.terms.priority),
            tenant: TenantId(request.terms.tenant.0 % limits.n_tenants as u32),
            request,
            turn,
            generated: Vec::new(),
            n_tokens_end: n_tokens_end.min(limits.n_sequence_tokens_max()),
            n_computed: 0,
            n_in_flight: 0,
            n_rows_in_flight: 0,
            n_late: 0,
            late_answer_idx: 0,
            lookup: None,
            speculates,
            n_void_rows: 0,
            n_scored: 0,
            is_held: false,
            has_begun: false,
            n_served: 0,
        }
    }

    pub(crate) fn id(&self) -> RequestId {
        self.request.id
    }

    pub(crate) fn turn(&self) -> Turn {
        self.turn
    }

    /// The level that it came with.
    pub(crate) fn level(&self) -> u32 {
        self.level
    }

    /// Whose share it takes.
    pub(crate) fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Whether it has ever had a slot.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    pub(crate) fn prompt(&self) -> &[TokenId] {
        &self.request.prompt
    }

    /// Siblings' prompts are one allocation.
    pub(crate) fn shared_prompt(&self) -> &Arc<[TokenId]> {
        &self.request.prompt
    }

    pub(crate) fn generated(&self) -> &[TokenId] {
        &self.generated
    }

    /// Tokens known.
    pub(crate) fn n_tokens(&self) -> usize {
        self.request.prompt.len() + self.generated.len()
    }

    /// Tokens that it will ever have, at most.
    pub(crate) fn n_tokens_end(&self) -> usize {
        self.n_tokens_end
    }

    /// Positions whose KV is in pages.
    pub(crate) fn n_computed(&self) -> usize {
        self.n_computed
    }

    /// Positions computed once all planned rows have landed: where the next row starts.
    pub(crate) fn n_planned(&self) -> usize {
        self.n_computed + self.n_in_flight
    }

    pub(crate) fn n_rows_in_flight(&self) -> usize {
        self.n_rows_in_flight
    }

    /// Tokens known once all planned rows have landed.
    pub(crate) fn n_tokens_planned(&self) -> usize {
        self.n_tokens() + self.n_late
    }

    /// Tokens that no row computes yet, of those known and of those that rows in flight sample and
    /// that may be planned ahead of.
    pub(crate) fn n_remaining(&self) -> usize {
        if self.speculates && self.n_late > 0 {
            return 0;
        }
        let n_tokens = self.n_tokens_planned();
        // The last token that it generates needs no KV.
        let is_last = self.n_late > 0 && n_tokens == self.n_tokens_end;
        if is_last { 0 } else { n_tokens - self.n_planned() }
    }

    /// Whether it may not sample yet: it is guided, and what may follow its last token is not known
    /// or that token itself is in flight.
    pub(crate) fn is_held(&self) -> bool {
        self.is_held || (self.request.is_guided && self.n_late > 0)
    }

    /// It is known what may follow its last token.
    pub(crate) fn allow(&mut self) {
        self.is_held = false;
    }

    /// Tokens that the next row may have: all that remain, but for the last of who is held, and a
    /// row does not mix positions that are to be scored with positions that were scored before a
    /// preemption.
    pub(crate) fn n_row_tokens_max(&self) -> usize {
        let n_planned = self.n_planned();
        if n_planned < self.n_scored && self.n_scored < self.request.prompt.len() {
            return self.n_scored - n_planned;
        }
        self.n_remaining().saturating_sub(usize::from(self.is_held()))
    }

    pub(crate) fn cache_salt(&self) -> &Option<Arc<str>> {
        &self.request.cache_salt
    }

    /// Tokens whose KV it may take from others: all but the last, whose logits it needs, and none
    /// while the prompt's own are wanted.
    pub(crate) fn n_cacheable(&self) -> usize {
        let scores = self.request.scores_prompt && self.n_scored < self.request.prompt.len();
        if scores { 0 } else { self.n_tokens() - 1 }
    }

    /// Its first `n_tokens` have their KV in pages that others wrote.
    pub(crate) fn adopt(&mut self, n_tokens: usize) {
        assert_eq!(self.n_planned(), 0, "{:?} has pages of its own", self.id());
        assert!(n_tokens <= self.n_cacheable(), "{:?}: {n_tokens} tokens adopted", self.id());
        self.n_computed = n_tokens;
        self.n_served = self.n_served.max(n_tokens);
    }

    /// Positions before `end` will have been computed for it: how many never were before.
    pub(crate) fn serve(&mut self, end: usize) -> usize {
        let n_new = end.saturating_sub(self.n_served);
        self.n_served += n_new;
        n_new
    }

    /// Appends the tokens of a range to `tokens`.
    pub(crate) fn read(&self, range: Range<usize>, tokens: &mut Vec<TokenId>) {
        let Range { start, end } = range;
        let n_prompt = self.request.prompt.len();
        tokens.extend_from_slice(&self.request.prompt[start.min(n_prompt)..end.min(n_prompt)]);
        let generated = start.saturating_sub(n_prompt)..end.saturating_sub(n_prompt);
        tokens.extend_from_slice(&self.generated[generated]);
    }

    /// It takes a slot: room for all that it may generate, so that no step allocates for it.
    pub(crate) fn enter(&mut self) {
        let n_new = self.n_tokens_end - self.request.prompt.len();
        self.generated.reserve_exact(n_new - self.generated.len());
        self.has_begun = true;
        if self.speculates && self.lookup.is_none() {
            self.lookup = Some(Lookup::new(self.n_tokens_end));
        }
    }

    /// When it will have been waited for in vain, as far as can be told now. A preemption is not
    /// the queue: who has begun is past its queue deadline's reach.
    pub(crate) fn wanted_until(&self) -> Option<Moment> {
        let terms = &self.request.terms;
        let queue_deadline = terms.queue_deadline.filter(|_| !self.has_begun);
        terms.deadline.into_iter().chain(queue_deadline).min()
    }

    /// Why nobody wants it any more.
    pub(crate) fn expiry_reason(&self, now: Moment) -> FinishReason {
        match self.request.terms.deadline {
            Some(deadline) if deadline <= now => FinishReason::DeadlinePassed,
            _ => FinishReason::QueueTimeout,
        }
    }

    /// It loses its pages: everything is to be computed again, also what is in flight. Returns how
    /// many positions that is.
    pub(crate) fn rewind(&mut self) -> usize {
        let n_lost = self.n_planned();
        self.n_void_rows = self.n_rows_in_flight;
        (self.n_computed, self.n_in_flight) = (0, 0);
        n_lost
    }

    /// Plans the next `n_tokens` as a row whose first result is `answer_idx` of its step: which
    /// result of the step before it follows, if any, and what it yields. Appends its tokens to
    /// `tokens`.
    pub(crate) fn plan(
        &mut self,
        n_tokens: usize,
        answer_idx: usize,
        tokens: &mut Vec<TokenId>,
    ) -> (Option<usize>, Emit) {
        let start = self.n_planned();
        let end = start + n_tokens;
        let n_row_max = self.n_row_tokens_max();
        assert!((1..=n_row_max).contains(&n_tokens), "{n_tokens} tokens of {n_row_max}");
        let emit = self.emit(start..end);
        let follows = (start == self.n_tokens()).then_some(self.late_answer_idx);
        if follows.is_some() {
            assert_eq!(n_tokens, 1, "{:?}: one token follows a row in flight", self.id());
            tokens.push(UNKNOWN);
        } else {
            self.read(start..end, tokens);
        }
        self.n_in_flight += n_tokens;
        self.n_rows_in_flight += 1;
        if emit.samples() {
            self.n_late += 1;
            self.late_answer_idx = answer_idx;
        }
        (follows, emit)
    }

    /// Candidates that a row of decoding may carry: what they and the row sample, all together,
    /// does not reach beyond the sequence's end.
    pub(crate) fn n_candidates_max(&self) -> usize {
        if !self.speculates {
            return 0;
        }
        self.n_tokens_end.saturating_sub(self.n_tokens() + 1)
    }

    /// Appends guesses at what its next row samples to `candidates`: `n_wanted` or none.
    pub(crate) fn propose(&mut self, n_wanted: usize, candidates: &mut Vec<TokenId>) {
        let (prompt, generated) = (&self.request.prompt, &self.generated);
        let token_at = |at: usize| match at.checked_sub(prompt.len()) {
            None => prompt[at],
            Some(generated_idx) => generated[generated_idx],
        };
        let Some(lookup) = &mut self.lookup else { return };
        lookup.propose(prompt.len() + generated.len(), n_wanted, token_at, candidates);
    }

    /// The row that was just planned carries candidates.
    pub(crate) fn plan_candidates(&mut self, n_candidates: usize) {
        assert!(n_candidates <= self.n_candidates_max(), "{:?}: {n_candidates}", self.id());
        self.n_in_flight += n_candidates;
        self.n_late += n_candidates;
    }

    fn emit(&self, positions: Range<usize>) -> Emit {
        let scores = self.request.scores_prompt
            && positions.start >= self.n_scored
            && positions.start < self.request.prompt.len();
        let n_tokens = self.n_tokens_planned();
        let samples = positions.end == n_tokens && n_tokens < self.n_tokens_end;
        match (scores, samples) {
            (false, false) => Emit::Nothing,
            (false, true) => Emit::Sample,
            (true, false) => Emit::Score,
            (true, true) => Emit::ScoreAndSample,
        }
    }

    /// A row of it has run, and its first `n_accepted` candidates are tokens of the sequence.
    pub(crate) fn land(&mut self, row: &Row, n_accepted: usize) {
        self.n_rows_in_flight -= 1;
        if row.emit.samples() {
            self.n_late -= row.n_answers();
        }
        if row.emit.scores() {
            let end = row.start + row.n_tokens - row.n_candidates;
            self.n_scored = self.n_scored.max(end);
        }
        if self.n_void_rows > 0 {
            self.n_void_rows -= 1;
            return;
        }
        assert_eq!(row.start, self.n_computed, "rows of {:?} land in order", self.id());
        self.n_computed += row.n_tokens - row.n_candidates + n_accepted;
        self.n_in_flight -= row.n_tokens;
    }

    /// It generated a token.
    pub(crate) fn push(&mut self, token: TokenId) {
        assert!(self.n_tokens() < self.n_tokens_end, "{:?} generates past its end", self.id());
        self.generated.push(token);
        self.is_held = self.request.is_guided;
    }

    /// Whether its last token is a stop token.
    pub(crate) fn is_stopped(&self) -> bool {
        let last = self.generated.last();
        last.is_some_and(|token| self.request.stop_tokens.contains(token))
    }

    /// Whether and why it ends, now that a row has landed and its token, if any, is pushed.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        if let Some(&token) = self.generated.last()
            && self.is_stopped()
        {
            return Some(FinishReason::Stop(token));
        }
        // Its last token needs no KV; a prompt alone is computed to its end, or scored to its end
        // where that KV was lost meanwhile.
        let is_full = self.n_tokens() == self.n_tokens_end;
        let is_computed = self.n_computed.max(self.n_scored) == self.n_tokens_end;
        let is_done = is_full && (!self.generated.is_empty() || is_computed);
        is_done.then_some(FinishReason::Length)
    }

    /// Asserts what holds in every state.
    pub(crate) fn check(&self) {
        let id = self.id();
        let n_tokens = self.n_tokens();
        assert!(!self.request.prompt.is_empty(), "{id:?}: empty prompt");
        let n_planned = self.n_planned();
        assert!(n_tokens <= self.n_tokens_end, "{id:?}: {n_tokens} > {}", self.n_tokens_end);
        let n_tokens = self.n_tokens_planned();
        assert!(n_tokens <= self.n_tokens_end, "{id:?}: {n_tokens} > {}", self.n_tokens_end);
        assert!(n_planned <= n_tokens, "{id:?}: {n_planned} > {n_tokens}");
        assert!(self.n_void_rows <= self.n_rows_in_flight, "{id:?}: void rows have landed");
        let samples_once = self.n_late <= self.n_rows_in_flight;
        assert!(samples_once || self.speculates, "{id:?}: a row samples two tokens");
        let n_rows = self.n_rows_in_flight - self.n_void_rows;
        assert_eq!(self.n_in_flight == 0, n_rows == 0, "{id:?}: in flight");
        assert!(self.n_scored <= self.request.prompt.len(), "{id:?}: scores past its prompt");
        assert!(self.request.scores_prompt || self.n_scored == 0, "{id:?}: scored unasked");
    }
}

#[cfg(test)]
mod tests;
