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
    n_groups: usize,
    /// Pages of every group that are not given out, in a scrambled order.
    free: Vec<Vec<PageId>>,
    /// Entries of each slot's table that are set.
    n_pages: Vec<usize>,
    n_steps: u64,
}

impl Planner {
    /// All pages of `memory` are free.
    pub fn new(memory: &MemoryPlan) -> Planner {
        let scrambled = |n_pages: usize| {
            // A stride that is coprime to the count visits every page once.
            let stride = (n_pages / 2..).find(|s| gcd(*s, n_pages) == 1).unwrap_or(1).max(1);
            (0..n_pages).map(|idx| PageId((idx * stride % n_pages) as u32)).collect()
        };
        Planner {
            page_tokens: engine::PAGE_TOKENS,
            n_groups: memory.group_pages.len(),
            free: memory.group_pages.iter().map(|&n_pages| scrambled(n_pages)).collect(),
            n_pages: vec![0; memory.n_slots],
            n_steps: 0,
        }
    }

    /// Forgets a slot's pages without reusing them: its sequence starts again elsewhere.
    pub fn restart(&mut self, slot: usize) {
        self.n_pages[slot] = 0;
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
            rows: Vec::new(),
            tokens: Vec::new(),
        };
        self.n_steps += 1;
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
                follows: None,
                emit: Emit::ScoreAndSample,
            });
            plan.tokens.extend_from_slice(span.tokens);
        }
        plan
    }

    fn grow(&mut self, span: &Span<'_>, plan: &mut StepPlan) {
        let n_needed = (span.start + span.tokens.len()).div_ceil(self.page_tokens);
        for page_idx in self.n_pages[span.slot]..n_needed {
            for group_idx in 0..self.n_groups {
                plan.pages.push(PageUpdate {
                    slot: SlotIdx(span.slot as u32),
                    group: GroupIdx(group_idx as u16),
                    page_idx: page_idx as u32,
                    page: self.free[group_idx].pop().expect("the test's pools are large enough"),
                });
            }
        }
        self.n_pages[span.slot] = self.n_pages[span.slot].max(n_needed);
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
