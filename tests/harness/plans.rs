//! Plans written by hand, for tests that look at logits: which span of which sequence runs when.

use engine::{MemoryPlan, TokenId};
use scheduler::{Admission, Emit, GroupIdx, PageId, PageUpdate, RequestId, Row, SlotIdx};
use scheduler::{StepId, StepPlan};

/// Tokens `start .. start + tokens.len()` of the sequence in `slot`.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// The sequence.
    pub slot: usize,
    /// Position of the first token.
    pub start: usize,
    /// The tokens.
    pub tokens: &'a [TokenId],
}

/// Hands out pages in an order that no two sequences share, as a busy pool would.
pub struct Planner {
    page_tokens: usize,
    groups: Vec<Group>,
    /// Tokens of each slot's sequence that were planned.
    n_planned: Vec<usize>,
    n_steps: u64,
}

/// A cache group's pages.
struct Group {
    window: Option<usize>,
    /// Those that are not given out, in a scrambled order.
    free: Vec<PageId>,
    /// Each slot's table.
    tables: Vec<Table>,
}

#[derive(Clone, Default)]
struct Table {
    pages: Vec<PageId>,
    /// How many of them, from the first, the window has left.
    n_given_back: usize,
}

impl Planner {
    /// All pages of `memory` are free.
    pub fn new(memory: &MemoryPlan) -> Planner {
        let scrambled = |n_pages: usize| {
            // A stride that is coprime to the count visits every page once.
            let stride = (n_pages / 2..).find(|s| gcd(*s, n_pages) == 1).unwrap_or(1).max(1);
            (0..n_pages).map(|idx| PageId((idx * stride % n_pages) as u32)).collect()
        };
        let groups = memory.group_pages.iter().zip(&memory.group_windows);
        let group = |(&n_pages, &window)| Group {
            window,
            free: scrambled(n_pages),
            tables: vec![Table::default(); memory.n_slots],
        };
        Planner {
            page_tokens: engine::PAGE_TOKENS,
            groups: groups.map(group).collect(),
            n_planned: vec![0; memory.n_slots],
            n_steps: 0,
        }
    }

    /// Forgets a slot's pages without reusing them: its sequence starts again elsewhere.
    pub fn restart(&mut self, slot: usize) {
        self.n_planned[slot] = 0;
        self.groups.iter_mut().for_each(|group| group.tables[slot] = Table::default());
    }

    /// One step with the given rows, of which only the last positions emit.
    pub fn last_only(&mut self, spans: &[Span<'_>]) -> StepPlan {
        let mut plan = self.plan(spans);
        plan.rows.iter_mut().for_each(|row| row.emit = Emit::Sample);
        plan
    }

    /// One step with the given rows, of which every position emits.
    pub fn plan(&mut self, spans: &[Span<'_>]) -> StepPlan {
        let mut plan = StepPlan {
            step: StepId(self.n_steps),
            admitted: Vec::new(),
            pages: Vec::new(),
            moves: Vec::new(),
            rows: Vec::new(),
            tokens: Vec::new(),
        };
        self.n_steps += 1;
        self.give_back();
        for span in spans {
            let (request, slot) = (RequestId(span.slot as u64), SlotIdx(span.slot as u32));
            if span.start == 0 {
                plan.admitted.push(Admission { request, slot, n_cached: 0 });
            }
            self.grow(span, &mut plan);
            plan.rows.push(Row {
                request,
                slot,
                start: span.start,
                n_tokens: span.tokens.len(),
                token_idx: plan.tokens.len(),
                n_candidates: 0,
                answer_idx: plan.rows.len(),
                follows: None,
                emit: Emit::ScoreAndSample,
            });
            plan.tokens.extend_from_slice(span.tokens);
        }
        plan
    }

    fn grow(&mut self, span: &Span<'_>, plan: &mut StepPlan) {
        let n_planned = span.start + span.tokens.len();
        for (group_idx, group) in self.groups.iter_mut().enumerate() {
            let table = &mut group.tables[span.slot];
            for page_idx in table.pages.len()..n_planned.div_ceil(self.page_tokens) {
                let page = group.free.pop().expect("the test's pools are large enough");
                table.pages.push(page);
                plan.pages.push(PageUpdate {
                    slot: SlotIdx(span.slot as u32),
                    group: GroupIdx(group_idx as u16),
                    page_idx: page_idx as u32,
                    page,
                });
            }
        }
        self.n_planned[span.slot] = n_planned;
    }

    /// Pages that no later token of their sequence sees, as pools of this size need it. The next
    /// that takes one takes the last.
    fn give_back(&mut self) {
        for Group { window, free, tables } in &mut self.groups {
            let Some(window) = *window else { continue };
            for (table, n_planned) in tables.iter_mut().zip(&self.n_planned) {
                let first_seen = (n_planned + 1).saturating_sub(window);
                let n_left = (first_seen / self.page_tokens).min(table.pages.len());
                if table.n_given_back < n_left {
                    free.extend(&table.pages[table.n_given_back..n_left]);
                    table.n_given_back = n_left;
                }
            }
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
