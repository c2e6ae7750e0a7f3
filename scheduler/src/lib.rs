//! Decides what runs next: a pure state machine from events to plans and effects.
//!
//! It knows requests, tokens, slots and pages. It does not know tensors, devices, threads, clocks,
//! randomness, logs or the network; its callers own all of those. What time it is comes with each
//! event.
//!
//! The protocol, and one step of it:
//!
//! ```
//! # use scheduler::*;
//! let mut scheduler = Scheduler::new(Limits {
//!     n_slots: 4,
//!     n_waiting_max: 16,
//!     n_tokens_per_step: 256,
//!     n_context_tokens: 1024,
//!     page_tokens: 16,
//!     priorities: Priorities::single(),
//!     n_tenants: 1,
//!     latency: None,
//!     prefix_cache: None,
//!     host_tier: None,
//!     speculation: None,
//!     groups: vec![GroupLimits { n_pages: 256, window: None }],
//! });
//! let request = Request {
//!     id: RequestId(0),
//!     prompt: [TokenId(7), TokenId(8)].into(),
//!     n_new_max: 1,
//!     stop_tokens: [].into(),
//!     scores_prompt: false,
//!     cache_salt: None,
//!     is_guided: false,
//!     terms: Terms::ordinary(),
//! };
//! let mut effects = Vec::new();
//! scheduler.apply(Event::Arrive(request), Moment(0), &mut effects);
//!
//! let plan = scheduler.plan().expect("a request waits");
//! assert_eq!(plan.tokens, [TokenId(7), TokenId(8)]);
//! let tokens = vec![Some(TokenId(9))]; // what the ranks sampled, one entry a row here
//! let result = StepResult { step: plan.step, tokens, took_us: 900 };
//! scheduler.apply(Event::Complete(result), Moment(1000), &mut effects);
//!
//! let (request, reason) = (RequestId(0), FinishReason::Length);
//! assert_eq!(effects.last(), Some(&Effect::Finish { request, reason }));
//! scheduler.recycle(plan);
//! assert!(scheduler.plan().is_none());
//! ```

mod machine;

mod admission;
mod adopt;
mod budget;
mod expiry;
mod host;
mod lookup;
mod lru;
mod pace;
mod pages;
mod pool;
mod preempt;
mod prefix;
mod queue;
mod roster;
mod sequence;
mod siblings;
mod stats;
mod terms;
mod turn;

mod event;
mod ids;
mod limits;
mod plan;
mod request;

pub use event::{Effect, Event, FinishReason, Refusal, StepResult};
pub use ids::{GroupIdx, HostPageId, PageId, RequestId, SlotIdx, StepId, TenantId, TokenId};
pub use limits::{
    GroupLimits, HostTier, LatencyTarget, Limits, PrefixCache, Priorities, Speculation,
};
pub use machine::Scheduler;
pub use plan::{Admission, Emit, PageMove, PageUpdate, Row, StepPlan};
pub use request::Request;
pub use stats::{Counters, GroupStats, Stats};
pub use terms::{Moment, Terms};
