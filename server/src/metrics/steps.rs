//! What steps are made of and what they take, by kind of step, group of pages, and rank.

use engine::{EngineStats, STEP_BOUNDS, StepKind};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::total::{Spread, Total, TotalSeconds};

/// By kind, group and rank. Their numbers are fixed when the engine boots.
#[derive(Default)]
pub(super) struct StepMetrics {
    pub(super) durations: Family<KindLabels, Spread>,
    pub(super) rows: Family<KindLabels, Total>,
    pub(super) tokens: Family<KindLabels, Total>,
    pub(super) planning: TotalSeconds,
    pub(super) pages: Family<PageLabels, Gauge>,
    pub(super) prefix: Family<TierLabels, Total>,
    /// Prompt tokens that were looked up.
    pub(super) looked_up: Total,
    pub(super) busy: Family<RankLabels, TotalSeconds>,
    pub(super) exchanging: Family<RankLabels, TotalSeconds>,
    pub(super) waiting: Family<RankLabels, TotalSeconds>,
    pub(super) skew: TotalSeconds,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PageLabels {
    group: usize,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TierLabels {
    tier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RankLabels {
    rank: usize,
}

impl StepMetrics {
    pub(super) fn publish(&self, stats: &EngineStats) {
        let kinds = [
            (StepKind::Prefill, "prefill"),
            (StepKind::Decode, "decode"),
            (StepKind::Mixed, "mixed"),
        ];
        for (step, kind) in kinds {
            let times = &stats.step_times[step as usize];
            let bounds = STEP_BOUNDS.iter().map(|bound| bound.as_secs_f64()).chain([f64::MAX]);
            let buckets = bounds.zip(times.counts).collect();
            let durations = self.durations.get_or_create(&KindLabels { kind });
            durations.set(times.sum.as_secs_f64(), buckets);
        }
        for (kind, n_rows, n_tokens) in [
            ("prefill", stats.n_prefill_rows, stats.n_prefill_tokens),
            ("decode", stats.n_decode_rows, stats.n_decode_tokens),
        ] {
            self.rows.get_or_create(&KindLabels { kind }).set(n_rows);
            self.tokens.get_or_create(&KindLabels { kind }).set(n_tokens);
        }
        self.planning.set(stats.plan_time.as_secs_f64());
        self.publish_pages(stats);
        self.skew.set(stats.rank_skew.as_secs_f64());
        for (rank, time) in stats.ranks.iter().enumerate() {
            let labels = RankLabels { rank };
            self.busy.get_or_create(&labels).set(time.served.as_secs_f64());
            self.exchanging.get_or_create(&labels).set(time.exchanged.as_secs_f64());
            self.waiting.get_or_create(&labels).set(time.waited.as_secs_f64());
        }
    }

    fn publish_pages(&self, stats: &EngineStats) {
        for (group, pages) in stats.groups.iter().enumerate() {
            for (state, n_pages) in [
                ("used", pages.n_pages_used),
                ("cached", pages.n_pages_cached),
                ("free", pages.n_pages - pages.n_pages_used - pages.n_pages_cached),
                ("host", pages.n_pages_host),
            ] {
                self.pages.get_or_create(&PageLabels { group, state }).set(n_pages as i64);
            }
        }
        for (tier, n_tokens) in [
            ("computed", stats.n_prompt_tokens),
            ("device", stats.n_cached_tokens.saturating_sub(stats.n_host_tokens)),
            ("host", stats.n_host_tokens),
            ("sibling", stats.n_shared_tokens),
        ] {
            self.prefix.get_or_create(&TierLabels { tier }).set(n_tokens);
        }
        self.looked_up.set(stats.n_prompt_tokens + stats.n_cached_tokens);
    }
}
