//! Several answers to one prompt (`n > 1`): requests whose prompts are one allocation are siblings.
//! The first computes the prompt; the others wait for that and begin with its pages, whether or not
//! prefixes are cached.
//!
//! Full pages are shared as they are: nobody writes them again. The last one, if the prompt leaves
//! it half full, is copied before its sharer's first row writes behind what they have in common
//! ([`PageMove::Copy`]); what the sibling has written there meanwhile comes along, and nobody reads
//! it.

use std::sync::Arc;

use crate::adopt::Found;
use crate::pages::{Pools, first_seen_idx};
use crate::roster::Roster;
use crate::sequence::Sequence;
use crate::{GroupIdx, PageMove, PageUpdate, SlotIdx, StepPlan, TokenId};

/// What a newcomer may begin with that a running sibling has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    /// Whose pages.
    slot: SlotIdx,
    n_tokens: usize,
}

/// What a newcomer begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Beginning {
    /// What the cache has of it, which may be nothing.
    Found(Found),
    /// What a sibling has.
    Shared(Shared),
}

impl Beginning {
    /// Whether it is what this slot has.
    pub(crate) fn is_of(self, slot: SlotIdx) -> bool {
        matches!(self, Beginning::Shared(shared) if shared.slot == slot)
    }
}

impl Default for Beginning {
    fn default() -> Beginning {
        Beginning::Found(Found::default())
    }
}

/// How a newcomer stands to the siblings that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kin {
    /// It begins as others do.
    None,
    /// One is computing so many tokens that it could share.
    Computing(usize),
    /// One has them.
    Ready(Shared),
}

/// Looks for the sibling that has most. Costs a look at every running sequence.
fn kin(newcomer: &Sequence, roster: &Roster, pools: &Pools) -> Kin {
    let n_tokens = newcomer.n_cacheable().min(newcomer.prompt().len());
    let mut kin = Kin::None;
    if n_tokens == 0 {
        return kin;
    }
    for &slot in roster.running() {
        let sequence = roster.sequence(slot);
        let is_sibling = Arc::ptr_eq(sequence.shared_prompt(), newcomer.shared_prompt())
            && sequence.cache_salt() == newcomer.cache_salt();
        if !is_sibling {
            continue;
        }
        if sequence.n_computed() < n_tokens {
            kin = Kin::Computing(n_tokens);
        } else if pools.reaches_back(slot, n_tokens) {
            return Kin::Ready(Shared { slot, n_tokens });
        }
    }
    kin
}

impl Pools {
    /// What a newcomer begins with; `None` if it is to wait for a sibling's prompt.
    pub(crate) fn beginning(&self, newcomer: &Sequence, roster: &Roster) -> Option<Beginning> {
        let read = |range, tokens: &mut Vec<TokenId>| newcomer.read(range, tokens);
        let found = self.find(newcomer.cache_salt(), newcomer.n_cacheable(), &read);
        match kin(newcomer, roster, self) {
            Kin::None => Some(Beginning::Found(found)),
            Kin::Ready(shared) => Some(Beginning::Shared(shared)),
            // Rather than compute more than a page's worth once more, it waits.
            Kin::Computing(n_tokens) => {
                let has_nearly_all = n_tokens <= (found.n_pages + 1) * self.page_tokens;
                has_nearly_all.then_some(Beginning::Found(found))
            }
        }
    }

    /// Pages of a group that a newcomer would begin with and that others hold.
    pub(crate) fn n_shared(&self, group: GroupIdx, beginning: Beginning) -> usize {
        match beginning {
            Beginning::Found(found) => self.n_held_of(group, found),
            Beginning::Shared(shared) => self.n_in_common(group, shared),
        }
    }

    /// Tokens of a beginning that come back from the host.
    pub(crate) fn n_back(&self, beginning: Beginning) -> usize {
        match beginning {
            Beginning::Found(found) => found.n_pages_back * self.page_tokens,
            Beginning::Shared(_) => 0,
        }
    }

    /// A sequence takes a slot and begins so: how many tokens that are.
    pub(crate) fn begin(
        &mut self,
        slot: SlotIdx,
        salt: &Option<Arc<str>>,
        beginning: Beginning,
        plan: &mut StepPlan,
    ) -> usize {
        match beginning {
            Beginning::Found(found) => self.adopt(slot, salt, found, &mut plan.pages),
            Beginning::Shared(shared) => {
                self.fork(slot, shared, plan);
                shared.n_tokens
            }
        }
    }

    /// Whether a slot still has, in every group, all that a query behind `n_tokens` sees.
    fn reaches_back(&self, slot: SlotIdx, n_tokens: usize) -> bool {
        self.pools.iter().all(|pool| {
            let first_idx = first_seen_idx(pool.window, n_tokens, self.page_tokens);
            pool.tables[slot.idx()].first_idx <= first_idx
        })
    }

    /// Pages of a group that a newcomer would have in common with its sibling.
    fn n_in_common(&self, group: GroupIdx, shared: Shared) -> usize {
        let pool = &self.pools[group.idx()];
        let first_idx = first_seen_idx(pool.window, shared.n_tokens, self.page_tokens);
        (shared.n_tokens / self.page_tokens).saturating_sub(first_idx)
    }

    /// A sequence takes a slot and begins with what its sibling has. Pages that it must copy are
    /// to be had: it would need them in any case.
    fn fork(&mut self, slot: SlotIdx, shared: Shared, plan: &mut StepPlan) {
        let Shared { slot: from, n_tokens } = shared;
        let n_full = n_tokens / self.page_tokens;
        self.fork_path(slot, from, n_full);
        for (pool, group) in self.pools.iter_mut().zip((0..).map(GroupIdx)) {
            let first_idx = first_seen_idx(pool.window, n_tokens, self.page_tokens);
            pool.tables[slot.idx()].first_idx = first_idx;
            for page_idx in first_idx..n_tokens.div_ceil(self.page_tokens) {
                let table = &pool.tables[from.idx()];
                let theirs = table.pages[page_idx - table.first_idx];
                let page = if page_idx < n_full {
                    pool.hold_too(theirs);
                    theirs
                } else {
                    let to = pool.take(&mut self.prefixes, &mut self.moves);
                    let to = to.expect("there was room for it");
                    self.moves.push(PageMove::Copy { group, from: theirs, to });
                    to
                };
                pool.tables[slot.idx()].pages.push_back(page);
                plan.pages.push(PageUpdate { slot, group, page_idx: page_idx as u32, page });
            }
        }
    }

    /// The full pages that siblings have in common are filed once.
    fn fork_path(&mut self, slot: SlotIdx, from: SlotIdx, n_full: usize) {
        let Some(prefixes) = &mut self.prefixes else { return };
        let mut path = self.paths[from.idx()];
        while path.n_pages > n_full {
            path.tip = prefixes.parent(path.tip.expect("a slot that computes has a path"));
            path.n_pages -= 1;
        }
        prefixes.retain(path.tip.expect("every path begins at a root"));
        self.paths[slot.idx()] = path;
    }
}
