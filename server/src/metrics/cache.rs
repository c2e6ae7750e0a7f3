//! The KV cache as those see it who decide which replica gets a request: how large it is, and how
//! full. Endpoint pickers of Kubernetes' Gateway API inference extension read the first from labels
//! of `vllm:cache_config_info` (its model server protocol, "BlockSize" and "NumGPUBlocks").

use engine::{EngineInfo, EngineStats};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// The cache's size, as labels of a gauge that is 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CacheLabels {
    /// Tokens of a page.
    block_size: usize,
    /// Pages that sequences of any kind find: those of the group that has the fewest, because a
    /// token needs room in each.
    num_gpu_blocks: usize,
}

pub(super) type CacheSize = Family<CacheLabels, Gauge>;

/// Sets it; it never changes while the program runs.
pub(super) fn publish(size: &CacheSize, stats: &EngineStats, info: &EngineInfo) {
    let num_gpu_blocks = n_pages_of_any(stats);
    let labels = CacheLabels { block_size: info.page_tokens, num_gpu_blocks };
    size.get_or_create(&labels).set(1);
}

/// Pages of the group that has the fewest.
pub fn n_pages_of_any(stats: &EngineStats) -> usize {
    stats.groups.iter().map(|group| group.n_pages).min().unwrap_or(0)
}

/// Share of the cache's pages that are in use, at most 1.
pub fn kv_share(stats: &EngineStats) -> f64 {
    stats.n_pages_used as f64 / stats.n_pages.max(1) as f64
}
