//! What need not be computed, or not one after the other: options of the prefix cache, of what
//! falls out of it, and of guesses.

use std::str::FromStr;

use clap::Args;
use engine::{EngineConfig, HostKv};
use thiserror::Error;

use super::arguments::at_least_one;
use super::size::ByteSize;

/// Guesses that a step verifies at most for one sequence: more are seldom right, and paid for.
const N_CANDIDATES_MAX: usize = 32;

/// Options.
#[derive(Args, Default)]
pub(super) struct ReuseArguments {
    /// Computes every prompt from its first token, also where an earlier one began alike
    #[arg(long, help_heading = "Memory")]
    no_prefix_cache: bool,

    /// Memory of this machine for KV that falls out of the prefix cache, over all ranks, such as
    /// 64GiB: it comes back when a prompt begins with it. On GPUs it is pinned
    #[arg(long, value_name = "SIZE", conflicts_with = "no_prefix_cache", help_heading = "Memory")]
    host_kv_cache: Option<ByteSize>,

    /// So many tokens come back from --host-kv-cache at least: fewer are computed anew
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = at_least_one)]
    #[arg(help_heading = "Memory")]
    host_kv_min_tokens: usize,

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
            host_kv: self
                .host_kv_cache
                .map(|size| HostKv { n_bytes: size.0, n_tokens_min: self.host_kv_min_tokens }),
            n_candidates_max,
            // What is guessed at waits for its token: planned ahead, every other step would have
            // nothing of it.
            overlaps_steps: engine.overlaps_steps && n_candidates_max == 0,
            ..engine
        }
    }
}
