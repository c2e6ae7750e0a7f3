//! A model whose next token is a hash of all that its queries see, and the rank that runs it.
//!
//! The rank does what a real one does with a plan: it keeps page tables per slot and group, writes
//! each position's KV to the page that the table names, and reads a query's context back through
//! the tables. A cell remembers what it depends on, so that every wrong page shows. It does not
//! know the scheduler's state, only its plans.

use std::collections::BTreeMap;
use std::sync::Arc;

use scheduler::{GroupIdx, Limits, PageId, PageMove, RequestId, Row, StepPlan, TokenId};

use crate::random::mix;

/// Entries of the vocabulary: few, so that stop tokens are met.
pub(crate) const VOCAB_SIZE: u64 = 12;

/// A rank, as far as the scheduler can tell.
pub(crate) struct Rank {
    limits: Limits,
    slots: Vec<Slot>,
    /// By group, page and place in the page.
    memory: Vec<Vec<Vec<Option<Cell>>>>,
    /// The same on the host.
    host: Vec<Vec<Vec<Option<Cell>>>>,
}

/// What is filed under a slot.
struct Slot {
    /// Whose it is; nobody's once a page that it would read is another's.
    tenant: Option<RequestId>,
    /// Of every position computed: a hash of all that its KV depends on.
    histories: Vec<u64>,
    /// By group, then entry.
    tables: Vec<Vec<Option<PageId>>>,
}

/// One position's KV in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    /// Of all tokens up to here, and of the salt: pages may be shared where these agree.
    history: u64,
    position: usize,
    token: TokenId,
}

/// A request's tokens when it runs alone, and its salt.
pub(crate) struct Known {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) salt: Option<Arc<str>>,
}

impl Known {
    fn start(&self) -> u64 {
        let salt = self.salt.as_deref().unwrap_or_default();
        salt.bytes().fold(7, |hash, byte| mix(hash ^ u64::from(byte)))
    }
}

fn extended(history: u64, token: TokenId) -> u64 {
    mix(history ^ u64::from(token.0)).wrapping_add(1)
}

/// The token that follows `tokens`.
pub(crate) fn next_token(limits: &Limits, tokens: &[TokenId]) -> TokenId {
    let seen = limits.groups.iter().map(|group| {
        let n_unseen = group.window.map_or(0, |window| tokens.len().saturating_sub(window));
        hash(&tokens[n_unseen..])
    });
    token_of(tokens.len(), tokens[tokens.len() - 1], seen)
}

fn hash(tokens: &[TokenId]) -> u64 {
    tokens.iter().fold(1, |hash, token| mix(hash ^ u64::from(token.0)).wrapping_add(1))
}

fn token_of(n_tokens: usize, last: TokenId, seen: impl Iterator<Item = u64>) -> TokenId {
    let start = mix(n_tokens as u64 ^ (u64::from(last.0) << 32));
    let hash = seen.fold(start, |hash, group| mix(hash ^ group));
    // Every other token follows from the last one: else nobody could guess any.
    let hash = if hash & 1 == 0 { hash >> 1 } else { mix(u64::from(last.0)) };
    TokenId((hash % VOCAB_SIZE) as u32)
}

impl Rank {
    pub(crate) fn new(limits: &Limits) -> Rank {
        let n_entries = limits.n_context_tokens.div_ceil(limits.page_tokens);
        let slot = || Slot {
            tenant: None,
            histories: Vec::new(),
            tables: vec![vec![None; n_entries]; limits.groups.len()],
        };
        let page = || vec![None; limits.page_tokens];
        Rank {
            slots: (0..limits.n_slots).map(|_| slot()).collect(),
            memory: limits
                .groups
                .iter()
                .map(|group| (0..group.n_pages).map(|_| page()).collect())
                .collect(),
            host: limits
                .host_tier
                .iter()
                .flat_map(|tier| &tier.group_pages)
                .map(|&n_pages| (0..n_pages).map(|_| page()).collect())
                .collect(),
            limits: limits.clone(),
        }
    }

    /// Runs a step: its results.
    pub(crate) fn run(
        &mut self,
        plan: &StepPlan,
        known: &BTreeMap<RequestId, Known>,
    ) -> Vec<Option<TokenId>> {
        for admission in &plan.admitted {
            let slot = &mut self.slots[admission.slot.idx()];
            let known = &known[&admission.request];
            slot.tenant = Some(admission.request);
            slot.histories.clear();
            let mut history = known.start();
            for &token in &known.tokens[..admission.n_cached] {
                history = extended(history, token);
                slot.histories.push(history);
            }
            slot.tables.iter_mut().for_each(|table| table.fill(None));
        }
        let filled = self.move_pages(&plan.moves);
        for update in &plan.pages {
            let slot = &self.slots[update.slot.idx()];
            let page_end = (update.page_idx as usize + 1) * self.limits.page_tokens;
            let is_filled = filled.contains(&(update.group, update.page));
            if page_end > slot.histories.len() && !is_filled {
                self.evict(update.group.idx(), update.page);
            }
            let slot = &mut self.slots[update.slot.idx()];
            let entry = &mut slot.tables[update.group.idx()][update.page_idx as usize];
            assert_eq!(*entry, None, "wrong: {update:?} replaces an entry");
            *entry = Some(update.page);
        }
        plan.rows.iter().flat_map(|row| self.run_row(plan, row, known)).collect()
    }

    /// Moves pages' content in order; which ones got some.
    fn move_pages(&mut self, moves: &[PageMove]) -> Vec<(GroupIdx, PageId)> {
        let mut filled = Vec::new();
        for page in moves {
            let (group, to, content) = match *page {
                PageMove::Out { group, from, to } => {
                    let from = &self.memory[group.idx()][from.idx()];
                    self.host[group.idx()][to.idx()] = from.clone();
                    continue;
                }
                PageMove::Copy { group, from, to } => {
                    (group, to, self.memory[group.idx()][from.idx()].clone())
                }
                PageMove::In { group, from, to } => {
                    (group, to, self.host[group.idx()][from.idx()].clone())
                }
            };
            self.evict(group.idx(), to);
            self.memory[group.idx()][to.idx()] = content;
            filled.push((group, to));
        }
        filled
    }

    /// A page is written anew: whoever could still read it must have lost its slot.
    fn evict(&mut self, group_idx: usize, page: PageId) {
        for slot in &mut self.slots {
            if slot.sees(&self.limits, group_idx, page) {
                slot.tenant = None;
            }
        }
        self.memory[group_idx][page.idx()].fill(None);
    }

    fn run_row(
        &mut self,
        plan: &StepPlan,
        row: &Row,
        known: &BTreeMap<RequestId, Known>,
    ) -> Vec<Option<TokenId>> {
        let slot = &mut self.slots[row.slot.idx()];
        let tenant = slot.tenant.unwrap_or_else(|| panic!("wrong: {row:?} lost its pages"));
        assert_eq!(tenant, row.request, "wrong: {row:?} in the slot of {tenant:?}");
        assert_eq!(row.start, slot.histories.len(), "wrong: {row:?} skips or repeats positions");
        let mut history = slot.histories.last().copied();
        for (position, &token) in (row.start..).zip(plan.row_tokens(row)) {
            let before = history.unwrap_or_else(|| known[&row.request].start());
            history = Some(extended(before, token));
            let cell = Cell { history: extended(before, token), position, token };
            self.slots[row.slot.idx()].histories.push(cell.history);
            for group_idx in 0..self.limits.groups.len() {
                let (page, place) = self.place(row, group_idx, position);
                self.check_alone(row, group_idx, page);
                self.memory[group_idx][page.idx()][place] = Some(cell);
            }
        }
        let mut answers = vec![None; row.n_answers()];
        let n_own = row.n_tokens - row.n_candidates;
        let mut is_right = row.emit.samples();
        for (offset, &input) in plan.row_tokens(row).iter().enumerate() {
            let query = row.start + offset;
            let seen = self.attend(row, query);
            let Some(answer_idx) = (offset + 1).checked_sub(n_own) else { continue };
            is_right &= answer_idx == 0 || answers[answer_idx - 1] == Some(input);
            if is_right {
                answers[answer_idx] = Some(token_of(query + 1, input, seen.into_iter()));
            }
        }
        let n_right = answers.iter().flatten().count().saturating_sub(1);
        self.forget(row, row.start + n_own + n_right);
        answers
    }

    /// What a row computed from `end` on is void: its sequence goes on there.
    fn forget(&mut self, row: &Row, end: usize) {
        let slot = &mut self.slots[row.slot.idx()];
        slot.histories.truncate(end);
        let end_idx = end.div_ceil(self.limits.page_tokens);
        for table in &mut slot.tables {
            table[end_idx..].fill(None);
        }
    }

    /// Nobody else reads a page that a row writes.
    fn check_alone(&self, row: &Row, group_idx: usize, page: PageId) {
        for (slot_idx, slot) in self.slots.iter().enumerate() {
            let reads = slot.tenant.is_some() && slot.sees(&self.limits, group_idx, page);
            let is_other = slot_idx != row.slot.idx();
            assert!(!(reads && is_other), "wrong: {row:?} writes {page:?} of slot {slot_idx}");
        }
    }

    /// What a query sees, by group.
    fn attend(&self, row: &Row, query: usize) -> Vec<u64> {
        let histories = &self.slots[row.slot.idx()].histories;
        let see = |group_idx: usize| {
            let window = self.limits.groups[group_idx].window.unwrap_or(usize::MAX);
            let seen: Vec<TokenId> = ((query + 1).saturating_sub(window)..=query)
                .map(|position| {
                    let (page, place) = self.place(row, group_idx, position);
                    let cell = self.memory[group_idx][page.idx()][place];
                    let wanted =
                        |c: &Cell| (c.history, c.position) == (histories[position], position);
                    let Some(cell) = cell.filter(wanted) else {
                        panic!("wrong: {row:?} finds {cell:?} at {position}, group {group_idx}");
                    };
                    cell.token
                })
                .collect();
            hash(&seen)
        };
        (0..self.limits.groups.len()).map(see).collect()
    }

    /// The page of a position, and where in the page.
    fn place(&self, row: &Row, group_idx: usize, position: usize) -> (PageId, usize) {
        let page_tokens = self.limits.page_tokens;
        let page = self.slots[row.slot.idx()].tables[group_idx][position / page_tokens];
        let page = page.unwrap_or_else(|| panic!("wrong: {row:?} has no page for {position}"));
        (page, position % page_tokens)
    }
}

impl Slot {
    /// Whether its next query would read a page.
    fn sees(&self, limits: &Limits, group_idx: usize, page: PageId) -> bool {
        let window = limits.groups[group_idx].window.unwrap_or(usize::MAX);
        let first_idx = (self.histories.len() + 1).saturating_sub(window) / limits.page_tokens;
        let table = &self.tables[group_idx];
        table[first_idx.min(table.len())..].contains(&Some(page))
    }
}
