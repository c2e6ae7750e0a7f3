//! Scores as both formats write them. JSON has no infinity: a token that cannot be drawn gets the
//! least logarithm that clients expect.

use engine::{TokenId, TokenScore};

use super::wire::{ChatLogprob, ChatTokenLogprob, CompletionLogprobs};
use crate::text::TextModel;

/// What OpenAI writes for a token without probability.
const LOGPROB_MIN: f32 = -9999.0;

/// Writes completions' logprobs of one answer, keeping count of the characters before.
#[derive(Debug, Default)]
pub(super) struct CompletionScores {
    n_chars: usize,
}

impl CompletionScores {
    /// The entries of a run of tokens.
    pub(super) fn take(&mut self, text: &TextModel, scores: &[TokenScore]) -> CompletionLogprobs {
        let mut logprobs = CompletionLogprobs::default();
        for score in scores {
            self.add(&mut logprobs, text, score);
        }
        logprobs
    }

    /// The same with a prompt's first token before it, which follows nothing and has no score.
    pub(super) fn take_prompt(
        &mut self,
        text: &TextModel,
        first: TokenId,
        scores: &[TokenScore],
    ) -> CompletionLogprobs {
        let mut logprobs = CompletionLogprobs::default();
        self.add_token(&mut logprobs, token_text(text, first));
        logprobs.token_logprobs.push(None);
        logprobs.top_logprobs.push(None);
        for score in scores {
            self.add(&mut logprobs, text, score);
        }
        logprobs
    }

    fn add(&mut self, logprobs: &mut CompletionLogprobs, text: &TextModel, score: &TokenScore) {
        let token = token_text(text, score.token);
        let own = (token.clone(), finite(score.logprob));
        // The likeliest of several tokens that are written alike comes last and stays; so does the
        // token's own, which is among them whether or not it was likely.
        let alternatives = score.top.iter().rev();
        let top = alternatives.map(|&(token, logprob)| (token_text(text, token), finite(logprob)));
        self.add_token(logprobs, token);
        logprobs.token_logprobs.push(Some(own.1));
        let wants_top = !score.top.is_empty();
        logprobs.top_logprobs.push(wants_top.then(|| top.chain([own]).collect()));
    }

    fn add_token(&mut self, logprobs: &mut CompletionLogprobs, token: String) {
        logprobs.text_offset.push(self.n_chars);
        self.n_chars += token.chars().count();
        logprobs.tokens.push(token);
    }
}

impl CompletionLogprobs {
    /// Puts other entries behind these.
    pub(super) fn append(&mut self, other: CompletionLogprobs) {
        self.tokens.extend(other.tokens);
        self.token_logprobs.extend(other.token_logprobs);
        self.top_logprobs.extend(other.top_logprobs);
        self.text_offset.extend(other.text_offset);
    }
}

/// A token's entry in the chat format.
pub(super) fn chat_logprob(text: &TextModel, score: &TokenScore) -> ChatTokenLogprob {
    let entry = |token: TokenId, logprob: f32| ChatLogprob {
        token: text.token_text(token),
        logprob: finite(logprob),
        bytes: text.token_bytes(token).to_vec(),
    };
    ChatTokenLogprob {
        chosen: entry(score.token, score.logprob),
        top_logprobs: score.top.iter().map(|&(token, logprob)| entry(token, logprob)).collect(),
    }
}

/// A token's text, or its bytes where they are no whole characters: distinct tokens must not look
/// alike, since the format keys alternatives by it.
fn token_text(text: &TextModel, token: TokenId) -> String {
    let bytes = text.token_bytes(token);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            bytes.iter().fold("bytes:".to_owned(), |word, byte| format!("{word}\\x{byte:02x}"))
        }
    }
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LOGPROB_MIN)
}
