//! What happens to the scheduler, and what it asks to be done about it.

use crate::{Request, RequestId, StepId, TokenId};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A request wants to run.
    Arrive(Request),
    /// A request's reader is gone. It ends at once, also while rows of it are in flight; their
    /// results are dropped when they come. Unknown and ended requests are fine.
    Cancel(RequestId),
    /// It is known what may follow the last token of a guided request, which goes on. Unknown and
    /// ended requests are fine.
    Allow(RequestId),
    /// A planned step has run.
    Complete(StepResult),
}

/// What a step yielded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepResult {
    /// The step, as planned.
    pub step: StepId,
    /// As many entries as the plan has answers ([`StepPlan::n_answers`](crate::StepPlan)), a row's
    /// where it says: its sampled token, if the row samples, and behind it one for each candidate
    /// that was right; `None` from the first that was wrong on.
    pub tokens: Vec<Option<TokenId>>,
    /// Microseconds that it ran, as measured; what the next steps may hold may follow from it.
    pub took_us: u64,
}

/// Something to do for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The request generated a token.
    Token {
        /// Whose.
        request: RequestId,
        /// What was sampled.
        token: TokenId,
        /// Which of the completed plan's results it is.
        answer_idx: usize,
    },
    /// The request has ended; nothing follows for it.
    Finish {
        /// Who.
        request: RequestId,
        /// Why.
        reason: FinishReason,
    },
    /// The request was never taken; nothing follows for it.
    Refuse {
        /// Who.
        request: RequestId,
        /// Why.
        refusal: Refusal,
    },
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// It generated one of its stop tokens.
    Stop(TokenId),
    /// It reached `n_new_max` or the context's length.
    Length,
    /// It was cancelled.
    Cancelled,
    /// It had no slot by its [queue deadline](crate::Terms::queue_deadline).
    QueueTimeout,
    /// It had not ended by its [deadline](crate::Terms::deadline).
    DeadlinePassed,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Every slot is taken and as many requests wait as may.
    QueueFull,
    /// The prompt is empty.
    EmptyPrompt,
    /// The prompt leaves no room for a generated token, by the context or the pools.
    TooLong {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Tokens that the prompt of such a request may have.
        n_max: usize,
    },
}
