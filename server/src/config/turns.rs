//! Whose turn it is, and how long anybody waits: options of priorities, timeouts and latency.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;
use engine::{Policy, Priorities};

/// Options.
#[derive(Args)]
pub(super) struct TurnArguments {
    /// Levels of priority that requests may ask for, 1 going first: where no slot is left for it,
    /// one that runs at a lower level gives way. The middle one is for those that ask for none. 1
    /// takes requests in the order of their arrival. API keys share each level evenly
    #[arg(long, value_name = "N", default_value = "3", help_heading = "Turns")]
    priority_levels: NonZeroU32,

    /// Steps after which a request that waits rises by one level, so that nobody waits for ever
    #[arg(long, value_name = "N", default_value = "256", help_heading = "Turns")]
    priority_steps: NonZeroU32,

    /// Milliseconds that a step should take at most while somebody reads an answer: prompts get
    /// what that leaves of a step, 64 tokens at least. Answers flow more evenly, prompts take
    /// longer [default: steps are filled up to --max-tokens-per-step]
    #[arg(long, value_name = "MS", help_heading = "Turns")]
    itl_target_ms: Option<NonZeroU32>,

    /// Seconds that a request may wait for a slot before it gets 503 with Retry-After, where it
    /// sets no such time itself [default: no bound but that of --max-waiting]
    #[arg(long, value_name = "SECONDS", help_heading = "Turns")]
    queue_timeout: Option<NonZeroU32>,
}

impl TurnArguments {
    /// Decides its part of an engine.
    pub(super) fn policy(self) -> Policy {
        let n_levels = self.priority_levels.get();
        Policy {
            priorities: Priorities {
                n_levels,
                default_level: n_levels.div_ceil(2),
                n_steps_a_level: self.priority_steps.get(),
            },
            step_target: self.itl_target_ms.map(|ms| Duration::from_millis(ms.get().into())),
            queue_timeout: self
                .queue_timeout
                .map(|seconds| Duration::from_secs(seconds.get().into())),
        }
    }
}
