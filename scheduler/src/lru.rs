//! Pages in the order in which they were let go: a list through arrays, so that nothing is
//! allocated and any page is taken out at once.

use crate::PageId;

/// Pages of one pool, oldest first. A page is in it once or not at all.
#[derive(Debug)]
pub(crate) struct Lru {
    /// By page.
    links: Vec<Link>,
    oldest: Option<PageId>,
    newest: Option<PageId>,
    n_pages: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    is_in: bool,
    older: Option<PageId>,
    newer: Option<PageId>,
}

impl Lru {
    /// Empty, with room for every page of a pool.
    pub(crate) fn new(n_pages: usize) -> Lru {
        Lru { links: vec![Link::default(); n_pages], oldest: None, newest: None, n_pages: 0 }
    }

    /// Pages in it.
    pub(crate) fn len(&self) -> usize {
        self.n_pages
    }

    /// Puts a page behind all others.
    pub(crate) fn push(&mut self, page: PageId) {
        assert!(!self.links[page.idx()].is_in, "{page:?} is let go twice");
        self.links[page.idx()] = Link { is_in: true, older: self.newest, newer: None };
        match self.newest.replace(page) {
            Some(newest) => self.links[newest.idx()].newer = Some(page),
            None => self.oldest = Some(page),
        }
        self.n_pages += 1;
    }

    /// Takes a page out, wherever it is.
    pub(crate) fn remove(&mut self, page: PageId) {
        let Link { is_in, older, newer } = std::mem::take(&mut self.links[page.idx()]);
        assert!(is_in, "{page:?} was not let go");
        match older {
            Some(older) => self.links[older.idx()].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.links[newer.idx()].older = older,
            None => self.newest = older,
        }
        self.n_pages -= 1;
    }

    /// Takes out the page that was let go first.
    pub(crate) fn pop_oldest(&mut self) -> Option<PageId> {
        let page = self.oldest?;
        self.remove(page);
        Some(page)
    }

    /// All pages, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = PageId> {
        std::iter::successors(self.oldest, |page| self.links[page.idx()].newer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_leave_in_the_order_of_their_coming_or_out_of_turn() {
        let mut lru = Lru::new(6);
        for page in [3, 0, 5, 1] {
            lru.push(PageId(page));
        }
        lru.remove(PageId(5));
        lru.remove(PageId(3));
        lru.push(PageId(3));
        lru.remove(PageId(3));
        lru.push(PageId(4));
        let order: Vec<u32> = lru.iter().map(|page| page.0).collect();
        assert_eq!((order, lru.len()), (vec![0, 1, 4], 3));
        let popped: Vec<_> = std::iter::from_fn(|| lru.pop_oldest()).map(|page| page.0).collect();
        assert_eq!((popped, lru.len()), (vec![0, 1, 4], 0));
        lru.push(PageId(2));
        assert_eq!(lru.pop_oldest(), Some(PageId(2)));
    }
}
