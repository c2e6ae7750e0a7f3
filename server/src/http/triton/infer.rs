//! `POST /v2/models/M/infer`: tensors in, tensors out, one whole answer.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::super::body;
use super::super::error::ApiError;
use super::super::generation::{Generations, Job};
use super::super::observe::Record;
use super::super::state::{App, AppState};
use super::call::Call;
use super::check::{self, Batch};
use super::error::{InferRefusal, Refusal};
use super::inputs::{Caller, Inputs};
use super::models::{find, n_batch_max};
use super::statistics::Watch;
use super::target::Target;
use super::tensor::Tensor;
use super::wire::{self, Asked, Encoding, HEADER_LENGTH, Outputs, Written};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// The handler.
pub(super) async fn infer(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    target: Target,
    (headers, body): (HeaderMap, Body),
) -> Result<Response, InferRefusal> {
    let began = Instant::now();
    let model = find(&app, &target.model, target.version.as_deref())?;
    let mut watch = model.statistics.watch(began);
    let accepted = Encoding::accepted(&headers);
    let (call, outputs, jobs) = prepare(&app, target.model, headers, body).await?;
    let tensors = run(&app, &record, (&call, jobs), &mut watch).await?;
    let written = wire::write(&call.caller, &outputs, &tensors);
    watch.succeeded(call.n_rows);
    Ok(respond(written, accepted))
}

/// Reads the body and everything in it.
async fn prepare(
    app: &App,
    model: String,
    headers: HeaderMap,
    body: Body,
) -> Result<(Call, Outputs, Vec<Job>), Refusal> {
    app.takes_requests()?;
    let caller = Caller { id: None, model };
    let encoding = Encoding::of_body(&headers).map_err(|problem| caller.refuse(problem))?;
    let body = body::read_encoded(body, &app.config.limits).await?;
    // The protocol's errors are not `ApiError`s; they travel as values.
    let parsing = app.off_thread(move |app| {
        let body = encoding.decode(body, app.config.limits.n_body_bytes_max)?;
        Ok(parse(&body, &headers, &caller.model, app))
    });
    parsing.await?
}

fn parse(
    body: &[u8],
    headers: &HeaderMap,
    model: &str,
    app: &AppState,
) -> Result<(Call, Outputs, Vec<Job>), Refusal> {
    let Asked { caller, parameters, given, outputs } = wire::read(body, headers, model)?;
    let Batch { tensors, n_rows } = check::batch(&caller, given, n_batch_max(app))?;
    let rows = Inputs::rows(&caller, &tensors, n_rows)?;
    let (call, jobs) = Call::prepare(caller, rows, parameters, app)?;
    Ok((call, outputs, jobs))
}

/// Runs a call to its end.
///
/// # Errors
/// What the engine says.
pub(super) async fn run(
    app: &App,
    record: &Arc<Record>,
    (call, jobs): (&Call, Vec<Job>),
    watch: &mut Watch,
) -> Result<Vec<Tensor>, ApiError> {
    let generations = Generations::submit(app, record, jobs)?;
    watch.submitted();
    let answers = generations.collect().await?;
    answers.iter().for_each(|answer| watch.answered(answer));
    Ok(call.outputs(&answers))
}

fn respond(written: Written, accepted: Encoding) -> Response {
    let Written { bytes, n_header } = written;
    let mut response = accepted.encode(bytes).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, n_header.map_or(JSON, |_| OCTETS));
    if let Some(n_header) = n_header {
        headers.insert(HEADER_LENGTH, n_header.into());
    }
    if accepted != Encoding::Identity {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(accepted.name()));
    }
    response
}
