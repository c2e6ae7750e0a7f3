//! A model whose next token is a hash of all that its queries see, and the rank that runs it.
//!
//! The rank does what a real one does with a plan: it keeps page tables per slot and group, writes
//! each position's KV to the page that the table names, and reads a query's context back through
//! the tables. A cell remembers who wrote it, so that every wrong page shows. It does not know the
//! scheduler's state, only its plans.

use scheduler::{Limits, PageId, RequestId, Row, StepPlan, TokenId};

use crate::random::mix;

/// Entries of the vocabulary: few, so that stop tokens are met.
pub(crate) const VOCAB_SIZE: u64 = 12;

/// A rank, as far as the scheduler can tell.
pub(crate) struct Rank {
    limits: Limits,
    slots: Vec<Slot>,
    /// By group, page and place in the page.
    memory: Vec<Vec<Vec<Option<Cell>>>>,
    n_admissions: u64,
}

/// What is filed under a slot.
struct Slot {
    /// Which sequence, and which of its stays: KV from before a preemption is void.
    tenant: Option<Tenant>,
    n_computed: usize,
    /// By group, then entry.
    tables: Vec<Vec<Option<PageId>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tenant {
    request: RequestId,
    admission: u64,
}

/// One position's KV in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    tenant: Tenant,
    position: usize,
    token: TokenId,
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
    TokenId((hash % VOCAB_SIZE) as u32)
}

impl Rank {
    pub(crate) fn new(limits: &Limits) -> Rank {
        let n_entries = limits.n_context_tokens.div_ceil(limits.page_tokens);
        let slot = || Slot {
            tenant: None,
            n_computed: 0,
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
            limits: limits.clone(),
            n_admissions: 0,
        }
    }

    /// Runs a step: one entry a row.
    pub(crate) fn run(&mut self, plan: &StepPlan) -> Vec<Option<TokenId>> {
        for admission in &plan.admitted {
            let slot = &mut self.slots[admission.slot.idx()];
            self.n_admissions += 1;
            slot.tenant = Some(Tenant { request: admission.request, admission: self.n_admissions });
            slot.n_computed = 0;
            slot.tables.iter_mut().for_each(|table| table.fill(None));
        }
        for update in &plan.pages {
            self.evict(update.group.idx(), update.page);
            let slot = &mut self.slots[update.slot.idx()];
            let entry = &mut slot.tables[update.group.idx()][update.page_idx as usize];
            assert_eq!(*entry, None, "wrong: {update:?} replaces an entry");
            *entry = Some(update.page);
        }
        plan.rows.iter().map(|row| self.run_row(plan, row)).collect()
    }

    /// A page gets a new owner: whoever could still read it must have lost its slot.
    fn evict(&mut self, group_idx: usize, page: PageId) {
        let window = self.limits.groups[group_idx].window.unwrap_or(usize::MAX);
        for slot in &mut self.slots {
            let first_seen = (slot.n_computed + 1).saturating_sub(window);
            let first_idx = first_seen / self.limits.page_tokens;
            if slot.tables[group_idx][first_idx.min(slot.tables[group_idx].len())..]
                .contains(&Some(page))
            {
                slot.tenant = None;
            }
        }
    }

    fn run_row(&mut self, plan: &StepPlan, row: &Row) -> Option<TokenId> {
        let slot = &mut self.slots[row.slot.idx()];
        let tenant = slot.tenant.unwrap_or_else(|| panic!("wrong: {row:?} lost its pages"));
        assert_eq!(tenant.request, row.request, "wrong: {row:?} in the slot of {tenant:?}");
        assert_eq!(row.start, slot.n_computed, "wrong: {row:?} skips or repeats positions");
        slot.n_computed += row.n_tokens;
        for (position, &token) in (row.start..).zip(plan.row_tokens(row)) {
            let cell = Cell { tenant, position, token };
            for group_idx in 0..self.limits.groups.len() {
                let (page_idx, place) = self.place(row, group_idx, position);
                self.memory[group_idx][page_idx][place] = Some(cell);
            }
        }
        let mut last = None;
        for query in row.start..row.start + row.n_tokens {
            last = Some(self.attend(row, tenant, query));
        }
        let (query, seen) = (row.start + row.n_tokens - 1, last.expect("a row has tokens"));
        let input = *plan.row_tokens(row).last().expect("a row has tokens");
        row.emit.samples().then(|| token_of(query + 1, input, seen.into_iter()))
    }

    /// What a query sees, by group.
    fn attend(&self, row: &Row, tenant: Tenant, query: usize) -> Vec<u64> {
        let see = |group_idx: usize| {
            let window = self.limits.groups[group_idx].window.unwrap_or(usize::MAX);
            let seen: Vec<TokenId> = ((query + 1).saturating_sub(window)..=query)
                .map(|position| {
                    let (page_idx, place) = self.place(row, group_idx, position);
                    let cell = self.memory[group_idx][page_idx][place];
                    let written = cell.filter(|c| c.tenant == tenant && c.position == position);
                    let Some(cell) = written else {
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
    fn place(&self, row: &Row, group_idx: usize, position: usize) -> (usize, usize) {
        let page_tokens = self.limits.page_tokens;
        let page = self.slots[row.slot.idx()].tables[group_idx][position / page_tokens];
        let page = page.unwrap_or_else(|| panic!("wrong: {row:?} has no page for {position}"));
        (page.idx(), position % page_tokens)
    }
}
