//! One group's pages on the host: what falls out of the device's prefix cache goes here, and comes
//! back when a prompt begins with it. Whoever needs a page gets a free one, or else the one that
//! was used least lately.
//!
//! A page that comes back stays here too, so that letting go of it again moves nothing.

use crate::lru::Lru;
use crate::prefix::{NodeIdx, Prefixes};
use crate::{GroupIdx, HostPageId, PageId};

#[derive(Debug)]
pub(crate) struct HostPool {
    group: GroupIdx,
    free: Vec<HostPageId>,
    /// Those that hold something, but for those that a plan is about to read.
    used: Lru,
    /// What each page holds.
    nodes: Vec<Option<NodeIdx>>,
}

impl HostPool {
    /// All pages free.
    pub(crate) fn new(group: GroupIdx, n_pages: usize) -> HostPool {
        HostPool {
            group,
            free: (0..n_pages as u32).rev().map(HostPageId).collect(),
            used: Lru::new(n_pages),
            nodes: vec![None; n_pages],
        }
    }

    /// A page for what `node` holds; `None` if all are about to be read.
    pub(crate) fn take(&mut self, node: NodeIdx, prefixes: &mut Prefixes) -> Option<HostPageId> {
        let oldest = || self.used.pop_oldest().map(|page| HostPageId(page.0));
        let page = self.free.pop().or_else(oldest)?;
        if let Some(before) = self.nodes[page.idx()].replace(node) {
            prefixes.unset_host_page(before, self.group);
        }
        prefixes.set_host_page(node, self.group, page);
        self.used.push(PageId(page.0));
        Some(page)
    }

    /// A plan is about to read a page: nobody takes it before [`HostPool::unpin`].
    pub(crate) fn pin(&mut self, page: HostPageId) {
        self.used.remove(PageId(page.0));
    }

    /// The plan reads it, and has used it last.
    pub(crate) fn unpin(&mut self, page: HostPageId) {
        self.used.push(PageId(page.0));
    }

    /// Pages that hold something.
    pub(crate) fn n_used(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Asserts that every page is free or holds what the tree says.
    pub(crate) fn check(&self, prefixes: &Prefixes) {
        let group = self.group;
        assert_eq!(self.free.len() + self.used.len(), self.nodes.len(), "host pages of {group:?}");
        for page in &self.free {
            assert_eq!(self.nodes[page.idx()], None, "{page:?} of {group:?} is free and known");
        }
        for page in self.used.iter().map(|page| HostPageId(page.0)) {
            let node = self.nodes[page.idx()].expect("a used page holds something");
            assert_eq!(prefixes.host_page(node, group), Some(page), "the host's page of {node:?}");
        }
        assert_eq!(prefixes.n_host_pages(group), self.n_used(), "host pages of {group:?} known");
    }
}
