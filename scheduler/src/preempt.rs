//! Who gives way when pages run out: always the youngest that runs.
//!
//! A preempted sequence keeps its tokens, loses its pages and goes back to the head of the queue;
//! admitted again, it computes prompt and generated tokens anew, as one prefill.
//!
//! **Nobody starves.** A sequence takes pages only from younger ones, so the oldest is never
//! preempted, and alone it fits the pools (`admission`): it computes at least one token in every
//! step. Whoever is taken therefore ends after no more steps than it and the sequences older than
//! it may hold tokens, together. The youngest has nobody to take pages from: it keeps its slot and
//! what it has computed, and sits the step out.
//!
//! A host tier would copy pages out instead of forfeiting them, here.

use crate::SlotIdx;
use crate::pages::Pools;
use crate::roster::Roster;
use crate::stats::Counters;

/// How many of `n_wanted` tokens a running sequence can have pages for, after preempting as many
/// younger ones as the first token takes. A chunk is rather cut than paid for with another's work.
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
        let youngest = *roster.running().last().expect("it runs itself");
        if n_affordable > 0 || n_wanted == 0 || youngest == slot {
            return n_affordable;
        }
        let (victim, n_lost) = roster.preempt_youngest();
        pools.forfeit(victim);
        counters.n_preemptions += 1;
        counters.n_lost_tokens += n_lost as u64;
    }
}
