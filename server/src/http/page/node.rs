//! The node in JSON: what it is, which stays, and how it stands, which changes.

use std::time::Duration;

use engine::{CacheGroup, DeviceKind, EngineInfo, EngineStats, RankTime, StepRecord};
use serde::Serialize;

use super::super::shutdown::Phase;
use super::super::state::AppState;
use crate::metrics::{Latencies, Quantiles};

/// What a watcher is told first.
#[derive(Serialize)]
pub(super) struct Snapshot {
    model: String,
    version: &'static str,
    examples: Vec<String>,
    splits_reasoning: bool,
    device: &'static str,
    n_ranks: usize,
    n_slots: usize,
    n_waiting_max: usize,
    n_context_tokens: usize,
    n_tokens_per_step: usize,
    page_tokens: usize,
    hidden_size: usize,
    blocks: Vec<BlockView>,
    groups: Vec<GroupView>,
    now: State,
}

/// An entry of the model's list.
#[derive(Debug, PartialEq, Serialize)]
struct BlockView {
    /// Key/value heads; absent without attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    n_kv_heads: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n_q_heads: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<usize>,
    /// Width of its FFN; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    ffn: Option<usize>,
    /// A square projection stands where attention would.
    #[serde(skip_serializing_if = "is_false")]
    is_mixer_linear: bool,
    /// The same for the FFN.
    #[serde(skip_serializing_if = "is_false")]
    is_ffn_linear: bool,
}

#[derive(Serialize)]
struct GroupView {
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<usize>,
    n_blocks: usize,
}

/// How the node stands.
#[derive(Serialize)]
pub(super) struct State {
    /// Since serving began.
    uptime_s: f64,
    phase: &'static str,
    n_steps: u64,
    n_running: usize,
    n_waiting: usize,
    n_waiting_by_level: Vec<usize>,
    groups: Vec<PagesView>,
    ranks: Vec<RankView>,
    tokens: TokensView,
    n_preemptions: u64,
    step_s: f64,
    latency: LatencyView,
    steps: Vec<StepView>,
}

#[derive(Serialize)]
struct PagesView {
    n_pages: usize,
    n_used: usize,
    n_cached: usize,
    n_host: usize,
}

/// Of a rank's time.
#[derive(Serialize)]
struct RankView {
    served_ms: f64,
    exchanged_ms: f64,
    waited_ms: f64,
}

#[derive(Serialize)]
struct TokensView {
    prompt: u64,
    cached: u64,
    from_host: u64,
    generated: u64,
}

#[derive(Serialize)]
struct LatencyView {
    first_token: QuantilesView,
    token_gap: QuantilesView,
    total: QuantilesView,
    queued: QuantilesView,
}

#[derive(Serialize)]
struct QuantilesView {
    n: u64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

#[derive(Serialize)]
struct StepView {
    idx: u64,
    ended_ms: f64,
    took_ms: f64,
    planned_ms: f64,
    prefill_rows: usize,
    prefill_tokens: usize,
    decode_rows: usize,
    decode_tokens: usize,
    running: usize,
    waiting: usize,
    pages_used: usize,
    ranks: Vec<RankView>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Snapshot {
    /// The node with all the steps that it remembers.
    pub(super) fn new(app: &AppState) -> Snapshot {
        let info = app.engine.info();
        let page = app.config.page.as_ref();
        Snapshot {
            model: app.name().to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            examples: page.map(|page| page.examples.clone()).unwrap_or_default(),
            splits_reasoning: app.config.splits_reasoning,
            device: match info.device {
                DeviceKind::Cpu => "cpu",
                DeviceKind::Cuda => "cuda",
            },
            n_ranks: info.n_ranks,
            n_slots: info.n_slots,
            n_waiting_max: info.n_waiting_max,
            n_context_tokens: info.n_context_tokens,
            n_tokens_per_step: info.n_tokens_per_step,
            page_tokens: info.page_tokens,
            hidden_size: info.spec.hidden_size,
            blocks: blocks(info),
            groups: info.groups.iter().map(GroupView::from).collect(),
            now: State::new(app, &app.engine.stats(), app.engine.steps_since(0)),
        }
    }
}

fn blocks(info: &EngineInfo) -> Vec<BlockView> {
    use weights::{FfnSpec, MixerSpec};
    let view = |block: &weights::BlockSpec| {
        let attention = block.attention();
        BlockView {
            n_kv_heads: attention.map(|attention| attention.n_kv_heads),
            n_q_heads: attention.map(|attention| attention.n_q_heads),
            window: attention.and_then(|attention| attention.window),
            ffn: match block.ffn {
                Some(FfnSpec::SwiGlu { width }) => Some(width),
                Some(FfnSpec::Linear) | None => None,
            },
            is_mixer_linear: matches!(block.mixer, Some(MixerSpec::Linear)),
            is_ffn_linear: matches!(block.ffn, Some(FfnSpec::Linear)),
        }
    };
    info.spec.blocks.iter().map(view).collect()
}

impl State {
    pub(super) fn new(app: &AppState, stats: &EngineStats, steps: Vec<StepRecord>) -> State {
        let pages = |group: &engine::GroupStats| PagesView {
            n_pages: group.n_pages,
            n_used: group.n_pages_used,
            n_cached: group.n_pages_cached,
            n_host: group.n_pages_host,
        };
        State {
            uptime_s: app.began.elapsed().as_secs_f64(),
            phase: match (app.shutdown.phase(), app.ready()) {
                (Phase::Serving, Ok(())) => "serving",
                (Phase::Serving, Err(_)) => "unready",
                (Phase::Leaving, _) => "leaving",
                (Phase::Draining | Phase::Forced, _) => "draining",
            },
            n_steps: stats.n_steps,
            n_running: stats.n_running,
            n_waiting: stats.n_waiting,
            n_waiting_by_level: stats.n_waiting_by_level.clone(),
            groups: stats.groups.iter().map(pages).collect(),
            ranks: stats.ranks.iter().map(RankView::from).collect(),
            tokens: TokensView {
                prompt: stats.n_prompt_tokens,
                cached: stats.n_cached_tokens,
                from_host: stats.n_host_tokens,
                generated: stats.n_generated_tokens,
            },
            n_preemptions: stats.n_preemptions,
            step_s: stats.step_time.as_secs_f64(),
            latency: LatencyView::from(app.metrics.latencies()),
            steps: steps.iter().map(StepView::from).collect(),
        }
    }
}

impl From<&CacheGroup> for GroupView {
    fn from(group: &CacheGroup) -> GroupView {
        GroupView { window: group.window, n_blocks: group.blocks.len() }
    }
}

impl From<&RankTime> for RankView {
    fn from(time: &RankTime) -> RankView {
        RankView {
            served_ms: milliseconds(time.served),
            exchanged_ms: milliseconds(time.exchanged),
            waited_ms: milliseconds(time.waited),
        }
    }
}

impl From<Latencies> for LatencyView {
    fn from(latencies: Latencies) -> LatencyView {
        let Latencies { first_token, token_gap, total, queued } = latencies;
        LatencyView {
            first_token: first_token.into(),
            token_gap: token_gap.into(),
            total: total.into(),
            queued: queued.into(),
        }
    }
}

impl From<Quantiles> for QuantilesView {
    fn from(quantiles: Quantiles) -> QuantilesView {
        QuantilesView {
            n: quantiles.n,
            p50_ms: milliseconds(quantiles.p50),
            p95_ms: milliseconds(quantiles.p95),
            p99_ms: milliseconds(quantiles.p99),
        }
    }
}

impl From<&StepRecord> for StepView {
    fn from(step: &StepRecord) -> StepView {
        StepView {
            idx: step.idx,
            ended_ms: milliseconds(step.ended),
            took_ms: milliseconds(step.took),
            planned_ms: milliseconds(step.planned),
            prefill_rows: step.n_prefill_rows,
            prefill_tokens: step.n_prefill_tokens,
            decode_rows: step.n_decode_rows,
            decode_tokens: step.n_decode_tokens,
            running: step.n_running,
            waiting: step.n_waiting,
            pages_used: step.n_pages_used,
            ranks: step.ranks.iter().map(RankView::from).collect(),
        }
    }
}

/// To the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
