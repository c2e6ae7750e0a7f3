//! What must be true of a plan, whatever the policy: rows follow each other, tokens are those that
//! are or will be known, every limit is kept, the oldest goes on.

use std::sync::Arc;

use scheduler::{Admission, PageMove, Row, StepPlan};

use super::{Expected, World};

impl Expected {
    /// Whether it must not sample: a token of it is in flight, or not answered.
    pub(super) fn is_held(&self) -> bool {
        self.request.is_guided && (self.held.is_some() || self.n_late > 0)
    }
}

impl World {
    pub(super) fn check_plan(&mut self, plan: &StepPlan) {
        for admission in &plan.admitted {
            self.check_admission(admission);
        }
        for page in &plan.moves {
            *match page {
                PageMove::Copy { .. } => &mut self.sights.n_copied_pages,
                PageMove::Out { .. } => &mut self.sights.n_pages_out,
                PageMove::In { .. } => &mut self.sights.n_pages_in,
            } += 1;
        }
        let mut slots: Vec<_> = plan.rows.iter().map(|row| row.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), plan.rows.len(), "wrong: one row a slot");
        assert!(plan.tokens.len() <= self.limits.n_tokens_per_step, "wrong: budget");
        let beside = self.live.values().filter(|expected| expected.is_held()).count();
        self.sights.n_held_beside += beside as u64;
        let (id, oldest) = self.live.iter().next().expect("wrong: a plan for nobody");
        let runs = plan.rows.iter().any(|row| row.request == *id);
        let is_due = !self.has_turns() && self.goes_on(oldest);
        assert!(runs || !is_due, "stuck: {id:?}, the oldest, gets no row");
        let mut token_idx = 0;
        let mut n_decode_rows = 0;
        let mut answer_idx = 0;
        for (row_idx, row) in plan.rows.iter().enumerate() {
            assert_eq!(row.answer_idx, answer_idx, "wrong: answers of {row:?}");
            answer_idx += row.n_answers();
            assert_eq!(row.token_idx, token_idx, "wrong: {row:?} is not next to the last row");
            token_idx += row.n_tokens;
            let enters = plan.admitted.iter().any(|admission| admission.request == row.request);
            let decodes = !enters && self.decodes(row);
            self.check_row(row_idx, row);
            if decodes {
                assert_eq!(n_decode_rows, row_idx, "wrong: decode rows come first");
                n_decode_rows += 1;
            }
        }
        assert_eq!(token_idx, plan.tokens.len(), "wrong: tokens of no row");
        let is_mixed = n_decode_rows > 0 && n_decode_rows < plan.rows.len();
        self.sights.n_mixed_steps += u64::from(is_mixed);
    }

    /// Whether there is something to compute for one that runs: unless it is held, or all that it
    /// will ever compute is in flight, a last token's KV not among it.
    pub(super) fn goes_on(&self, one: &Expected) -> bool {
        let n_known = one.n_known + one.n_late;
        let is_at_end = one.n_late > 0 && n_known == self.n_tokens_end(&one.request);
        let speculates = self.limits.speculation.is_some() && !one.request.is_guided;
        let waits = speculates && one.n_late > 0;
        one.n_computed < n_known && !is_at_end && !waits && !one.is_held()
    }

    fn check_admission(&mut self, admission: &Admission) {
        let newcomer = self.live.get_mut(&admission.request).expect("wrong: not alive");
        newcomer.was_preempted |= newcomer.n_computed > 0;
        let n_cached = admission.n_cached;
        newcomer.n_computed = n_cached;
        self.sights.n_cached_pages += (n_cached / self.limits.page_tokens) as u64;
        assert!(n_cached < newcomer.n_known, "wrong: {admission:?} leaves nothing to compute");
        let n_prompt = newcomer.request.prompt.len();
        let scores = newcomer.request.scores_prompt && newcomer.n_scored < n_prompt;
        assert!(!scores || n_cached == 0, "wrong: {admission:?} skips what is to be scored");
        let prompt = Arc::clone(&newcomer.request.prompt);
        let others = self.live.iter().filter(|(id, _)| **id != admission.request);
        let is_sibling = |other: &Expected| Arc::ptr_eq(&other.request.prompt, &prompt);
        let has_sibling = others.clone().any(|(_, other)| is_sibling(other));
        let caches = self.limits.prefix_cache.is_some() || has_sibling;
        assert!(caches || n_cached == 0, "wrong: {admission:?}");
        let newcomer = &self.live[&admission.request];
        if !newcomer.was_preempted && !self.has_turns() {
            let last = self.last_admitted.replace(admission.request);
            assert!(last < Some(admission.request), "wrong: {last:?} was admitted before");
        }
    }

    /// Whether a row that is being planned is of one token, its sequence's last.
    fn decodes(&self, row: &Row) -> bool {
        let expected = &self.live[&row.request];
        let n_own = row.n_tokens - row.n_candidates;
        row.start > 0 && n_own == 1 && row.start + 1 == expected.n_known + expected.n_late
    }

    fn check_row(&mut self, row_idx: usize, row: &Row) {
        let end = row.start + row.n_tokens - row.n_candidates;
        let n_tokens_end = self.n_tokens_end(&self.live[&row.request].request);
        let expected = self.live.get_mut(&row.request).expect("wrong: not alive");
        assert!(row.n_tokens > row.n_candidates, "wrong: {row:?} is empty");
        assert_eq!(row.start, expected.n_computed, "wrong: {row:?} starts elsewhere");
        let n_known = expected.n_known + expected.n_late;
        assert!(end <= n_known, "wrong: {row:?} has tokens that nobody will know");
        let is_needed = end < n_tokens_end || expected.request.n_new_max == 0;
        assert!(is_needed, "wrong: {row:?} computes KV that nobody will read");
        let follows = self.flight.as_ref().filter(|_| end > expected.n_known).and_then(|flight| {
            let is_before = |before: &Row| before.request == row.request && before.emit.samples();
            flight.plan.rows.iter().find(|before| is_before(before)).map(|before| before.answer_idx)
        });
        assert_eq!(row.follows, follows, "wrong: {row:?} follows another row");
        assert_eq!(follows.is_some(), end > expected.n_known, "wrong: {row:?} follows nobody");
        self.sights.n_following += u64::from(follows.is_some());
        let samples = end == n_known && n_known < n_tokens_end;
        assert_eq!(row.emit.samples(), samples, "wrong: row {row_idx}, {row:?}");
        let is_held = expected.is_held();
        assert!(!(samples && is_held), "wrong: {row:?} samples before it is known what it may");
        let is_guided = expected.request.is_guided;
        self.sights.n_guided += u64::from(samples && is_guided);
        let speculation = self.limits.speculation.filter(|_| !is_guided);
        let n_candidates_max = speculation.map_or(0, |speculation| speculation.n_candidates_max);
        assert!(row.n_candidates <= n_candidates_max, "wrong: {row:?} guesses too much");
        let is_ahead = speculation.is_some() && expected.n_late > 0;
        assert!(!is_ahead, "wrong: {row:?} does not wait for its token");
        let reach = n_known + row.n_answers();
        let is_within = row.n_candidates == 0 || samples && reach <= n_tokens_end;
        assert!(is_within, "wrong: {row:?} guesses beyond the end");
        self.sights.n_speculative += u64::from(row.n_candidates > 0);
        expected.n_late += if samples { row.n_answers() } else { 0 };
        let n_prompt = expected.request.prompt.len();
        let is_new = expected.n_scored < n_prompt && end > expected.n_scored;
        let scores = expected.request.scores_prompt && is_new;
        assert_eq!(row.emit.scores(), scores, "wrong: {row:?}");
        if scores {
            assert_eq!(row.start, expected.n_scored, "wrong: {row:?} scores twice or skips");
            assert!(end <= n_prompt, "wrong: {row:?} scores what is not the prompt");
            expected.n_scored = end;
            self.sights.n_scored_after_preemption += u64::from(expected.was_preempted);
        }
        expected.n_computed = end + row.n_candidates;
    }
}
