//! What Triton with TensorRT-LLM counts. A request's time is the sum of four parts, as with Triton:
//! read and tokenized, waited, computed, written.

use std::time::Duration;

use engine::{EngineInfo, EngineStats, StepRecord};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::GenerationSummary;
use crate::total::Total;

/// Milliseconds to a first response: Triton's own buckets.
const FIRST_RESPONSE_BUCKETS: [f64; 4] = [100.0, 500.0, 2000.0, 5000.0];

/// Triton shows every reason from the start.
const FAILURES: [&str; 4] = ["CANCELED", "REJECTED", "BACKEND", "OTHER"];

pub(super) struct TritonMetrics {
    pub(super) success: Total,
    pub(super) failure: Family<ReasonLabels, Total>,
    pub(super) exec: Total,
    pub(super) request_us: Total,
    pub(super) queue_us: Total,
    pub(super) input_us: Total,
    pub(super) infer_us: Total,
    pub(super) output_us: Total,
    pub(super) first_response: Histogram,
    pub(super) pending: Gauge,
    pub(super) requests: Family<RequestTypeLabels, Gauge>,
    pub(super) blocks: Family<KvBlockLabels, Gauge>,
    pub(super) batcher: Family<BatcherLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestTypeLabels {
    request_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KvBlockLabels {
    kv_cache_block_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BatcherLabels {
    inflight_batcher_specific_metric: &'static str,
}

impl TritonMetrics {
    pub(super) fn new() -> TritonMetrics {
        let failure: Family<ReasonLabels, Total> = Family::default();
        for reason in FAILURES {
            failure.get_or_create(&ReasonLabels { reason }).set(0);
        }
        TritonMetrics {
            success: Total::default(),
            failure,
            exec: Total::default(),
            request_us: Total::default(),
            queue_us: Total::default(),
            input_us: Total::default(),
            infer_us: Total::default(),
            output_us: Total::default(),
            first_response: Histogram::new(FIRST_RESPONSE_BUCKETS),
            pending: Gauge::default(),
            requests: Family::default(),
            blocks: Family::default(),
            batcher: Family::default(),
        }
    }

    /// A first token came this long after its request had begun.
    pub(super) fn first_token(&self, after: Duration) {
        self.first_response.observe(after.as_secs_f64() * 1e3);
    }

    pub(super) fn failed(&self, reason: &'static str) {
        self.failure.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(super) fn succeeded(&self, summary: &GenerationSummary) {
        let queue = summary.queued.unwrap_or_default();
        let output = summary.handed_over.min(summary.total.saturating_sub(queue));
        let infer = summary.total.saturating_sub(queue + output);
        let parts = [
            (&self.input_us, summary.prepared),
            (&self.queue_us, queue),
            (&self.infer_us, infer),
            (&self.output_us, output),
        ];
        self.success.inc();
        for (part, time) in parts {
            let us = time.as_micros() as u64;
            part.add(us);
            // Of whole microseconds too, so that the parts add up to it.
            self.request_us.add(us);
        }
    }

    /// What the newest step was for, or nobody where nothing runs. There is one batch under way.
    pub(super) fn newest_step(&self, step: Option<&StepRecord>) {
        for (inflight_batcher_specific_metric, n) in [
            ("generation_requests", step.map_or(0, |step| step.n_decode_rows)),
            ("total_context_tokens", step.map_or(0, |step| step.n_prefill_tokens)),
            ("micro_batch_id", 0),
        ] {
            let labels = BatcherLabels { inflight_batcher_specific_metric };
            self.batcher.get_or_create(&labels).set(n as i64);
        }
    }

    pub(super) fn publish(&self, stats: &EngineStats, info: &EngineInfo) {
        self.exec.set(stats.n_steps);
        self.pending.set(stats.n_waiting as i64);
        for (request_type, n) in [
            ("active", stats.n_running + stats.n_waiting),
            ("scheduled", stats.n_running),
            ("waiting", stats.n_waiting),
            ("max", info.n_slots),
        ] {
            self.requests.get_or_create(&RequestTypeLabels { request_type }).set(n as i64);
        }
        for (kv_cache_block_type, n) in [
            ("used", stats.n_pages_used),
            ("free", stats.n_pages.saturating_sub(stats.n_pages_used)),
            ("max", stats.n_pages),
            ("tokens_per", info.page_tokens),
        ] {
            self.blocks.get_or_create(&KvBlockLabels { kv_cache_block_type }).set(n as i64);
        }
    }
}
