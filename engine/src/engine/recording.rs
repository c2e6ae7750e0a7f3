//! What the loop leaves behind for those who watch: counters, gauges, a record of every step, and
//! for some steps whose spans they served.

use std::time::Duration;

use parallel::{RankTime, RankWorker};
use scheduler::{Row, StepPlan};

use super::EngineLoop;
use super::steps::{STEP_TARGET, Took};
use crate::rank::{RankCommand, RankReply};
use crate::request::SpanName;
use crate::stats::StepKind;
use crate::watch::{StepRecord, StepTrace};

/// What the loop remembers from step to step to write records. Nothing is allocated for one.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    /// The next record; its gauges are as of the last event.
    next: StepRecord,
    /// What the ranks' time had gone into by the step before.
    before: Vec<RankTime>,
}

impl Recorder {
    pub(super) fn new(n_ranks: usize) -> Recorder {
        let ranks = vec![RankTime::default(); n_ranks];
        Recorder {
            next: StepRecord { ranks: ranks.clone(), ..StepRecord::default() },
            before: ranks,
        }
    }

    /// The ranks have answered: what each did since they answered last.
    pub(super) fn take_ranks(&mut self, now: impl Iterator<Item = RankTime>) {
        for ((rank, before), now) in self.next.ranks.iter_mut().zip(&mut self.before).zip(now) {
            rank.served = now.served.saturating_sub(before.served);
            rank.exchanged = now.exchanged.saturating_sub(before.exchanged);
            rank.waited = now.waited.saturating_sub(before.waited);
            *before = now;
        }
    }

    /// By how much longer the busiest rank worked at the step than the least busy one.
    fn skew(&self) -> Duration {
        let worked = |rank: &RankTime| rank.served.saturating_sub(rank.waited);
        let ranks = || self.next.ranks.iter().map(worked);
        let (least, most) = (ranks().min(), ranks().max());
        most.unwrap_or_default() - least.unwrap_or_default()
    }

    /// The step that was recorded last.
    pub(super) fn last_idx(&self) -> u64 {
        self.next.idx.saturating_sub(1)
    }

    fn count_rows(&mut self, plan: &StepPlan) {
        let next = &mut self.next;
        (next.n_prefill_rows, next.n_prefill_tokens) = (0, 0);
        (next.n_decode_rows, next.n_decode_tokens) = (0, 0);
        for row in &plan.rows {
            let (n_rows, n_tokens) = match row.n_tokens - row.n_candidates {
                1 => (&mut next.n_decode_rows, &mut next.n_decode_tokens),
                _ => (&mut next.n_prefill_rows, &mut next.n_prefill_tokens),
            };
            *n_rows += 1;
            *n_tokens += row.n_tokens;
        }
    }
}

impl<W> EngineLoop<W>
where
    W: RankWorker<Command = RankCommand, Reply = RankReply>,
{
    /// A step is done, and its results are not applied yet.
    pub(super) fn record_step(&mut self, plan: &StepPlan, took: &Took) {
        self.recorder.count_rows(plan);
        let next = &mut self.recorder.next;
        next.ended = took.ended.saturating_duration_since(self.booted);
        (next.took, next.planned) = (took.ran, took.planned);
        self.shared.steps.record(next);
        self.trace_step(plan, took);
        let next = &mut self.recorder.next;
        tracing::trace!(
            target: STEP_TARGET,
            took_us = took.ran.as_micros() as u64,
            n_prefill_tokens = next.n_prefill_tokens,
            n_decode_tokens = next.n_decode_tokens,
            "done"
        );
        next.idx += 1;
        let mut stats = self.shared.stats.lock();
        stats.n_prefill_rows += next.n_prefill_rows as u64;
        stats.n_prefill_tokens += next.n_prefill_tokens as u64;
        stats.n_decode_rows += next.n_decode_rows as u64;
        stats.n_decode_tokens += next.n_decode_tokens as u64;
        stats.plan_time += took.planned;
        let kind = match (next.n_prefill_rows, next.n_decode_rows) {
            (_, 0) => StepKind::Prefill,
            (0, _) => StepKind::Decode,
            _ => StepKind::Mixed,
        };
        stats.step_times[kind as usize].count(took.ran);
        // With the rest, so that parts are as much as their whole.
        stats.n_steps += 1;
        stats.step_time += took.ran;
        stats.ranks.clone_from(&self.recorder.before);
        stats.rank_skew += self.recorder.skew();
    }

    /// Tells who traces steps of this one, if it is one of theirs and served a span.
    fn trace_step(&self, plan: &StepPlan, took: &Took) {
        let record = &self.recorder.next;
        let Some(tracing) = self.shared.step_tracing.get().filter(|it| it.takes(record.idx)) else {
            return;
        };
        let span = |row: &Row| self.live.get(&row.request)?.request.terms.span;
        let mut spans: Vec<SpanName> = plan.rows.iter().filter_map(span).collect();
        // Several answers to one request are one span.
        spans.sort_unstable_by_key(|span| (span.trace, span.span));
        spans.dedup();
        if !spans.is_empty() {
            let began = took.ended.checked_sub(took.ran).unwrap_or(took.ended);
            (tracing.deliver)(StepTrace { began, record: record.clone(), spans });
        }
    }

    pub(super) fn publish_stats(&mut self) {
        let from = self.scheduler.stats();
        let next = &mut self.recorder.next;
        (next.n_running, next.n_waiting) = (from.n_running, from.n_waiting);
        next.n_pages_used = from.n_pages_used();
        let mut stats = self.shared.stats.lock();
        stats.n_running = from.n_running;
        stats.n_waiting = from.n_waiting;
        stats.n_waiting_by_level.clone_from(&from.n_waiting_by_level);
        stats.n_pages = from.n_pages();
        stats.n_pages_used = from.n_pages_used();
        stats.n_pages_cached = from.n_pages_cached();
        stats.groups.clone_from(&from.groups);
        stats.n_cached_tokens = from.counters.n_cached_tokens;
        stats.n_host_tokens = from.counters.n_host_tokens;
        stats.n_pages_host = from.groups.iter().map(|group| group.n_pages_host).sum();
        let on_host = from.groups.iter().zip(&self.shared.info.page_bytes);
        stats.host_kv_bytes = on_host.map(|(group, n)| group.n_pages_host as u64 * n).sum();
        stats.n_pages_out = from.counters.n_pages_out;
        stats.n_pages_in = from.counters.n_pages_in;
        stats.n_shared_tokens = from.counters.n_shared_tokens;
        stats.n_prompt_tokens = from.counters.n_prompt_tokens;
        stats.n_generated_tokens = from.counters.n_generated_tokens;
        stats.n_proposed_tokens = from.counters.n_proposed_tokens;
        stats.n_accepted_tokens = from.counters.n_accepted_tokens;
        stats.n_preemptions = from.counters.n_preemptions;
    }
}
