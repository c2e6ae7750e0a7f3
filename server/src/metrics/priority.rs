//! What priorities come to: who waits, how long, and how it ends, by level.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{GenerationSummary, REQUEST_BUCKETS};
use crate::total::Total;

/// By level of priority. There are as many as the operator decided, so labels are bounded.
pub(super) struct PriorityMetrics {
    waiting: Family<LevelLabels, Gauge>,
    ended: Family<EndLabels, Total>,
    queued: Family<LevelLabels, Histogram, fn() -> Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabels {
    priority: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
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

    pub(super) fn register(&self, to: &mut Registry) {
        to.register(
            "lnserve_priority_waiting_requests",
            "Generations that wait for a slot, by the priority that they came with",
            self.waiting.clone(),
        );
        to.register(
            "lnserve_priority_generations_total",
            "Generations, by priority and by how they ended",
            self.ended.clone(),
        );
        to.register(
            "lnserve_priority_queue_seconds",
            "From submission to a slot, by priority",
            self.queued.clone(),
        );
    }
}
