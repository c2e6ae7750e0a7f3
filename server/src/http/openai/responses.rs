//! `POST /v1/responses`: OpenAI's newer way to ask, as far as a server goes that keeps nothing
//! between requests.

pub(super) mod input;
mod output;

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Json, Response};
use engine::Terms;
use serde_json::Value;

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::generation::Job;
use super::super::observe::Record;
use super::super::request::{AnswerLimit, Options};
use super::super::state::{App, AppState};
use super::conversation::{Conversation, Prepared};
use super::error::Refusal;
use super::intake::Intake;
use super::messages::{effort, template_options};
use super::options::Delivery;
use super::{format, options, stream, tools};
use output::{Echo, View};

/// Fields that would need what earlier requests left behind, or what this server does not run.
const UNSUPPORTED: [(&str, &str); 4] = [
    ("previous_response_id", "nothing is kept: send the whole conversation as `input`"),
    ("conversation", "nothing is kept: send the whole conversation as `input`"),
    ("prompt", "nothing is kept: send the text as `input`"),
    ("background", "leave it out"),
];

/// What is asked for in `include` may be left out, but for scores.
fn refuse_logprobs(fields: &mut Fields) -> Result<(), ApiError> {
    let remedy = "leave it out, or ask /v1/chat/completions with `logprobs`";
    if fields.count("top_logprobs", 0)?.is_some_and(|n| n > 0) {
        return Err(ApiError::Unsupported { field: "top_logprobs".into(), remedy });
    }
    let included = fields.list("include")?.unwrap_or_default();
    match included.iter().any(|one| one == "message.output_text.logprobs") {
        true => Err(ApiError::Unsupported { field: "include".into(), remedy }),
        false => Ok(()),
    }
}

/// Answers a request.
pub(super) async fn handle(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let intake = Intake { app: Arc::clone(&app), record: Arc::clone(&record), headers, body };
    let ((mut view, delivery), mut generations) = intake.submit("resp_", parse).await?;
    if delivery != Delivery::Whole {
        return Ok(stream::respond_bare(generations, record, move |delta| {
            let is_over = delta.as_ref().is_some_and(|delta| delta.end.is_some());
            let events = view.events(delta);
            if is_over {
                app.metrics.thought(view.n_reasoning_tokens());
            }
            events
        }));
    }
    while let Some(delta) = generations.next().await? {
        view.take(&delta);
    }
    app.metrics.thought(view.n_reasoning_tokens());
    Ok(Json(view.response()).into_response())
}

fn parse(
    id: String,
    body: &[u8],
    app: &AppState,
) -> Result<((View, Delivery), Vec<Job>), ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = options::model_name(&mut fields, app)?;
    for (name, remedy) in UNSUPPORTED {
        if !matches!(fields.take(name), None | Some(Value::Bool(false))) {
            return Err(ApiError::Unsupported { field: name.into(), remedy });
        }
    }
    let mut echo = Echo::read(&fields);
    refuse_logprobs(&mut fields)?;
    let is_stream = fields.flag("stream")?;
    let delivery = match is_stream {
        true => Delivery::Stream { include_usage: false, continuous_usage: false },
        false => Delivery::Whole,
    };
    let limit = fields.count("max_output_tokens", 1)?;
    let limit = limit.map_or(AnswerLimit::Rest, AnswerLimit::Asked);
    let sampling = options::sampling(&mut fields, app)?;
    let wanted = match fields.object("text")? {
        Some(mut text) => match text.object("format")? {
            Some(mut format) => format::response_format(&mut format)?,
            None => None,
        },
        None => None,
    };
    let mut template = template_options(&mut fields)?;
    if let Some(mut reasoning) = fields.object("reasoning")? {
        template.thinking = effort(&mut reasoning, "effort")?.or(template.thinking);
    }
    let conversation = Conversation {
        messages: input::messages(&mut fields, &app.config.limits)?,
        template,
        tools: tools::tools(&mut fields)?,
        format: wanted,
        n_reasoning_max: fields.count("max_thinking_tokens", 0)?,
        tells_reasoning: true,
    };
    let has_format = conversation.has_format();
    let rules = options::rules(&mut fields, app, (sampling.n_tokens_min, has_format))?;
    let Prepared { prompt, answer, speech } = conversation.prepare(app)?;
    (echo.temperature, echo.top_p) = (sampling.temperature, sampling.top_p);
    let options = Options {
        n_choices: 1,
        limit,
        sampling,
        rules,
        n_logprobs: None,
        n_prompt_logprobs: None,
        cache_salt: options::cache_salt(&mut fields)?,
        answer,
        terms: Terms::ordinary(),
    };
    let jobs = options.jobs(app, &[Arc::clone(&prompt)])?;
    let view = View::new(echo, (id, model, app.created_now()), prompt.len(), speech);
    Ok(((view, delivery), jobs))
}
