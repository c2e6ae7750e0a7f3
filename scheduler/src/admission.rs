//! Who may hold memory: which requests are taken at all, and when one leaves the queue.
//!
//! It does not know how many tokens a step has; that is `budget`.

use crate::pages::Pools;
use crate::roster::Roster;
use crate::sequence::Sequence;
use crate::siblings::Beginning;
use crate::{GroupIdx, Limits, Refusal, Request, SlotIdx};

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
///
/// Of what it may begin with, it lacks only the pages that nobody holds. `running` are those that
/// are to go on.
pub(crate) fn has_room(
    newcomer: &Sequence,
    beginning: Beginning,
    (roster, running): (&Roster, &[SlotIdx]),
    pools: &Pools,
) -> bool {
    let page_tokens = pools.page_tokens();
    let n_expected = |sequence: &Sequence| {
        sequence.n_tokens_planned().saturating_add(page_tokens).min(sequence.n_tokens_end())
    };
    let has_room_in = |group: GroupIdx| {
        let lacks = |&slot| pools.n_lacking(group, slot, n_expected(roster.sequence(slot)));
        let n_promised: usize = running.iter().map(lacks).sum();
        let n_needed = pools.n_needed(group, n_expected(newcomer));
        let n_lacking = n_needed.saturating_sub(pools.n_shared(group, beginning));
        n_promised + n_lacking <= pools.n_free(group)
    };
    pools.groups().all(has_room_in)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GroupLimits, Priorities, RequestId, Terms, TokenId};

    fn limits() -> Limits {
        Limits {
            n_slots: 2,
            n_waiting_max: 1,
            n_tokens_per_step: 8,
            n_context_tokens: 24,
            page_tokens: 4,
            priorities: Priorities::single(),
            n_tenants: 1,
            latency: None,
            prefix_cache: None,
            host_tier: None,
            speculation: None,
            groups: vec![
                GroupLimits { n_pages: 6, window: None },
                GroupLimits { n_pages: 4, window: Some(5) },
            ],
        }
    }

    fn request(n_prompt: usize, n_new_max: usize) -> Request {
        Request {
            id: RequestId(0),
            prompt: vec![TokenId(1); n_prompt].into(),
            n_new_max,
            stop_tokens: [].into(),
            scores_prompt: false,
            cache_salt: None,
            is_guided: false,
            terms: Terms::ordinary(),
        }
    }

    /// A roster where the first of `requests` runs and the others wait.
    fn first_runs(requests: &[Request]) -> Roster {
        let mut roster = Roster::new(&limits());
        for (id, request) in (0..).map(RequestId).zip(requests) {
            roster.arrive(Request { id, ..request.clone() }, 0, &limits());
        }
        let first = roster.queue().next(0).expect("the first waits");
        roster.admit(first);
        roster
    }

    fn next_waiting(roster: &Roster) -> &Sequence {
        roster.queue().at(roster.queue().next(0).expect("somebody waits"))
    }

    /// Of a newcomer that begins with nothing, while all that run go on.
    fn has_room_beside(newcomer: &Sequence, roster: &Roster, pools: &Pools) -> bool {
        has_room(newcomer, Beginning::default(), (roster, roster.running()), pools)
    }

    #[test]
    fn what_could_never_run_is_refused_before_the_queue_is_looked_at() {
        let full = first_runs(&[request(1, 1), request(2, 1), request(3, 1)]);
        let refusal = |request| refusal(&request, &limits(), &full);
        assert_eq!(refusal(request(0, 1)), Some(Refusal::EmptyPrompt));
        assert_eq!(refusal(request(24, 1)), Some(Refusal::TooLong { n_prompt: 24, n_max: 23 }));
        assert_eq!(refusal(request(25, 0)), Some(Refusal::TooLong { n_prompt: 25, n_max: 24 }));
        assert_eq!(refusal(request(23, usize::MAX)), Some(Refusal::QueueFull));
        assert_eq!(refusal(request(24, 0)), Some(Refusal::QueueFull));
    }

    #[test]
    fn the_longest_prompt_has_room_alone() {
        let mut roster = Roster::new(&limits());
        roster.arrive(request(24, 0), 0, &limits());
        let newcomer = next_waiting(&roster);
        assert!(has_room_beside(newcomer, &roster, &Pools::new(&limits())));
    }

    #[test]
    fn room_is_what_those_that_run_leave() {
        // The first wants two pages of six, and one to grow; the window's group never decides.
        for (n_prompt, n_new_max, expected) in
            [(12, 0, true), (13, 0, false), (8, 9, true), (9, 9, false), (9, 3, true)]
        {
            let roster = first_runs(&[request(8, 9), request(n_prompt, n_new_max)]);
            let newcomer = next_waiting(&roster);
            let has_room = has_room_beside(newcomer, &roster, &Pools::new(&limits()));
            assert_eq!(has_room, expected, "prompt of {n_prompt}, {n_new_max} to generate");
        }
    }

    #[test]
    fn pages_that_are_held_are_not_promised_twice() {
        let roster = first_runs(&[request(8, 9), request(8, 9)]);
        let mut pools = Pools::new(&limits());
        pools.reserve(roster.running()[0], 8, &mut Vec::new());
        let newcomer = next_waiting(&roster);
        assert!(has_room_beside(newcomer, &roster, &pools));
    }
}
