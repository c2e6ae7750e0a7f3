//! What all endpoints' streams have in common: pieces of answers become events as the connection
//! takes them. When the client is gone the connection drops its answer, which cancels the
//! generations.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use axum::response::Response;
use tracing::Span;

use super::super::body::made;
use super::super::generation::{Delta, Generations};
use super::super::observe::Record;
use super::super::sse;
use super::error::Refusal;

/// The response whose events `write` makes of pieces, or none of a piece; at the end, of `None`, it
/// makes the last one.
pub(super) fn respond(
    generations: Generations,
    record: Arc<Record>,
    write: impl FnMut(Option<Delta>) -> Option<Vec<u8>> + Send + Unpin + 'static,
) -> Response {
    start(generations, record, (write, sse::DONE))
}

/// The same without a last word, for streams whose last event says that it is.
pub(super) fn respond_bare(
    generations: Generations,
    record: Arc<Record>,
    write: impl FnMut(Option<Delta>) -> Option<Vec<u8>> + Send + Unpin + 'static,
) -> Response {
    start(generations, record, (write, b""))
}

/// A piece's text, where it adds nothing else but the token itself.
pub(super) fn only_text(piece: &Delta) -> Option<&str> {
    let Delta { prompt_scores, text, score, end, .. } = piece;
    let is_all = prompt_scores.is_empty() && score.is_none() && end.is_none();
    Some(text.as_str()).filter(|text| is_all && !text.is_empty())
}

fn start(
    generations: Generations,
    record: Arc<Record>,
    (write, last): (
        impl FnMut(Option<Delta>) -> Option<Vec<u8>> + Send + Unpin + 'static,
        &'static [u8],
    ),
) -> Response {
    let last = (!last.is_empty()).then_some(last);
    let span = Span::current();
    let mut events = Events { generations, write, last, is_over: false, span, _record: record };
    sse::response(made(move |cx| events.poll_next(cx)))
}

/// What is still to be said.
struct Events<Write> {
    generations: Generations,
    write: Write,
    /// The last word, until it is said.
    last: Option<&'static [u8]>,
    /// All but the last word was said.
    is_over: bool,
    span: Span,
    /// The request lasts as long as its answer.
    _record: Arc<Record>,
}

impl<Write: FnMut(Option<Delta>) -> Option<Vec<u8>>> Events<Write> {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while !self.is_over {
            let event = match ready!(self.generations.poll_next(cx)) {
                Ok(delta) => {
                    self.is_over = delta.is_none();
                    (self.write)(delta)
                }
                Err(error) => {
                    let _in_span = self.span.enter();
                    tracing::warn!(%error, "a stream broke off");
                    self.is_over = true;
                    Some(sse::event(&Refusal(error).body()))
                }
            };
            if event.is_some() {
                return Poll::Ready(event.map(Bytes::from));
            }
        }
        Poll::Ready(self.last.take().map(Bytes::from_static))
    }
}
