//! `POST /v2/models/M/generate` and `generate_stream`.
//!
//! Answers have their members in alphabetical order, come without `Content-Length`, and a stream
//! has no last word. A stream's status is that of its first response, so it waits for that one.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use engine::TokenId;
use serde_json::{Value, json};
use tracing::Instrument;

use super::super::body::{self, Chunks, ClientGone, chunked, one_chunk};
use super::super::error::ApiError;
use super::super::generation::{Answer, Delta, Generations, Job};
use super::super::observe::Record;
use super::super::request::encode;
use super::super::sse;
use super::super::state::{App, AppState};
use super::error::{ModelRefusal, Refusal, StreamRefusal};
use super::inputs::Inputs;
use super::options::options;
use super::{VERSION, is_served, json};
use crate::text::SpecialTokens;

type Requested = (State<App>, Extension<Arc<Record>>, HeaderMap);

/// `generate` of the model's version 1.
pub(super) async fn whole(Path(model): Path<String>, requested: Requested, body: Body) -> Response {
    generate(model, VERSION.into(), requested, body).await.into_response()
}

/// `generate` of a version.
pub(super) async fn whole_version(
    Path((model, version)): Path<(String, String)>,
    requested: Requested,
    body: Body,
) -> Response {
    generate(model, version, requested, body).await.into_response()
}

/// `generate_stream` of the model's version 1.
pub(super) async fn stream(
    Path(model): Path<String>,
    requested: Requested,
    body: Body,
) -> Response {
    generate_stream(model, VERSION.into(), requested, body).await.into_response()
}

/// `generate_stream` of a version.
pub(super) async fn stream_version(
    Path((model, version)): Path<(String, String)>,
    requested: Requested,
    body: Body,
) -> Response {
    generate_stream(model, version, requested, body).await.into_response()
}

/// What a request asks for, beside its jobs.
struct Asked {
    id: Option<String>,
    model: String,
    /// The prompt, if the answer is to begin with it.
    echo: Option<String>,
    n_prompt: usize,
    is_stream: bool,
    wants_scores: bool,
    wants_finish_reason: bool,
    wants_n_input: bool,
    wants_n_output: bool,
}

async fn generate(
    model: String,
    version: String,
    requested: Requested,
    body: Body,
) -> Result<Response, Response> {
    let (State(app), Extension(record), headers) = requested;
    let prepared = prepare(&app, model, version, (headers, body)).await;
    let (asked, jobs) = prepared.map_err(|error| match error {
        PrepareError::Server(refusal) => refusal.into_response(),
        PrepareError::Model(refusal) => ModelRefusal(refusal).into_response(),
    })?;
    let from_model = |error: ApiError| ModelRefusal(error.into()).into_response();
    let generations = Generations::submit(&app, &record, jobs).map_err(from_model)?;
    let answers = generations.collect().await.map_err(from_model)?;
    let body = one_chunk(asked.render(&answers).to_string().into_bytes());
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

async fn generate_stream(
    model: String,
    version: String,
    requested: Requested,
    body: Body,
) -> Result<Response, Response> {
    let (State(app), Extension(record), headers) = requested;
    let prepared = prepare(&app, model, version, (headers, body)).await;
    let (asked, jobs) = prepared.map_err(|error| match error {
        PrepareError::Server(refusal) => refusal.into_response(),
        PrepareError::Model(refusal) => StreamRefusal(refusal).into_response(),
    })?;
    let from_model = |error: ApiError| StreamRefusal(error.into()).into_response();
    let mut generations = Generations::submit(&app, &record, jobs).map_err(from_model)?;
    if !asked.is_stream {
        let answers = generations.collect().await.map_err(from_model)?;
        return Ok(sse::response(one_chunk(sse::event(&asked.render(&answers)))));
    }
    let first = generations.next().await.map_err(from_model)?;
    let (chunks, body) = chunked(app.config.limits.n_chunks_max);
    let task = async move {
        if relay(&chunks, generations, asked, first).await.is_err() {
            tracing::debug!("the client left in the middle of its stream");
        }
        drop(record);
    };
    tokio::spawn(task.in_current_span());
    Ok(sse::response(body))
}

/// Everything up to the model: what fails here is answered in full.
async fn prepare(
    app: &App,
    model: String,
    version: String,
    (headers, body): (HeaderMap, Body),
) -> Result<(Asked, Vec<Job>), PrepareError> {
    if !is_served(app, &model) {
        return Err(Refusal::from(ApiError::UnknownModel { name: model }).into());
    }
    if version != VERSION {
        return Err(Refusal::from(ApiError::UnknownVersion { name: model, version }).into());
    }
    app.ready().map_err(Refusal::from)?;
    let body = body::read(&headers, body, &app.config.limits).await.map_err(Refusal::from)?;
    // The protocol's errors are not `ApiError`s; they travel as values.
    app.off_thread(move |app| Ok(parse(&body, model, app))).await.map_err(Refusal::from)?
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

fn parse(body: &[u8], model: String, app: &AppState) -> Result<(Asked, Vec<Job>), PrepareError> {
    let inputs = Inputs::read(json::members(body)?, &model)?;
    parse_inputs(inputs, model, app).map_err(|refusal| match refusal {
        Refusal::Api(_) => PrepareError::Model(refusal),
        own => PrepareError::Server(own),
    })
}

fn parse_inputs(
    mut inputs: Inputs,
    model: String,
    app: &AppState,
) -> Result<(Asked, Vec<Job>), Refusal> {
    let text = inputs.text("text_input")?.unwrap_or_default();
    let options = options(&mut inputs, app)?;
    let prompt: Arc<[TokenId]> = encode(app, &text, SpecialTokens::Add)?;
    let excludes_input = inputs.boolean("exclude_input_in_output")?.unwrap_or(true);
    let is_stream = inputs.boolean("stream")?.unwrap_or(false);
    if is_stream && options.n_choices > 1 {
        let remedy = "more than one answer cannot be streamed";
        return Err(ApiError::Unsupported { field: "num_return_sequences".into(), remedy }.into());
    }
    let asked = Asked {
        id: inputs.id.take(),
        model,
        echo: (!excludes_input).then_some(text),
        n_prompt: prompt.len(),
        is_stream,
        wants_scores: options.n_logprobs.is_some(),
        wants_finish_reason: inputs.boolean("return_finish_reason")?.unwrap_or(false),
        wants_n_input: inputs.boolean("return_num_input_tokens")?.unwrap_or(false),
        wants_n_output: inputs.boolean("return_num_output_tokens")?.unwrap_or(false),
    };
    let jobs = options.jobs(app, &[prompt])?;
    Ok((asked, jobs))
}

impl Asked {
    /// One response: of whole answers, or of a piece of the only one.
    fn render(&self, answers: &[Answer]) -> Value {
        let mut outputs = BTreeMap::new();
        if let Some(id) = &self.id {
            outputs.insert("id", json!(id));
        }
        outputs.insert("model_name", json!(self.model));
        outputs.insert("model_version", json!(VERSION));
        let echo = self.echo.as_deref().unwrap_or_default();
        let texts = answers.iter().map(|answer| json!(format!("{echo}{}", answer.text)));
        outputs.insert("text_output", one_or_list(texts));
        if self.wants_scores {
            let logprobs = |answer: &Answer| -> Vec<f32> {
                answer.scores.iter().map(|score| score.logprob).collect()
            };
            let sums = answers.iter().map(|answer| json!(logprobs(answer).iter().sum::<f32>()));
            outputs.insert("cum_log_probs", one_or_list(sums));
            let all = answers.iter().flat_map(logprobs).map(|logprob| json!(logprob));
            outputs.insert("output_log_probs", one_or_list(all));
        }
        if self.wants_finish_reason {
            let ends = answers
                .iter()
                .map(|answer| json!(answer.end.as_ref().map_or("not_finished", |end| end.word())));
            outputs.insert("finish_reason", one_or_list(ends));
        }
        if self.wants_n_input {
            outputs.insert("num_input_tokens", json!(self.n_prompt));
        }
        if self.wants_n_output {
            let counts = answers.iter().map(|answer| json!(answer.tokens.len()));
            outputs.insert("num_output_tokens", one_or_list(counts));
        }
        json!(outputs)
    }
}

async fn relay(
    chunks: &Chunks,
    mut generations: Generations,
    mut asked: Asked,
    first: Option<Delta>,
) -> Result<(), ClientGone> {
    let mut next = Ok(first);
    loop {
        match next {
            Ok(None) => return Ok(()),
            Ok(Some(delta)) => {
                let mut piece = Answer::default();
                piece.absorb(delta);
                // Load tools count responses as tokens: one each, and one for a rest of text.
                if !piece.tokens.is_empty() || !piece.text.is_empty() || asked.wants_finish_reason {
                    chunks.write(sse::event(&asked.render(&[piece]))).await?;
                    asked.echo = None;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a stream broke off");
                return chunks.write(sse::event(&Refusal::from(error).body())).await;
            }
        }
        next = tokio::select! {
            delta = generations.next() => delta,
            () = chunks.gone() => return Err(ClientGone),
        };
    }
}

/// Tensors of one element are written as the element.
fn one_or_list(values: impl Iterator<Item = Value>) -> Value {
    let mut values: Vec<Value> = values.collect();
    match values.len() {
        1 => values.remove(0),
        _ => Value::Array(values),
    }
}
