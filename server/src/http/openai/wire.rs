//! Answers as they are written on the wire.

use std::collections::BTreeMap;

use engine::TokenId;
use serde::Serialize;

use super::super::generation::End;
use super::speech::Called;
use crate::text::ToolCall;

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    /// Of all prompts.
    pub(super) prompt_tokens: usize,
    /// Both.
    pub(super) total_tokens: usize,
    /// Generated, over all answers.
    pub(super) completion_tokens: usize,
    pub(super) prompt_tokens_details: PromptDetails,
    /// What some of them were for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) completion_tokens_details: Option<TokenDetails>,
}

/// What became of the prompts' tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct PromptDetails {
    /// Not computed anew: the prefix cache had them when the prompt's first answer began.
    pub(super) cached_tokens: usize,
}

/// What generated tokens were for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct TokenDetails {
    /// Reasoning, its tags among it.
    pub(super) reasoning_tokens: usize,
}

impl Usage {
    /// The sum of both.
    pub(super) fn new(
        prompt_tokens: usize,
        cached_tokens: usize,
        completion_tokens: usize,
    ) -> Usage {
        let total_tokens = prompt_tokens + completion_tokens;
        Usage {
            prompt_tokens,
            total_tokens,
            completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens },
            completion_tokens_details: None,
        }
    }

    /// The same, where reasoning is told apart.
    pub(super) fn with_reasoning(self, reasoning_tokens: usize) -> Usage {
        Usage { completion_tokens_details: Some(TokenDetails { reasoning_tokens }), ..self }
    }
}

/// A whole response.
#[derive(Debug, Serialize)]
pub(super) struct Envelope<'a, Choice> {
    #[serde(flatten)]
    pub(super) name: Name<'a>,
    #[serde(flatten)]
    pub(super) contents: Contents<Choice>,
}

/// What a response and all its chunks begin with.
#[derive(Debug, Serialize)]
pub(super) struct Name<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
}

/// What a response, or a chunk of a streamed one, goes on with.
#[derive(Debug, Serialize)]
pub(super) struct Contents<Choice> {
    pub(super) choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<Vec<u32>>,
}

/// How an answer ended: `null` while it goes on.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Ending {
    pub(super) finish_reason: Option<&'static str>,
    pub(super) stop_reason: Option<StopReason>,
}

/// What made an answer stop, where the request named it.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum StopReason {
    /// One of its stop strings.
    Text(String),
    /// One of its stop tokens.
    Token(u32),
}

/// A choice of a completion, whole or in part.
#[derive(Debug, Default, Serialize)]
pub(super) struct CompletionChoice {
    pub(super) index: usize,
    pub(super) text: String,
    pub(super) logprobs: Option<CompletionLogprobs>,
    #[serde(flatten)]
    pub(super) ending: Ending,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<Vec<u32>>,
}

/// Log-probabilities in the completions format: lists of one length. A prompt's first token has
/// none.
#[derive(Debug, Default, Serialize)]
pub(super) struct CompletionLogprobs {
    pub(super) tokens: Vec<String>,
    pub(super) token_logprobs: Vec<Option<f32>>,
    pub(super) top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// In characters, from the beginning of the answer's text.
    pub(super) text_offset: Vec<usize>,
}

/// A choice of a chat completion.
#[derive(Debug, Serialize)]
pub(super) struct ChatChoice {
    pub(super) index: usize,
    pub(super) message: ChatText,
    pub(super) logprobs: Option<ChatLogprobs>,
    #[serde(flatten)]
    pub(super) ending: Ending,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_ids: Option<Vec<u32>>,
}

/// A part of a choice of a chat completion.
#[derive(Debug, Serialize)]
pub(super) struct ChatChunkChoice {
    pub(super) index: usize,
    pub(super) delta: ChatDelta,
    pub(super) logprobs: Option<ChatLogprobs>,
    #[serde(flatten)]
    pub(super) ending: Ending,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_ids: Option<Vec<u32>>,
}

/// The assistant's turn.
#[derive(Debug, Serialize)]
pub(super) struct ChatText {
    pub(super) role: &'static str,
    /// `null` where the answer ended within the reasoning, or only calls tools.
    pub(super) content: Option<String>,
    #[serde(flatten)]
    pub(super) reasoning: Option<Reasoning>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<WireCall>,
}

/// A part of the assistant's turn.
#[derive(Debug, Default, Serialize)]
pub(super) struct ChatDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
    #[serde(flatten)]
    pub(super) reasoning: Option<Reasoning>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<WireCall>,
}

/// A call of a tool.
#[derive(Clone, Debug, Serialize)]
pub(super) struct WireCall {
    /// In streams only: counted over the answer's calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    r#type: &'static str,
    function: WireFunction,
}

#[derive(Clone, Debug, Serialize)]
struct WireFunction {
    name: String,
    arguments: String,
}

impl WireCall {
    /// A call as it is written in a whole answer, or in a part of one.
    pub(super) fn new(called: Called, is_part: bool) -> WireCall {
        let Called { idx, id, call: ToolCall { name, arguments } } = called;
        let function = WireFunction { name, arguments };
        WireCall { index: is_part.then_some(idx), id, r#type: "function", function }
    }
}

/// What stood between `<think>` and `</think>`, under its old and its new name.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Reasoning {
    reasoning_content: String,
    reasoning: String,
}

impl Reasoning {
    /// Both names for one text.
    pub(super) fn new(text: String) -> Reasoning {
        Reasoning { reasoning_content: text.clone(), reasoning: text }
    }
}

/// Log-probabilities in the chat format: one entry a token.
#[derive(Debug, Serialize)]
pub(super) struct ChatLogprobs {
    pub(super) content: Vec<ChatTokenLogprob>,
}

/// A generated token and its alternatives.
#[derive(Debug, Serialize)]
pub(super) struct ChatTokenLogprob {
    #[serde(flatten)]
    pub(super) chosen: ChatLogprob,
    pub(super) top_logprobs: Vec<ChatLogprob>,
}

/// A token and its log-probability.
#[derive(Debug, Serialize)]
pub(super) struct ChatLogprob {
    pub(super) token: String,
    pub(super) logprob: f32,
    pub(super) bytes: Vec<u8>,
}

/// How an answer ended. Only stop strings and the stop tokens that the request `named` are told;
/// the model's own end of sequence goes without saying.
pub(super) fn ending(end: End, named: &[TokenId]) -> Ending {
    let finish_reason = Some(end.word());
    let stop_reason = match end {
        End::StopString(text) => Some(StopReason::Text(text)),
        End::StopToken(token) if named.contains(&token) => Some(StopReason::Token(token.0)),
        End::StopToken(_) | End::Length => None,
    };
    Ending { finish_reason, stop_reason }
}
