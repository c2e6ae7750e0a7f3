//! What priorities come to: who waits, how long, and how it ends, by level.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::GenerationSummary;
use super::generation::REQUEST_BUCKETS;
use crate::total::Total;

/// By level of priority. There are as many as the operator decided, so labels are bounded.
pub(super) struct PriorityMetrics {
    pub(super) waiting: Family<LevelLabels, Gauge>,
    pub(super) ended: Family<EndLabels, Total>,
    pub(super) queued: Family<LevelLabels, Histogram, fn() -> Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LevelLabels {
    priority: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct EndLabels {
    priority: u32,
    finished_reason: &'static str,
}

impl PriorityMetrics {
    pub(super) fn new() -> PriorityMetrics {
        PriorityMetrics {
            waiting: Family::default(),
            ended: Family::default(),
            queued: Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS)),
        }
    }

    /// A generation is over.
    pub(super) fn generation(&self, summary: &GenerationSummary, finished_reason: &'static str) {
        let priority = summary.level;
        self.ended.get_or_create(&EndLabels { priority, finished_reason }).inc();
        if let Some(queued) = summary.queued {
            self.queued.get_or_create(&LevelLabels { priority }).observe(queued.as_secs_f64());
        }
    }

    /// So many wait, by level, the first level first.
    pub(super) fn waiting(&self, n_by_level: &[usize]) {
        for (priority, &n_waiting) in (1..).zip(n_by_level) {
            self.waiting.get_or_create(&LevelLabels { priority }).set(n_waiting as i64);
        }
    }
}
