//! Which blocks share a page table, and the tables themselves as a rank keeps them.

use scheduler::{GroupIdx, PageId, PageUpdate, SlotIdx};
use weights::{BlockSpec, ModelSpec};

use crate::config::KvDtype;
use crate::device::KvLocation;

/// Tokens in a page: short enough to waste little, long enough to read in one go.
pub const PAGE_TOKENS: usize = 16;

/// Cache groups of a model: full attention first, then one group per window, shortest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheLayout {
    /// The groups; empty for a model without attention.
    pub groups: Vec<CacheGroup>,
}

/// Blocks that see the same part of the past and so hold the same pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheGroup {
    /// What a query sees; `None` is everything.
    pub window: Option<usize>,
    /// Indices into the model's block list.
    pub blocks: Vec<usize>,
}

impl CacheLayout {
    /// The groups of `spec`.
    pub fn new(spec: &ModelSpec) -> CacheLayout {
        let mut groups: Vec<CacheGroup> = Vec::new();
        for (block_idx, block) in spec.blocks.iter().enumerate() {
            let Some(attention) = block.attention() else { continue };
            match groups.iter_mut().find(|group| group.window == attention.window) {
                Some(group) => group.blocks.push(block_idx),
                None => {
                    groups.push(CacheGroup { window: attention.window, blocks: vec![block_idx] });
                }
            }
        }
        // `None` sorts first.
        groups.sort_by_key(|group| group.window);
        CacheLayout { groups }
    }

    /// The group of a block with attention.
    pub fn group_of(&self, block: &BlockSpec) -> Option<GroupIdx> {
        let window = block.attention()?.window;
        let group_idx = self.groups.iter().position(|group| group.window == window)?;
        Some(GroupIdx(u16::try_from(group_idx).expect("groups are few")))
    }
}

/// How large a rank's caches are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheSizes<'a> {
    pub(crate) kv_dtype: KvDtype,
    /// Pages of each group.
    pub(crate) group_pages: &'a [usize],
}

/// Every slot's page table in every group, as of the current step.
#[derive(Debug)]
pub(crate) struct PageTables {
    n_entries_per_slot: usize,
    /// One flat table a group, `[n_slots, n_entries_per_slot]`. What no plan has set is page 0,
    /// and is never read: a row only sees positions that were written.
    tables: Vec<Vec<PageId>>,
}

impl PageTables {
    pub(crate) fn new(n_groups: usize, n_slots: usize, n_context_tokens: usize) -> PageTables {
        let n_entries_per_slot = n_context_tokens.div_ceil(PAGE_TOKENS);
        let tables = vec![vec![PageId(0); n_slots * n_entries_per_slot]; n_groups];
        PageTables { n_entries_per_slot, tables }
    }

    /// Sets the entries that a plan changed.
    pub(crate) fn apply(&mut self, updates: &[PageUpdate]) {
        for update in updates {
            let page_idx = update.page_idx as usize;
            assert!(page_idx < self.n_entries_per_slot, "page {page_idx} is beyond the context");
            let entry = update.slot.idx() * self.n_entries_per_slot + page_idx;
            self.tables[update.group.idx()][entry] = update.page;
        }
    }

    /// The first pages of a slot, enough for `n_tokens`.
    pub(crate) fn pages(&self, group: GroupIdx, slot: SlotIdx, n_tokens: usize) -> &[PageId] {
        let begin = slot.idx() * self.n_entries_per_slot;
        &self.tables[group.idx()][begin..begin + n_tokens.div_ceil(PAGE_TOKENS)]
    }

    /// Where a position's KV lies.
    pub(crate) fn location(&self, group: GroupIdx, slot: SlotIdx, position: usize) -> KvLocation {
        let entry = slot.idx() * self.n_entries_per_slot + position / PAGE_TOKENS;
        let offset = (position % PAGE_TOKENS) as u32;
        KvLocation { page: self.tables[group.idx()][entry], offset }
    }
}
