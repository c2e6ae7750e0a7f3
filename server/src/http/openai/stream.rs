//! What all endpoints' streams have in common: the task that turns pieces into events.

use std::sync::Arc;

use axum::response::Response;
use tracing::Instrument;

use super::super::body::{Chunks, ClientGone, chunked};
use super::super::generation::{Delta, Generations};
use super::super::observe::Record;
use super::super::sse;
use super::error::Refusal;

/// Starts the task and returns the response that it writes. `write` makes an event of a piece, or
/// none; at the end, of `None`, it makes the last one. The task ends early when the client is
/// gone, which cancels the generations.
pub(super) fn respond(
    generations: Generations,
    record: Arc<Record>,
    n_chunks_max: usize,
    write: impl FnMut(Option<Delta>) -> Option<Vec<u8>> + Send + 'static,
) -> Response {
    start(generations, record, n_chunks_max, (write, sse::DONE))
}

/// The same without a last word, for streams whose last event says that it is.
pub(super) fn respond_bare(
    generations: Generations,
    record: Arc<Record>,
    n_chunks_max: usize,
    write: impl FnMut(Option<Delta>) -> Option<Vec<u8>> + Send + 'static,
) -> Response {
    start(generations, record, n_chunks_max, (write, b""))
}

fn start(
    generations: Generations,
    record: Arc<Record>,
    n_chunks_max: usize,
    (write, last): (impl FnMut(Option<Delta>) -> Option<Vec<u8>> + Send + 'static, &'static [u8]),
) -> Response {
    let (chunks, body) = chunked(n_chunks_max);
    let task = async move {
        if relay(&chunks, generations, write, last).await.is_err() {
            tracing::debug!("the client left in the middle of its stream");
        }
        drop(record);
    };
    tokio::spawn(task.in_current_span());
    sse::response(body)
}

async fn relay(
    chunks: &Chunks,
    mut generations: Generations,
    mut write: impl FnMut(Option<Delta>) -> Option<Vec<u8>>,
    last: &'static [u8],
) -> Result<(), ClientGone> {
    loop {
        let delta = tokio::select! {
            delta = generations.next() => delta,
            () = chunks.gone() => return Err(ClientGone),
        };
        let is_over = matches!(delta, Ok(None));
        match delta {
            Ok(delta) => {
                if let Some(event) = write(delta) {
                    chunks.write(event).await?;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a stream broke off");
                chunks.write(sse::event(&Refusal(error).body())).await?;
                return say_last(chunks, last).await;
            }
        }
        if is_over {
            return say_last(chunks, last).await;
        }
    }
}

async fn say_last(chunks: &Chunks, last: &'static [u8]) -> Result<(), ClientGone> {
    match last.is_empty() {
        true => Ok(()),
        false => chunks.write(last).await,
    }
}
