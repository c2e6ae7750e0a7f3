//! One answer's guide: reasoning that is opened, counted and closed, then a format.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use engine::{Allowed, Guide, TokenId, TokenSet};

use super::formats::{CompiledFormat, FormatState};
use super::reasoning::{ReasoningSets, Section};
use crate::text::{SpecialTokens, TextModel};

/// How an answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reasoning {
    /// With the answer itself: the model was told not to reason.
    None,
    /// With `<think>`, or not: as the model likes.
    Free,
    /// Within the reasoning, which the prompt has opened.
    Opened,
}

/// What an answer is held to. Shared by a prompt's answers, each of which has a guide of its own.
#[derive(Clone, Debug)]
pub struct AnswerRules {
    /// How it begins.
    pub reasoning: Reasoning,
    /// Tokens of reasoning after which it is closed.
    pub n_reasoning_max: Option<usize>,
    /// What follows the reasoning.
    pub format: Option<Arc<CompiledFormat>>,
}

/// What guides of one model share.
pub struct GuideParts {
    text: Arc<TextModel>,
    vocab_size: usize,
    sets: OnceLock<ReasoningSets>,
}

/// An answer as far as it has come.
struct Answer {
    parts: Arc<GuideParts>,
    section: Section,
    /// Tokens that come next, whatever the model likes.
    forced: VecDeque<TokenId>,
    n_reasoning: usize,
    n_reasoning_max: usize,
    last_byte: u8,
    format: Option<Arc<CompiledFormat>>,
    state: Option<FormatState>,
}

impl GuideParts {
    /// For a model with so many entries in its vocabulary.
    pub fn new(text: Arc<TextModel>, vocab_size: usize) -> GuideParts {
        GuideParts { text, vocab_size, sets: OnceLock::new() }
    }

    fn forced(&self, token: TokenId) -> Allowed {
        match TokenSet::of(&[token], self.vocab_size) {
            Some(set) => Allowed::Only(Arc::new(set)),
            None => Allowed::Nothing { cause: format!("token {} is not there", token.0) },
        }
    }

    /// Tokens of a text of ours.
    fn tokens(&self, text: &str) -> VecDeque<TokenId> {
        // Byte-level tokenizers encode every text.
        self.text.encode(text, SpecialTokens::Literal).unwrap_or_default().into()
    }
}

impl AnswerRules {
    /// Anything goes.
    pub fn free() -> AnswerRules {
        AnswerRules { reasoning: Reasoning::None, n_reasoning_max: None, format: None }
    }

    /// Whether there is anything to hold an answer to.
    pub fn is_needed(&self) -> bool {
        self.format.is_some() || self.n_reasoning_max.is_some()
    }

    /// The guide of one answer.
    pub fn guide(&self, parts: &Arc<GuideParts>) -> Guide {
        let (section, forced) = match self.reasoning {
            // Without a format it costs nothing to look whether it reasons all the same.
            Reasoning::None if self.format.is_some() => (Section::Answer, VecDeque::new()),
            Reasoning::Opened => (Section::Inside { n_matched: 0 }, VecDeque::new()),
            // What follows a format must know where the reasoning ends: it has to begin.
            Reasoning::Free if self.format.is_some() => {
                (Section::Start { n_matched: 0 }, parts.tokens("<think>\n"))
            }
            Reasoning::None | Reasoning::Free => (Section::Start { n_matched: 0 }, VecDeque::new()),
        };
        let mut answer = Answer {
            parts: Arc::clone(parts),
            section,
            forced,
            n_reasoning: 0,
            n_reasoning_max: self.n_reasoning_max.unwrap_or(usize::MAX),
            last_byte: b'\n',
            format: self.format.clone(),
            state: None,
        };
        let first = answer.first();
        Guide { first, next: Box::new(move |token| answer.push(token)) }
    }
}

impl Answer {
    fn first(&mut self) -> Allowed {
        match (&self.section, &self.format) {
            (Section::Answer, Some(format)) => {
                self.state = Some(format.begin());
                format.first()
            }
            _ => self.allowed(),
        }
    }

    /// Takes a token; what may follow it.
    fn push(&mut self, token: TokenId) -> Allowed {
        if let Some(state) = &mut self.state {
            return state.push(token);
        }
        let was_forced = self.forced.pop_front().is_some();
        let was_inside = matches!(self.section, Section::Inside { .. });
        let bytes = match self.parts.text.is_special(token) {
            true => &[],
            false => self.parts.text.token_bytes(token),
        };
        self.last_byte = bytes.last().copied().unwrap_or(self.last_byte);
        self.section = self.section.clone().after(bytes);
        self.n_reasoning += usize::from(was_inside);
        if self.section == Section::Answer {
            // One blank line stands before the answer, as the model was trained to write it.
            if was_inside && !was_forced && self.format.is_some() && self.last_byte != b'\n' {
                self.forced = self.parts.tokens("\n\n");
            }
            if self.forced.is_empty() {
                return self.begin_format();
            }
        }
        self.allowed()
    }

    fn begin_format(&mut self) -> Allowed {
        let Some(format) = &self.format else { return Allowed::All };
        self.state = Some(format.begin());
        format.first()
    }

    /// What may come next, before the format begins.
    fn allowed(&mut self) -> Allowed {
        let Section::Inside { n_matched } = self.section else {
            return self.forced.front().map_or(Allowed::All, |&token| self.parts.forced(token));
        };
        if self.n_reasoning >= self.n_reasoning_max && self.forced.is_empty() {
            let close = if self.last_byte == b'\n' { "</think>\n\n" } else { "\n</think>\n\n" };
            self.forced = self.parts.tokens(close);
        }
        match self.forced.front() {
            Some(&token) => self.parts.forced(token),
            None if self.format.is_some() => {
                let parts = &self.parts;
                let new = || ReasoningSets::new(&parts.text, parts.vocab_size);
                parts.sets.get_or_init(new).allowed(n_matched)
            }
            None => Allowed::All,
        }
    }
}

#[cfg(test)]
mod tests;
