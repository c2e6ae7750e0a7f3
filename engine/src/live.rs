//! What the engine's thread remembers of a request besides its tokens: who reads it, and when what
//! happened.

use std::sync::Arc;
use std::time::Instant;

use scheduler::{FinishReason, RequestId};

use crate::guide::{Allowed, Guide, NextAllowed};
use crate::handle::{Arrival, Deliver, ReaderGone};
use crate::request::{EndReason, Finish, Output, Request, Timing};

/// A request between its submission and its end.
pub(crate) struct Live {
    pub(crate) request: Arc<Request>,
    pub(crate) deliver: Deliver,
    pub(crate) arrived: Instant,
    /// Where it was submitted.
    pub(crate) span: tracing::Span,
    pub(crate) admitted: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
    pub(crate) n_generated: usize,
    /// Tokens of its prompt that were computed before it came.
    pub(crate) n_cached: usize,
    /// Who says what it may say, if anybody does.
    pub(crate) guiding: Option<Guiding>,
    /// How it ends, where that is not what the scheduler will say.
    pub(crate) end: Option<EndReason>,
}

/// What a guided request may say next.
pub(crate) struct Guiding {
    /// What was said last; it holds while `next` is here.
    pub(crate) allowed: Allowed,
    /// Who says it; away while asked.
    pub(crate) next: Option<NextAllowed>,
}

impl Live {
    pub(crate) fn new(arrival: Arrival) -> (RequestId, Live) {
        let live = Live {
            request: Arc::new(arrival.request),
            deliver: arrival.deliver,
            arrived: arrival.arrived,
            span: arrival.span,
            admitted: None,
            first_token: None,
            n_generated: 0,
            n_cached: 0,
            guiding: arrival
                .guide
                .map(|Guide { first, next }| Guiding { allowed: first, next: Some(next) }),
            end: None,
        };
        (arrival.id, live)
    }

    /// Tells the reader that nothing follows.
    pub(crate) fn finish(mut self, reason: EndReason) -> Result<(), ReaderGone> {
        let timing = Timing {
            arrived: self.arrived,
            admitted: self.admitted,
            first_token: self.first_token,
            finished: Instant::now(),
        };
        let finish = Finish {
            reason: self.end.unwrap_or(reason),
            n_prompt: self.request.prompt.len(),
            n_cached: self.n_cached,
            n_generated: self.n_generated,
            timing,
        };
        (self.deliver)(Output::Finish(Box::new(finish)))
    }
}

impl From<FinishReason> for EndReason {
    fn from(reason: FinishReason) -> EndReason {
        match reason {
            FinishReason::Stop(token) => EndReason::Stop(token),
            FinishReason::Length => EndReason::Length,
            FinishReason::Cancelled => EndReason::Cancelled,
            FinishReason::QueueTimeout => EndReason::QueueTimeout,
            FinishReason::DeadlinePassed => EndReason::DeadlinePassed,
        }
    }
}
