//! What generations took and came to, whatever was asked.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::recent::Recent;
use crate::total::Total;

/// Seconds to a first token, from a demo model's to an overloaded node's.
const FIRST_TOKEN_BUCKETS: [f64; 18] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    40.0, 160.0,
];

/// Seconds between two tokens.
const TOKEN_GAP_BUCKETS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5,
    1.0, 5.0, 20.0,
];

/// Seconds of a whole request, or of its wait.
pub(super) const REQUEST_BUCKETS: [f64; 19] = [
    0.005, 0.02, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0,
    240.0, 960.0, 7680.0,
];

pub(super) struct GenerationMetrics {
    pub(super) finished: Family<FinishLabels, Total>,
    pub(super) prompt_tokens: Total,
    pub(super) generated_tokens: Total,
    pub(super) thinking_tokens: Total,
    pub(super) first_token: Histogram,
    pub(super) token_gap: Histogram,
    pub(super) total: Histogram,
    pub(super) queued: Histogram,
    pub(super) recent: RecentLatencies,
}

/// The same times, of the last minute only.
pub(super) struct RecentLatencies {
    pub(super) first_token: Recent,
    pub(super) token_gap: Recent,
    pub(super) total: Recent,
    pub(super) queued: Recent,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FinishLabels {
    pub(super) finished_reason: &'static str,
}

impl GenerationMetrics {
    pub(super) fn new() -> GenerationMetrics {
        GenerationMetrics {
            finished: Family::default(),
            prompt_tokens: Total::default(),
            generated_tokens: Total::default(),
            thinking_tokens: Total::default(),
            first_token: Histogram::new(FIRST_TOKEN_BUCKETS),
            token_gap: Histogram::new(TOKEN_GAP_BUCKETS),
            total: Histogram::new(REQUEST_BUCKETS),
            queued: Histogram::new(REQUEST_BUCKETS),
            recent: RecentLatencies {
                first_token: Recent::new(),
                token_gap: Recent::new(),
                total: Recent::new(),
                queued: Recent::new(),
            },
        }
    }
}
