//! What the scheduler needs to know of a request: its tokens and when it ends.

use std::sync::Arc;

use crate::{RequestId, Terms, TokenId};

/// A request as it arrives. How its tokens are sampled is not the scheduler's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Unique among all requests ever applied.
    pub id: RequestId,
    /// At least one token. Requests whose prompts are one allocation are several answers to it:
    /// the first computes it for all.
    pub prompt: Arc<[TokenId]>,
    /// Tokens to generate at most; zero only makes sense with `scores_prompt`.
    pub n_new_max: usize,
    /// A generated token among these ends the request (and is itself emitted).
    pub stop_tokens: Arc<[TokenId]>,
    /// Whether the prompt's own log-probabilities are wanted: its rows then carry
    /// [`Emit::Score`](crate::Emit::Score).
    pub scores_prompt: bool,
    /// What it computes is shared with requests of the same salt, and with no others.
    pub cache_salt: Option<Arc<str>>,
    /// Somebody outside says, knowing all its tokens, which may come next: after each that it
    /// generates, it samples no other before [`Event::Allow`](crate::Event::Allow).
    pub is_guided: bool,
    /// Whom it may pass, and how long it is wanted.
    pub terms: Terms,
}
