//! What `/stats` tells: how many inferences a model's name had and where their time went. Every
//! duration of an inference is part of its total, so the parts add up to the whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;

use super::super::generation::Answer;

/// The statistics of one name.
#[derive(Debug, Default)]
pub(super) struct Statistics {
    counts: Mutex<Counts>,
}

/// How often, and how long altogether.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Duty {
    pub(super) count: u64,
    pub(super) ns: u64,
}

/// Everything that is counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Milliseconds since 1970.
    pub(super) last_inference: u64,
    /// Rows of all batches.
    pub(super) inference_count: u64,
    /// Batches.
    pub(super) execution_count: u64,
    pub(super) success: Duty,
    pub(super) fail: Duty,
    pub(super) queue: Duty,
    pub(super) compute_input: Duty,
    pub(super) compute_infer: Duty,
    pub(super) compute_output: Duty,
    /// By rows of the batch: at most as many entries as a batch may have rows.
    pub(super) batches: BTreeMap<usize, [Duty; 3]>,
}

/// An inference under way. Whoever drops it without [`Watch::succeeded`] has failed.
pub(super) struct Watch {
    statistics: Arc<Statistics>,
    began: Instant,
    submitted: Option<Instant>,
    queued: Duration,
    last_output: Option<Instant>,
    is_done: bool,
}

impl Statistics {
    /// An inference begins.
    pub(super) fn watch(self: &Arc<Self>, began: Instant) -> Watch {
        Watch {
            statistics: Arc::clone(self),
            began,
            submitted: None,
            queued: Duration::ZERO,
            last_output: None,
            is_done: false,
        }
    }

    /// As they are now.
    pub(super) fn counts(&self) -> Counts {
        self.counts.lock().clone()
    }
}

impl Duty {
    fn add(&mut self, duration: Duration) {
        self.count += 1;
        self.ns += duration.as_nanos() as u64;
    }
}

impl Watch {
    /// The engine has the jobs.
    pub(super) fn submitted(&mut self) {
        self.submitted = Some(Instant::now());
    }

    /// An answer, or the last piece of it, has come.
    pub(super) fn answered(&mut self, answer: &Answer) {
        self.last_output = Some(Instant::now());
        if let Some(timing) = answer.finish.as_ref().map(|finish| &finish.timing)
            && let Some(admitted) = timing.admitted
        {
            self.queued = self.queued.max(admitted.saturating_duration_since(timing.arrived));
        }
    }

    /// The answer is written.
    pub(super) fn succeeded(mut self, n_rows: usize) {
        self.is_done = true;
        let now = Instant::now();
        let submitted = self.submitted.unwrap_or(now);
        let last_output = self.last_output.unwrap_or(now);
        let input = submitted.saturating_duration_since(self.began);
        let engine = last_output.saturating_duration_since(submitted);
        let queue = self.queued.min(engine);
        let parts = [input, engine - queue, now.saturating_duration_since(last_output)];
        let mut counts = self.statistics.counts.lock();
        counts.last_inference = now_ms();
        counts.inference_count += n_rows as u64;
        counts.execution_count += 1;
        counts.queue.add(queue);
        counts.compute_input.add(parts[0]);
        counts.compute_infer.add(parts[1]);
        counts.compute_output.add(parts[2]);
        counts.success.add(parts.iter().sum::<Duration>() + queue);
        let of_size = counts.batches.entry(n_rows).or_default();
        of_size.iter_mut().zip(parts).for_each(|(duty, part)| duty.add(part));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.is_done {
            self.statistics.counts.lock().fail.add(self.began.elapsed());
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
