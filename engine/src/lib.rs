//! The model on a device, and the loop that drives it.
//!
//! `boot` builds everything; `engine` is the loop; `rank` runs a step with `model`, which walks
//! `blocks`, which call `kernels`. It knows no HTTP, no text, no checkpoint strings.

mod batch;
mod blocks;
mod boot;
mod cache;
mod config;
#[doc(hidden)]
pub mod device;
mod engine;
mod error;
mod guide;
mod handle;
#[doc(hidden)]
pub mod kernels;
mod live;
mod loading;
mod memory_plan;
mod model;
#[doc(hidden)]
pub mod peers;
pub mod predict;
mod probe;
pub mod rank;
mod request;
mod sampler;
mod stats;
mod watch;

pub use boot::{BootError, BuildError, LoadProgress, boot, boot_watched};
pub use cache::{CacheGroup, CacheLayout, PAGE_TOKENS};
pub use config::{DeviceKind, EngineConfig, HostKv, KvDtype, Policy};
pub use engine::Engine;
pub use error::{InvalidSampling, SubmitError};
pub use guide::{Allowed, Guide, NextAllowed, TokenSet};
pub use handle::{Deliver, EngineHandle, EngineInfo, N_LOGPROBS_MAX, ReaderGone, Ticket};
pub use loading::{LoadingError, Unsupported};
pub use memory_plan::{
    KV_BYTES_DEFAULT_MAX, MemoryError, MemoryPlan, RankMemory, Reserve, Term, TermKind,
    WeightParts, WorkspaceParts,
};
pub use parallel::RankTime;
pub use probe::Probe;
pub use request::{
    EndReason, Finish, Output, Request, SamplingParams, SpanName, Terms, Timing, TokenScore,
};
pub use scheduler::{GroupStats, Priorities, TenantId, TokenId};
pub use stats::{EngineStats, STEP_BOUNDS, StepKind, StepTimes};
pub use watch::{DeliverStep, N_STEPS_KEPT, StepRecord, StepTrace};
