//! Latencies of the last minute, as quantiles: for the page, where buckets would be too coarse.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// A minute is kept in so many slices; the oldest is forgotten as a whole.
const N_SLICES: usize = 6;

/// Time of a slice.
const SLICE: Duration = Duration::from_secs(10);

/// The longest time that is told from longer ones.
const LONGEST_US: u64 = 3_600_000_000;

/// What users waited for in the last minute.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latencies {
    /// From submission to the first token.
    pub first_token: Quantiles,
    /// Between a token and the next.
    pub token_gap: Quantiles,
    /// From submission to the end.
    pub total: Quantiles,
    /// From submission to a slot.
    pub queued: Quantiles,
}

/// How times are spread, to 1 %; zeros where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantiles {
    /// How many there are.
    pub n: u64,
    /// Half of them are at most this.
    pub p50: Duration,
    /// Of a hundred, 95.
    pub p95: Duration,
    /// Of a hundred, 99.
    pub p99: Duration,
}

/// Times of the last minute.
pub(super) struct Recent {
    began: Instant,
    slices: Mutex<Slices>,
}

struct Slices {
    /// Which slice of time, counted from the beginning, is written last.
    newest: u64,
    histograms: [Histogram<u32>; N_SLICES],
}

impl Recent {
    pub(super) fn new() -> Recent {
        let histogram = || {
            Histogram::new_with_bounds(1, LONGEST_US, 2).expect("bounds that a histogram can have")
        };
        let slices = Slices { newest: 0, histograms: std::array::from_fn(|_| histogram()) };
        Recent { began: Instant::now(), slices: Mutex::new(slices) }
    }

    pub(super) fn observe(&self, time: Duration) {
        self.observe_at(time, self.began.elapsed());
    }

    pub(super) fn quantiles(&self) -> Quantiles {
        self.quantiles_at(self.began.elapsed())
    }

    fn observe_at(&self, time: Duration, now: Duration) {
        let mut slices = self.slices.lock();
        let newest = slices.turn_to(now);
        slices.histograms[newest]
            .saturating_record(time.as_micros().min(u128::from(u64::MAX)) as u64);
    }

    fn quantiles_at(&self, now: Duration) -> Quantiles {
        let mut slices = self.slices.lock();
        slices.turn_to(now);
        // Copied, so that no token's time waits until these are added up.
        let [mut all, rest @ ..] = slices.histograms.clone();
        drop(slices);
        for slice in &rest {
            all.add(slice).expect("all have the same bounds");
        }
        let at = |quantile| match all.len() {
            0 => Duration::ZERO,
            _ => Duration::from_micros(all.value_at_quantile(quantile)),
        };
        Quantiles { n: all.len(), p50: at(0.5), p95: at(0.95), p99: at(0.99) }
    }
}

impl Slices {
    /// Forgets what is too old; the place of the slice that is written now.
    fn turn_to(&mut self, now: Duration) -> usize {
        let slice = now.as_secs() / SLICE.as_secs();
        let n_passed = slice.saturating_sub(self.newest).min(N_SLICES as u64);
        self.newest = self.newest.max(slice);
        for back in 0..n_passed {
            self.histograms[((self.newest - back) % N_SLICES as u64) as usize].reset();
        }
        (self.newest % N_SLICES as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn a_minute_is_remembered_and_no_more() {
        let recent = Recent::new();
        assert_eq!(recent.quantiles_at(seconds(3)), Quantiles::default());
        for ms in 1..=100 {
            recent.observe_at(Duration::from_millis(ms), seconds(5));
        }
        let near = |is: Duration, ms: f64| {
            let off = (is.as_secs_f64() * 1e3 / ms - 1.0).abs();
            assert!(off <= 0.01, "{is:?} instead of {ms} ms");
        };
        let quantiles = recent.quantiles_at(seconds(59));
        assert_eq!(quantiles.n, 100);
        near(quantiles.p50, 50.0);
        near(quantiles.p95, 95.0);
        near(quantiles.p99, 99.0);
        recent.observe_at(seconds(2), seconds(59));
        assert_eq!(recent.quantiles_at(seconds(60)).n, 1, "what is a minute old is gone");
        near(recent.quantiles_at(seconds(109)).p50, 2000.0);
        assert_eq!(recent.quantiles_at(seconds(1000)), Quantiles::default());
        recent.observe_at(seconds(9000), seconds(1001));
        near(recent.quantiles_at(seconds(1001)).p50, 3_600_000.0);
    }
}
