//! The tier on the host: what it holds, and what went there and came back.

use engine::{EngineInfo, EngineStats};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::total::Total;

#[derive(Default)]
pub(super) struct HostMetrics {
    pub(super) pages: Gauge,
    pub(super) out_pages: Total,
    pub(super) in_pages: Total,
    pub(super) bytes: Family<StateLabels, Gauge>,
    pub(super) moved_bytes: Family<WayLabels, Total>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct WayLabels {
    way: &'static str,
}

impl HostMetrics {
    pub(super) fn publish(&self, stats: &EngineStats, info: &EngineInfo) {
        self.pages.set(stats.n_pages_host as i64);
        self.out_pages.set(stats.n_pages_out);
        self.in_pages.set(stats.n_pages_in);
        for (state, n_bytes) in [("used", stats.host_kv_bytes), ("max", info.host_kv_bytes)] {
            self.bytes.get_or_create(&StateLabels { state }).set(n_bytes as i64);
        }
        for (way, n_bytes) in [("out", stats.out_kv_bytes), ("in", stats.in_kv_bytes)] {
            self.moved_bytes.get_or_create(&WayLabels { way }).set(n_bytes);
        }
    }
}
