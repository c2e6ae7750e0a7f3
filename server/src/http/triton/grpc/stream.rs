//! `ModelStreamInfer`: requests as they come, responses as they come.
//!
//! A request of the stream that goes wrong is a response with an error message; the stream goes on.
//! When the client cancels, the response stream is dropped, and with it all that still runs.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Semaphore, mpsc};
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

/// Responses on their way to the client.
type Sender = mpsc::Sender<Result<ModelStreamInferResponse, Status>>;

/// The response stream's other end.
pub(super) type Receiver = mpsc::Receiver<Result<ModelStreamInferResponse, Status>>;

/// The client is gone.
struct ClientGone;

/// Starts reading requests; responses come out of what is returned.
pub(super) fn serve(app: &App, request: Request<Streaming<ModelInferRequest>>) -> Receiver {
    let record = record(&request);
    let (sender, receiver) = mpsc::channel(app.config.limits.n_chunks_max);
    tokio::spawn(read(Arc::clone(app), record, request.into_inner(), sender));
    receiver
}

/// Reads requests until there are no more, or the client is gone. As many of one stream run at
/// once as may be submitted at all; the next one is not read before.
async fn read(
    app: App,
    record: Arc<Record>,
    mut requests: Streaming<ModelInferRequest>,
    sender: Sender,
) {
    let info = app.engine.info();
    let seats = Arc::new(Semaphore::new(info.n_slots + info.n_waiting_max));
    loop {
        let seat = Arc::clone(&seats).acquire_owned().await.expect("never closed");
        let next = tokio::select! {
            next = requests.message() => next,
            () = sender.closed() => return,
            // What runs is finished; a stream that only stays open holds up nobody.
            () = app.shutdown.reached(Phase::Draining) => return,
        };
        let request = match next {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                // It is told where there is still somebody to tell.
                let _ = sender.send(Err(error)).await;
                return;
            }
        };
        let (app, record, sender) = (Arc::clone(&app), Arc::clone(&record), sender.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = answer(&app, &record, request, &sender) => {}
                () = sender.closed() => tracing::debug!("the client left its stream"),
            }
            drop(seat);
        });
    }
}

/// Answers one request of a stream.
async fn answer(
    app: &App,
    record: &Arc<Record>,
    request: ModelInferRequest,
    sender: &Sender,
) -> Result<(), ClientGone> {
    // What an error is told with.
    let failed = ModelInferResponse {
        model_name: request.model_name.clone(),
        model_version: request.model_version.clone(),
        id: request.id.clone(),
        ..ModelInferResponse::default()
    };
    match generate(app, record, request, sender).await {
        Ok(told) => told,
        Err(refusal) => {
            let mut response = failed;
            mark_final(&mut response, true);
            let error_message = refusal.words();
            send(sender, ModelStreamInferResponse { error_message, infer_response: Some(response) })
                .await
        }
    }
}

/// Runs one request of a stream to its end.
///
/// # Errors
/// What is to be told instead of an end.
async fn generate(
    app: &App,
    record: &Arc<Record>,
    request: ModelInferRequest,
    sender: &Sender,
) -> Result<Result<(), ClientGone>, Refusal> {
    let began = Instant::now();
    let model = find(app, &request.model_name, version(&request))?;
    let mut watch = model.statistics.watch(began);
    let Prepared { call, jobs, outputs, wants_empty_end } = prepare(app, request).await?;
    if !call.is_stream {
        let tensors = run(app, record, (&call, jobs), &mut watch).await?;
        let response = convert::write(&call.caller, &outputs, &tensors);
        watch.succeeded(call.n_rows);
        return Ok(tell(sender, response, true).await);
    }
    let generations = Generations::submit(app, record, jobs)?;
    watch.submitted();
    let pieces = Pieces::new(generations, call);
    Ok(relay(pieces, (&outputs, wants_empty_end), sender, watch).await?)
}

async fn relay(
    mut pieces: Pieces,
    (outputs, wants_empty_end): (&[String], bool),
    sender: &Sender,
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
        if tell(sender, response, is_final).await.is_err() {
            return Ok(Err(ClientGone));
        }
    }
    watch.succeeded(1);
    Ok(Ok(()))
}

async fn tell(
    sender: &Sender,
    mut response: ModelInferResponse,
    is_final: bool,
) -> Result<(), ClientGone> {
    mark_final(&mut response, is_final);
    let (error_message, infer_response) = (String::new(), Some(response));
    send(sender, ModelStreamInferResponse { error_message, infer_response }).await
}

async fn send(sender: &Sender, response: ModelStreamInferResponse) -> Result<(), ClientGone> {
    sender.send(Ok(response)).await.map_err(|_| ClientGone)
}
