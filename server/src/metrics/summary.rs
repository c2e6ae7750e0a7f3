//! A generation that is over, in numbers.

use std::time::Duration;

/// How a generation ended, as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A stop token or stop string.
    Stop,
    /// The bound on new tokens or the context.
    Length,
    /// The client went away.
    Abandoned,
    /// No slot was free within its queue timeout.
    QueueTimeout,
    /// It was not complete within its timeout.
    DeadlinePassed,
    /// The engine failed.
    Failed,
}

/// One finished generation in numbers.
#[derive(Clone, Copy, Debug)]
pub struct GenerationSummary {
    /// How it ended.
    pub ended: Ended,
    /// Its level of priority, 1 going first.
    pub level: u32,
    /// Tokens of its prompt.
    pub n_prompt: usize,
    /// Tokens generated.
    pub n_generated: usize,
    /// From its submission to its end.
    pub total: Duration,
    /// From its request's head to its submission.
    pub prepared: Duration,
    /// From its submission to a slot, where it had one.
    pub queued: Option<Duration>,
    /// Part of the total, after the last token.
    pub handed_over: Duration,
}

impl Ended {
    /// Our word for it.
    pub fn word(self) -> &'static str {
        self.reasons().0
    }

    /// Our word for it, and Triton's where it is a failure.
    pub(super) fn reasons(self) -> (&'static str, Option<&'static str>) {
        match self {
            Ended::Stop => ("stop", None),
            Ended::Length => ("length", None),
            Ended::Abandoned => ("abort", Some("CANCELED")),
            // Triton counts what its queue's policy turned away as rejected.
            Ended::QueueTimeout => ("queue_timeout", Some("REJECTED")),
            Ended::DeadlinePassed => ("timeout", Some("OTHER")),
            Ended::Failed => ("error", Some("BACKEND")),
        }
    }
}
