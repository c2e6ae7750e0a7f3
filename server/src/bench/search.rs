//! The highest rate at which the limits are still kept: doubled until they are not, then halved
//! between. A stretch in which the generator itself lagged says nothing of the server, and is made
//! once more. What is found is the highest rate that was tried and kept them, and holds as far as
//! one stretch of load can say.

use super::error::BenchError;
use super::measure::Bench;
use super::report::Found;
use super::settings::SearchSettings;

/// Rates that are tried at most.
const N_PROBES_MAX: usize = 24;

/// What is known so far.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bracket {
    kept: Option<f64>,
    broken: Option<f64>,
}

impl Bracket {
    /// What to try next; `None` once it is known well enough.
    fn next(&self, search: &SearchSettings) -> Option<f64> {
        match (self.kept, self.broken) {
            (None, None) => Some(search.from),
            (Some(kept), None) => Some(kept * 2.0),
            (None, Some(broken)) => Some(broken / 2.0),
            (Some(kept), Some(broken)) => {
                let is_known = broken - kept <= search.precision * kept;
                (!is_known).then_some((kept + broken) / 2.0)
            }
        }
    }

    fn learn(&mut self, rate: f64, is_met: bool) {
        if is_met {
            self.kept = Some(self.kept.map_or(rate, |kept| kept.max(rate)));
        } else {
            self.broken = Some(self.broken.map_or(rate, |broken| broken.min(rate)));
        }
    }
}

/// Looks for it.
///
/// # Errors
/// As for one run.
pub(super) async fn search(
    bench: &mut Bench<'_>,
    search: &SearchSettings,
) -> Result<Found, BenchError> {
    let mut bracket = Bracket { kept: None, broken: None };
    let mut lagged_at = None;
    for _ in 0..N_PROBES_MAX {
        let Some(rate) = bracket.next(search) else { break };
        let run = bench.probe(rate).await?;
        if run.invalid.is_empty() {
            let goodput = run.figures.goodput.as_ref();
            bracket.learn(rate, goodput.is_some_and(|goodput| goodput.is_met));
            lagged_at = None;
        } else if bench.is_stopped() || lagged_at == Some(rate) {
            // Whatever the server did then, it is the generator that was measured.
            let Bracket { kept, broken } = bracket;
            return Ok(Found { rate: kept, too_high: broken, unmeasured: Some(rate) });
        } else {
            lagged_at = Some(rate);
        }
    }
    Ok(Found { rate: bracket.kept, too_high: bracket.broken, unmeasured: lagged_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(highest: f64, from: f64) -> (Bracket, usize) {
        let search = SearchSettings { from, precision: 0.05 };
        let mut bracket = Bracket { kept: None, broken: None };
        let mut n_probes = 0;
        while let Some(rate) = bracket.next(&search).filter(|_| n_probes < N_PROBES_MAX) {
            bracket.learn(rate, rate <= highest);
            n_probes += 1;
        }
        (bracket, n_probes)
    }

    #[test]
    fn the_highest_rate_is_found_from_either_side() {
        for highest in [0.03, 0.7, 1.0, 37.0, 900.0] {
            for from in [0.1, 1.0, 64.0] {
                let (bracket, n_probes) = find(highest, from);
                let kept = bracket.kept.expect("some rate keeps them");
                let broken = bracket.broken.expect("some does not");
                assert!(kept <= highest && highest < broken, "{bracket:?} of {highest}");
                assert!(broken - kept <= 0.05 * kept && n_probes <= N_PROBES_MAX, "{n_probes}");
            }
        }
    }

    #[test]
    fn where_no_rate_will_do_it_ends() {
        let (bracket, n_probes) = find(0.0, 1.0);
        assert_eq!((bracket.kept, n_probes), (None, N_PROBES_MAX));
    }
}
