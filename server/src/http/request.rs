//! From what a protocol's reader understood to jobs for the engine: the last checks that all
//! protocols share. What comes out cannot be invalid.

use std::sync::Arc;

use engine::{Request, SamplingParams, SubmitError, Terms, TokenId};

use super::answer::TextRules;
use super::error::ApiError;
use super::fields::at_most;
use super::generation::Job;
use super::limits::HttpLimits;
use super::state::AppState;
use crate::guide::AnswerRules;
use crate::text::{RenderedChat, SpecialTokens, TextError};

/// How long an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerLimit {
    /// What the context leaves.
    Rest,
    /// That many tokens; it is an error if they do not fit, as with vLLM.
    Asked(usize),
    /// That many tokens or what the context leaves, as with TensorRT-LLM.
    Capped(usize),
}

/// How to answer a prompt, whatever the protocol.
#[derive(Clone, Debug)]
pub struct Options {
    /// Answers to each prompt; at least one.
    pub n_choices: usize,
    /// How long each may be.
    pub limit: AnswerLimit,
    /// How tokens are drawn; each answer to a prompt gets a seed of its own.
    pub sampling: SamplingParams,
    /// How tokens become text.
    pub rules: Arc<TextRules>,
    /// Alternatives reported with each token.
    pub n_logprobs: Option<usize>,
    /// The same for the prompt's tokens.
    pub n_prompt_logprobs: Option<usize>,
    /// With whom KV is shared: those who say the same.
    pub cache_salt: Option<Arc<str>>,
    /// What each answer is held to.
    pub answer: AnswerRules,
    /// Whom it may pass, and how long it is wanted.
    pub terms: Terms,
}

impl Options {
    /// One job an answer: all answers to the first prompt, then the second's.
    ///
    /// # Errors
    /// A prompt does not fit, or there are more jobs than the engine could ever hold.
    pub fn jobs(&self, app: &AppState, prompts: &[Arc<[TokenId]>]) -> Result<Vec<Job>, ApiError> {
        let info = app.engine.info();
        let n_max = info.n_slots + info.n_waiting_max;
        let n = prompts.len().saturating_mul(self.n_choices);
        if n > n_max {
            let field = if prompts.len() > n_max { "prompt" } else { "n" };
            return Err(ApiError::TooMany { field: field.into(), what: "answers", n, n_max });
        }
        let mut jobs = Vec::with_capacity(n);
        for prompt in prompts {
            let n_new_max = self.limit.resolve(prompt.len(), info.n_context_tokens)?;
            for choice_idx in 0..self.n_choices {
                let seed = self.sampling.seed.wrapping_add(choice_idx as u64);
                let request = Request {
                    prompt: Arc::clone(prompt),
                    n_new_max,
                    stop_tokens: Arc::clone(&self.rules.stop_tokens),
                    sampling: SamplingParams { seed, ..self.sampling.clone() },
                    n_logprobs: self.n_logprobs,
                    n_prompt_logprobs: self.n_prompt_logprobs,
                    hashes_logits: false,
                    cache_salt: self.cache_salt.clone(),
                    terms: self.terms,
                };
                let guide = self.answer.is_needed().then(|| self.answer.guide(&app.guide_parts));
                jobs.push(Job { request, rules: Arc::clone(&self.rules), guide });
            }
        }
        Ok(jobs)
    }
}

impl AnswerLimit {
    fn resolve(self, n_prompt: usize, n_max: usize) -> Result<usize, ApiError> {
        let n_left = n_max.saturating_sub(n_prompt);
        let n_new = match self {
            AnswerLimit::Rest => n_left,
            AnswerLimit::Asked(n) => n,
            AnswerLimit::Capped(n) => n.min(n_left),
        };
        // Scoring a prompt asks for no token and needs no room for one.
        let needs_room = self != AnswerLimit::Asked(0);
        if n_new > n_left || n_prompt > n_max || (needs_room && n_left == 0) {
            return Err(ApiError::ContextLength { n_prompt, n_new: n_new.max(1), n_max });
        }
        Ok(n_new)
    }
}

/// Tokens of a prompt text.
///
/// # Errors
/// It is far longer than the context, which is told without tokenizing it.
pub fn encode(
    app: &AppState,
    text: &str,
    special: SpecialTokens,
) -> Result<Arc<[TokenId]>, ApiError> {
    check_length(app, text.len())?;
    Ok(app.text.encode(text, special)?.into())
}

/// Tokens of a rendered conversation.
///
/// # Errors
/// As for [`encode`].
pub fn encode_chat(app: &AppState, chat: &RenderedChat) -> Result<Arc<[TokenId]>, ApiError> {
    check_length(app, chat.text().len())?;
    Ok(app.text.encode_chat(chat)?.into())
}

/// Tokenizing takes a second a few megabytes: what cannot fit is refused before.
fn check_length(app: &AppState, n_bytes: usize) -> Result<(), ApiError> {
    let n_max = app.engine.info().n_context_tokens;
    if n_bytes / app.n_token_bytes_max > n_max {
        return Err(ApiError::PromptBytes { n_bytes, n_max });
    }
    Ok(())
}

/// What the engine would refuse, refused before anything is tokenized.
///
/// # Errors
/// A parameter is out of range, or a bias is for no token.
pub fn checked(sampling: SamplingParams, app: &AppState) -> Result<SamplingParams, ApiError> {
    sampling.check().map_err(SubmitError::from)?;
    let vocab_size = app.engine.info().vocab_size;
    for &(token, _) in &sampling.logit_bias {
        if token.idx() >= vocab_size {
            return Err(ApiError::OutOfRange {
                field: "logit_bias".into(),
                value: format!("for token {}", token.0),
                range: format!("for tokens below {vocab_size}, the size of the vocabulary"),
            });
        }
    }
    Ok(sampling)
}

/// Refuses stop strings that are empty or longer than what a stream may hold back.
///
/// # Errors
/// Names `field`.
pub fn check_stops(field: &str, stops: &[String], limits: &HttpLimits) -> Result<(), ApiError> {
    at_most(field, "entries", stops.len(), limits.n_stops_max)?;
    for stop in stops {
        if stop.is_empty() {
            return Err(ApiError::Empty { field: field.into(), remedy: "strings of text" });
        }
        at_most(field, "bytes in one string", stop.len(), limits.n_stop_bytes_max)?;
    }
    Ok(())
}

/// Makes words of one token all but impossible.
///
/// # Errors
/// A word is longer: only its last token could be forbidden, and that is another word.
pub fn forbid_words(
    logit_bias: &mut Vec<(TokenId, f32)>,
    words: &[String],
    app: &AppState,
) -> Result<(), ApiError> {
    for word in words {
        let spellings = [word.clone(), format!(" {}", word.trim_start())];
        let mut is_one_token = false;
        for spelling in spellings {
            if let [token] = app.text.encode(&spelling, SpecialTokens::Literal)?[..] {
                logit_bias.retain(|&(biased, _)| biased != token);
                logit_bias.push((token, -100.0));
                is_one_token = true;
            }
        }
        if !is_one_token {
            let remedy = "only words of one token can be forbidden";
            return Err(ApiError::Unsupported { field: format!("bad_words: {word:?}"), remedy });
        }
    }
    Ok(())
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> ApiError {
        match error {
            TextError::Encode { cause } => ApiError::Untokenizable { cause },
            TextError::NoChatTemplate => ApiError::NoChatTemplate,
            TextError::Refused { reason: problem } | TextError::Template { cause: problem } => {
                ApiError::ChatTemplate { problem }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_gets_what_was_asked_or_what_is_left() {
        use AnswerLimit::{Asked, Capped, Rest};
        let cases = [
            (Rest, 60, Some(40)),
            (Rest, 99, Some(1)),
            (Rest, 100, None),
            (Asked(40), 60, Some(40)),
            (Asked(41), 60, None),
            (Asked(1), 100, None),
            (Asked(0), 100, Some(0)),
            (Asked(0), 101, None),
            (Asked(usize::MAX), 1, None),
            (Capped(10), 60, Some(10)),
            (Capped(usize::MAX), 60, Some(40)),
            (Capped(5), 100, None),
        ];
        for (limit, n_prompt, n_new) in cases {
            assert_eq!(limit.resolve(n_prompt, 100).ok(), n_new, "{limit:?} after {n_prompt}");
        }
    }
}
