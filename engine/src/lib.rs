//! The model on a device, and the loop that drives it.

mod error;
mod handle;
mod request;
mod stats;

pub use error::{InvalidSampling, SubmitError};
pub use handle::{Deliver, EngineHandle, EngineInfo, N_LOGPROBS_MAX, ReaderGone, Ticket};
pub use request::{
    EndReason, Finish, Output, Request, SamplingParams, Timing, TokenScore,
};
pub use scheduler::TokenId;
pub use stats::EngineStats;
