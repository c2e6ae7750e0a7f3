//! Every bound that the scheduler keeps, and how the bounds relate.

/// What one cache group may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Pages in the group's pool.
    pub n_pages: usize,
    /// Tokens that a query of this group sees, itself included; `None` sees all.
    pub window: Option<usize>,
}

/// Bounds of queues, steps and pools. All counts are at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that may run at once.
    pub n_slots: usize,
    /// Requests that may wait for a slot; one more is refused.
    pub n_waiting_max: usize,
    /// Tokens computed in one step, over all rows.
    pub n_tokens_per_step: usize,
    /// Prompt and generated tokens of one sequence.
    pub n_context_tokens: usize,
    /// Tokens in a page, the same for every group.
    pub page_tokens: usize,
    /// Cache groups; empty for a model without attention.
    pub groups: Vec<GroupLimits>,
}
