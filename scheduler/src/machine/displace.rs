//! Who gives way to a newcomer of a higher level: it finds no slot, or no room for what it would
//! begin with, and others run that came with a lower level and have not risen to its own.
//!
//! They are sent back as for want of pages (`preempt`): the last in turn first, no more of them
//! than it takes, and none where it would not begin in this very step after all. Whoever is sent
//! back waits behind the newcomer, with the tokens that it has; full pages of it stay in the
//! prefix cache.
//!
//! **Bound.** A newcomer displaces once, when it begins, and whom it displaces is of a lower level
//! and displaces nobody: it has begun. Who has risen to the first level gives way to no newcomer.
//! So a request of level `n` may be sent back in its first `(n - 1) * n_steps_a_level` steps only
//! ([`Priorities`]), and after that the bounds of `preempt` and `queue` hold as if there were no
//! levels.
//!
//! [`Priorities`]: crate::Priorities

use super::{Attempt, Scheduler};
use crate::admission;
use crate::budget::Budget;
use crate::queue::QueuePlace;
use crate::sequence::Sequence;
use crate::{Limits, SlotIdx};

impl Scheduler {
    /// Sends back whoever is in the way of the newcomer whose turn it is, if that lets it begin in
    /// the step that is being planned. For whom somebody gave way: it is the one to be admitted,
    /// whoever's turn it is once those that run are granted their tokens.
    pub(super) fn displace(&mut self) -> Option<QueuePlace> {
        if self.limits.priorities.n_levels == 1 {
            return None;
        }
        let place = self.roster.queue().next(self.counters.n_steps)?;
        let n_victims = self.n_to_displace(place)?;
        for _ in 0..n_victims {
            let (victim, n_lost) = self.roster.preempt_last();
            self.pools.forfeit(victim);
            self.counters.n_preemptions += 1;
            self.counters.n_lost_tokens += n_lost as u64;
        }
        (n_victims > 0).then_some(place)
    }

    /// How many are to give way, and may; none where the newcomer needs nobody to. `None` where it
    /// would not begin whoever gave way.
    fn n_to_displace(&mut self, place: QueuePlace) -> Option<usize> {
        let Scheduler { roster, pools, limits, pace, .. } = self;
        let n_steps = self.counters.n_steps;
        let newcomer = roster.queue().at(place);
        let running = roster.running();
        let gives_way =
            |&&slot: &&SlotIdx| yields(roster.sequence(slot), newcomer, limits, n_steps);
        let n_max = running.iter().rev().take_while(gives_way).count();
        let rest = |n_out: usize| &running[..running.len() - n_out];
        let has_token = |n_out: usize| {
            let mut budget = Budget::new(
                limits.n_tokens_per_step,
                pace,
                rest(n_out).iter().map(|&slot| roster.sequence(slot)),
            );
            for sequence in rest(n_out).iter().map(|&slot| roster.sequence(slot)) {
                budget.take(sequence, budget.offer(sequence));
            }
            !budget.is_spent()
        };
        if newcomer.has_begun() || n_max == 0 || !has_token(n_max) {
            return None;
        }
        let n_returns = pools.n_returns();
        let is_in_vain = |last: &Attempt| {
            (last.turn, last.n_returns, last.n_victims) == (newcomer.turn(), n_returns, n_max)
        };
        if self.last_attempt.as_ref().is_some_and(is_in_vain) {
            return None;
        }
        let beginning = pools.beginning(newcomer, roster)?;
        let mut n_out = 0;
        let has_room = loop {
            let has_slot = roster.has_free_slot() || n_out > 0;
            if has_slot && admission::has_room(newcomer, beginning, (roster, rest(n_out)), pools) {
                break true;
            }
            if n_out == n_max {
                break false;
            }
            n_out += 1;
            let victim = running[running.len() - n_out];
            pools.let_go(victim);
            if beginning.is_of(victim) {
                break false;
            }
        };
        for &slot in &running[running.len() - n_out..] {
            pools.hold_again(slot);
        }
        if !has_room {
            let (turn, n_changes) = (newcomer.turn(), roster.queue().n_changes());
            self.last_attempt = Some(Attempt { turn, n_returns, n_changes, n_victims: n_max });
            return None;
        }
        has_token(n_out).then_some(n_out)
    }
}

/// Whether one that runs gives way to a newcomer: it came with a lower level, and is of a lower one
/// still. So it is behind the newcomer in turn, too.
fn yields(one: &Sequence, newcomer: &Sequence, limits: &Limits, n_steps: u64) -> bool {
    let n_below =
        |one: &Sequence| limits.priorities.n_levels_below_first(one.turn().due(), n_steps);
    newcomer.level() < one.level() && n_below(newcomer) < n_below(one)
}
