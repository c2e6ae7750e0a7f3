//! A place in the tokens, with the small steps that all of the reader takes.

use crate::ptx::error::{Problem, PtxError};
use crate::ptx::token::{Kind, Token};

pub(super) struct Cursor {
    tokens: Vec<Token>,
    at: usize,
}

impl Cursor {
    pub(super) fn new(tokens: Vec<Token>) -> Cursor {
        Cursor { tokens, at: 0 }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.tokens.len()
    }

    /// Line of the next token, or of the last one.
    pub(super) fn line(&self) -> u32 {
        let idx = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(idx).map_or(0, |token| token.line)
    }

    pub(super) fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    /// The token after the next one.
    pub(super) fn peek_second(&self) -> Option<&Kind> {
        self.tokens.get(self.at + 1).map(|token| &token.kind)
    }

    pub(super) fn next(&mut self) -> Result<Kind, PtxError> {
        let Some(token) = self.tokens.get(self.at) else {
            return Err(self.unexpected("end of text".to_owned(), "more"));
        };
        self.at += 1;
        Ok(token.kind.clone())
    }

    pub(super) fn is_next(&self, punctuation: char) -> bool {
        self.peek() == Some(&Kind::Punctuation(punctuation))
    }

    /// Takes a punctuation mark if it is next.
    pub(super) fn take(&mut self, punctuation: char) -> bool {
        let is_next = self.is_next(punctuation);
        self.at += usize::from(is_next);
        is_next
    }

    pub(super) fn expect(&mut self, punctuation: char) -> Result<(), PtxError> {
        if self.take(punctuation) {
            return Ok(());
        }
        let expected = match punctuation {
            ';' => "`;`",
            ')' => "`)`",
            ']' => "`]`",
            '}' => "`}`",
            _ => "punctuation",
        };
        Err(self.unexpected_next(expected))
    }

    pub(super) fn word(&mut self, expected: &'static str) -> Result<String, PtxError> {
        match self.peek() {
            Some(Kind::Word(word)) => {
                let word = word.clone();
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.unexpected_next(expected)),
        }
    }

    /// Takes a directive if one is next.
    pub(super) fn take_directive(&mut self) -> Option<String> {
        match self.peek() {
            Some(Kind::Word(word)) if word.starts_with('.') => {
                let word = word.clone();
                self.at += 1;
                Some(word)
            }
            _ => None,
        }
    }

    /// Takes a word if it is next.
    pub(super) fn take_word(&mut self, wanted: &str) -> bool {
        let is_next = matches!(self.peek(), Some(Kind::Word(word)) if word == wanted);
        self.at += usize::from(is_next);
        is_next
    }

    pub(super) fn integer(&mut self) -> Result<i64, PtxError> {
        let is_negative = self.take('-');
        match self.peek() {
            Some(&Kind::Integer(value)) => {
                self.at += 1;
                Ok(if is_negative { value.wrapping_neg() } else { value })
            }
            _ => Err(self.unexpected_next("an integer")),
        }
    }

    /// Up to three numbers with commas; what is missing is 1.
    pub(super) fn triple(&mut self) -> Result<[u32; 3], PtxError> {
        let mut triple = [1; 3];
        triple[0] = self.integer()? as u32;
        for axis in &mut triple[1..] {
            if !self.take(',') {
                break;
            }
            *axis = self.integer()? as u32;
        }
        Ok(triple)
    }

    /// Skips what stands on the line of the token before.
    pub(super) fn skip_line(&mut self) {
        let line = self.tokens[self.at - 1].line;
        while self.tokens.get(self.at).is_some_and(|token| token.line == line) {
            self.at += 1;
        }
    }

    pub(super) fn skip_past(&mut self, punctuation: char) -> Result<(), PtxError> {
        while self.next()? != Kind::Punctuation(punctuation) {}
        Ok(())
    }

    pub(super) fn unexpected_next(&self, expected: &'static str) -> PtxError {
        let found = self.peek().map_or_else(|| "end of text".to_owned(), Kind::text);
        self.unexpected(found, expected)
    }

    pub(super) fn unexpected(&self, found: String, expected: &'static str) -> PtxError {
        self.refuse(Problem::Syntax { found, expected })
    }

    pub(super) fn unknown_directive(&self, name: String) -> PtxError {
        self.refuse(Problem::Directive { name })
    }

    /// A refusal of what stands here: the tokens of the line.
    pub(super) fn refuse(&self, problem: Problem) -> PtxError {
        let line = self.line();
        let words: Vec<String> = self
            .tokens
            .iter()
            .filter(|token| token.line == line)
            .map(|token| token.kind.text())
            .collect();
        PtxError { line, text: words.join(" "), problem }
    }
}
