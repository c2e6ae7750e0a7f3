//! How many prompt tokens a step may have while somebody reads an answer, so that steps keep to a
//! latency target. It follows what such steps took, which comes as data; it does not know clocks,
//! rows or pages.
//!
//! After each step the number is multiplied by `target / took`, at most doubled or halved. Where a
//! step's time is a fixed part plus a part for each prompt token, whatever both are, that never
//! leads beyond the target: `fixed + token * n * target / took` is at most `target`, as `took` is
//! `fixed + token * n` and the factor is at least one where `n` grows. And it closes in: what is
//! missing shrinks in every step by the share that prompts have in its time. A step that the
//! machine delayed halves the number once. What is computed does not depend on it, only in which
//! step: where answers do not depend on how prompts are cut, they do not depend on this.

use crate::limits::LatencyTarget;

/// What follows for the next step from what the last ones took.
#[derive(Debug)]
pub(crate) struct Pace {
    target: Option<LatencyTarget>,
    n_tokens_per_step: usize,
    n_prompt_tokens: usize,
}

impl Pace {
    /// Begins with what is guaranteed, so that nothing is risked before anything was measured.
    pub(crate) fn new(target: Option<LatencyTarget>, n_tokens_per_step: usize) -> Pace {
        let n_guaranteed = target.map_or(n_tokens_per_step, |target| target.n_prompt_tokens_min);
        let n_prompt_tokens = n_guaranteed.min(n_tokens_per_step);
        Pace { target, n_tokens_per_step, n_prompt_tokens }
    }

    /// Prompt tokens that a step may have beside rows that answer.
    pub(crate) fn n_prompt_tokens_max(&self) -> usize {
        self.n_prompt_tokens
    }

    /// A step with so many prompt tokens beside rows that answer took so long.
    pub(crate) fn learn(&mut self, n_prompt_tokens: usize, took_us: u64) {
        let Some(LatencyTarget { step_us, n_prompt_tokens_min }) = self.target else { return };
        let is_late = took_us > step_us;
        // A step that was in time with fewer than it might have had says nothing of more, and one
        // without any nothing at all.
        if n_prompt_tokens == 0 || (!is_late && n_prompt_tokens < self.n_prompt_tokens) {
            return;
        }
        let n = n_prompt_tokens as u128;
        let n_in_time = n * u128::from(step_us) / u128::from(took_us.max(1));
        let n_next = n_in_time.clamp(n / 2, 2 * n) as usize;
        self.n_prompt_tokens = n_next.max(n_prompt_tokens_min).min(self.n_tokens_per_step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: LatencyTarget = LatencyTarget { step_us: 15_000, n_prompt_tokens_min: 64 };

    /// Takes 8 ms and 20 us a prompt token, as a device does with a large model.
    fn took_us(n_prompt_tokens: usize) -> u64 {
        8_000 + 20 * n_prompt_tokens as u64
    }

    /// Steps beside answers with as many prompt tokens as they may have: how many that were.
    fn run(pace: &mut Pace, n_steps: usize, took_us: impl Fn(usize) -> u64) -> Vec<usize> {
        let step = |_| {
            let n = pace.n_prompt_tokens_max();
            pace.learn(n, took_us(n));
            n
        };
        (0..n_steps).map(step).collect()
    }

    #[test]
    fn without_a_target_a_step_is_full() {
        let mut pace = Pace::new(None, 512);
        pace.learn(512, 1_000_000);
        assert_eq!(pace.n_prompt_tokens_max(), 512);
    }

    #[test]
    fn steps_close_in_on_the_target_and_never_pass_it() {
        for (fixed_us, token_us) in [(8_000, 20), (14_000, 2), (0, 100), (12_000, 1), (100, 29)] {
            let took_us = |n: usize| fixed_us + token_us * n as u64;
            let mut pace = Pace::new(Some(TARGET), 512);
            let all = run(&mut pace, 100, took_us);
            assert!(all.iter().all(|&n| n == 64 || took_us(n) <= 15_000), "{all:?}");
            let n_affordable = ((15_000 - fixed_us) / token_us) as usize;
            let last = all[99] as f64 / n_affordable.clamp(64, 512) as f64;
            assert!((0.95..=1.0).contains(&last), "{fixed_us} + {token_us} n: {all:?}");
        }
    }

    #[test]
    fn steps_that_get_slower_get_smaller_and_the_other_way_round() {
        let mut pace = Pace::new(Some(TARGET), 512);
        assert_eq!(run(&mut pace, 100, took_us)[99] / 10, 34);
        let slower = |n| took_us(n) + 4_000;
        let all = run(&mut pace, 100, slower);
        assert!(slower(all[20]) < 15_150 && slower(all[99]) < 15_050, "{all:?}");
        assert_eq!(run(&mut pace, 100, took_us)[99] / 10, 34);
    }

    #[test]
    fn what_cannot_be_reached_costs_prompts_no_more_than_the_guarantee() {
        let mut pace = Pace::new(Some(TARGET), 512);
        assert_eq!(run(&mut pace, 50, |n| 40_000 + n as u64), [64; 50]);
        let guaranteed = LatencyTarget { n_prompt_tokens_min: 64, ..TARGET };
        assert_eq!(Pace::new(Some(guaranteed), 32).n_prompt_tokens_max(), 32);
    }

    #[test]
    fn one_delayed_step_halves_once() {
        let mut pace = Pace::new(Some(TARGET), 512);
        let before = run(&mut pace, 100, took_us)[99];
        pace.learn(before, 5_000_000);
        let after = run(&mut pace, 40, took_us);
        assert_eq!(after[0], before / 2);
        assert!(after[15] >= before - 20, "{after:?}");
    }

    #[test]
    fn steps_with_little_to_do_change_nothing_unless_they_are_late() {
        let mut pace = Pace::new(Some(TARGET), 512);
        let before = run(&mut pace, 100, took_us)[99];
        for n in [0, 1, 100] {
            pace.learn(n, 9_000);
            assert_eq!(pace.n_prompt_tokens_max(), before);
        }
        pace.learn(0, 20_000);
        assert_eq!(pace.n_prompt_tokens_max(), before);
        pace.learn(200, 20_000);
        assert_eq!(pace.n_prompt_tokens_max(), 150);
    }
}
