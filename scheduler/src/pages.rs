//! Who holds which page of KV: one pool and one page table a slot for each group.
//!
//! Pages move in three explicit steps. A plan *reserves* the pages that its rows will write, the
//! rows' result *commits* them (and gives back those that left the window), a sequence's end or its
//! preemption *forfeits* what it holds. It does not know requests, queues or budgets; whoever calls
//! it sees to it that no step in flight still uses a page that is given back.
//!
//! Prefix caching would add a third state between free and held (cached), here and in `check`;
//! a host tier would be a second pool that `forfeit` moves pages to.

use std::collections::VecDeque;

use crate::limits::n_window_pages;
use crate::{GroupIdx, Limits, PageId, PageUpdate, SlotIdx};

/// Every group's pages.
#[derive(Debug)]
pub(crate) struct Pools {
    page_tokens: usize,
    pools: Vec<Pool>,
}

/// One group's pages.
#[derive(Debug)]
struct Pool {
    n_pages: usize,
    window: Option<usize>,
    /// Used as a stack: the page that was freed last is the one most likely still in a cache.
    free: Vec<PageId>,
    /// By slot.
    tables: Vec<Table>,
}

/// A slot's pages in one group: entries `first_idx ..` of its page table, without holes.
#[derive(Debug, Default)]
struct Table {
    /// Entries before this one have left the window and are given back.
    first_idx: usize,
    pages: VecDeque<PageId>,
}

impl Pools {
    /// All pages free. Room for every table's longest state is taken now, so that a step does not
    /// allocate.
    pub(crate) fn new(limits: &Limits) -> Pools {
        let n_table_pages = limits.n_context_tokens.div_ceil(limits.page_tokens);
        let pools = limits.groups.iter().map(|group| {
            let held = group.window.map_or(n_table_pages, |window| {
                let in_step = limits.n_tokens_per_step.div_ceil(limits.page_tokens);
                n_window_pages(window, limits.page_tokens).saturating_add(in_step)
            });
            let n_held_max = held.min(n_table_pages).min(group.n_pages);
            let table = || Table { first_idx: 0, pages: VecDeque::with_capacity(n_held_max) };
            Pool {
                n_pages: group.n_pages,
                window: group.window,
                free: (0..group.n_pages as u32).rev().map(PageId).collect(),
                tables: (0..limits.n_slots).map(|_| table()).collect(),
            }
        });
        Pools { page_tokens: limits.page_tokens, pools: pools.collect() }
    }

    /// How many of `n_wanted` tokens from position `start` on have pages, held or free, in every
    /// group.
    pub(crate) fn n_affordable(&self, slot: SlotIdx, start: usize, n_wanted: usize) -> usize {
        let reach = |pool: &Pool| {
            let n_pages = pool.tables[slot.idx()].end_idx() + pool.free.len();
            n_pages.saturating_mul(self.page_tokens)
        };
        let end = self.pools.iter().map(reach).fold(start + n_wanted, usize::min);
        end.saturating_sub(start)
    }

    /// Takes the pages that positions before `end` still lack and appends them to `updates`. They
    /// must be affordable.
    pub(crate) fn reserve(&mut self, slot: SlotIdx, end: usize, updates: &mut Vec<PageUpdate>) {
        let end_idx = end.div_ceil(self.page_tokens);
        for (group_idx, pool) in self.pools.iter_mut().enumerate() {
            let table = &mut pool.tables[slot.idx()];
            for page_idx in table.end_idx()..end_idx {
                let page = pool.free.pop().expect("only affordable pages are reserved");
                table.pages.push_back(page);
                let (group, page_idx) = (GroupIdx(group_idx as u16), page_idx as u32);
                updates.push(PageUpdate { slot, group, page_idx, page });
            }
        }
    }

    /// Positions before `n_computed` are written, and no row before it is planned: pages that no
    /// query from there on sees are given back.
    pub(crate) fn commit(&mut self, slot: SlotIdx, n_computed: usize) {
        for pool in &mut self.pools {
            let Some(window) = pool.window else { continue };
            let first_seen_idx = (n_computed + 1).saturating_sub(window) / self.page_tokens;
            let table = &mut pool.tables[slot.idx()];
            while table.first_idx < first_seen_idx {
                let page = table.pages.pop_front().expect("what left the window was written");
                table.first_idx += 1;
                pool.free.push(page);
            }
        }
    }

    /// Gives back all that a slot holds.
    pub(crate) fn forfeit(&mut self, slot: SlotIdx) {
        for pool in &mut self.pools {
            let table = &mut pool.tables[slot.idx()];
            // In reverse, so that a sequence alone gets the same pages again in the same order.
            while let Some(page) = table.pages.pop_back() {
                pool.free.push(page);
            }
            table.first_idx = 0;
        }
    }

    /// Pages that a slot must still take in a group before `n_tokens` of its tokens are computed,
    /// if its chunks are as small as they can be.
    pub(crate) fn n_lacking(&self, group: GroupIdx, slot: SlotIdx, n_tokens: usize) -> usize {
        let n_held = self.pools[group.idx()].tables[slot.idx()].pages.len();
        self.n_needed(group, n_tokens).saturating_sub(n_held)
    }

    /// Pages that a sequence of `n_tokens` must hold at once in a group.
    pub(crate) fn n_needed(&self, group: GroupIdx, n_tokens: usize) -> usize {
        let n_pages = n_tokens.div_ceil(self.page_tokens);
        let window = self.pools[group.idx()].window;
        window.map_or(n_pages, |window| n_pages.min(n_window_pages(window, self.page_tokens)))
    }

    /// Tokens in a page.
    pub(crate) fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Pages that nobody holds.
    pub(crate) fn n_free(&self, group: GroupIdx) -> usize {
        self.pools[group.idx()].free.len()
    }

    /// Pages of a group.
    pub(crate) fn n_pages(&self, group: GroupIdx) -> usize {
        self.pools[group.idx()].n_pages
    }

    /// The groups, in order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = GroupIdx> + use<> {
        (0..self.pools.len() as u16).map(GroupIdx)
    }

    /// Asserts that every page is free or held, once, and that every slot's tables hold exactly
    /// what `spans` says of it: positions seen from the first (`n_computed`) on and reserved before
    /// the second; `None` for a free slot.
    pub(crate) fn check(&self, spans: impl Fn(SlotIdx) -> Option<(usize, usize)>) {
        for (group_idx, pool) in self.pools.iter().enumerate() {
            let mut n_owners = vec![0usize; pool.n_pages];
            let held = pool.tables.iter().flat_map(|table| &table.pages);
            for page in held.chain(&pool.free) {
                n_owners[page.idx()] += 1;
            }
            for (page_idx, n_owners) in n_owners.into_iter().enumerate() {
                assert_eq!(n_owners, 1, "owners of page {page_idx} of group {group_idx}");
            }
            for (slot_idx, table) in pool.tables.iter().enumerate() {
                let span = spans(SlotIdx(slot_idx as u32));
                let expected = span.map_or(0..0, |(n_computed, end)| {
                    let window = pool.window.unwrap_or(usize::MAX);
                    let first_seen = (n_computed + 1).saturating_sub(window);
                    first_seen / self.page_tokens..end.div_ceil(self.page_tokens)
                });
                let actual = table.first_idx..table.end_idx();
                assert_eq!(actual, expected, "pages of slot {slot_idx} in group {group_idx}");
            }
        }
    }
}

impl Table {
    /// The first entry that is not set.
    fn end_idx(&self) -> usize {
        self.first_idx + self.pages.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GroupLimits;

    const SLOT: SlotIdx = SlotIdx(0);
    const FULL: GroupIdx = GroupIdx(0);
    const WINDOWED: GroupIdx = GroupIdx(1);

    fn pools(window: usize) -> Pools {
        Pools::new(&Limits {
            n_slots: 2,
            n_waiting_max: 1,
            n_tokens_per_step: 8,
            n_context_tokens: 64,
            page_tokens: 4,
            groups: vec![
                GroupLimits { n_pages: 6, window: None },
                GroupLimits { n_pages: 3, window: Some(window) },
            ],
        })
    }

    #[test]
    fn reserve_lists_new_entries_only() {
        let mut pools = pools(5);
        let mut updates = Vec::new();
        pools.reserve(SLOT, 5, &mut updates);
        assert_eq!(updates.len(), 4);
        pools.reserve(SLOT, 8, &mut updates);
        assert_eq!(updates.len(), 4, "positions 5 to 7 lie in pages already held");
        pools.reserve(SLOT, 9, &mut updates);
        let last = PageUpdate { slot: SLOT, group: WINDOWED, page_idx: 2, page: PageId(2) };
        assert_eq!(updates.last(), Some(&last));
        assert_eq!((pools.n_free(FULL), pools.n_free(WINDOWED)), (3, 0));
    }

    #[test]
    fn affordable_is_what_the_scarcest_group_has() {
        let mut pools = pools(5);
        assert_eq!(pools.n_affordable(SLOT, 0, 100), 12);
        assert_eq!(pools.n_affordable(SLOT, 0, 7), 7);
        pools.reserve(SlotIdx(1), 5, &mut Vec::new());
        assert_eq!(pools.n_affordable(SLOT, 0, 100), 4);
        pools.reserve(SLOT, 3, &mut Vec::new());
        assert_eq!(pools.n_affordable(SLOT, 3, 100), 1, "the rest of its own page");
        assert_eq!(pools.n_affordable(SLOT, 4, 100), 0);
    }

    #[test]
    fn a_window_keeps_what_the_next_query_sees() {
        // The query at 8 sees 4 to 8 of a window of five, 3 to 8 of one of six.
        for (window, n_free) in [(5, 1), (6, 0)] {
            let mut pools = pools(window);
            pools.reserve(SLOT, 9, &mut Vec::new());
            pools.commit(SLOT, 8);
            assert_eq!(pools.n_free(WINDOWED), n_free, "window of {window}");
            assert_eq!(pools.n_free(FULL), 3, "a full group gives nothing back");
            pools.check(|slot| (slot == SLOT).then_some((8, 9)));
        }
    }

    #[test]
    fn a_window_of_one_may_hold_nothing() {
        let mut pools = pools(1);
        pools.reserve(SLOT, 4, &mut Vec::new());
        pools.commit(SLOT, 4);
        assert_eq!(pools.n_free(WINDOWED), 3);
        pools.reserve(SLOT, 5, &mut Vec::new());
        pools.check(|slot| (slot == SLOT).then_some((4, 5)));
    }

    #[test]
    fn forfeit_gives_everything_back() {
        let mut pools = pools(5);
        pools.reserve(SLOT, 9, &mut Vec::new());
        pools.commit(SLOT, 9);
        pools.forfeit(SLOT);
        assert_eq!((pools.n_free(FULL), pools.n_free(WINDOWED)), (6, 3));
        pools.check(|_| None);
    }

    #[test]
    fn needs_are_capped_by_the_window() {
        let mut pools = pools(5);
        assert_eq!((pools.n_needed(FULL, 17), pools.n_needed(WINDOWED, 17)), (5, 2));
        pools.reserve(SLOT, 4, &mut Vec::new());
        assert_eq!(pools.n_lacking(FULL, SLOT, 17), 4);
        assert_eq!(pools.n_lacking(WINDOWED, SLOT, 17), 1);
    }
}
