//! What full pages hold, as a tree: a node is one page's tokens, and a path from a root to it is
//! all that the KV of that page depends on.
//!
//! **A node is found by content, never by a hash alone.** A hash picks a bucket; then parent and
//! tokens are compared. The parent is compared by its place, which is exact: a node stays where it
//! is while a child, a page or a sequence uses it, so equal places are equal paths. Requests with
//! different salts start from different roots and share nothing.
//!
//! It does not know who holds a page or which page goes next; that is `pool`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{GroupIdx, HostPageId, PageId, TokenId};

/// A node's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeIdx(u32);

/// The tree.
#[derive(Debug)]
pub(crate) struct Prefixes {
    page_tokens: usize,
    n_groups: usize,
    seed: u64,
    nodes: Vec<Node>,
    /// `[nodes, page_tokens]`.
    tokens: Vec<TokenId>,
    /// `[nodes, groups]`: which page has a node's KV.
    pages: Vec<Option<PageId>>,
    /// The same on the host.
    host_pages: Vec<Option<HostPageId>>,
    free: Vec<NodeIdx>,
    /// First node of each bucket; a power of two of them.
    buckets: Vec<Option<NodeIdx>>,
    roots: BTreeMap<Option<Arc<str>>, NodeIdx>,
}

#[derive(Debug)]
struct Node {
    origin: Origin,
    /// Children, pages and sequences that need the node to stay.
    n_uses: usize,
    next_in_bucket: Option<NodeIdx>,
}

#[derive(Debug)]
enum Origin {
    Root(Option<Arc<str>>),
    Child(NodeIdx),
    Free,
}

impl NodeIdx {
    fn idx(self) -> usize {
        self.0 as usize
    }
}

impl Prefixes {
    /// Room for `n_nodes`, so that a step does not allocate. `seed` decides the buckets, and only
    /// them: nobody outside can know which contents share one.
    pub(crate) fn new(page_tokens: usize, n_groups: usize, n_nodes: usize, seed: u64) -> Prefixes {
        Prefixes {
            page_tokens,
            n_groups,
            seed,
            nodes: Vec::with_capacity(n_nodes),
            tokens: Vec::with_capacity(n_nodes * page_tokens),
            pages: Vec::with_capacity(n_nodes * n_groups),
            host_pages: Vec::with_capacity(n_nodes * n_groups),
            free: Vec::with_capacity(n_nodes),
            buckets: vec![None; n_nodes.next_power_of_two()],
            roots: BTreeMap::new(),
        }
    }

    /// Where requests with this salt start, if one is known.
    pub(crate) fn root(&self, salt: &Option<Arc<str>>) -> Option<NodeIdx> {
        self.roots.get(salt).copied()
    }

    /// The same; it is made if there is none. It must be retained.
    pub(crate) fn root_or_insert(&mut self, salt: &Option<Arc<str>>) -> NodeIdx {
        if let Some(root) = self.root(salt) {
            return root;
        }
        let root = self.allocate(Origin::Root(salt.clone()));
        self.roots.insert(salt.clone(), root);
        root
    }

    /// The page's worth of `tokens` after `parent`, if it is known.
    pub(crate) fn child(&self, parent: NodeIdx, tokens: &[TokenId]) -> Option<NodeIdx> {
        let first = self.buckets[self.bucket_idx(parent, tokens)];
        let mut chain = std::iter::successors(first, |node| self.nodes[node.idx()].next_in_bucket);
        chain.find(|&node| self.parent(node) == Some(parent) && self.tokens(node) == tokens)
    }

    /// The same; it is made if there is none. It must be retained.
    pub(crate) fn child_or_insert(&mut self, parent: NodeIdx, tokens: &[TokenId]) -> NodeIdx {
        assert_eq!(tokens.len(), self.page_tokens, "a node is a full page");
        if let Some(child) = self.child(parent, tokens) {
            return child;
        }
        self.retain(parent);
        let child = self.allocate(Origin::Child(parent));
        let first = child.idx() * self.page_tokens;
        self.tokens[first..first + self.page_tokens].copy_from_slice(tokens);
        let bucket_idx = self.bucket_idx(parent, tokens);
        let next = self.buckets[bucket_idx].replace(child);
        self.nodes[child.idx()].next_in_bucket = next;
        child
    }

    /// The node before.
    pub(crate) fn parent(&self, node: NodeIdx) -> Option<NodeIdx> {
        match self.nodes[node.idx()].origin {
            Origin::Child(parent) => Some(parent),
            Origin::Root(_) => None,
            Origin::Free => panic!("{node:?} is gone"),
        }
    }

    /// The page that has the node's KV in a group.
    pub(crate) fn page(&self, node: NodeIdx, group: GroupIdx) -> Option<PageId> {
        self.pages[node.idx() * self.n_groups + group.idx()]
    }

    /// A page has the node's KV from now on.
    pub(crate) fn set_page(&mut self, node: NodeIdx, group: GroupIdx, page: PageId) {
        let before = self.pages[node.idx() * self.n_groups + group.idx()].replace(page);
        assert_eq!(before, None, "{node:?} has two pages in {group:?}");
        self.retain(node);
    }

    /// The page will hold something else.
    pub(crate) fn unset_page(&mut self, node: NodeIdx, group: GroupIdx) {
        let before = self.pages[node.idx() * self.n_groups + group.idx()].take();
        assert!(before.is_some(), "{node:?} has no page in {group:?}");
        self.release(node);
    }

    /// The host's page that has the node's KV in a group.
    pub(crate) fn host_page(&self, node: NodeIdx, group: GroupIdx) -> Option<HostPageId> {
        self.host_pages[node.idx() * self.n_groups + group.idx()]
    }

    /// A page of the host has the node's KV from now on.
    pub(crate) fn set_host_page(&mut self, node: NodeIdx, group: GroupIdx, page: HostPageId) {
        let before = self.host_pages[node.idx() * self.n_groups + group.idx()].replace(page);
        assert_eq!(before, None, "{node:?} has two pages of the host in {group:?}");
        self.retain(node);
    }

    /// The host's page will hold something else.
    pub(crate) fn unset_host_page(&mut self, node: NodeIdx, group: GroupIdx) {
        let before = self.host_pages[node.idx() * self.n_groups + group.idx()].take();
        assert!(before.is_some(), "{node:?} has no page of the host in {group:?}");
        self.release(node);
    }

    /// Somebody needs the node to stay.
    pub(crate) fn retain(&mut self, node: NodeIdx) {
        self.nodes[node.idx()].n_uses += 1;
    }

    /// And no longer. A node that nobody needs is gone, and so may be those before it.
    pub(crate) fn release(&mut self, node: NodeIdx) {
        let mut next = Some(node);
        while let Some(node) = next {
            let n_uses = &mut self.nodes[node.idx()].n_uses;
            *n_uses -= 1;
            if *n_uses > 0 {
                return;
            }
            next = self.parent(node);
            self.remove(node);
        }
    }

    fn allocate(&mut self, origin: Origin) -> NodeIdx {
        let node = Node { origin, n_uses: 0, next_in_bucket: None };
        if let Some(place) = self.free.pop() {
            self.nodes[place.idx()] = node;
            return place;
        }
        let place = NodeIdx(u32::try_from(self.nodes.len()).expect("nodes are fewer than 2^32"));
        self.nodes.push(node);
        self.tokens.resize(self.nodes.len() * self.page_tokens, TokenId(0));
        self.pages.resize(self.nodes.len() * self.n_groups, None);
        self.host_pages.resize(self.nodes.len() * self.n_groups, None);
        place
    }

    fn remove(&mut self, node: NodeIdx) {
        match std::mem::replace(&mut self.nodes[node.idx()].origin, Origin::Free) {
            Origin::Root(salt) => drop(self.roots.remove(&salt)),
            Origin::Child(parent) => self.unlink(node, parent),
            Origin::Free => panic!("{node:?} is gone already"),
        }
        self.free.push(node);
    }

    fn unlink(&mut self, node: NodeIdx, parent: NodeIdx) {
        let bucket_idx = self.bucket_idx(parent, self.tokens(node));
        let next = self.nodes[node.idx()].next_in_bucket;
        if self.buckets[bucket_idx] == Some(node) {
            self.buckets[bucket_idx] = next;
            return;
        }
        let mut before = self.buckets[bucket_idx].expect("its bucket has it");
        while self.nodes[before.idx()].next_in_bucket != Some(node) {
            before = self.nodes[before.idx()].next_in_bucket.expect("its bucket has it");
        }
        self.nodes[before.idx()].next_in_bucket = next;
    }

    fn tokens(&self, node: NodeIdx) -> &[TokenId] {
        let first = node.idx() * self.page_tokens;
        &self.tokens[first..first + self.page_tokens]
    }

    fn bucket_idx(&self, parent: NodeIdx, tokens: &[TokenId]) -> usize {
        let stir = |hash: u64, word: u64| {
            let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^ (hash >> 29)
        };
        let start = stir(self.seed, u64::from(parent.0));
        let hash = tokens.iter().fold(start, |hash, token| stir(hash, u64::from(token.0)));
        hash as usize & (self.buckets.len() - 1)
    }

    /// Nodes with a page in a group.
    pub(crate) fn n_pages(&self, group: GroupIdx) -> usize {
        self.pages.iter().skip(group.idx()).step_by(self.n_groups).flatten().count()
    }

    /// Nodes with a page of the host in a group.
    pub(crate) fn n_host_pages(&self, group: GroupIdx) -> usize {
        self.host_pages.iter().skip(group.idx()).step_by(self.n_groups).flatten().count()
    }

    /// Asserts that every node is where it is found, and that its users are those that there are:
    /// children, pages, and the `tips` of sequences.
    pub(crate) fn check(&self, tips: impl Iterator<Item = NodeIdx>) {
        let mut n_uses = vec![0; self.nodes.len()];
        tips.for_each(|tip| n_uses[tip.idx()] += 1);
        let mut n_found = 0;
        for place in (0..self.nodes.len() as u32).map(NodeIdx) {
            match &self.nodes[place.idx()].origin {
                Origin::Free => continue,
                Origin::Root(salt) => assert_eq!(self.root(salt), Some(place), "{salt:?}"),
                Origin::Child(parent) => {
                    n_uses[parent.idx()] += 1;
                    assert_eq!(self.child(*parent, self.tokens(place)), Some(place));
                }
            }
            n_found += 1;
            let pages = &self.pages[place.idx() * self.n_groups..][..self.n_groups];
            n_uses[place.idx()] += pages.iter().flatten().count();
            let pages = &self.host_pages[place.idx() * self.n_groups..][..self.n_groups];
            n_uses[place.idx()] += pages.iter().flatten().count();
        }
        assert_eq!(n_found + self.free.len(), self.nodes.len(), "nodes in use + free");
        for (node, n_uses) in self.nodes.iter().zip(n_uses) {
            assert_eq!(node.n_uses, n_uses, "uses of {node:?}");
            assert!(n_uses > 0 || matches!(node.origin, Origin::Free), "{node:?} is useless");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupIdx = GroupIdx(0);

    fn tokens(first: u32) -> [TokenId; 2] {
        [TokenId(first), TokenId(first + 1)]
    }

    /// One bucket: whatever is found is found by comparing.
    fn crowded() -> Prefixes {
        Prefixes { buckets: vec![None], ..Prefixes::new(2, 1, 8, 7) }
    }

    #[test]
    fn equal_tokens_after_other_tokens_are_another_node() {
        for mut prefixes in [crowded(), Prefixes::new(2, 1, 8, 7)] {
            let root = prefixes.root_or_insert(&None);
            let (a, b) = (tokens(10), tokens(20));
            let first = prefixes.child_or_insert(root, &a);
            let second = prefixes.child_or_insert(root, &b);
            let below = [first, second].map(|parent| prefixes.child_or_insert(parent, &a));
            assert_ne!(below[0], below[1]);
            for (node, page) in [first, second, below[0], below[1]].into_iter().zip(0..) {
                prefixes.set_page(node, GROUP, PageId(page));
            }
            assert_eq!(prefixes.child(first, &a), Some(below[0]));
            assert_eq!(prefixes.child(second, &a), Some(below[1]));
            assert_eq!(prefixes.child(second, &b), None);
            prefixes.check(std::iter::empty());
        }
    }

    #[test]
    fn salts_have_roots_of_their_own() {
        let mut prefixes = crowded();
        let salts = [None, Some(Arc::from("a")), Some(Arc::from("b"))];
        let roots = salts.clone().map(|salt| prefixes.root_or_insert(&salt));
        let nodes = roots.map(|root| prefixes.child_or_insert(root, &tokens(1)));
        for (node, page) in nodes.into_iter().zip(0..) {
            prefixes.set_page(node, GROUP, PageId(page));
        }
        prefixes.check(std::iter::empty());
        for (idx, root) in roots.into_iter().enumerate() {
            assert_eq!(prefixes.root(&salts[idx]), Some(root));
            let node = prefixes.child(root, &tokens(1)).expect("it is there");
            assert_eq!(prefixes.page(node, GROUP), Some(PageId(idx as u32)));
        }
    }

    #[test]
    fn a_node_stays_while_something_needs_it() {
        let mut prefixes = crowded();
        let root = prefixes.root_or_insert(&None);
        let first = prefixes.child_or_insert(root, &tokens(1));
        let second = prefixes.child_or_insert(first, &tokens(3));
        prefixes.set_page(first, GROUP, PageId(0));
        prefixes.retain(second);
        prefixes.unset_page(first, GROUP);
        prefixes.check([second].into_iter());
        assert_eq!(prefixes.child(root, &tokens(1)), Some(first), "its child is needed");
        prefixes.release(second);
        assert_eq!(prefixes.root(&None), None, "all are gone");
        prefixes.check(std::iter::empty());
        // Their places are taken again.
        let root = prefixes.root_or_insert(&None);
        let again = prefixes.child_or_insert(root, &tokens(3));
        prefixes.set_page(again, GROUP, PageId(1));
        assert_eq!(prefixes.child(root, &tokens(1)), None);
        assert_eq!(prefixes.nodes.len(), 3);
        prefixes.check(std::iter::empty());
    }
}
