//! What can be wrong with a request, and what the answer's status says of it.
//!
//! One enum for every protocol: [`openai`](super::openai) and [`triton`](super::triton) each know
//! how to write it down. It knows no JSON.

use std::time::Duration;

use axum::http::StatusCode;
use engine::SubmitError;
use thiserror::Error;

/// Seconds after which a refused client may try again: about what a short answer takes.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A request that gets no answer, and why.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ApiError {
    /// The body is no UTF-8.
    #[error("the body is not UTF-8: the byte at {at} starts no character; send JSON in UTF-8")]
    NotUtf8 {
        /// Offset of the first bad byte.
        at: usize,
    },
    /// The body is no JSON.
    #[error("the body is not valid JSON: {problem}")]
    NotJson {
        /// What the reader stumbled over, with line and column.
        problem: String,
    },
    /// The body is JSON, but no object.
    #[error("the body must be a JSON object, not {found}")]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// A field holds a value of another type.
    #[error("`{field}` must be {expected}, not {found}")]
    WrongType {
        /// The field, with its path.
        field: String,
        /// What it takes.
        expected: &'static str,
        /// What it holds.
        found: &'static str,
    },
    /// A field's value is outside its range.
    #[error("`{field}` is {value}, but must be {range}")]
    OutOfRange {
        /// The field, with its path.
        field: String,
        /// What was given.
        value: String,
        /// What is allowed, in words.
        range: String,
    },
    /// A needed field is absent.
    #[error("`{field}` is missing: give {remedy}")]
    Missing {
        /// The field.
        field: &'static str,
        /// What to send.
        remedy: &'static str,
    },
    /// A field is there and empty.
    #[error("`{field}` is empty: give {remedy}")]
    Empty {
        /// The field, with its path.
        field: String,
        /// What to send.
        remedy: &'static str,
    },
    /// A list is longer than its bound.
    #[error("`{field}` has {n} {what}, but at most {n_max} are taken: send fewer")]
    TooMany {
        /// The field, with its path.
        field: String,
        /// What is counted.
        what: &'static str,
        /// How many there are.
        n: usize,
        /// How many there may be.
        n_max: usize,
    },
    /// A field asks for what this server does not do.
    #[error("`{field}` is not supported: {remedy}")]
    Unsupported {
        /// The field, with its path.
        field: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// Prompt and answer do not fit into the context.
    #[error(
        "the context holds {n_max} tokens, but the prompt has {n_prompt} and {n_new} more were \
         asked for: shorten the prompt or lower `max_tokens`"
    )]
    ContextLength {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Tokens to generate at most, as asked; 1 where nothing was asked.
        n_new: usize,
        /// Tokens that fit.
        n_max: usize,
    },
    /// The prompt is so long that it was not even tokenized.
    #[error(
        "the context holds {n_max} tokens, and a prompt of {n_bytes} bytes has more: shorten the \
         prompt"
    )]
    PromptBytes {
        /// Bytes of the prompt.
        n_bytes: usize,
        /// Tokens that fit.
        n_max: usize,
    },
    /// The tokenizer gave up on the prompt.
    #[error("the prompt cannot be tokenized: {cause}")]
    Untokenizable {
        /// What the tokenizer said.
        cause: String,
    },
    /// The checkpoint brings no chat template.
    #[error("this model has no chat template: send the whole prompt to /v1/completions")]
    NoChatTemplate,
    /// The checkpoint's chat template refuses the messages.
    #[error("the model's chat template refuses these messages: {problem}")]
    ChatTemplate {
        /// The template's own words.
        problem: String,
    },
    /// No model of that name.
    #[error("the model '{name}' does not exist: GET /v1/models lists those that do")]
    UnknownModel {
        /// The name.
        name: String,
    },
    /// An operator has unloaded the model.
    #[error(
        "the model is unloaded: POST /v2/repository/models/{name}/load makes it take requests again"
    )]
    ModelUnloaded {
        /// The model.
        name: String,
    },
    /// The model has no such version.
    #[error("the model '{name}' has no version {version}")]
    UnknownVersion {
        /// The model.
        name: String,
        /// The version, as written in the path.
        version: String,
    },
    /// Nothing is served under the path.
    #[error("nothing is served under this path")]
    UnknownPath,
    /// The path exists, but not for this method.
    #[error("this path does not take this method")]
    WrongMethod,
    /// The body is longer than its bound.
    #[error("the body has {n_bytes} bytes or more, but at most {n_bytes_max} are taken")]
    BodyTooLarge {
        /// As long as it was announced or had become.
        n_bytes: usize,
        /// The bound.
        n_bytes_max: usize,
    },
    /// The body did not arrive in time, or broke off.
    #[error("the body did not arrive in full within {seconds} seconds")]
    BodyIncomplete {
        /// The bound.
        seconds: u64,
    },
    /// The body is compressed.
    #[error("the body's Content-Encoding is '{encoding}': send it uncompressed")]
    BodyEncoded {
        /// The encoding.
        encoding: String,
    },
    /// The body is not compressed as it says.
    #[error("the body is not valid {encoding}: send it whole, or uncompressed")]
    BodyGarbled {
        /// The encoding.
        encoding: &'static str,
    },
    /// The key is missing or wrong.
    #[error("the API key is missing or wrong: send `Authorization: Bearer KEY`")]
    Unauthorized,
    /// As many requests run and wait as may.
    #[error("the server is full: {n_max} generations are running or waiting; try again later")]
    QueueFull {
        /// The bound.
        n_max: usize,
    },
    /// As many watch the node as may.
    #[error("{n_max} watchers are told what the node does, and no more can be; try again later")]
    TooManyWatchers {
        /// The bound.
        n_max: usize,
    },
    /// It waited for a slot as long as it was to wait, and nothing of it was computed.
    #[error("no slot was free within the request's queue timeout; try again later")]
    QueueTimeout,
    /// It was not answered in the time that it set.
    #[error(
        "the answer was not complete within the request's timeout: give more time or ask for less"
    )]
    DeadlinePassed,
    /// The format that the answer has to keep cannot be compiled.
    #[error("`{field}` cannot be compiled: {problem}")]
    Uncompilable {
        /// The field that brought it.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The answer met a place in its format that takes more work than a token may.
    #[error("the answer's format became too costly to follow: see the log, and give a simpler one")]
    GuideFailed,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The engine has failed.
    #[error("the engine has failed: {cause}")]
    EngineFailed {
        /// The first failure, in words.
        cause: String,
    },
    /// A task of ours died: a fault of the server, whose details are in its log.
    #[error("the server failed on this request; see its log")]
    Internal,
}

impl ApiError {
    /// The answer's status, in every protocol that has no word of its own for it.
    pub fn status(&self) -> StatusCode {
        match self {
            ApiError::NotUtf8 { .. }
            | ApiError::NotJson { .. }
            | ApiError::BodyGarbled { .. }
            | ApiError::NotAnObject { .. }
            | ApiError::WrongType { .. }
            | ApiError::OutOfRange { .. }
            | ApiError::Missing { .. }
            | ApiError::Empty { .. }
            | ApiError::TooMany { .. }
            | ApiError::Unsupported { .. }
            | ApiError::ContextLength { .. }
            | ApiError::PromptBytes { .. }
            | ApiError::Untokenizable { .. }
            | ApiError::NoChatTemplate
            | ApiError::Uncompilable { .. }
            | ApiError::ChatTemplate { .. } => StatusCode::BAD_REQUEST,
            ApiError::UnknownModel { .. }
            | ApiError::UnknownVersion { .. }
            | ApiError::UnknownPath => StatusCode::NOT_FOUND,
            ApiError::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::BodyIncomplete { .. } | ApiError::DeadlinePassed => {
                StatusCode::REQUEST_TIMEOUT
            }
            ApiError::BodyEncoded { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ApiError::Unauthorized => StatusCode::UNAUTHORIZED,
            ApiError::QueueFull { .. } | ApiError::TooManyWatchers { .. } => {
                StatusCode::TOO_MANY_REQUESTS
            }
            // As Triton's queue policy answers, and what OpenAI's clients try again.
            ApiError::QueueTimeout
            | ApiError::ShuttingDown
            | ApiError::ModelUnloaded { .. }
            | ApiError::EngineFailed { .. } => StatusCode::SERVICE_UNAVAILABLE,
            ApiError::GuideFailed | ApiError::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The error's one word: the metric's label, and OpenAI's `code`.
    pub fn label(&self) -> &'static str {
        match self {
            ApiError::NotUtf8 { .. } => "not_utf8",
            ApiError::NotJson { .. } | ApiError::NotAnObject { .. } => "invalid_json",
            ApiError::WrongType { .. } => "invalid_type",
            ApiError::OutOfRange { .. } => "invalid_value",
            ApiError::Missing { .. } => "missing_field",
            ApiError::Empty { .. } => "empty_field",
            ApiError::TooMany { .. } => "too_many_items",
            ApiError::Unsupported { .. } => "unsupported",
            ApiError::ContextLength { .. } | ApiError::PromptBytes { .. } => {
                "context_length_exceeded"
            }
            ApiError::Untokenizable { .. } => "untokenizable",
            ApiError::NoChatTemplate | ApiError::ChatTemplate { .. } => "chat_template",
            ApiError::Uncompilable { .. } => "invalid_format",
            ApiError::GuideFailed => "format_failed",
            ApiError::UnknownModel { .. } => "model_not_found",
            ApiError::UnknownVersion { .. } => "version_not_found",
            ApiError::ModelUnloaded { .. } => "model_unloaded",
            ApiError::UnknownPath => "unknown_path",
            ApiError::WrongMethod => "method_not_allowed",
            ApiError::BodyTooLarge { .. } => "body_too_large",
            ApiError::BodyIncomplete { .. } => "body_incomplete",
            ApiError::BodyEncoded { .. } | ApiError::BodyGarbled { .. } => "body_encoded",
            ApiError::Unauthorized => "invalid_api_key",
            ApiError::QueueFull { .. } => "queue_full",
            ApiError::TooManyWatchers { .. } => "too_many_watchers",
            ApiError::QueueTimeout => "queue_timeout",
            ApiError::DeadlinePassed => "deadline_passed",
            ApiError::ShuttingDown => "shutting_down",
            ApiError::EngineFailed { .. } => "engine_failed",
            ApiError::Internal => "internal",
        }
    }

    /// The field at fault, if it is one.
    pub fn field(&self) -> Option<&str> {
        match self {
            ApiError::WrongType { field, .. }
            | ApiError::OutOfRange { field, .. }
            | ApiError::Empty { field, .. }
            | ApiError::TooMany { field, .. }
            | ApiError::Uncompilable { field, .. }
            | ApiError::Unsupported { field, .. } => Some(field),
            ApiError::Missing { field, .. } => Some(field),
            ApiError::UnknownModel { .. } => Some("model"),
            ApiError::ChatTemplate { .. } => Some("messages"),
            _ => None,
        }
    }

    /// When to try again, for those errors that time mends.
    pub fn retry_after(&self) -> Option<Duration> {
        let is_mended = matches!(
            self,
            ApiError::QueueFull { .. } | ApiError::QueueTimeout | ApiError::TooManyWatchers { .. }
        );
        is_mended.then_some(RETRY_AFTER)
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> ApiError {
        match error {
            SubmitError::QueueFull { n_max } => ApiError::QueueFull { n_max },
            SubmitError::EmptyPrompt => {
                ApiError::Empty { field: "prompt".into(), remedy: "at least one token" }
            }
            SubmitError::PromptTooLong { n_prompt, n_max } => {
                ApiError::ContextLength { n_prompt, n_new: 1, n_max }
            }
            SubmitError::TokenOutOfVocabulary { token, vocab_size } => ApiError::OutOfRange {
                field: "token id".into(),
                value: token.to_string(),
                range: format!("below {vocab_size}, the size of the vocabulary"),
            },
            SubmitError::Sampling(invalid) => ApiError::OutOfRange {
                field: invalid.field.into(),
                value: invalid.value.to_string(),
                range: format!("between {} and {}", invalid.min, invalid.max),
            },
            SubmitError::TooManyLogprobs { asked, n_max } => ApiError::OutOfRange {
                field: "logprobs".into(),
                value: asked.to_string(),
                range: format!("at most {n_max}"),
            },
            SubmitError::ShuttingDown => ApiError::ShuttingDown,
            SubmitError::EngineFailed { cause } => ApiError::EngineFailed { cause },
        }
    }
}
