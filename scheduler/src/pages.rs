//! Who holds which page of KV: one pool and one page table a slot for each group, and what full
//! pages hold, so that a prompt that begins like another needs not be computed again.
//!
//! Pages move in explicit steps. A sequence that takes a slot *adopts* the pages that already hold
//! what it begins with; a plan *reserves* the pages that its rows will write; the rows' result
//! *commits* them: full ones are filed under what they hold, those that left the window are given
//! back. A sequence's end or its preemption *forfeits* what it holds. A step in flight may still
//! write a page that is given back: ranks run plans in order, so the page's next owner writes it
//! later; and no page that is filed is ever written again before it is taken. It does not know
//! requests, queues or budgets.
//!
//! Where there is a host tier, pages that are forgotten go there first, and come back when a
//! sequence begins with them.

use std::ops::Range;

use crate::host::HostPool;
use crate::limits::n_window_pages;
use crate::pool::Pool;
use crate::prefix::{NodeIdx, Prefixes};
use crate::{GroupIdx, Limits, PageMove, PageUpdate, SlotIdx, TokenId};

/// Every group's pages.
#[derive(Debug)]
pub(crate) struct Pools {
    pub(crate) page_tokens: usize,
    pub(crate) pools: Vec<Pool>,
    /// What full pages hold; `None` where prefixes are not cached.
    pub(crate) prefixes: Option<Prefixes>,
    /// By slot.
    pub(crate) paths: Vec<Path>,
    /// What the step that is being planned moves, in order.
    pub(crate) moves: Vec<PageMove>,
    /// The least that comes back from the host, in tokens.
    pub(crate) n_tokens_back_min: usize,
    /// One page's tokens.
    scratch: Vec<TokenId>,
    /// How often pages were given back.
    n_returns: u64,
}

/// How much of what a slot has computed is filed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Path {
    /// The last full page, or the root; `None` for a free slot.
    pub(crate) tip: Option<NodeIdx>,
    pub(crate) n_pages: usize,
}

/// A sequence's tokens, as the cache reads them: appends those of the range.
pub(crate) type ReadTokens<'a> = &'a dyn Fn(Range<usize>, &mut Vec<TokenId>);

impl Pools {
    /// All pages free. Room for everything is taken now, so that a step does not allocate.
    pub(crate) fn new(limits: &Limits) -> Pools {
        let groups = limits.groups.iter().enumerate();
        let pools = groups.map(|(idx, group)| Pool::new(GroupIdx(idx as u16), group, limits));
        let n_pages: usize = limits.groups.iter().map(|group| group.n_pages).sum();
        let host_pages = limits.host_tier.iter().flat_map(|tier| &tier.group_pages);
        let n_host_pages: usize = host_pages.sum();
        // Without pages there is nothing to find.
        let caching = limits.prefix_cache.as_ref().filter(|_| !limits.groups.is_empty());
        let prefixes = caching.map(|caching| {
            let n_groups = limits.groups.len();
            let n_nodes = n_pages + n_host_pages + 2 * limits.n_slots;
            Prefixes::new(limits.page_tokens, n_groups, n_nodes, caching.seed)
        });
        Pools {
            page_tokens: limits.page_tokens,
            pools: pools.collect(),
            prefixes,
            paths: vec![Path::default(); limits.n_slots],
            moves: Vec::new(),
            n_tokens_back_min: limits.host_tier.as_ref().map_or(0, |tier| tier.n_tokens_min),
            scratch: Vec::with_capacity(limits.page_tokens),
            n_returns: 0,
        }
    }

    /// How many of `n_wanted` tokens from position `start` on have pages, held or free, in every
    /// group.
    pub(crate) fn n_affordable(&self, slot: SlotIdx, start: usize, n_wanted: usize) -> usize {
        let reach = |pool: &Pool| {
            let n_pages = pool.tables[slot.idx()].end_idx() + pool.n_free();
            n_pages.saturating_mul(self.page_tokens)
        };
        let end = self.pools.iter().map(reach).fold(start + n_wanted, usize::min);
        end.saturating_sub(start)
    }

    /// Takes the pages that positions before `end` still lack and appends them to `updates`. They
    /// must be affordable.
    pub(crate) fn reserve(&mut self, slot: SlotIdx, end: usize, updates: &mut Vec<PageUpdate>) {
        let end_idx = end.div_ceil(self.page_tokens);
        for (pool, group) in self.pools.iter_mut().zip((0..).map(GroupIdx)) {
            for page_idx in pool.tables[slot.idx()].end_idx()..end_idx {
                let page = pool.take(&mut self.prefixes, &mut self.moves);
                let page = page.expect("only affordable pages are taken");
                pool.tables[slot.idx()].pages.push_back(page);
                updates.push(PageUpdate { slot, group, page_idx: page_idx as u32, page });
            }
        }
    }

    /// Positions before `n_computed` are written, and no row before it is planned: full pages are
    /// filed, and pages that no query from there on sees are given back.
    pub(crate) fn commit(&mut self, slot: SlotIdx, n_computed: usize, read: ReadTokens<'_>) {
        self.file(slot, n_computed, read);
        for pool in &mut self.pools {
            if pool.window.is_none() {
                continue;
            }
            let first_idx = first_seen_idx(pool.window, n_computed, self.page_tokens);
            while pool.tables[slot.idx()].first_idx < first_idx {
                let table = &mut pool.tables[slot.idx()];
                let page = table.pages.pop_front().expect("what left the window was written");
                table.first_idx += 1;
                pool.give_back(page);
                self.n_returns += 1;
            }
        }
    }

    /// Gives back the pages that hold no position before `end`: those of wrong candidates. No row
    /// in flight writes them.
    pub(crate) fn truncate(&mut self, slot: SlotIdx, end: usize) {
        let end_idx = end.div_ceil(self.page_tokens);
        for pool in &mut self.pools {
            while pool.tables[slot.idx()].end_idx() > end_idx {
                let page = pool.tables[slot.idx()].pages.pop_back();
                pool.give_back(page.expect("what begins behind a table's end has pages"));
                self.n_returns += 1;
            }
        }
    }

    fn file(&mut self, slot: SlotIdx, n_computed: usize, read: ReadTokens<'_>) {
        let Pools { page_tokens, pools, prefixes, paths, scratch, .. } = self;
        let Some(prefixes) = prefixes else { return };
        let path = &mut paths[slot.idx()];
        while (path.n_pages + 1) * *page_tokens <= n_computed {
            scratch.clear();
            read(path.n_pages * *page_tokens..(path.n_pages + 1) * *page_tokens, scratch);
            let before = path.tip.expect("a slot that computes has a path");
            let node = prefixes.child_or_insert(before, scratch);
            prefixes.retain(node);
            prefixes.release(before);
            for pool in pools.iter_mut() {
                pool.file(slot.idx(), path.n_pages, node, prefixes);
            }
            *path = Path { tip: Some(node), n_pages: path.n_pages + 1 };
        }
    }

    /// Gives back all that a slot holds.
    pub(crate) fn forfeit(&mut self, slot: SlotIdx) {
        self.n_returns += 1;
        for pool in &mut self.pools {
            // In reverse: a sequence alone gets the same pages again in the same order, and of what
            // is cached the end is forgotten before the beginning.
            while let Some(page) = pool.tables[slot.idx()].pages.pop_back() {
                pool.give_back(page);
            }
            pool.tables[slot.idx()].first_idx = 0;
        }
        let path = std::mem::take(&mut self.paths[slot.idx()]);
        if let (Some(tip), Some(prefixes)) = (path.tip, &mut self.prefixes) {
            prefixes.release(tip);
        }
    }

    /// What if a slot gave back all that it holds: until it [holds](Pools::hold_again) its pages
    /// again, those that no other slot has count as free. Nothing may be taken meanwhile.
    pub(crate) fn let_go(&mut self, slot: SlotIdx) {
        self.pools.iter_mut().for_each(|pool| pool.let_go(slot));
    }

    /// A slot that had [let go](Pools::let_go) has its pages.
    pub(crate) fn hold_again(&mut self, slot: SlotIdx) {
        self.pools.iter_mut().for_each(|pool| pool.hold_again(slot));
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
        self.pools[group.idx()].n_free()
    }

    /// Pages that nobody holds and whose content may be wanted again.
    pub(crate) fn n_cached(&self, group: GroupIdx) -> usize {
        self.pools[group.idx()].n_cached()
    }

    /// Pages of the host that hold something.
    pub(crate) fn n_on_host(&self, group: GroupIdx) -> usize {
        self.pools[group.idx()].host.as_ref().map_or(0, HostPool::n_used)
    }

    /// Pages of a group.
    pub(crate) fn n_pages(&self, group: GroupIdx) -> usize {
        self.pools[group.idx()].n_pages()
    }

    /// How often pages were given back: until it changes, there is no more room than there was.
    pub(crate) fn n_returns(&self) -> u64 {
        self.n_returns
    }

    /// The groups, in order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = GroupIdx> + use<> {
        (0..self.pools.len() as u16).map(GroupIdx)
    }

    /// Asserts that every page is free, held or cached, and that every slot's tables hold exactly
    /// what `spans` says of it: positions seen from the first (`n_computed`) on and reserved before
    /// the second; `None` for a free slot.
    pub(crate) fn check(&self, spans: impl Fn(SlotIdx) -> Option<(usize, usize)>) {
        for (group_idx, pool) in self.pools.iter().enumerate() {
            pool.check(self.prefixes.as_ref());
            for (slot_idx, table) in pool.tables.iter().enumerate() {
                let span = spans(SlotIdx(slot_idx as u32));
                let expected = span.map_or(0..0, |(n_computed, end)| {
                    let first_idx = first_seen_idx(pool.window, n_computed, self.page_tokens);
                    first_idx..end.div_ceil(self.page_tokens)
                });
                let actual = table.first_idx..table.end_idx();
                assert_eq!(actual, expected, "pages of slot {slot_idx} in group {group_idx}");
            }
        }
        let Some(prefixes) = &self.prefixes else { return };
        prefixes.check(self.paths.iter().filter_map(|path| path.tip));
        for (slot_idx, path) in self.paths.iter().enumerate() {
            let span = spans(SlotIdx(slot_idx as u32));
            assert_eq!(path.tip.is_some(), span.is_some(), "the path of slot {slot_idx}");
            let n_full = span.map_or(0, |(n_computed, _)| n_computed / self.page_tokens);
            assert_eq!(path.n_pages, n_full, "full pages of slot {slot_idx}");
        }
    }
}

/// The first table entry that a query at position `n_computed` sees.
pub(crate) fn first_seen_idx(
    window: Option<usize>,
    n_computed: usize,
    page_tokens: usize,
) -> usize {
    (n_computed + 1).saturating_sub(window.unwrap_or(usize::MAX)) / page_tokens
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GroupLimits, PageId, Priorities};

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
            priorities: Priorities::single(),
            n_tenants: 1,
            latency: None,
            prefix_cache: None,
            host_tier: None,
            speculation: None,
            groups: vec![
                GroupLimits { n_pages: 6, window: None },
                GroupLimits { n_pages: 3, window: Some(window) },
            ],
        })
    }

    /// Nothing is cached: nobody reads tokens.
    fn nothing(_: Range<usize>, _: &mut Vec<TokenId>) {
        panic!("tokens are read");
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
            pools.commit(SLOT, 8, &nothing);
            assert_eq!(pools.n_free(WINDOWED), n_free, "window of {window}");
            assert_eq!(pools.n_free(FULL), 3, "a full group gives nothing back");
            pools.check(|slot| (slot == SLOT).then_some((8, 9)));
        }
    }

    #[test]
    fn a_window_of_one_may_hold_nothing() {
        let mut pools = pools(1);
        pools.reserve(SLOT, 4, &mut Vec::new());
        pools.commit(SLOT, 4, &nothing);
        assert_eq!(pools.n_free(WINDOWED), 3);
        pools.reserve(SLOT, 5, &mut Vec::new());
        pools.check(|slot| (slot == SLOT).then_some((4, 5)));
    }

    #[test]
    fn forfeit_gives_everything_back() {
        let mut pools = pools(5);
        pools.reserve(SLOT, 9, &mut Vec::new());
        pools.commit(SLOT, 9, &nothing);
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
