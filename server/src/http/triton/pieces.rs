//! An answer in pieces, as both wires stream it: one response a token, the last of which says that
//! it is the last.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use super::super::error::ApiError;
use super::super::generation::{Answer, Generations};
use super::call::Call;
use super::inputs::Caller;
use super::tensor::Tensor;

/// The pieces of a call's only answer.
pub(super) struct Pieces {
    generations: Generations,
    call: Call,
    /// A piece whose end is still to come.
    begun: Answer,
}

impl Pieces {
    /// Of a call that streams.
    pub(super) fn new(generations: Generations, call: Call) -> Pieces {
        Pieces { generations, call, begun: Answer::default() }
    }

    /// Who asked.
    pub(super) fn caller(&self) -> &Caller {
        &self.call.caller
    }

    /// The next piece; `None` after the last. The end belongs to the piece of the last token: the
    /// engine says both in one breath. May be dropped half-way without losing anything.
    ///
    /// # Errors
    /// As for [`Generations::next`].
    pub(super) async fn next(&mut self) -> Result<Option<Answer>, ApiError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Pieces::next`] for who is polled itself.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Answer>, ApiError>> {
        loop {
            let Some(delta) = ready!(self.generations.poll_next(cx))? else {
                return Poll::Ready(Ok(None));
            };
            let choice_idx = delta.choice_idx;
            self.begun.absorb(delta);
            if self.begun.end.is_some() || !self.generations.is_at_its_end(choice_idx) {
                return Poll::Ready(Ok(Some(std::mem::take(&mut self.begun))));
            }
        }
    }

    /// What a piece says, where that is all that its response would tell.
    pub(super) fn only_text<'a>(&self, piece: &'a Answer) -> Option<&'a str> {
        self.call.only_text(piece).filter(|_| says_something(piece))
    }

    /// A piece's tensors; `None` where it has nothing to say. Load tools count responses as
    /// tokens: every token gets one, even without text.
    pub(super) fn render(&mut self, piece: &Answer) -> Option<Vec<Tensor>> {
        let tells_of_its_end = piece.end.is_some() && self.call.tells_of_its_end();
        let tensors = (says_something(piece) || tells_of_its_end)
            .then(|| self.call.outputs(std::slice::from_ref(piece)))?;
        self.call.forget_prompt();
        Some(tensors)
    }
}

fn says_something(piece: &Answer) -> bool {
    !piece.tokens.is_empty() || !piece.text.is_empty()
}
