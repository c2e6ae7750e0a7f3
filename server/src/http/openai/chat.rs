//! `POST /v1/chat/completions`: a conversation through the model's chat template, its reasoning
//! told apart from its answer.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Json, Response};
use engine::{N_LOGPROBS_MAX, Terms, TokenId};

use super::super::body;
use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::generation::{Answer, Delta, End, Generations, Job};
use super::super::observe::Record;
use super::super::request::{AnswerLimit, Options, encode_chat};
use super::super::sse;
use super::super::state::{App, AppState};
use super::error::Refusal;
use super::logprobs::chat_logprob;
use super::messages::{messages, template_options};
use super::options::{self, Delivery};
use super::stream;
use super::wire::{
    ChatChoice, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatText, Ending, Envelope, Reasoning,
    Usage, ending,
};
use crate::text::{Piece, ReasoningSplitter};

const ROLE: &str = "assistant";

/// What a request asks for, beside its jobs.
struct Asked {
    id: String,
    model: String,
    created: u64,
    prompt: Arc<[TokenId]>,
    n_choices: usize,
    wants_logprobs: bool,
    wants_token_ids: bool,
    delivery: Delivery,
    /// Those that the request named.
    stop_tokens: Arc<[TokenId]>,
    /// As the answer begins: inside the reasoning where the template opened it.
    splitter: ReasoningSplitter,
}

/// Answers a request.
pub(super) async fn handle(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    app.ready()?;
    let body = body::read(&headers, body, &app.config.limits).await?;
    let id = format!("chatcmpl-{}", record.id);
    let (asked, jobs) = app.off_thread(move |app| parse(id, &body, app)).await?;
    let generations = Generations::submit(&app, &record, jobs)?;
    let view = View::new(asked, Arc::clone(&app));
    match view.asked.delivery {
        Delivery::Whole => Ok(view.whole(generations.collect().await?)),
        Delivery::Stream { .. } => Ok(view.stream(generations, record)),
    }
}

fn parse(id: String, body: &[u8], app: &AppState) -> Result<(Asked, Vec<Job>), ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = options::model_name(&mut fields, app)?;
    options::refuse_unsupported(&mut fields)?;
    let delivery = options::delivery(&mut fields)?;
    let n_choices = options::n_choices(&mut fields, &app.config.limits)?;
    let (n_max_old, n_max_new) =
        (fields.count("max_tokens", 1)?, fields.count("max_completion_tokens", 1)?);
    let limit = n_max_new.or(n_max_old).map_or(AnswerLimit::Rest, AnswerLimit::Asked);
    let n_logprobs = n_logprobs(&mut fields)?;
    let sampling = options::sampling(&mut fields, app)?;
    options::check_min_tokens(&fields, &sampling, limit)?;
    let rules = options::rules(&mut fields, app, sampling.n_tokens_min)?;
    let wants_token_ids = fields.flag("return_token_ids")?;
    let messages = messages(&mut fields, &app.config.limits)?;
    let chat = app.text.render_chat(&messages, &template_options(&mut fields)?)?;
    let splitter = match chat.opens_thinking() {
        true => ReasoningSplitter::inside(),
        false => ReasoningSplitter::new(),
    };
    let prompt = encode_chat(app, &chat)?;
    let stop_tokens = options::named_stop_tokens(&rules, app);
    let options = Options {
        n_choices,
        limit,
        sampling,
        rules,
        n_logprobs,
        n_prompt_logprobs: None,
        cache_salt: options::cache_salt(&mut fields)?,
        terms: Terms::ordinary(),
    };
    let jobs = options.jobs(app, &[Arc::clone(&prompt)])?;
    let asked = Asked {
        id,
        model,
        created: app.created_now(),
        prompt,
        n_choices,
        wants_logprobs: n_logprobs.is_some(),
        wants_token_ids,
        delivery,
        stop_tokens,
        splitter,
    };
    Ok((asked, jobs))
}

/// `logprobs` and, with it, `top_logprobs`.
fn n_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wants_logprobs = fields.flag("logprobs")?;
    let n_top = fields.count_within("top_logprobs", 0..=N_LOGPROBS_MAX)?;
    if !wants_logprobs && n_top.is_some_and(|n| n > 0) {
        let remedy = "it goes with `logprobs` set to true";
        return Err(ApiError::Unsupported { field: "top_logprobs".into(), remedy });
    }
    Ok(wants_logprobs.then(|| n_top.unwrap_or(0)))
}

/// Writes answers down.
struct View {
    asked: Asked,
    app: App,
    choices: Vec<ChoiceView>,
    is_begun: bool,
}

/// What has to be remembered of a choice while it is streamed.
struct ChoiceView {
    splitter: ReasoningSplitter,
    is_begun: bool,
    n_cached: usize,
    n_generated: usize,
}

/// Text by its kind.
#[derive(Default)]
struct Split {
    reasoning: Option<String>,
    content: Option<String>,
}

impl View {
    fn new(asked: Asked, app: App) -> View {
        let choice = || ChoiceView {
            splitter: asked.splitter.clone(),
            is_begun: false,
            n_cached: 0,
            n_generated: 0,
        };
        let choices = (0..asked.n_choices).map(|_| choice()).collect();
        View { asked, app, choices, is_begun: false }
    }

    fn whole(mut self, answers: Vec<Answer>) -> Response {
        let mut choices = Vec::with_capacity(answers.len());
        for (choice_idx, answer) in answers.into_iter().enumerate() {
            self.choices[choice_idx].n_generated = answer.tokens.len();
            self.choices[choice_idx].n_cached = answer.n_cached;
            choices.push(self.choice(choice_idx, answer));
        }
        let usage = self.usage();
        Json(self.envelope("chat.completion", choices, Some(usage))).into_response()
    }

    fn choice(&mut self, choice_idx: usize, answer: Answer) -> ChatChoice {
        let split = Split::of(&mut self.choices[choice_idx].splitter, &answer.text, true);
        let reasoning = split.reasoning.map(Reasoning::new);
        let content = match (split.content, &reasoning) {
            // Cut off within the reasoning.
            (None, Some(_)) => None,
            (content, _) => Some(content.unwrap_or_default()),
        };
        let logprobs = self.asked.wants_logprobs.then(|| ChatLogprobs {
            content: answer.scores.iter().map(|s| chat_logprob(&self.app.text, s)).collect(),
        });
        ChatChoice {
            index: choice_idx,
            message: ChatText { role: ROLE, content, reasoning },
            logprobs,
            ending: self.ending(answer.end),
            token_ids: self.asked.wants_token_ids.then(|| ids(&answer.tokens)),
        }
    }

    fn stream(mut self, generations: Generations, record: Arc<Record>) -> Response {
        let n_chunks_max = self.app.config.limits.n_chunks_max;
        stream::respond(generations, record, n_chunks_max, move |delta| match delta {
            Some(delta) => self.piece(delta),
            None => self.last(),
        })
    }

    fn piece(&mut self, delta: Delta) -> Option<Vec<u8>> {
        let choice_idx = delta.choice_idx;
        let choice = &mut self.choices[choice_idx];
        choice.n_generated += usize::from(delta.token.is_some());
        choice.n_cached = delta.n_cached;
        let split = Split::of(&mut choice.splitter, &delta.text, delta.end.is_some());
        let is_first = !std::mem::replace(&mut choice.is_begun, true);
        let says_something = is_first
            || split.content.is_some()
            || split.reasoning.is_some()
            || delta.score.is_some()
            || delta.end.is_some()
            || (self.asked.wants_token_ids && delta.token.is_some());
        if !says_something {
            return None;
        }
        let usage = match self.asked.delivery {
            Delivery::Stream { continuous_usage: true, .. } => {
                Some(Usage::new(self.asked.prompt.len(), choice.n_cached, choice.n_generated))
            }
            _ => None,
        };
        let chunk = self.chunk(delta, split, is_first);
        let event = sse::event(&self.envelope("chat.completion.chunk", vec![chunk], usage));
        self.is_begun = true;
        Some(event)
    }

    /// The role comes with the first token, even where that token makes no text yet.
    fn chunk(&self, delta: Delta, split: Split, is_first: bool) -> ChatChunkChoice {
        let is_silent = split.reasoning.is_none() && split.content.is_none();
        let content = if is_first && is_silent { Some(String::new()) } else { split.content };
        let logprob = delta.score.map(|score| chat_logprob(&self.app.text, &score));
        ChatChunkChoice {
            index: delta.choice_idx,
            delta: ChatDelta {
                role: is_first.then_some(ROLE),
                content,
                reasoning: split.reasoning.map(Reasoning::new),
            },
            logprobs: logprob.map(|logprob| ChatLogprobs { content: vec![logprob] }),
            ending: self.ending(delta.end),
            token_ids: self.asked.wants_token_ids.then(|| ids(delta.token.as_slice())),
        }
    }

    fn last(&mut self) -> Option<Vec<u8>> {
        let wants_usage =
            matches!(self.asked.delivery, Delivery::Stream { include_usage: true, .. });
        let none: Vec<ChatChunkChoice> = Vec::new();
        let usage = self.usage();
        wants_usage.then(|| sse::event(&self.envelope("chat.completion.chunk", none, Some(usage))))
    }

    fn usage(&self) -> Usage {
        let n_generated = self.choices.iter().map(|choice| choice.n_generated).sum();
        // What the others found may be the first one's.
        Usage::new(self.asked.prompt.len(), self.choices[0].n_cached, n_generated)
    }

    fn ending(&self, end: Option<End>) -> Ending {
        end.map_or(Ending::default(), |end| ending(end, &self.asked.stop_tokens))
    }

    fn envelope<Choice>(
        &self,
        object: &'static str,
        choices: Vec<Choice>,
        usage: Option<Usage>,
    ) -> Envelope<'_, Choice> {
        let wants_prompt = self.asked.wants_token_ids && !self.is_begun;
        Envelope {
            id: &self.asked.id,
            object,
            created: self.asked.created,
            model: &self.asked.model,
            choices,
            usage,
            prompt_token_ids: wants_prompt.then(|| ids(&self.asked.prompt)),
        }
    }
}

impl Split {
    fn of(splitter: &mut ReasoningSplitter, text: &str, is_last: bool) -> Split {
        let mut split = Split::default();
        for piece in splitter.push(text) {
            split.add(piece);
        }
        if is_last {
            splitter.finish().into_iter().for_each(|piece| split.add(piece));
        }
        split
    }

    fn add(&mut self, piece: Piece) {
        let (kind, text) = match piece {
            Piece::Reasoning(text) => (&mut self.reasoning, text),
            Piece::Content(text) => (&mut self.content, text),
        };
        kind.get_or_insert_default().push_str(&text);
    }
}

fn ids(tokens: &[TokenId]) -> Vec<u32> {
    tokens.iter().map(|token| token.0).collect()
}
