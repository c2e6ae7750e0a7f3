//! What can go wrong around the engine, with the numbers that explain it.

use thiserror::Error;

/// A sampling parameter is out of range.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error("{field} is {value}, but must be between {min} and {max}")]
pub struct InvalidSampling {
    /// The parameter.
    pub field: &'static str,
    /// What was given.
    pub value: f32,
    /// Least allowed.
    pub min: f32,
    /// Greatest allowed.
    pub max: f32,
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SubmitError {
    /// As many requests wait as may.
    #[error("the queue is full: {n_max} requests are running or waiting")]
    QueueFull {
        /// The bound.
        n_max: usize,
    },
    /// The prompt has no token.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt leaves no room for a token.
    #[error("the prompt has {n_prompt} tokens, but the context holds {n_max} with the answer")]
    PromptTooLong {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Tokens that a sequence may hold, prompt and answer.
        n_max: usize,
    },
    /// A token id beyond the vocabulary.
    #[error("token id {token} is outside the vocabulary of {vocab_size}")]
    TokenOutOfVocabulary {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Sampling(#[from] InvalidSampling),
    /// More alternatives were asked for than are reported.
    #[error("{asked} log-probabilities a token were asked for, but at most {n_max} are reported")]
    TooManyLogprobs {
        /// Asked for.
        asked: usize,
        /// The bound.
        n_max: usize,
    },
    /// The engine takes no more requests: it is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The engine has failed.
    #[error("the engine has failed: {cause}")]
    EngineFailed {
        /// The first failure, in words.
        cause: String,
    },
}
