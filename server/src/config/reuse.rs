//! What need not be computed, or not one after the other: options of the prefix cache and of
//! guesses.

use std::str::FromStr;

use clap::Args;
use engine::EngineConfig;
use thiserror::Error;

/// Guesses that a step verifies at most for one sequence: more are seldom right, and paid for.
const N_CANDIDATES_MAX: usize = 32;

/// Options.
#[derive(Args, Default)]
pub(super) struct ReuseArguments {
    /// Computes every prompt from its first token, also where an earlier one began alike
    #[arg(long, help_heading = "Memory")]
    no_prefix_cache: bool,

    /// Guesses tokens and verifies them in the step that would compute the next one alone; the
    /// answers stay the same. ngram:K guesses up to K tokens (1 to 32) as what followed last time
    /// in the same sequence: good for text that repeats itself or its prompt. Guesses get what a
    /// step has left of its tokens. On GPUs, tokens are sampled on the host then and no step is
    /// planned ahead, so that what is not guessed is slower
    #[arg(long, value_name = "METHOD:K", help_heading = "Capacity")]
    speculate: Option<Guesses>,
}

/// How tokens are guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guesses {
    n_max: usize,
}

/// Not a way to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("write ngram:K, K from 1 to {N_CANDIDATES_MAX}: ngram:4, for example")]
struct UnknownMethod;

impl FromStr for Guesses {
    type Err = UnknownMethod;

    fn from_str(text: &str) -> Result<Guesses, UnknownMethod> {
        let n_max = text.strip_prefix("ngram:").and_then(|n| n.parse().ok());
        let n_max = n_max.filter(|n| (1..=N_CANDIDATES_MAX).contains(n));
        n_max.map(|n_max| Guesses { n_max }).ok_or(UnknownMethod)
    }
}

impl ReuseArguments {
    /// Decides its part of an engine.
    pub(super) fn decide(self, engine: EngineConfig) -> EngineConfig {
        let n_candidates_max = self.speculate.map_or(0, |guesses| guesses.n_max);
        EngineConfig {
            caches_prefixes: !self.no_prefix_cache,
            n_candidates_max,
            // What is guessed at waits for its token: planned ahead, every other step would have
            // nothing of it.
            overlaps_steps: engine.overlaps_steps && n_candidates_max == 0,
            ..engine
        }
    }
}
