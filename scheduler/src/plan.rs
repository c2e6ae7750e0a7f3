//! A step as plain data: which tokens of which sequences, and where their KV goes.

use std::ops::Range;

use crate::{GroupIdx, HostPageId, PageId, RequestId, SlotIdx, StepId, TokenId};

/// One forward pass. The same plan goes to every rank, and ranks run plans in their order: what one
/// plan takes from a sequence (a page, a slot), the plan before it may still use.
///
/// Ranks keep a page table per slot and group; a plan carries only what changed in it, so its size
/// does not grow with the context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// Counts up by one.
    pub step: StepId,
    /// Sequences that take a slot in this step, before any of its rows.
    pub admitted: Vec<Admission>,
    /// Page-table entries to set before the rows run, in order.
    pub pages: Vec<PageUpdate>,
    /// Pages whose content comes from elsewhere, to be moved before the rows run, in order.
    pub moves: Vec<PageMove>,
    /// Rows, at most one a slot; those that decode come first, each group by age.
    pub rows: Vec<Row>,
    /// Input tokens of all rows, back to back in row order, candidates among them. Those of rows
    /// that follow others are not known yet.
    pub tokens: Vec<TokenId>,
}

/// A sequence enters (or re-enters, after preemption) a slot: whatever the slot held is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Who enters.
    pub request: RequestId,
    /// Where.
    pub slot: SlotIdx,
    /// Tokens whose KV was found in pages that the plan puts into the tables: its first row begins
    /// behind them.
    pub n_cached: usize,
}

/// Entry `page_idx` of a slot's page table in `group` becomes `page`:
/// it holds positions `page_idx * page_tokens ..` of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageUpdate {
    /// Whose table.
    pub slot: SlotIdx,
    /// Which of its tables.
    pub group: GroupIdx,
    /// Which entry.
    pub page_idx: u32,
    /// The new value.
    pub page: PageId,
}

/// Content that a page takes from elsewhere, in every block of its group and on every rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageMove {
    /// All of `from`, as the steps before have left it, is in `to` as well.
    Copy {
        /// Whose pages.
        group: GroupIdx,
        /// Is read.
        from: PageId,
        /// Is written.
        to: PageId,
    },
    /// All of `from` goes to the host's page `to`.
    Out {
        /// Whose pages.
        group: GroupIdx,
        /// Is read.
        from: PageId,
        /// Is written.
        to: HostPageId,
    },
    /// All of the host's page `from` comes back, to `to`.
    In {
        /// Whose pages.
        group: GroupIdx,
        /// Is read.
        from: HostPageId,
        /// Is written.
        to: PageId,
    },
}

/// One sequence's share of a step. Prefill, a chunk of it and decode differ only in `n_tokens`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose tokens.
    pub request: RequestId,
    /// Where the ranks filed the sequence.
    pub slot: SlotIdx,
    /// Position of the row's first token in its sequence.
    pub start: usize,
    /// Tokens computed, at least one.
    pub n_tokens: usize,
    /// Where the row's tokens begin in [`StepPlan::tokens`].
    pub token_idx: usize,
    /// Of its tokens, the last ones that are guesses at what the row samples. The token after each
    /// is sampled as if it were right; the first that is not ends what the row yields. Their KV is
    /// void from there on, and the sequence's next row writes it anew.
    pub n_candidates: usize,
    /// Where the row's results begin: [`Row::n_answers`] of them, one for what follows its own
    /// tokens and one for each candidate.
    pub answer_idx: usize,
    /// The row's one token is this result of the step before, which had not landed when this was
    /// planned. [`StepPlan::settle`] writes it where `token_idx` says.
    pub follows: Option<usize>,
    /// What the row yields besides KV.
    pub emit: Emit,
}

/// What a row yields besides KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    /// Nothing: a chunk of a prompt that goes on.
    Nothing,
    /// A token sampled after the row's last position, candidates aside.
    Sample,
    /// The log-probability of each prompt token that follows a position of the row.
    Score,
    /// Both: the last chunk of a prompt that is scored.
    ScoreAndSample,
}

impl Emit {
    /// Whether a token is sampled after the row's last position.
    pub fn samples(self) -> bool {
        matches!(self, Emit::Sample | Emit::ScoreAndSample)
    }

    /// Whether every position of the row is scored.
    pub fn scores(self) -> bool {
        matches!(self, Emit::Score | Emit::ScoreAndSample)
    }
}

impl StepPlan {
    /// No rows yet.
    pub(crate) fn empty() -> StepPlan {
        StepPlan {
            step: StepId(0),
            admitted: Vec::new(),
            pages: Vec::new(),
            moves: Vec::new(),
            rows: Vec::new(),
            tokens: Vec::new(),
        }
    }

    /// Writes the tokens that were not known when this was planned. `sampled` is what the step
    /// before it sampled, as in [`StepResult::tokens`](crate::StepResult::tokens).
    ///
    /// # Panics
    /// If a row follows one that sampled nothing.
    pub fn settle(&mut self, sampled: &[Option<TokenId>]) {
        for row in &self.rows {
            let Some(answer_idx) = row.follows else { continue };
            let token = sampled[answer_idx];
            self.tokens[row.token_idx] = token.expect("a row follows one that samples");
        }
    }

    /// Results of all rows together.
    pub fn n_answers(&self) -> usize {
        self.rows.last().map_or(0, |row| row.answer_range().end)
    }

    /// The input tokens of a row of this plan.
    pub fn row_tokens(&self, row: &Row) -> &[TokenId] {
        &self.tokens[row.token_range()]
    }
}

impl Row {
    /// Results that the row has a place for.
    pub fn n_answers(&self) -> usize {
        1 + self.n_candidates
    }

    /// Where the row's results lie.
    pub fn answer_range(&self) -> Range<usize> {
        self.answer_idx..self.answer_idx + self.n_answers()
    }

    /// Where the row's tokens lie in [`StepPlan::tokens`].
    pub fn token_range(&self) -> Range<usize> {
        self.token_idx..self.token_idx + self.n_tokens
    }
}
