//! One group's pages. A page is free (it holds nothing of use), held (by the tables of one or more
//! slots), or cached: nobody holds it, but what it holds is known and may be wanted again. Whoever
//! needs a page gets a free one or else the cached one that was let go first.

use std::collections::VecDeque;

use crate::host::HostPool;
use crate::limits::n_window_pages;
use crate::lru::Lru;
use crate::prefix::{NodeIdx, Prefixes};
use crate::{GroupIdx, GroupLimits, Limits, PageId, PageMove, SlotIdx};

#[derive(Debug)]
pub(crate) struct Pool {
    group: GroupIdx,
    pub(crate) window: Option<usize>,
    /// Used as a stack: the page that was freed last is the one most likely still in a cache.
    free: Vec<PageId>,
    cached: Lru,
    /// By page.
    pages: Vec<Page>,
    /// By slot.
    pub(crate) tables: Vec<Table>,
    /// Pages that only slots have that were let go.
    n_let_go: usize,
    pub(crate) host: Option<HostPool>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// Tables that have it.
    n_holders: u32,
    /// What it holds, if that is known.
    node: Option<NodeIdx>,
}

/// A slot's pages in one group: entries `first_idx ..` of its page table, without holes.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Entries before this one have left the window and are given back.
    pub(crate) first_idx: usize,
    pub(crate) pages: VecDeque<PageId>,
}

impl Pool {
    /// All pages free. Room for every table's longest state is taken now, so that a step does not
    /// allocate.
    pub(crate) fn new(group: GroupIdx, group_limits: &GroupLimits, limits: &Limits) -> Pool {
        let GroupLimits { n_pages, window } = *group_limits;
        let n_table_pages = limits.n_context_tokens.div_ceil(limits.page_tokens);
        let held = window.map_or(n_table_pages, |window| {
            let in_step = limits.n_tokens_per_step.div_ceil(limits.page_tokens);
            n_window_pages(window, limits.page_tokens).saturating_add(in_step)
        });
        let n_held_max = held.min(n_table_pages).min(n_pages);
        let table = || Table { first_idx: 0, pages: VecDeque::with_capacity(n_held_max) };
        Pool {
            group,
            window,
            free: (0..n_pages as u32).rev().map(PageId).collect(),
            cached: Lru::new(n_pages),
            pages: vec![Page::default(); n_pages],
            tables: (0..limits.n_slots).map(|_| table()).collect(),
            n_let_go: 0,
            host: limits
                .host_tier
                .as_ref()
                .map(|tier| HostPool::new(group, tier.group_pages[group.idx()])),
        }
    }

    /// Pages.
    pub(crate) fn n_pages(&self) -> usize {
        self.pages.len()
    }

    /// Pages that nobody holds.
    pub(crate) fn n_free(&self) -> usize {
        self.free.len() + self.cached.len() + self.n_let_go
    }

    /// Pages that nobody holds and that may be wanted again.
    pub(crate) fn n_cached(&self) -> usize {
        self.cached.len()
    }

    /// Whether somebody holds a page.
    pub(crate) fn is_held(&self, page: PageId) -> bool {
        self.pages[page.idx()].n_holders > 0
    }

    /// A page that nobody holds, for one holder, who will write it. What it held goes to the host,
    /// by `moves`, unless the host has it or there is none.
    pub(crate) fn take(
        &mut self,
        prefixes: &mut Option<Prefixes>,
        moves: &mut Vec<PageMove>,
    ) -> Option<PageId> {
        let page = self.free.pop().or_else(|| self.cached.pop_oldest())?;
        let Page { n_holders, node } = &mut self.pages[page.idx()];
        assert_eq!(*n_holders, 0, "{page:?} is held and to be had");
        *n_holders = 1;
        if let Some(node) = node.take() {
            let prefixes = prefixes.as_mut().expect("what a page holds is known to the cache");
            if let Some(host) = &mut self.host
                && prefixes.host_page(node, self.group).is_none()
                && let Some(to) = host.take(node, prefixes)
            {
                moves.push(PageMove::Out { group: self.group, from: page, to });
            }
            prefixes.unset_page(node, self.group);
        }
        Some(page)
    }

    /// One more holder of a page whose content is known, who will only read it.
    pub(crate) fn share(&mut self, page: PageId) {
        let Page { n_holders, node } = &mut self.pages[page.idx()];
        assert!(node.is_some(), "{page:?} holds nobody knows what");
        if *n_holders == 0 {
            self.cached.remove(page);
        }
        *n_holders += 1;
    }

    /// One more holder of a full page that somebody holds, whatever it holds.
    pub(crate) fn hold_too(&mut self, page: PageId) {
        assert!(self.is_held(page), "{page:?} is nobody's");
        self.pages[page.idx()].n_holders += 1;
    }

    /// A page that somebody just took will hold what `node` does, for whoever begins with it.
    pub(crate) fn refill(&mut self, page: PageId, node: NodeIdx, prefixes: &mut Prefixes) {
        prefixes.set_page(node, self.group, page);
        let before = self.pages[page.idx()].node.replace(node);
        assert_eq!(before, None, "{page:?} holds something");
    }

    /// One holder less.
    pub(crate) fn give_back(&mut self, page: PageId) {
        let Page { n_holders, node } = &mut self.pages[page.idx()];
        *n_holders -= 1;
        match (*n_holders, node) {
            (0, Some(_)) => self.cached.push(page),
            (0, None) => self.free.push(page),
            _ => {}
        }
    }

    /// Counts as if a slot had given its pages back.
    pub(crate) fn let_go(&mut self, slot: SlotIdx) {
        for page in &self.tables[slot.idx()].pages {
            let n_holders = &mut self.pages[page.idx()].n_holders;
            *n_holders -= 1;
            self.n_let_go += usize::from(*n_holders == 0);
        }
    }

    /// Undoes that.
    pub(crate) fn hold_again(&mut self, slot: SlotIdx) {
        for page in &self.tables[slot.idx()].pages {
            let n_holders = &mut self.pages[page.idx()].n_holders;
            self.n_let_go -= usize::from(*n_holders == 0);
            *n_holders += 1;
        }
    }

    /// The entry of a slot's table holds a full page, and what it holds is known from now on;
    /// unless another page is known to hold the same.
    pub(crate) fn file(
        &mut self,
        table_idx: usize,
        page_idx: usize,
        node: NodeIdx,
        prefixes: &mut Prefixes,
    ) {
        let table = &self.tables[table_idx];
        let Some(entry) = page_idx.checked_sub(table.first_idx) else { return };
        let page = table.pages[entry];
        if prefixes.page(node, self.group).is_none() {
            prefixes.set_page(node, self.group, page);
            let before = self.pages[page.idx()].node.replace(node);
            assert_eq!(before, None, "{page:?} was full already");
        }
    }

    /// Asserts that every page is free, held or cached, and that the tree agrees.
    pub(crate) fn check(&self, prefixes: Option<&Prefixes>) {
        let group = self.group;
        assert_eq!(self.n_let_go, 0, "{group:?}: what was asked for the asking is undone");
        let mut n_holders = vec![0; self.n_pages()];
        let mut n_places = vec![0; self.n_pages()];
        let held = self.tables.iter().flat_map(|table| &table.pages);
        held.for_each(|page| n_holders[page.idx()] += 1);
        self.free.iter().for_each(|page| n_places[page.idx()] += 1);
        self.cached.iter().for_each(|page| n_places[page.idx()] += 1);
        for (page_idx, page) in self.pages.iter().enumerate() {
            let name = PageId(page_idx as u32);
            assert_eq!(page.n_holders, n_holders[page_idx], "holders of {name:?} of {group:?}");
            let n_expected = usize::from(page.n_holders == 0);
            assert_eq!(n_places[page_idx], n_expected, "places of {name:?} of {group:?}");
            if let Some(node) = page.node {
                let known = prefixes.and_then(|prefixes| prefixes.page(node, group));
                assert_eq!(known, Some(name), "the page of {node:?} in {group:?}");
            }
        }
        for page in &self.free {
            assert!(self.pages[page.idx()].node.is_none(), "{page:?} is free and known");
        }
        for page in self.cached.iter() {
            assert!(self.pages[page.idx()].node.is_some(), "{page:?} is cached and unknown");
        }
        if let (Some(host), Some(prefixes)) = (&self.host, prefixes) {
            host.check(prefixes);
        }
        let n_known = self.pages.iter().filter(|page| page.node.is_some()).count();
        let n_in_tree = prefixes.map_or(0, |prefixes| prefixes.n_pages(group));
        assert_eq!(n_known, n_in_tree, "pages of {group:?} whose content is known");
    }
}

impl Table {
    /// The first entry that is not set.
    pub(crate) fn end_idx(&self) -> usize {
        self.first_idx + self.pages.len()
    }
}
