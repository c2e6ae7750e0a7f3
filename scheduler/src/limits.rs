//! Every bound that the scheduler keeps, and how the bounds relate.

/// What one cache group may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Pages in the group's pool.
    pub n_pages: usize,
    /// Tokens that a query of this group sees, itself included; `None` sees all.
    pub window: Option<usize>,
}

/// How beginnings that several requests have in common are computed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixCache {
    /// Decides which contents share a bucket, and no result: a number that no client knows, so that
    /// none can fill one bucket on purpose.
    pub seed: u64,
}

/// The host's memory for pages that a device has no room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTier {
    /// Pages of each cache group.
    pub group_pages: Vec<usize>,
    /// What comes back must be so many tokens at least: fewer are computed sooner than copied.
    pub n_tokens_min: usize,
}

/// How many tokens are guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speculation {
    /// Candidates that a row carries at most. They are looked up in the sequence's own past.
    pub n_candidates_max: usize,
}

/// Levels of priority, and how long one may be passed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priorities {
    /// Levels, counted from 1, which goes first.
    pub n_levels: u32,
    /// The level of who asks for none, or for one that there is not.
    pub default_level: u32,
    /// Steps in which who waits rises by a level: who comes at level `n` is passed by nobody who
    /// comes more than `(n - 1) * n_steps_a_level` steps later.
    pub n_steps_a_level: u32,
}

/// How long a step may take while somebody reads an answer: prompts get what that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyTarget {
    /// Microseconds.
    pub step_us: u64,
    /// Prompt tokens that a step may have whatever it takes, so that prompts go on.
    pub n_prompt_tokens_min: usize,
}

/// Bounds of queues, steps and pools. All counts are at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that may run at once.
    pub n_slots: usize,
    /// Requests that may wait besides those that the slots take: with `n_slots + n_waiting_max`
    /// requests alive, one more is refused.
    pub n_waiting_max: usize,
    /// Tokens computed in one step, over all rows.
    pub n_tokens_per_step: usize,
    /// Prompt and generated tokens of one sequence.
    pub n_context_tokens: usize,
    /// Tokens in a page, the same for every group.
    pub page_tokens: usize,
    /// How priorities are understood.
    pub priorities: Priorities,
    /// Tenants that are told apart. What they were served is remembered for each; those whose
    /// numbers are the same modulo this share one share.
    pub n_tenants: usize,
    /// Whether steps are kept short while prompts are computed; `None` fills them.
    pub latency: Option<LatencyTarget>,
    /// Whether and how full pages are kept for requests that begin alike; `None` keeps nothing.
    pub prefix_cache: Option<PrefixCache>,
    /// Where pages go that fall out of the prefix cache; `None` forgets them.
    pub host_tier: Option<HostTier>,
    /// Whether rows of decoding carry candidates to verify; `None` plans one token a row.
    pub speculation: Option<Speculation>,
    /// Cache groups; empty for a model without attention.
    pub groups: Vec<GroupLimits>,
}

impl Limits {
    /// Tokens, prompt and generated together, that any one sequence may reach: the context's length
    /// or, where a pool is smaller, what the pool lets a sequence alone reach.
    pub fn n_sequence_tokens_max(&self) -> usize {
        let pools = self.groups.iter().map(|group| group.n_tokens_max(self.page_tokens));
        pools.fold(self.n_context_tokens, usize::min)
    }

    /// Requests alive at once: every slot taken and the queue full.
    pub fn n_live_max(&self) -> usize {
        self.n_slots.saturating_add(self.n_waiting_max)
    }

    /// Asserts that the bounds fit each other, each with its reason.
    pub(crate) fn check(&self) {
        assert!(self.n_slots > 0, "no slot: nothing could run");
        assert!(self.n_waiting_max > 0, "no queue: a full batch would refuse everybody");
        assert!(self.n_tenants > 0, "no tenant: nobody could ask");
        assert!(
            u32::try_from(self.n_tenants).is_ok(),
            "{} tenants: a tenant is a u32",
            self.n_tenants,
        );
        let Priorities { n_levels, default_level, .. } = self.priorities;
        assert!(
            (1..=n_levels).contains(&default_level),
            "level {default_level} is the default, but there are levels 1 to {n_levels}",
        );
        let n_prompt_min = self.latency.map_or(1, |latency| latency.n_prompt_tokens_min);
        assert!(n_prompt_min > 0, "no prompt token is guaranteed to a step: a prompt could starve");
        assert!(self.n_context_tokens > 0, "no context: no prompt would fit");
        assert!(self.page_tokens > 0, "a page holds no token");
        assert!(
            self.n_slots <= self.n_tokens_per_step,
            "{} slots, {} tokens a step: every running sequence must be able to decode in every \
             step, or budget would starve some",
            self.n_slots,
            self.n_tokens_per_step,
        );
        if let Some(tier) = &self.host_tier {
            let (n, n_groups) = (tier.group_pages.len(), self.groups.len());
            assert_eq!(n, n_groups, "the host's pages are counted for {n} groups of {n_groups}");
            assert!(self.prefix_cache.is_some(), "a host tier without a prefix cache");
        }
        let n_candidates_max = self.speculation.map(|speculation| speculation.n_candidates_max);
        assert!(n_candidates_max != Some(0), "speculation without candidates");
        assert!(u32::try_from(self.n_slots).is_ok(), "{} slots: a slot is a u32", self.n_slots);
        assert!(
            u32::try_from(self.n_context_tokens).is_ok(),
            "context of {} tokens: a page table's index is a u32",
            self.n_context_tokens,
        );
        assert!(
            u16::try_from(self.groups.len()).is_ok(),
            "{} groups: a group is a u16",
            self.groups.len(),
        );
        for (group_idx, group) in self.groups.iter().enumerate() {
            let GroupLimits { n_pages, window } = group;
            assert!(*n_pages > 0, "group {group_idx} has no page: no sequence could start");
            assert!(
                u32::try_from(*n_pages).is_ok(),
                "group {group_idx} has {n_pages} pages: a page is a u32",
            );
            assert!(*window != Some(0), "group {group_idx}: a query sees at least itself");
        }
    }
}

impl Priorities {
    /// One level: turns are those of arrival.
    pub fn single() -> Priorities {
        Priorities { n_levels: 1, default_level: 1, n_steps_a_level: 1 }
    }

    /// The level that a request gets that asks for `priority`.
    pub fn level(&self, priority: u32) -> u32 {
        match priority {
            0 => self.default_level,
            level if level > self.n_levels => self.default_level,
            level => level,
        }
    }

    /// The step at which who comes at step `arrival` has risen to the first level.
    pub(crate) fn due(&self, arrival: u64, level: u32) -> u64 {
        arrival + u64::from(level - 1) * u64::from(self.n_steps_a_level)
    }

    /// Levels below the first, after `n_steps`, of who is to rise to it at step `due`.
    pub(crate) fn n_levels_below_first(&self, due: u64, n_steps: u64) -> u64 {
        due.saturating_sub(n_steps).div_ceil(u64::from(self.n_steps_a_level.max(1)))
    }
}

impl GroupLimits {
    /// Tokens that a sequence alone may reach with this pool; `usize::MAX` where a window gives
    /// pages back as fast as they are taken.
    pub fn n_tokens_max(&self, page_tokens: usize) -> usize {
        match self.window {
            Some(window) if n_window_pages(window, page_tokens) <= self.n_pages => usize::MAX,
            _ => self.n_pages.saturating_mul(page_tokens),
        }
    }
}

/// Pages that one query's window touches at most. The worst query is a page's first token: its own
/// page, and those of the `window - 1` tokens before it.
pub(crate) fn n_window_pages(window: usize, page_tokens: usize) -> usize {
    1 + (window - 1).div_ceil(page_tokens)
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    fn limits() -> Limits {
        Limits {
            n_slots: 2,
            n_waiting_max: 4,
            n_tokens_per_step: 8,
            n_context_tokens: 64,
            page_tokens: 4,
            priorities: Priorities::single(),
            n_tenants: 1,
            latency: None,
            prefix_cache: None,
            host_tier: None,
            speculation: None,
            groups: vec![GroupLimits { n_pages: 8, window: None }],
        }
    }

    /// The message of the assertion that `limits` breaks.
    fn complaint(limits: Limits) -> String {
        let panic = catch_unwind(|| limits.check()).expect_err("limits were accepted");
        match panic.downcast::<String>() {
            Ok(message) => *message,
            Err(panic) => (*panic.downcast::<&str>().expect("no message")).to_owned(),
        }
    }

    #[test]
    fn a_windows_pages_are_those_of_its_worst_query() {
        for page_tokens in 1..6 {
            for window in 1..20 {
                let touched = |query: usize| {
                    let first = (query + 1).saturating_sub(window);
                    query / page_tokens - first / page_tokens + 1
                };
                let worst = (0..100).map(touched).max().expect("not empty");
                assert_eq!(n_window_pages(window, page_tokens), worst, "{window} {page_tokens}");
            }
        }
    }

    #[test]
    fn a_sequence_is_bounded_by_context_and_by_every_pool() {
        assert_eq!(limits().n_sequence_tokens_max(), 32);
        let context = Limits { n_context_tokens: 30, ..limits() };
        assert_eq!(context.n_sequence_tokens_max(), 30);
        let roomy = GroupLimits { n_pages: 3, window: Some(8) };
        let tight = GroupLimits { n_pages: 3, window: Some(10) };
        assert_eq!(roomy.n_tokens_max(4), usize::MAX);
        assert_eq!(tight.n_tokens_max(4), 12);
        let no_groups = Limits { groups: Vec::new(), ..limits() };
        assert_eq!(no_groups.n_sequence_tokens_max(), 64);
    }

    #[test]
    fn priorities_are_triton_s_and_who_waits_rises() {
        let priorities = Priorities { n_levels: 3, default_level: 2, n_steps_a_level: 10 };
        let levels = [0, 1, 2, 3, 4, u32::MAX].map(|priority| priorities.level(priority));
        assert_eq!(levels, [2, 1, 2, 3, 2, 2]);
        let due = priorities.due(100, 3);
        let below = [100, 109, 110, 119, 120, 500].map(|n| priorities.n_levels_below_first(due, n));
        assert_eq!(below, [2, 2, 1, 1, 0, 0]);
        assert_eq!(Priorities::single().due(7, 1), 7);
    }

    #[test]
    fn limits_that_do_not_fit_each_other_are_refused_with_the_reason() {
        limits().check();
        let group =
            |n_pages, window| Limits { groups: vec![GroupLimits { n_pages, window }], ..limits() };
        let no_candidates = Some(Speculation { n_candidates_max: 0 });
        let no_prompt = Some(LatencyTarget { step_us: 1, n_prompt_tokens_min: 0 });
        let default_of_none = Priorities { default_level: 3, n_levels: 2, n_steps_a_level: 1 };
        let cases = [
            (Limits { n_slots: 0, ..limits() }, "no slot"),
            (Limits { n_slots: 9, ..limits() }, "9 slots, 8 tokens a step"),
            (Limits { n_waiting_max: 0, ..limits() }, "no queue"),
            (Limits { n_tenants: 0, ..limits() }, "no tenant"),
            (Limits { latency: no_prompt, ..limits() }, "a prompt could starve"),
            (Limits { priorities: default_of_none, ..limits() }, "there are levels 1 to 2"),
            (Limits { n_context_tokens: 0, ..limits() }, "no context"),
            (Limits { page_tokens: 0, ..limits() }, "holds no token"),
            (Limits { speculation: no_candidates, ..limits() }, "without candidates"),
            (group(0, None), "group 0 has no page"),
            (group(1, Some(0)), "sees at least itself"),
            (group(1 << 40, None), "a page is a u32"),
        ];
        for (limits, reason) in cases {
            let message = complaint(limits);
            assert!(message.contains(reason), "{message:?} lacks {reason:?}");
        }
    }
}
