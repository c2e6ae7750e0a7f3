//! How many pages each cache group gets, from the bytes that there are.

use weights::{AttentionSpec, ModelSpec};

use super::MemoryError;
use crate::cache::{CacheGroup, CacheLayout, PAGE_TOKENS};
use crate::config::{EngineConfig, KvDtype};

/// Pages of every group within the given bytes.
pub(super) struct Pools {
    pub(super) pages: Vec<usize>,
    pub(super) bytes_per_rank: u64,
    pub(super) n_context_tokens: usize,
    /// Of each group, on each rank.
    pub(super) page_bytes: Vec<u64>,
}

impl Pools {
    /// Within `config.kv_bytes` over all ranks, or `kv_default_max`.
    pub(super) fn new(
        spec: &ModelSpec,
        layout: &CacheLayout,
        config: &EngineConfig,
        (kv_dtype, kv_default_max): (KvDtype, u64),
    ) -> Result<Pools, MemoryError> {
        let page_bytes: Vec<u64> = layout
            .groups
            .iter()
            .map(|group| page_bytes_per_rank(spec, group, config.n_ranks, kv_dtype))
            .collect();
        let n_ranks = config.n_ranks as u64;
        // Full attention has a group of its own, or none.
        let sized = |n_context_tokens, n_full_pages| {
            let pages: Vec<usize> = layout
                .groups
                .iter()
                .map(|group| match group.window {
                    None => n_full_pages,
                    Some(window) => windowed_pages(window, config, n_context_tokens),
                })
                .collect();
            let bytes: u64 =
                pages.iter().zip(&page_bytes).map(|(&pages, bytes)| pages as u64 * bytes).sum();
            (pages, bytes * n_ranks)
        };
        let wanted = config.n_context_tokens.unwrap_or(spec.n_positions_max);
        let (all_pages, all_bytes) = sized(wanted, pages_of(wanted) * config.n_slots);
        let kv_bytes = config.kv_bytes.unwrap_or(all_bytes.min(kv_default_max));
        if all_bytes <= kv_bytes {
            let (pages, bytes_per_rank) = (all_pages, all_bytes / n_ranks);
            return Ok(Pools { pages, bytes_per_rank, n_context_tokens: wanted, page_bytes });
        }
        let one_bytes = |n_context_tokens| sized(n_context_tokens, pages_of(n_context_tokens)).1;
        let mut n_context_tokens = wanted;
        // A length that nobody asked for may shrink to what fits.
        let may_shrink = config.n_context_tokens.is_none();
        while may_shrink && one_bytes(n_context_tokens) > kv_bytes && n_context_tokens > 512 {
            n_context_tokens /= 2;
        }
        let needed_bytes = one_bytes(n_context_tokens);
        if needed_bytes > kv_bytes {
            return Err(MemoryError::KvTooSmall { n_context_tokens, needed_bytes, kv_bytes });
        }
        // The windowed groups keep their size; full attention takes the rest.
        let (_, windowed_bytes) = sized(n_context_tokens, 0);
        let full = layout.groups.iter().position(|group| group.window.is_none());
        let n_full_pages =
            full.map_or(0, |idx| (kv_bytes - windowed_bytes) / n_ranks / page_bytes[idx].max(1));
        let (pages, bytes) = sized(n_context_tokens, n_full_pages as usize);
        Ok(Pools { pages, bytes_per_rank: bytes / n_ranks, n_context_tokens, page_bytes })
    }

    /// Pages of each group on the host and what they take on each rank, in the proportions of those
    /// on the device: a prefix needs its pages in every group.
    pub(super) fn on_host(&self, config: &EngineConfig) -> Result<(Vec<usize>, u64), MemoryError> {
        let Some(host_kv) = config.host_kv else { return Ok((vec![0; self.pages.len()], 0)) };
        let kv_bytes = self.bytes_per_rank * config.n_ranks as u64;
        let share = |&n_pages: &usize| {
            let n_pages = n_pages as u128 * u128::from(host_kv.n_bytes) / u128::from(kv_bytes);
            u32::try_from(n_pages).unwrap_or(u32::MAX) as usize
        };
        let host_pages: Vec<usize> = self.pages.iter().map(share).collect();
        if host_pages.contains(&0) {
            let n_least = self.pages.iter().min().copied().unwrap_or(1).max(1);
            let (n_bytes, needed_bytes) = (host_kv.n_bytes, kv_bytes.div_ceil(n_least as u64));
            return Err(MemoryError::HostKvTooSmall { n_bytes, needed_bytes });
        }
        let pages = host_pages.iter().zip(&self.page_bytes);
        let bytes_per_rank = pages.map(|(&n_pages, bytes)| n_pages as u64 * bytes).sum();
        Ok((host_pages, bytes_per_rank))
    }
}

fn pages_of(n_tokens: usize) -> usize {
    n_tokens.div_ceil(PAGE_TOKENS)
}

/// What all slots see of a window, and one step writes.
fn windowed_pages(window: usize, config: &EngineConfig, n_context_tokens: usize) -> usize {
    let seen = (pages_of(window) + 2).min(pages_of(n_context_tokens));
    seen * config.n_slots + pages_of(config.n_tokens_per_step)
}

/// Bytes of a page of `group` in one rank's pools, over the group's blocks.
fn page_bytes_per_rank(
    spec: &ModelSpec,
    group: &CacheGroup,
    n_ranks: usize,
    kv_dtype: KvDtype,
) -> u64 {
    let elements = |attention: &AttentionSpec| {
        2 * (attention.n_kv_heads / n_ranks).max(1) * attention.head_dim
    };
    let blocks = group.blocks.iter().filter_map(|&idx| spec.blocks[idx].attention());
    (PAGE_TOKENS * kv_dtype.n_bytes() * blocks.map(elements).sum::<usize>()) as u64
}
