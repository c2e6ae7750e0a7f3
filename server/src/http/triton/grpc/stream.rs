//! `ModelStreamInfer`: requests as they come, responses as they come.
//!
//! A request of the stream that goes wrong is a response with an error message; the stream goes on.
//! When the client cancels, the response stream is dropped, and with it all that still runs. A
//! client that takes no response for too long has its stream ended, with an error behind what it
//! has not read yet.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Status, Streaming};

use super::super::super::error::ApiError;
use super::super::super::generation::Generations;
use super::super::super::observe::Record;
use super::super::super::shutdown::Phase;
use super::super::super::state::App;
use super::super::error::Refusal;
use super::super::infer::run;
use super::super::models::find;
use super::super::pieces::Pieces;
use super::super::statistics::Watch;
use super::convert::{self, mark_final};
use super::infer::{Prepared, prepare, record, version};
use super::protocol::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use crate::metrics::Cut;

type Told = Result<ModelStreamInferResponse, Status>;

/// Responses on their way to the client.
pub(super) type Responses = Pin<Box<dyn Stream<Item = Told> + Send>>;

/// Who gets the responses.
#[derive(Clone)]
struct Reader {
    app: App,
    sender: mpsc::Sender<Told>,
    is_given_up: Arc<AtomicBool>,
    /// Closed when the stream is given up; it has no permits.
    goes_on: Arc<Semaphore>,
}

/// The client is gone.
struct ClientGone;

/// Starts reading requests; responses come out of what is returned.
pub(super) fn serve(app: &App, request: Request<Streaming<ModelInferRequest>>) -> Responses {
    let record = record(&request);
    let (sender, receiver) = mpsc::channel(app.config.limits.n_chunks_max);
    let goes_on = Arc::new(Semaphore::new(0));
    let is_given_up = Arc::new(AtomicBool::new(false));
    let given_up = Arc::clone(&is_given_up);
    let reader = Reader { app: Arc::clone(app), sender, is_given_up, goes_on };
    tokio::spawn(read(record, request.into_inner(), reader));
    // It stands behind what is still to be read: asked for when that is over, and said once.
    let last = std::iter::from_fn(move || {
        let words = "the client took no response within the server's write timeout";
        given_up.swap(false, Ordering::SeqCst).then(|| Err(Status::aborted(words)))
    });
    Box::pin(ReceiverStream::new(receiver).chain(tokio_stream::iter(last)))
}

/// Reads requests until there are no more, or the client is gone. As many of one stream run at
/// once as may be submitted at all; the next one is not read before.
async fn read(record: Arc<Record>, mut requests: Streaming<ModelInferRequest>, reader: Reader) {
    let info = reader.app.engine.info();
    let seats = Arc::new(Semaphore::new(info.n_slots + info.n_waiting_max));
    loop {
        let seat = Arc::clone(&seats).acquire_owned().await.expect("never closed");
        let next = tokio::select! {
            next = requests.message() => next,
            () = reader.sender.closed() => return,
            _ = reader.goes_on.acquire() => return,
            // What runs is finished; a stream that only stays open holds up nobody.
            () = reader.app.shutdown.reached(Phase::Draining) => return,
        };
        let request = match next {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                // It is told where there is still somebody to tell.
                let _ = reader.tell(Err(error)).await;
                return;
            }
        };
        let (record, reader) = (Arc::clone(&record), reader.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = answer(&record, request, &reader) => {}
                () = reader.sender.closed() => tracing::debug!("the client left its stream"),
            }
            drop(seat);
        });
    }
}

/// Answers one request of a stream.
async fn answer(
    record: &Arc<Record>,
    request: ModelInferRequest,
    reader: &Reader,
) -> Result<(), ClientGone> {
    // What an error is told with.
    let failed = ModelInferResponse {
        model_name: request.model_name.clone(),
        model_version: request.model_version.clone(),
        id: request.id.clone(),
        ..ModelInferResponse::default()
    };
    match generate(record, request, reader).await {
        Ok(told) => told,
        Err(refusal) => {
            let mut response = failed;
            mark_final(&mut response, true);
            let (error_message, infer_response) = (refusal.words(), Some(response));
            reader.tell(Ok(ModelStreamInferResponse { error_message, infer_response })).await
        }
    }
}

/// Runs one request of a stream to its end.
///
/// # Errors
/// What is to be told instead of an end.
async fn generate(
    record: &Arc<Record>,
    request: ModelInferRequest,
    reader: &Reader,
) -> Result<Result<(), ClientGone>, Refusal> {
    let app = &reader.app;
    let began = Instant::now();
    let model = find(app, &request.model_name, version(&request))?;
    let mut watch = model.statistics.watch(began);
    let Prepared { call, jobs, outputs, wants_empty_end } = prepare(app, request).await?;
    if !call.is_stream {
        let tensors = run(app, record, (&call, jobs), &mut watch).await?;
        let response = convert::write(&call.caller, &outputs, &tensors);
        watch.succeeded(call.n_rows);
        return Ok(reader.respond(response, true).await);
    }
    let generations = Generations::submit(app, record, jobs)?;
    watch.submitted();
    let pieces = Pieces::new(generations, call);
    Ok(relay(pieces, (&outputs, wants_empty_end), reader, watch).await?)
}

async fn relay(
    mut pieces: Pieces,
    (outputs, wants_empty_end): (&[String], bool),
    reader: &Reader,
    mut watch: Watch,
) -> Result<Result<(), ClientGone>, ApiError> {
    while let Some(piece) = pieces.next().await? {
        watch.answered(&piece);
        let is_final = piece.end.is_some();
        let response = match pieces.render(&piece) {
            Some(tensors) => convert::write(pieces.caller(), outputs, &tensors),
            None if is_final && wants_empty_end => convert::write(pieces.caller(), outputs, &[]),
            None => continue,
        };
        if reader.respond(response, is_final).await.is_err() {
            return Ok(Err(ClientGone));
        }
    }
    watch.succeeded(1);
    Ok(Ok(()))
}

impl Reader {
    async fn respond(
        &self,
        mut response: ModelInferResponse,
        is_final: bool,
    ) -> Result<(), ClientGone> {
        mark_final(&mut response, is_final);
        let (error_message, infer_response) = (String::new(), Some(response));
        self.tell(Ok(ModelStreamInferResponse { error_message, infer_response })).await
    }

    async fn tell(&self, told: Told) -> Result<(), ClientGone> {
        let patience = self.app.config.limits.write_timeout;
        match self.sender.send_timeout(told, patience).await {
            Ok(()) => return Ok(()),
            Err(SendTimeoutError::Closed(_)) => {}
            Err(SendTimeoutError::Timeout(_)) => {
                if !self.is_given_up.swap(true, Ordering::SeqCst) {
                    self.app.metrics.connection_cut(Cut::WriteTimeout);
                }
                self.goes_on.close();
            }
        }
        Err(ClientGone)
    }
}
