//! What a sequence that takes a slot begins with: the longest beginning that the cache has, on the
//! device or, where it is worth the way back, on the host.

use std::sync::Arc;

use crate::pages::{Path, Pools, ReadTokens, first_seen_idx};
use crate::prefix::{NodeIdx, Prefixes};
use crate::{GroupIdx, HostPageId, PageMove, PageUpdate, SlotIdx};

/// What a sequence may begin with, found in the cache. Good until pages are taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    tip: Option<NodeIdx>,
    pub(crate) n_pages: usize,
    /// Of them, those behind what the device alone has.
    pub(crate) n_pages_back: usize,
}

impl Pools {
    /// The longest beginning of a sequence, in whole pages and at most `n_tokens_max` tokens, that
    /// the cache has: in every group all pages that a query behind it sees.
    pub(crate) fn find(
        &self,
        salt: &Option<Arc<str>>,
        n_tokens_max: usize,
        read: ReadTokens<'_>,
    ) -> Found {
        let mut found = Found::default();
        let Some(prefixes) = &self.prefixes else { return found };
        let Some(mut node) = prefixes.root(salt) else { return found };
        let mut tokens = Vec::with_capacity(self.page_tokens);
        // First pages of what each group has without a gap up to here: on the device, or at all.
        let mut firsts = vec![[0; 2]; self.pools.len()];
        let mut on_device = Found::default();
        for page_idx in 0..n_tokens_max / self.page_tokens {
            tokens.clear();
            read(page_idx * self.page_tokens..(page_idx + 1) * self.page_tokens, &mut tokens);
            let Some(child) = prefixes.child(node, &tokens) else { break };
            node = child;
            let n_pages = page_idx + 1;
            let mut are_whole = [true; 2];
            for ((pool, group), firsts) in self.pools.iter().zip(self.groups()).zip(&mut firsts) {
                let is_here = prefixes.page(node, group).is_some();
                let is_anywhere = is_here || prefixes.host_page(node, group).is_some();
                let n_tokens = n_pages * self.page_tokens;
                let first_idx = first_seen_idx(pool.window, n_tokens, self.page_tokens);
                for (tier, has) in [is_here, is_anywhere].into_iter().enumerate() {
                    if !has {
                        firsts[tier] = n_pages;
                    }
                    are_whole[tier] &= firsts[tier] <= first_idx;
                }
            }
            let whole = Found { tip: Some(node), n_pages, n_pages_back: 0 };
            if are_whole[0] {
                on_device = whole;
            }
            if are_whole[1] {
                found = whole;
            }
        }
        found.n_pages_back = found.n_pages - on_device.n_pages;
        let is_worth_it = found.n_pages_back * self.page_tokens >= self.n_tokens_back_min;
        if is_worth_it { found } else { on_device }
    }

    /// A sequence takes a slot and begins with what was found: how many tokens that are. Appends
    /// the pages to `updates`.
    pub(crate) fn adopt(
        &mut self,
        slot: SlotIdx,
        salt: &Option<Arc<str>>,
        found: Found,
        updates: &mut Vec<PageUpdate>,
    ) -> usize {
        let page_tokens = self.page_tokens;
        let n_tokens = found.n_pages * page_tokens;
        let Some(prefixes) = &mut self.prefixes else { return 0 };
        let tip = found.tip.unwrap_or_else(|| prefixes.root_or_insert(salt));
        prefixes.retain(tip);
        self.paths[slot.idx()] = Path { tip: Some(tip), n_pages: found.n_pages };
        // First of all, what is here: nothing that is wanted is taken for what comes back.
        for (pool, group) in self.pools.iter_mut().zip((0..).map(GroupIdx)) {
            let first_idx = first_seen_idx(pool.window, n_tokens, page_tokens);
            for (node, _) in nodes_before(prefixes, found, first_idx) {
                match (prefixes.page(node, group), &mut pool.host) {
                    (Some(page), _) => pool.share(page),
                    (None, Some(host)) => host.pin(on_host(prefixes, node, group)),
                    (None, None) => panic!("what was found has its pages"),
                }
            }
        }
        for group in self.groups() {
            self.adopt_group(slot, found, group, updates);
        }
        n_tokens
    }

    /// Puts the pages of what was found into a table, those that are on the host by way of the
    /// device's.
    fn adopt_group(
        &mut self,
        slot: SlotIdx,
        found: Found,
        group: GroupIdx,
        updates: &mut Vec<PageUpdate>,
    ) {
        let Pools { page_tokens, pools, prefixes, moves, .. } = self;
        let pool = &mut pools[group.idx()];
        let n_tokens = found.n_pages * *page_tokens;
        let first_idx = first_seen_idx(pool.window, n_tokens, *page_tokens);
        let n_updates = updates.len();
        let mut node = found.tip;
        for page_idx in (first_idx..found.n_pages).rev() {
            let tree = prefixes.as_ref().expect("something was found");
            let at = node.expect("a path has as many nodes as pages");
            node = tree.parent(at);
            let page = match tree.page(at, group) {
                Some(page) => page,
                None => {
                    let from = on_host(tree, at, group);
                    let to = pool.take(prefixes, moves).expect("there was room for it");
                    moves.push(PageMove::In { group, from, to });
                    let tree = prefixes.as_mut().expect("something was found");
                    pool.refill(to, at, tree);
                    if let Some(host) = &mut pool.host {
                        host.unpin(from);
                    }
                    to
                }
            };
            pool.tables[slot.idx()].pages.push_front(page);
            updates.push(PageUpdate { slot, group, page_idx: page_idx as u32, page });
        }
        updates[n_updates..].reverse();
        pool.tables[slot.idx()].first_idx = first_idx;
    }

    /// Pages of a group that a sequence would share with others if it began with what was found.
    pub(crate) fn n_held_of(&self, group: GroupIdx, found: Found) -> usize {
        let Some(prefixes) = &self.prefixes else { return 0 };
        let pool = &self.pools[group.idx()];
        let n_tokens = found.n_pages * self.page_tokens;
        let first_idx = first_seen_idx(pool.window, n_tokens, self.page_tokens);
        let nodes = nodes_before(prefixes, found, first_idx);
        let pages = nodes.filter_map(|(node, _)| prefixes.page(node, group));
        pages.filter(|&page| pool.is_held(page)).count()
    }
}

/// Nodes of what was found and their table entries, from the last one back to `first_idx`.
fn nodes_before(
    prefixes: &Prefixes,
    found: Found,
    first_idx: usize,
) -> impl Iterator<Item = (NodeIdx, usize)> {
    let nodes = std::iter::successors(found.tip, |&node| prefixes.parent(node));
    nodes.zip((first_idx..found.n_pages).rev())
}

fn on_host(prefixes: &Prefixes, node: NodeIdx, group: GroupIdx) -> HostPageId {
    prefixes.host_page(node, group).expect("what was found is here or on the host")
}
