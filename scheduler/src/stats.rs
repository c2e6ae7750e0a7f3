//! What the scheduler can say of itself, as values; others publish them.

use crate::FinishReason;
use crate::PageMove;
use crate::pages::Pools;
use crate::roster::Roster;
use crate::siblings::Beginning;

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Requests in a slot.
    pub n_running: usize,
    /// Requests that wait for a slot, the preempted among them.
    pub n_waiting: usize,
    /// The same, by the level that they asked for, the first level first.
    pub n_waiting_by_level: Vec<usize>,
    /// Pages, by group.
    pub groups: Vec<GroupStats>,
    /// What happened since the start.
    pub counters: Counters,
}

/// One group's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupStats {
    /// Pages in the pool.
    pub n_pages: usize,
    /// Pages that sequences hold.
    pub n_pages_used: usize,
    /// Pages that nobody holds and whose content is known: they are had for the asking.
    pub n_pages_cached: usize,
    /// Pages of the host that hold something.
    pub n_pages_host: usize,
}

/// Counts that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests taken.
    pub n_arrived: u64,
    /// Requests refused.
    pub n_refused: u64,
    /// Requests that ended by themselves.
    pub n_finished: u64,
    /// Requests that were cancelled before they ended.
    pub n_cancelled: u64,
    /// Requests that had no slot by their queue deadline.
    pub n_queue_timeouts: u64,
    /// Requests that had not ended by their deadline.
    pub n_deadlines_passed: u64,
    /// Steps planned.
    pub n_steps: u64,
    /// Rows planned.
    pub n_rows: u64,
    /// Prompt tokens in planned rows, those computed again after a preemption among them.
    pub n_prompt_tokens: u64,
    /// Tokens of sequences that entered a slot whose KV was found in the cache.
    pub n_cached_tokens: u64,
    /// Of them, those behind what the device alone had: they came back from the host.
    pub n_host_tokens: u64,
    /// Pages that went to the host.
    pub n_pages_out: u64,
    /// Pages that came back.
    pub n_pages_in: u64,
    /// The same, where a sibling had it: another answer to the same prompt.
    pub n_shared_tokens: u64,
    /// Tokens generated for requests that still wanted them.
    pub n_generated_tokens: u64,
    /// Candidates in planned rows.
    pub n_proposed_tokens: u64,
    /// Of the generated tokens, those that a candidate had guessed.
    pub n_accepted_tokens: u64,
    /// Sequences sent back to the queue, for want of pages or for one of a higher level.
    pub n_preemptions: u64,
    /// Computed tokens whose KV those sequences lost.
    pub n_lost_tokens: u64,
}

impl Counters {
    pub(crate) fn count_expired(&mut self, reason: FinishReason) {
        match reason {
            FinishReason::QueueTimeout => self.n_queue_timeouts += 1,
            FinishReason::DeadlinePassed => self.n_deadlines_passed += 1,
            _ => unreachable!("{reason:?} has nothing to do with time"),
        }
    }
}

impl Counters {
    /// Pages that a plan moves.
    pub(crate) fn count_moves(&mut self, moves: &[PageMove]) {
        for page in moves {
            match page {
                PageMove::Copy { .. } => {}
                PageMove::Out { .. } => self.n_pages_out += 1,
                PageMove::In { .. } => self.n_pages_in += 1,
            }
        }
    }

    /// What counts the tokens that a newcomer begins with.
    pub(crate) fn n_begun_tokens(&mut self, beginning: Beginning) -> &mut u64 {
        match beginning {
            Beginning::Found(_) => &mut self.n_cached_tokens,
            Beginning::Shared(_) => &mut self.n_shared_tokens,
        }
    }
}

impl Stats {
    /// Pages that sequences hold, over all groups.
    pub fn n_pages_used(&self) -> usize {
        self.groups.iter().map(|group| group.n_pages_used).sum()
    }

    /// Pages that nobody holds and whose content is known, over all groups.
    pub fn n_pages_cached(&self) -> usize {
        self.groups.iter().map(|group| group.n_pages_cached).sum()
    }

    /// Pages, over all groups.
    pub fn n_pages(&self) -> usize {
        self.groups.iter().map(|group| group.n_pages).sum()
    }

    pub(crate) fn new(roster: &Roster, pools: &Pools, counters: &Counters) -> Stats {
        let group_stats = |group| {
            let n_pages = pools.n_pages(group);
            let n_pages_used = n_pages - pools.n_free(group);
            let (n_pages_cached, n_pages_host) = (pools.n_cached(group), pools.n_on_host(group));
            GroupStats { n_pages, n_pages_used, n_pages_cached, n_pages_host }
        };
        Stats {
            n_running: roster.running().len(),
            n_waiting: roster.queue().len(),
            n_waiting_by_level: roster.queue().n_by_level().to_vec(),
            groups: pools.groups().map(group_stats).collect(),
            counters: *counters,
        }
    }
}
