//! `ModelInfer`: one message in, one out.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Request, Response, Status};

use super::super::super::generation::Job;
use super::super::super::observe::Record;
use super::super::super::state::{App, AppState};
use super::super::call::Call;
use super::super::check::{self, Batch};
use super::super::error::Refusal;
use super::super::infer::run;
use super::super::inputs::Inputs;
use super::super::models::{find, n_batch_max};
use super::convert::{self, Asked};
use super::protocol::{ModelInferRequest, ModelInferResponse};
use super::status::status;

/// A call that is ready to run.
pub(super) struct Prepared {
    pub(super) call: Call,
    pub(super) jobs: Vec<Job>,
    pub(super) outputs: Vec<String>,
    pub(super) wants_empty_end: bool,
}

/// The call.
pub(super) async fn infer(
    app: &App,
    request: Request<ModelInferRequest>,
) -> Result<Response<ModelInferResponse>, Status> {
    let began = Instant::now();
    let record = record(&request);
    let request = request.into_inner();
    let model = find(app, &request.model_name, version(&request)).map_err(status)?;
    let mut watch = model.statistics.watch(began);
    let prepared = prepare(app, request).await.map_err(status)?;
    let Prepared { call, jobs, outputs, .. } = prepared;
    let tensors = run(app, &record, (&call, jobs), &mut watch).await.map_err(status)?;
    let response = convert::write(&call.caller, &outputs, &tensors);
    watch.succeeded(call.n_rows);
    Ok(Response::new(response))
}

/// Where the middleware put what is known of the call.
pub(super) fn record<T>(request: &Request<T>) -> Arc<Record> {
    Arc::clone(request.extensions().get().expect("every call runs within the middleware"))
}

/// The version that a message asks for; empty is the newest.
pub(super) fn version(request: &ModelInferRequest) -> Option<&str> {
    Some(request.model_version.as_str()).filter(|version| !version.is_empty())
}

/// Everything up to the engine.
///
/// # Errors
/// What is wrong with the message.
pub(super) async fn prepare(app: &App, request: ModelInferRequest) -> Result<Prepared, Refusal> {
    app.takes_requests()?;
    // The protocol's errors are not `ApiError`s; they travel as values.
    app.off_thread(move |app| Ok(parse(request, app))).await?
}

fn parse(request: ModelInferRequest, app: &AppState) -> Result<Prepared, Refusal> {
    let Asked { caller, parameters, given, outputs, wants_empty_end } = convert::read(request)?;
    let Batch { tensors, n_rows } = check::batch(&caller, given, n_batch_max(app))?;
    let rows = Inputs::rows(&caller, &tensors, n_rows)?;
    let (call, jobs) = Call::prepare(caller, rows, parameters, app)?;
    Ok(Prepared { call, jobs, outputs, wants_empty_end })
}
