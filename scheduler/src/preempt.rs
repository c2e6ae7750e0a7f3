//! Who gives way when pages run out: always whose turn is last of those that run. That is the
//! youngest, a level counting as an earlier arrival. (Who gives way to a newcomer is in
//! `machine/displace`.)
//!
//! A preempted sequence keeps its tokens, loses its pages and goes back to the queue; admitted
//! again, it computes prompt and generated tokens anew, as one prefill. A row of it may be in
//! flight: the KV that it writes is lost, what it samples holds. It is not admitted before that row
//! has landed.
//!
//! **Nobody who has begun starves.** A sequence takes pages only from those behind it, so the first
//! that runs is never preempted, and alone it fits the pools (`admission`): it computes at least
//! one token in every step, until all that it will ever compute is in flight. While its last row
//! is, or one too many of a sequence whose stop token was seen late, one step more may be planned
//! for others. Who was preempted is behind all that run, and returns before any newcomer of its
//! level. So whoever has begun and has risen to the first level ([`Priorities`]) ends after no more
//! steps than it and those before it may hold tokens, together, and one more for each of them:
//! nobody gets before it any more. The last that runs has nobody to take pages from: it keeps its
//! slot and what it has computed, and sits the step out. When who waits begins is in `queue`.
//!
//! Full pages that it forfeits stay in the prefix cache, where there is one, and on the host behind
//! that.
//!
//! [`Priorities`]: crate::Priorities

use crate::SlotIdx;
use crate::pages::Pools;
use crate::roster::Roster;
use crate::stats::Counters;

/// How many of `n_wanted` tokens a running sequence can have pages for, after preempting as many
/// behind it as the first token takes. A chunk is rather cut than paid for with another's work.
pub(crate) fn make_room(
    slot: SlotIdx,
    n_wanted: usize,
    roster: &mut Roster,
    pools: &mut Pools,
    counters: &mut Counters,
) -> usize {
    let start = roster.sequence(slot).n_planned();
    loop {
        let n_affordable = pools.n_affordable(slot, start, n_wanted);
        let last = *roster.running().last().expect("it runs itself");
        if n_affordable > 0 || n_wanted == 0 || last == slot {
            return n_affordable;
        }
        let (victim, n_lost) = roster.preempt_last();
        pools.forfeit(victim);
        counters.n_preemptions += 1;
        counters.n_lost_tokens += n_lost as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GroupLimits, Limits, Request, RequestId, TokenId};

    /// Three sequences that hold three of nine pages each, and three that wait.
    fn full() -> (Roster, Pools, Limits) {
        let limits = Limits {
            n_slots: 3,
            n_waiting_max: 3,
            n_tokens_per_step: 8,
            n_context_tokens: 36,
            page_tokens: 4,
            priorities: crate::Priorities::single(),
            n_tenants: 1,
            latency: None,
            prefix_cache: None,
            host_tier: None,
            speculation: None,
            groups: vec![GroupLimits { n_pages: 9, window: None }],
        };
        let (mut roster, mut pools) = (Roster::new(&limits), Pools::new(&limits));
        for id in 0..6 {
            let request = Request {
                id: RequestId(id),
                prompt: vec![TokenId(1); 36].into(),
                n_new_max: 0,
                stop_tokens: [].into(),
                scores_prompt: true,
                cache_salt: None,
                is_guided: false,
                terms: crate::Terms::ordinary(),
            };
            roster.arrive(request, 0, &limits);
        }
        while roster.has_free_slot() {
            let next = roster.queue().next(0).expect("six wait for three slots");
            let slot = roster.admit(next);
            compute(slot, 12, &mut roster, &mut pools);
        }
        (roster, pools, limits)
    }

    fn compute(slot: SlotIdx, n_tokens: usize, roster: &mut Roster, pools: &mut Pools) {
        let sequence = roster.sequence_mut(slot);
        let start = sequence.n_planned();
        pools.reserve(slot, start + n_tokens, &mut Vec::new());
        sequence.run(slot, n_tokens, &mut Vec::new());
    }

    #[test]
    fn the_youngest_pays_for_the_first_token_only() {
        let (mut roster, mut pools, limits) = full();
        let mut counters = Counters::default();
        let oldest = roster.running()[0];
        let n_tokens = make_room(oldest, 24, &mut roster, &mut pools, &mut counters);
        assert_eq!(n_tokens, 12, "the three pages of the youngest, and no more");
        assert_eq!((counters.n_preemptions, counters.n_lost_tokens), (1, 12));
        assert_eq!(roster.running().len(), 2);
        let next = roster.queue().next(0).expect("it waits");
        assert_eq!(roster.queue().at(next).id(), RequestId(2));
        roster.check(&limits);
        pools.check(|slot| roster.span(slot));
    }

    #[test]
    fn the_youngest_takes_from_nobody() {
        let (mut roster, mut pools, _) = full();
        let mut counters = Counters::default();
        let youngest = roster.running()[2];
        assert_eq!(make_room(youngest, 1, &mut roster, &mut pools, &mut counters), 0);
        assert_eq!(counters.n_preemptions, 0);
    }

    #[test]
    fn who_wants_nothing_takes_nothing() {
        let (mut roster, mut pools, _) = full();
        let mut counters = Counters::default();
        let oldest = roster.running()[0];
        assert_eq!(make_room(oldest, 0, &mut roster, &mut pools, &mut counters), 0);
        assert_eq!(counters.n_preemptions, 0);
    }
}
