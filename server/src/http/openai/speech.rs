//! What an answer says, told apart as it comes: reasoning, content, calls of tools. For all
//! endpoints that know these.

use super::super::answer;
use super::super::generation::{Delta, End};
use super::super::observe::random;
use crate::text::{Piece, ReasoningSplitter, ToolCall, ToolCallParser, ToolPiece};

/// Tells an answer's parts apart.
#[derive(Clone, Debug)]
pub(super) struct Speech {
    splitter: Option<ReasoningSplitter>,
    tools: Option<ToolCallParser>,
    is_parallel: bool,
    tells_reasoning: bool,
    n_calls: usize,
    n_reasoning_tokens: usize,
}

/// What one piece of an answer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) reasoning: Option<String>,
    pub(super) content: Option<String>,
    pub(super) calls: Vec<Called>,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Called {
    /// Counted over the answer's calls.
    pub(super) idx: usize,
    pub(super) id: String,
    pub(super) call: ToolCall,
}

impl Speech {
    /// With reasoning to be told apart or not; with tools that may be called, several at once or
    /// one, or none.
    pub(super) fn new(
        splitter: Option<ReasoningSplitter>,
        tools_are_parallel: Option<bool>,
    ) -> Speech {
        Speech {
            splitter,
            tools: tools_are_parallel.map(|_| ToolCallParser::new()),
            is_parallel: tools_are_parallel.unwrap_or(true),
            tells_reasoning: true,
            n_calls: 0,
            n_reasoning_tokens: 0,
        }
    }

    /// Whether what is told apart as reasoning is told at all; it is counted either way.
    pub(super) fn tells_reasoning(&mut self, tells: bool) {
        self.tells_reasoning = tells;
    }

    /// Takes the next piece of the answer.
    pub(super) fn take(&mut self, delta: &Delta) -> Said {
        let mut said = Said::default();
        let was_inside = self.splitter.as_ref().is_some_and(ReasoningSplitter::is_inside);
        let mut pieces = match &mut self.splitter {
            Some(splitter) => splitter.push(&delta.text),
            None if delta.text.is_empty() => Vec::new(),
            None => vec![Piece::Content(delta.text.clone())],
        };
        let is_inside = self.splitter.as_ref().is_some_and(ReasoningSplitter::is_inside);
        if delta.token.is_some() && (was_inside || is_inside) {
            self.n_reasoning_tokens += 1;
        }
        if delta.end.is_some() {
            pieces.extend(self.splitter.as_mut().and_then(ReasoningSplitter::finish));
        }
        for piece in pieces {
            match piece {
                Piece::Reasoning(_) if !self.tells_reasoning => {}
                Piece::Reasoning(text) => append(&mut said.reasoning, text),
                Piece::Content(text) => self.content(text, &mut said),
            }
        }
        if delta.end.is_some()
            && let Some(piece) = self.tools.as_mut().and_then(ToolCallParser::finish)
        {
            self.piece(piece, &mut said);
        }
        said
    }

    /// Tokens of the reasoning, its tags among them.
    pub(super) fn n_reasoning_tokens(&self) -> usize {
        self.n_reasoning_tokens
    }

    /// OpenAI's word for an answer's end.
    pub(super) fn end_word(&self, end: &End) -> &'static str {
        match end {
            End::StopToken(_) | End::StopString(_) if self.n_calls > 0 => "tool_calls",
            end => end.word(),
        }
    }

    fn content(&mut self, text: String, said: &mut Said) {
        match &mut self.tools {
            None => append(&mut said.content, text),
            Some(tools) => {
                for piece in tools.push(&text) {
                    self.piece(piece, said);
                }
            }
        }
    }

    fn piece(&mut self, piece: ToolPiece, said: &mut Said) {
        match piece {
            ToolPiece::Text(text) => append(&mut said.content, text),
            // What was not asked for is not told: the caller could not answer it.
            ToolPiece::Call(_) if self.n_calls > 0 && !self.is_parallel => {}
            ToolPiece::Call(call) => {
                let id = format!("call_{:016x}", random());
                said.calls.push(Called { idx: self.n_calls, id, call });
                self.n_calls += 1;
            }
        }
    }
}

impl Said {
    /// Whether it says nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.reasoning.is_none() && self.content.is_none() && self.calls.is_empty()
    }

    /// Adds what was said next.
    pub(super) fn absorb(&mut self, next: Said) {
        if let Some(text) = next.reasoning {
            append(&mut self.reasoning, text);
        }
        if let Some(text) = next.content {
            append(&mut self.content, text);
        }
        self.calls.extend(next.calls);
    }
}

fn append(to: &mut Option<String>, text: String) {
    if !text.is_empty() {
        answer::append(to.get_or_insert_default(), text);
    }
}
