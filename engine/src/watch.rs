//! The last steps, for whoever watches. The engine's thread writes and never waits: a reader that
//! comes while a step is written, or reads so slowly that it is overwritten, does without it.
//!
//! Each place of the ring is a sequence lock over plain words (H.-J. Boehm, "Can seqlocks get along
//! with programming language memory models?", MSPC 2012).

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use parallel::RankTime;

use crate::request::SpanName;

/// Steps that are kept.
pub const N_STEPS_KEPT: usize = 512;

/// A step that has run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepRecord {
    /// Counts up by one from 0.
    pub idx: u64,
    /// From the engine's start to the step's end.
    pub ended: Duration,
    /// What the ranks took.
    pub took: Duration,
    /// What the scheduler took to plan it.
    pub planned: Duration,
    /// Rows of more than one token: prompts and chunks of them.
    pub n_prefill_rows: usize,
    /// Their tokens.
    pub n_prefill_tokens: usize,
    /// Rows of one token, candidates aside.
    pub n_decode_rows: usize,
    /// Their tokens, candidates among them.
    pub n_decode_tokens: usize,
    /// Requests that held a slot, as of the last event before its results.
    pub n_running: usize,
    /// Requests that waited for one, as of then.
    pub n_waiting: usize,
    /// Pages in use, over all groups, as of then.
    pub n_pages_used: usize,
    /// What each rank's time went into.
    pub ranks: Vec<RankTime>,
}

/// A step, and the spans of those that it served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepTrace {
    /// When the ranks began.
    pub began: Instant,
    /// The step; it ended [`StepRecord::took`] later.
    pub record: StepRecord,
    /// One of each request with a row in it that [has one](crate::Terms::span), in no order that
    /// means anything; at least one.
    pub spans: Vec<SpanName>,
}

/// Who is told of steps, and of which.
pub(crate) struct StepTracing {
    share: f64,
    pub(crate) deliver: DeliverStep,
}

/// Takes what is known of a step, on the engine's thread: it must not wait.
pub type DeliverStep = Box<dyn Fn(StepTrace) + Send + Sync>;

impl StepTracing {
    /// For a share of all steps, in [0, 1], evenly spread.
    pub(crate) fn new(share: f64, deliver: DeliverStep) -> StepTracing {
        assert!((0.0..=1.0).contains(&share), "a share of {share}");
        StepTracing { share, deliver }
    }

    /// Whether a step is one of them.
    pub(crate) fn takes(&self, step_idx: u64) -> bool {
        let n_until = |idx: u64| (idx as f64 * self.share).floor();
        n_until(step_idx + 1) > n_until(step_idx)
    }
}

/// Words of a record besides its ranks'.
const N_STEP_WORDS: usize = 10;

/// Words of a rank.
const N_RANK_WORDS: usize = 3;

/// The last [`N_STEPS_KEPT`] steps.
#[derive(Debug)]
pub(crate) struct StepLog {
    n_recorded: AtomicU64,
    places: Box<[Place]>,
}

#[derive(Debug)]
struct Place {
    /// Twice the number of records that were written here; odd while one is written.
    version: AtomicU64,
    words: Box<[AtomicU64]>,
}

impl StepLog {
    pub(crate) fn new(n_ranks: usize) -> StepLog {
        let n_words = N_STEP_WORDS + N_RANK_WORDS * n_ranks;
        let place = || Place {
            version: AtomicU64::new(0),
            words: (0..n_words).map(|_| AtomicU64::new(0)).collect(),
        };
        StepLog {
            n_recorded: AtomicU64::new(0),
            places: (0..N_STEPS_KEPT).map(|_| place()).collect(),
        }
    }

    /// Adds a step, whose `idx` is the number of those before it. For one thread only.
    pub(crate) fn record(&self, step: &StepRecord) {
        assert_eq!(step.idx, self.n_recorded.load(Ordering::Relaxed), "a step was left out");
        let place = &self.places[place_idx(step.idx)];
        let n_words = N_STEP_WORDS + N_RANK_WORDS * step.ranks.len();
        assert_eq!(n_words, place.words.len(), "the ranks of a node are always as many");
        let version = place.version.load(Ordering::Relaxed);
        place.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in place.words.iter().zip(step.words()) {
            word.store(value, Ordering::Relaxed);
        }
        place.version.store(version + 2, Ordering::Release);
        self.n_recorded.store(step.idx + 1, Ordering::Release);
    }

    /// Steps recorded so far.
    pub(crate) fn n_recorded(&self) -> u64 {
        self.n_recorded.load(Ordering::Acquire)
    }

    /// The steps from `first` on that are still kept, oldest first.
    pub(crate) fn since(&self, first: u64) -> Vec<StepRecord> {
        let end = self.n_recorded();
        let first = first.max(end.saturating_sub(N_STEPS_KEPT as u64));
        (first..end).filter_map(|idx| self.read(idx)).collect()
    }

    fn read(&self, idx: u64) -> Option<StepRecord> {
        let place = &self.places[place_idx(idx)];
        let version = place.version.load(Ordering::Acquire);
        let words: Vec<u64> = place.words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        fence(Ordering::Acquire);
        let is_whole =
            version.is_multiple_of(2) && place.version.load(Ordering::Relaxed) == version;
        let step = is_whole.then(|| StepRecord::from_words(&words))?;
        // Else a newer one has its place.
        (step.idx == idx).then_some(step)
    }
}

fn place_idx(idx: u64) -> usize {
    (idx % N_STEPS_KEPT as u64) as usize
}

impl StepRecord {
    fn words(&self) -> impl Iterator<Item = u64> {
        let step: [u64; N_STEP_WORDS] = [
            self.idx,
            nanoseconds(self.ended),
            nanoseconds(self.took),
            nanoseconds(self.planned),
            // Two small counts a word.
            pack(self.n_prefill_rows, self.n_decode_rows),
            self.n_prefill_tokens as u64,
            self.n_decode_tokens as u64,
            self.n_running as u64,
            self.n_waiting as u64,
            self.n_pages_used as u64,
        ];
        let rank = |time: &RankTime| [time.served, time.exchanged, time.waited].map(nanoseconds);
        step.into_iter().chain(self.ranks.iter().flat_map(rank))
    }

    fn from_words(words: &[u64]) -> StepRecord {
        let (step, ranks) = words.split_at(N_STEP_WORDS);
        let rank = |words: &[u64]| RankTime {
            served: Duration::from_nanos(words[0]),
            exchanged: Duration::from_nanos(words[1]),
            waited: Duration::from_nanos(words[2]),
        };
        StepRecord {
            idx: step[0],
            ended: Duration::from_nanos(step[1]),
            took: Duration::from_nanos(step[2]),
            planned: Duration::from_nanos(step[3]),
            n_prefill_rows: (step[4] >> 32) as usize,
            n_decode_rows: (step[4] & u64::from(u32::MAX)) as usize,
            n_prefill_tokens: step[5] as usize,
            n_decode_tokens: step[6] as usize,
            n_running: step[7] as usize,
            n_waiting: step[8] as usize,
            n_pages_used: step[9] as usize,
            ranks: ranks.chunks_exact(N_RANK_WORDS).map(rank).collect(),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

fn pack(high: usize, low: usize) -> u64 {
    (high as u64) << 32 | low as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number of it follows from `idx`, so that a torn record shows.
    fn step(idx: u64, n_ranks: usize) -> StepRecord {
        let time = |n| Duration::from_nanos(idx * 100 + n);
        let n = |n: usize| idx as usize * 10 + n;
        let rank =
            |rank| RankTime { served: time(rank), exchanged: time(rank + 1), waited: time(9) };
        StepRecord {
            idx,
            ended: time(50),
            took: time(51),
            planned: time(52),
            n_prefill_rows: n(0),
            n_prefill_tokens: n(1),
            n_decode_rows: n(2),
            n_decode_tokens: n(3),
            n_running: n(4),
            n_waiting: n(5),
            n_pages_used: n(6),
            ranks: (0..n_ranks as u64).map(rank).collect(),
        }
    }

    #[test]
    fn the_last_steps_are_kept_and_no_others() {
        let log = StepLog::new(3);
        assert_eq!(log.since(0), []);
        let n_steps = 2 * N_STEPS_KEPT as u64 + 7;
        for idx in 0..n_steps {
            log.record(&step(idx, 3));
        }
        let kept: Vec<StepRecord> =
            (n_steps - N_STEPS_KEPT as u64..n_steps).map(|idx| step(idx, 3)).collect();
        assert_eq!(log.since(0), kept);
        assert_eq!(log.since(n_steps - 2), kept[N_STEPS_KEPT - 2..]);
        assert_eq!(log.since(n_steps + 9), []);
    }

    #[test]
    fn nobody_reads_half_a_step() {
        let log = StepLog::new(2);
        let n_steps = 100 * N_STEPS_KEPT as u64;
        std::thread::scope(|scope| {
            scope.spawn(|| (0..n_steps).for_each(|idx| log.record(&step(idx, 2))));
            let mut first = 0;
            while first < n_steps {
                for read in log.since(first) {
                    assert_eq!(read, step(read.idx, 2));
                    first = read.idx + 1;
                }
                first = first.max(log.n_recorded().saturating_sub(N_STEPS_KEPT as u64));
            }
        });
    }

    #[test]
    fn a_share_of_the_steps_is_traced_evenly() {
        let taken = |share| {
            let tracing = StepTracing::new(share, Box::new(|_| {}));
            (0..1000).filter(|&idx| tracing.takes(idx)).collect::<Vec<u64>>()
        };
        assert!(taken(0.0).is_empty());
        assert_eq!(taken(1.0), (0..1000).collect::<Vec<u64>>());
        let hundredth = taken(0.01);
        assert_eq!(hundredth.len(), 10);
        assert!(hundredth.windows(2).all(|pair| (99..=101).contains(&(pair[1] - pair[0]))));
    }

    #[test]
    fn a_step_that_is_being_written_is_left_out() {
        let log = StepLog::new(1);
        (0..3).for_each(|idx| log.record(&step(idx, 1)));
        log.places[1].version.fetch_add(1, Ordering::Relaxed);
        let idxs = |steps: Vec<StepRecord>| steps.iter().map(|step| step.idx).collect::<Vec<_>>();
        assert_eq!(idxs(log.since(0)), [0, 2]);
    }
}
