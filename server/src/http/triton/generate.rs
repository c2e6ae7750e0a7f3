//! `POST /v2/models/M/generate` and `generate_stream`: inputs as members of one JSON object.
//!
//! Answers have their members in alphabetical order, come without `Content-Length`, and a stream
//! has no last word. A stream's status is that of its first response, so it waits for that one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tracing::Span;

use super::super::body::{self, made, one_chunk};
use super::super::error::ApiError;
use super::super::generation::{Answer, Generations, Job};
use super::super::observe::Record;
use super::super::sse::{self, Frame};
use super::super::state::{App, AppState};
use super::call::{Call, Parameters};
use super::check;
use super::error::{ModelRefusal, Refusal, StreamRefusal};
use super::infer::run;
use super::inputs::{Caller, Inputs};
use super::json::Members;
use super::models::{find, n_batch_max};
use super::pieces::Pieces;
use super::problem::Problem;
use super::statistics::Watch;
use super::target::Target;
use super::tensor::Tensor;
use super::{VERSION, interface, json};

type Requested = (State<App>, Extension<Arc<Record>>, HeaderMap);

/// `generate`.
pub(super) async fn whole(
    target: Target,
    (State(app), Extension(record), headers): Requested,
    body: Body,
) -> Result<Response, Response> {
    let (watch, prepared) = prepare(&app, target, headers, body).await;
    let (call, jobs) = prepared.map_err(|error| match error {
        PrepareError::Server(refusal) => refusal.into_response(),
        PrepareError::Model(refusal) => ModelRefusal(refusal).into_response(),
    })?;
    let mut watch = watch.expect("a model that was found is watched");
    let from_model = |error: ApiError| ModelRefusal(error.into()).into_response();
    let tensors = run(&app, &record, (&call, jobs), &mut watch).await.map_err(from_model)?;
    let body = serde_json::to_vec(&render(&call.caller, &tensors));
    let body = one_chunk(body.expect("values of ours can be written as JSON"));
    watch.succeeded(call.n_rows);
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// `generate_stream`.
pub(super) async fn stream(
    target: Target,
    (State(app), Extension(record), headers): Requested,
    body: Body,
) -> Result<Response, Response> {
    let (watch, prepared) = prepare(&app, target, headers, body).await;
    let (call, jobs) = prepared.map_err(|error| match error {
        PrepareError::Server(refusal) => refusal.into_response(),
        PrepareError::Model(refusal) => StreamRefusal(refusal).into_response(),
    })?;
    let mut watch = watch.expect("a model that was found is watched");
    let from_model = |error: ApiError| StreamRefusal(error.into()).into_response();
    if !call.is_stream {
        let tensors = run(&app, &record, (&call, jobs), &mut watch).await.map_err(from_model)?;
        let event = sse::event(&render(&call.caller, &tensors));
        watch.succeeded(call.n_rows);
        return Ok(sse::response(one_chunk(event)));
    }
    let generations = Generations::submit(&app, &record, jobs).map_err(from_model)?;
    watch.submitted();
    let mut pieces = Pieces::new(generations, call);
    let first = pieces.next().await.map_err(from_model)?;
    let (first, watch, span) = (Some(first), Some(watch), Span::current());
    let mut members = render(pieces.caller(), &[]);
    members.insert("text_output", Frame::TEXT.into());
    let frame = Frame::of(&members, 1);
    let mut events = Events { pieces, frame, first, watch, span, _record: record };
    Ok(sse::response(made(move |cx| events.poll_next(cx))))
}

/// A refusal before or within the model: they differ in their headers.
enum PrepareError {
    Server(Refusal),
    Model(Refusal),
}

impl From<Refusal> for PrepareError {
    fn from(refusal: Refusal) -> PrepareError {
        PrepareError::Server(refusal)
    }
}

/// Everything up to the model: what fails here is answered in full. There is a watch as soon as
/// there is a model.
async fn prepare(
    app: &App,
    target: Target,
    headers: HeaderMap,
    body: Body,
) -> (Option<Watch>, Result<(Call, Vec<Job>), PrepareError>) {
    let began = Instant::now();
    let watch = match find(app, &target.model, target.version.as_deref()) {
        Ok(model) => model.statistics.watch(began),
        Err(refusal) => return (None, Err(refusal.into())),
    };
    let read = async {
        app.takes_requests().map_err(Refusal::from)?;
        let body = body::read(&headers, body, &app.config.limits).await.map_err(Refusal::from)?;
        // The protocol's errors are not `ApiError`s; they travel as values.
        let parsing = app.off_thread(move |app| Ok(parse(&body, target.model, app)));
        parsing.await.map_err(Refusal::from)?
    };
    (Some(watch), read.await)
}

fn parse(body: &[u8], model: String, app: &AppState) -> Result<(Call, Vec<Job>), PrepareError> {
    let (caller, parameters, tensors) = read(json::members(body)?, model)?;
    let n_rows_each: Vec<usize> = tensors.iter().map(|tensor| tensor.shape[0] as usize).collect();
    let n_rows = check::n_rows(&caller, &tensors, &n_rows_each)?;
    let n_max = n_batch_max(app);
    if n_rows > n_max {
        return Err(caller.refuse(Problem::BatchTooLarge { n_max }).into());
    }
    let rows = Inputs::rows(&caller, &tensors, n_rows)?;
    let prepared = Call::prepare(caller, rows, parameters, app);
    prepared.map_err(|refusal| match refusal {
        Refusal::Api(_) => PrepareError::Model(refusal),
        own => PrepareError::Server(own),
    })
}

/// Sorts members into inputs, parameters that mean something, and others, which are ignored.
///
/// # Errors
/// A member is of a wrong type or there twice.
fn read(
    Members(members): Members,
    model: String,
) -> Result<(Caller, Parameters, Vec<Tensor>), Refusal> {
    let mut caller = Caller { id: None, model };
    for (_, value) in members.iter().filter(|(name, _)| name == "id") {
        let id = super::access::string(value);
        let id = id.map_err(|access| caller.refuse(access.of("id")))?;
        caller.id = (!id.is_empty()).then(|| id.to_owned());
    }
    let mut parameters = Parameters::default();
    let mut tensors = Vec::new();
    for (name, value) in members {
        match name.as_str() {
            "id" => {}
            "parameters" => {
                let Value::Object(within) = value else {
                    return Err(Refusal::ParametersNotAnObject);
                };
                for (name, value) in within {
                    let added = add((&name, &value), &mut parameters, &mut tensors);
                    let within = |problem| Problem::InParameters(Box::new(problem));
                    added.map_err(|problem| caller.refuse_input(&name, within(problem)))?;
                }
            }
            _ => add((&name, &value), &mut parameters, &mut tensors)
                .map_err(|problem| caller.refuse_input(&name, problem))?,
        }
    }
    Ok((caller, parameters, tensors))
}

/// A list for an input that takes one value is a batch, a row each.
fn add(
    (name, value): (&str, &Value),
    parameters: &mut Parameters,
    tensors: &mut Vec<Tensor>,
) -> Result<(), Problem> {
    let Some(spec) = interface::input(name) else {
        if matches!(value, Value::Null | Value::Array(_) | Value::Object(_)) {
            return Err(Problem::ParameterType { name: name.to_owned() });
        }
        // Where they are no numbers they are somebody else's, as in Triton.
        match (name, value.as_u64()) {
            ("priority", Some(priority)) => parameters.priority = priority,
            ("timeout", Some(timeout_us)) => parameters.set_timeout_us(timeout_us),
            _ => {}
        }
        return Ok(());
    };
    let data = spec.data_type.read_json(value)?;
    if tensors.iter().any(|tensor| tensor.name == name) {
        return Err(Problem::InputTwice);
    }
    let n = data.len() as u64;
    let shape = match (spec.n_values, spec.data_type.n_bytes()) {
        (None, _) => vec![1, n],
        (Some(_), Some(expected)) if n == 0 => return Err(Problem::ByteSize { expected, n: 0 }),
        (Some(_), _) => vec![n, 1],
    };
    tensors.push(Tensor { shape, name: name.to_owned(), data });
    Ok(())
}

/// One response: tensors of one element are written as the element, others as a flat list.
fn render<'a>(caller: &'a Caller, tensors: &'a [Tensor]) -> BTreeMap<&'a str, Value> {
    let mut members = BTreeMap::new();
    if let Some(id) = &caller.id {
        members.insert("id", json!(id));
    }
    members.insert("model_name", json!(caller.model));
    members.insert("model_version", json!(VERSION));
    for tensor in tensors {
        let mut values = tensor.data.json();
        let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
        members.insert(&tensor.name, value);
    }
    members
}

/// What is still to be said of a stream whose first piece is there. When the client is gone the
/// connection drops it, which cancels the generation.
struct Events {
    pieces: Pieces,
    /// Of responses that have their text and nothing else.
    frame: Frame,
    first: Option<Option<Answer>>,
    /// Gone once all is said.
    watch: Option<Watch>,
    span: Span,
    /// The request lasts as long as its answer.
    _record: Arc<Record>,
}

impl Events {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while self.watch.is_some() {
            let piece = match self.first.take() {
                Some(first) => Ok(first),
                None => ready!(self.pieces.poll_next(cx)),
            };
            match piece {
                Ok(Some(piece)) => {
                    self.watch.iter_mut().for_each(|watch| watch.answered(&piece));
                    if let Some(text) = self.pieces.only_text(&piece) {
                        return Poll::Ready(Some(self.frame.event(text).into()));
                    }
                    if let Some(tensors) = self.pieces.render(&piece) {
                        let event = sse::event(&render(self.pieces.caller(), &tensors));
                        return Poll::Ready(Some(event.into()));
                    }
                }
                Ok(None) => self.watch.take().into_iter().for_each(|watch| watch.succeeded(1)),
                Err(error) => {
                    let _in_span = self.span.enter();
                    tracing::warn!(%error, "a stream broke off");
                    self.watch = None;
                    let event = sse::event(&Refusal::from(error).body());
                    return Poll::Ready(Some(event.into()));
                }
            }
        }
        Poll::Ready(None)
    }
}
