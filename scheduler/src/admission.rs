//! Who may hold memory: which requests are taken at all, and when one leaves the queue.
//!
//! It does not know how many tokens a step has; that is `budget`. Prefix caching and a host tier
//! would lower what a newcomer needs, in [`has_room`].

use crate::pages::Pools;
use crate::roster::Roster;
use crate::sequence::Sequence;
use crate::{GroupIdx, Limits, Refusal, Request};

/// Whether a request is taken. What is taken can always run to its end: alone, it fits the pools.
///
/// The context bounds prompt and generated tokens together, and a pool that is smaller than the
/// context bounds them further ([`Limits::n_sequence_tokens_max`]). A prompt that leaves no room
/// for one generated token is refused; an `n_new_max` that leaves the bound is not: generation
/// ends there, by `Length`.
pub(crate) fn refusal(request: &Request, limits: &Limits, roster: &Roster) -> Option<Refusal> {
    let n_prompt = request.prompt.len();
    if n_prompt == 0 {
        return Some(Refusal::EmptyPrompt);
    }
    let n_new_min = usize::from(request.n_new_max > 0);
    let n_max = limits.n_sequence_tokens_max().saturating_sub(n_new_min);
    if n_prompt > n_max {
        return Some(Refusal::TooLong { n_prompt, n_max });
    }
    if roster.n_live() >= limits.n_live_max() {
        return Some(Refusal::QueueFull);
    }
    None
}

/// Whether the pools have room for one more sequence.
///
/// A plan reserves only what its rows write, but a newcomer that starts where the prompts already
/// running will not fit is soon preempted, and its work lost. So it must find free what all of them
/// lack: the pages of their known tokens, and one page more each, if they may grow so far. Nobody
/// runs: the newcomer has room, as every sequence fits the pools alone.
pub(crate) fn has_room(newcomer: &Sequence, roster: &Roster, pools: &Pools) -> bool {
    let page_tokens = pools.page_tokens();
    let n_expected = |sequence: &Sequence| {
        sequence.n_tokens().saturating_add(page_tokens).min(sequence.n_tokens_end())
    };
    let has_room_in = |group: GroupIdx| {
        let lacks = |&slot| pools.n_lacking(group, slot, n_expected(roster.sequence(slot)));
        let n_promised: usize = roster.running().iter().map(lacks).sum();
        n_promised + pools.n_needed(group, n_expected(newcomer)) <= pools.n_free(group)
    };
    pools.groups().all(has_room_in)
}
