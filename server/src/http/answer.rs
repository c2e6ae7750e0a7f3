//! One answer's text, token by token: detokenized, ended at a stop string. It knows neither the
//! engine's channel nor any protocol.

use std::sync::Arc;

use engine::TokenId;

use crate::text::{Detokenizer, StopMatcher, Stopped, TextModel};

/// How an answer's tokens become text, and which text ends it.
#[derive(Clone, Debug)]
pub struct TextRules {
    /// Stop strings; none is empty.
    pub stops: Vec<String>,
    /// The text keeps the stop string or stop token that ended it.
    pub keeps_stop: bool,
    /// Special tokens are left out of the text.
    pub skips_special: bool,
    /// Tokens that end the answer; their text is left out unless `keeps_stop`.
    pub stop_tokens: Arc<[TokenId]>,
    /// Stop strings are not looked for in the text of this many first tokens.
    pub n_tokens_min: usize,
}

/// A piece of text, and the stop string that it ends at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextPiece {
    /// What may be shown now.
    pub text: String,
    /// The stop string, if the answer is over.
    pub stop: Option<String>,
}

/// An answer's text as it grows.
pub struct AnswerText {
    /// For the stop strings' names. What every token asks of them stands beside.
    rules: Arc<TextRules>,
    keeps_stop: bool,
    n_tokens_min: usize,
    stop_tokens: Arc<[TokenId]>,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    n_tokens: usize,
}

impl AnswerText {
    /// Nothing yet.
    pub fn new(model: &Arc<TextModel>, rules: Arc<TextRules>) -> AnswerText {
        AnswerText {
            detokenizer: Detokenizer::new(Arc::clone(model), rules.skips_special),
            matcher: StopMatcher::new(&rules.stops, rules.keeps_stop),
            n_tokens: 0,
            keeps_stop: rules.keeps_stop,
            n_tokens_min: rules.n_tokens_min,
            stop_tokens: Arc::clone(&rules.stop_tokens),
            rules,
        }
    }

    /// The text that a token adds, as far as it can be neither half a character nor the beginning
    /// of a stop string.
    pub fn push(&mut self, token: TokenId) -> TextPiece {
        self.n_tokens += 1;
        let is_stop = self.stop_tokens.contains(&token);
        let text = match is_stop && !self.keeps_stop {
            true => String::new(),
            false => self.detokenizer.push(token),
        };
        if self.n_tokens <= self.n_tokens_min {
            return TextPiece { text, stop: None };
        }
        self.matched(text)
    }

    /// The tokens are over: what was held back.
    pub fn finish(&mut self) -> TextPiece {
        let rest = self.detokenizer.finish();
        let mut piece = self.matched(rest);
        if piece.stop.is_none() {
            piece.text.push_str(&self.matcher.finish());
        }
        piece
    }

    fn matched(&mut self, text: String) -> TextPiece {
        match self.matcher.push(text) {
            Stopped::No(text) => TextPiece { text, stop: None },
            Stopped::Yes { text, stop_idx } => {
                TextPiece { text, stop: Some(self.rules.stops[stop_idx].clone()) }
            }
        }
    }
}

/// Puts `text` behind `to`; where that is empty, it is taken as it lies.
pub fn append(to: &mut String, text: String) {
    if to.is_empty() { *to = text } else { to.push_str(&text) }
}
