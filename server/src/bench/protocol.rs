//! Five ways to ask the same: how a request is written in each, and what its answers mean.

mod openai;
mod triton;

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::ask::Ask;
use super::client::escaped;

/// Where requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// OpenAI's /v1/chat/completions, streaming
    Chat,
    /// OpenAI's /v1/completions, streaming
    Completions,
    /// Triton's generate: one whole answer, so no time to the first token
    Generate,
    /// Triton's generate_stream
    GenerateStream,
    /// Triton's infer with JSON tensors: one whole answer, so no time to the first token
    Infer,
}

/// What is the same in all requests of a run.
#[derive(Clone, Debug)]
pub struct Asking {
    /// Where.
    pub endpoint: Endpoint,
    /// The model's name.
    pub model: String,
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Answers end where the model ends them, not at the length that was asked for.
    pub ends_naturally: bool,
}

/// What a piece of an answer says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Text, reasoning among it.
    pub text: String,
    /// It is of the answer itself, even if it makes no text: where it comes first, the server has
    /// the first token.
    pub is_answer: bool,
    /// It carries a token that can be read, or counts as one.
    pub has_token: bool,
    /// Tokens of the prompt, as the server counts.
    pub n_prompt: Option<usize>,
    /// Of these, from its cache.
    pub n_cached: Option<usize>,
    /// Tokens of the answer so far, as the server counts.
    pub n_out: Option<usize>,
    /// Tokens of this piece, where the server counts so.
    pub n_new: Option<usize>,
    /// Nothing comes after it.
    pub is_last: bool,
    /// The server's own moments, in Triton's words.
    pub waits: Option<Waits>,
}

/// How long a request waited within the server before its first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// From its arrival until the engine had it: reading, template, tokenizer. Triton's metrics
    /// know no such moment.
    pub prepare: Duration,
    /// Until it was given a slot.
    pub queue: Duration,
    /// Until its first token.
    pub prefill: Duration,
}

impl Endpoint {
    /// All, OpenAI's first.
    pub const ALL: [Endpoint; 5] = [
        Endpoint::Chat,
        Endpoint::Completions,
        Endpoint::GenerateStream,
        Endpoint::Generate,
        Endpoint::Infer,
    ];

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Endpoint::Chat => "chat",
            Endpoint::Completions => "completions",
            Endpoint::Generate => "generate",
            Endpoint::GenerateStream => "generate-stream",
            Endpoint::Infer => "infer",
        }
    }

    /// Whether answers come token by token.
    pub fn streams(self) -> bool {
        matches!(self, Endpoint::Chat | Endpoint::Completions | Endpoint::GenerateStream)
    }

    /// Whether the prompt is one text, the same in each of these.
    pub fn takes_text(self) -> bool {
        self != Endpoint::Chat
    }

    /// Its path.
    pub fn path(self, model: &str) -> String {
        let of_model = |what: &str| format!("/v2/models/{}/{what}", escaped(model));
        match self {
            Endpoint::Chat => "/v1/chat/completions".to_owned(),
            Endpoint::Completions => "/v1/completions".to_owned(),
            Endpoint::Generate => of_model("generate"),
            Endpoint::GenerateStream => of_model("generate_stream"),
            Endpoint::Infer => of_model("infer"),
        }
    }
}

impl Asking {
    /// A request's body.
    pub fn body(&self, ask: &Ask) -> Vec<u8> {
        let body = match self.endpoint {
            Endpoint::Chat => openai::chat(self, ask),
            Endpoint::Completions => openai::completion(self, ask),
            Endpoint::Generate => triton::generate(self, ask, false),
            Endpoint::GenerateStream => triton::generate(self, ask, true),
            Endpoint::Infer => triton::infer(self, ask),
        };
        body.to_string().into_bytes()
    }

    /// What an event's data, or a whole body, says.
    ///
    /// # Errors
    /// It is an error of the server's, or nothing that this protocol has.
    pub fn read(&self, data: &str) -> Result<Piece, String> {
        match self.endpoint {
            Endpoint::Chat | Endpoint::Completions => openai::read(data),
            Endpoint::Generate | Endpoint::GenerateStream => triton::read_generate(data),
            Endpoint::Infer => triton::read_infer(data),
        }
    }
}

/// The words of an error's body, in any protocol's form; or its beginning.
pub fn error_words(body: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let error = &value["error"];
    let words = error.as_str().or(error["message"].as_str()).or(value["message"].as_str());
    let words = words.unwrap_or(body).trim();
    words.chars().take(N_ERROR_CHARS_MAX).collect()
}

const N_ERROR_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests;
