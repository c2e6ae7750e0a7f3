//! What simulated lives meet, counted.

/// What a life has seen, so that a test can tell whether it saw enough.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sights {
    pub(crate) n_events: u64,
    pub(crate) n_steps: u64,
    pub(crate) n_preemptions: u64,
    /// Plans with a row of a running sequence missing.
    pub(crate) n_sat_out: u64,
    pub(crate) n_cancelled_in_flight: u64,
    pub(crate) n_cancelled_waiting: u64,
    pub(crate) n_stopped: u64,
    pub(crate) n_full: u64,
    pub(crate) n_refused_queue: u64,
    pub(crate) n_refused_length: u64,
    pub(crate) n_scored_after_preemption: u64,
    pub(crate) n_mixed_steps: u64,
    /// Pages that newcomers found in the cache.
    pub(crate) n_cached_pages: u64,
    /// Plans made while a step ran.
    pub(crate) n_ahead: u64,
    /// Rows whose token was not known when they were planned.
    pub(crate) n_following: u64,
    /// Preemptions while a step ran.
    pub(crate) n_preempted_ahead: u64,
    /// Rows that ran for a request that had ended.
    pub(crate) n_rows_for_nothing: u64,
    pub(crate) n_windowed_give_backs: u64,
    pub(crate) n_jumps: u64,
    pub(crate) n_queue_timeouts: u64,
    pub(crate) n_deadlines: u64,
    /// Of those, of who had a slot.
    pub(crate) n_expired_running: u64,
    pub(crate) n_failed_rows: u64,
    /// Ranks that failed while a step ran.
    pub(crate) n_failed_in_flight: u64,
    /// Results that came after at least two other events.
    pub(crate) n_late: u64,
    /// Admissions before somebody that had come earlier, counted by those passed.
    pub(crate) n_passed_older: u64,
    /// Those that gave way to one of a higher level.
    pub(crate) n_displaced: u64,
    /// Of the steps that one of several tenants may take to its end, the most that one took.
    pub(crate) deadline_percent_max: u64,
    /// Plans while two tenants waited at the first level.
    pub(crate) n_contests: u64,
    /// Rows of guided requests that sampled.
    pub(crate) n_guided: u64,
    /// Guided requests that waited for a word while a step was planned for others.
    pub(crate) n_held_beside: u64,
    /// Pages that siblings copied.
    pub(crate) n_copied_pages: u64,
    /// Pages that went to the host.
    pub(crate) n_pages_out: u64,
    /// Pages that came back from there.
    pub(crate) n_pages_in: u64,
    /// Rows that carry candidates.
    pub(crate) n_speculative: u64,
    /// Candidates that were right.
    pub(crate) n_accepted: u64,
    /// Rows of which some candidate was wrong.
    pub(crate) n_rejected: u64,
    /// Stop tokens with right candidates behind them.
    pub(crate) n_stopped_early: u64,
}
