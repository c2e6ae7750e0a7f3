//! Decides what runs next: a pure state machine from events to plans and effects.
//!
//! It knows requests, tokens, slots and pages. It does not know tensors, devices, threads, clocks,
//! randomness, logs or the network; its callers own all of those.

mod event;
mod ids;
mod limits;
mod plan;
mod request;

pub use event::{Effect, Event, FinishReason, Refusal, StepResult};
pub use ids::{GroupIdx, PageId, RequestId, SlotIdx, StepId, TokenId};
pub use limits::{GroupLimits, Limits};
pub use plan::{Admission, Emit, PageUpdate, Row, StepPlan};
pub use request::Request;
