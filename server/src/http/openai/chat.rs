//! `POST /v1/chat/completions`: a conversation through the model's chat template, its reasoning
//! and the calls of tools told apart from its answer.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Json, Response};
use engine::{N_LOGPROBS_MAX, Terms, TokenId, TokenScore};

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::generation::{Delta, End, Generations, Job};
use super::super::observe::Record;
use super::super::request::{AnswerLimit, Options};
use super::super::sse::{self, Frame};
use super::super::state::{App, AppState};
use super::conversation::{Conversation, Prepared};
use super::error::Refusal;
use super::intake::Intake;
use super::logprobs::chat_logprob;
use super::messages::{messages, template_options};
use super::options::{self, Delivery};
use super::speech::{Said, Speech};
use super::wire::{
    ChatChoice, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatText, Contents, Ending, Envelope,
    Name, Reasoning, Usage, WireCall, ending,
};
use super::{format, stream, tools};

const ROLE: &str = "assistant";

/// What a chunk of a stream calls itself.
const CHUNK: &str = "chat.completion.chunk";

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
    /// As every answer begins.
    speech: Speech,
}

/// Answers a request.
pub(super) async fn handle(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let intake = Intake { app: Arc::clone(&app), record: Arc::clone(&record), headers, body };
    let (asked, generations) = intake.submit("chatcmpl-", parse).await?;
    let view = View::new(asked, app);
    match view.asked.delivery {
        Delivery::Whole => Ok(view.whole(generations).await?),
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
    let conversation = Conversation {
        messages: messages(&mut fields, &app.config.limits)?,
        template: template_options(&mut fields)?,
        tools: tools::tools(&mut fields)?,
        format: format::wanted(&mut fields)?,
        n_reasoning_max: n_reasoning_max(&mut fields)?,
        // As with vLLM.
        tells_reasoning: fields.boolean("include_reasoning")?.unwrap_or(true),
    };
    let has_format = conversation.has_format();
    let rules = options::rules(&mut fields, app, (sampling.n_tokens_min, has_format))?;
    let wants_token_ids = fields.flag("return_token_ids")?;
    let Prepared { prompt, answer, speech } = conversation.prepare(app)?;
    let stop_tokens = options::named_stop_tokens(&rules, app);
    let options = Options {
        n_choices,
        limit,
        sampling,
        rules,
        n_logprobs,
        n_prompt_logprobs: None,
        cache_salt: options::cache_salt(&mut fields)?,
        answer,
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
        speech,
    };
    Ok((asked, jobs))
}

/// `max_thinking_tokens`, which vLLM calls `thinking_token_budget`.
fn n_reasoning_max(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let other = fields.count("thinking_token_budget", 0)?;
    Ok(fields.count("max_thinking_tokens", 0)?.or(other))
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

/// What has to be remembered of a choice while it comes.
struct ChoiceView {
    speech: Speech,
    is_begun: bool,
    n_cached: usize,
    n_generated: usize,
}

/// A whole choice.
#[derive(Default)]
struct Whole {
    said: Said,
    tokens: Vec<TokenId>,
    scores: Vec<TokenScore>,
    end: Option<End>,
}

/// Of a choice's chunks that tell one text and nothing else.
struct Frames {
    content: Frame,
    reasoning: Frame,
}

impl View {
    fn new(asked: Asked, app: App) -> View {
        let choice = || ChoiceView {
            speech: asked.speech.clone(),
            is_begun: false,
            n_cached: 0,
            n_generated: 0,
        };
        let choices = (0..asked.n_choices).map(|_| choice()).collect();
        View { asked, app, choices, is_begun: false }
    }

    async fn whole(mut self, mut generations: Generations) -> Result<Response, ApiError> {
        let mut all: Vec<Whole> = (0..self.asked.n_choices).map(|_| Whole::default()).collect();
        while let Some(delta) = generations.next().await? {
            let said = self.take(&delta);
            let whole = &mut all[delta.choice_idx];
            whole.said.absorb(said);
            whole.tokens.extend(delta.token);
            whole.scores.extend(delta.score);
            whole.end = whole.end.take().or(delta.end);
        }
        let choices = all.into_iter().enumerate().map(|(idx, whole)| self.choice(idx, whole));
        let choices = choices.collect();
        let usage = self.usage();
        Ok(Json(self.envelope("chat.completion", choices, Some(usage))).into_response())
    }

    fn choice(&self, choice_idx: usize, whole: Whole) -> ChatChoice {
        let Said { reasoning, content, calls } = whole.said;
        // Cut off within the reasoning, or nothing but calls.
        let is_silent = reasoning.is_some() || !calls.is_empty();
        let content = if is_silent { content } else { Some(content.unwrap_or_default()) };
        let logprobs = self.asked.wants_logprobs.then(|| ChatLogprobs {
            content: whole.scores.iter().map(|s| chat_logprob(&self.app.text, s)).collect(),
        });
        ChatChoice {
            index: choice_idx,
            message: ChatText {
                role: ROLE,
                content,
                reasoning: reasoning.map(Reasoning::new),
                tool_calls: calls.into_iter().map(|call| WireCall::new(call, false)).collect(),
            },
            logprobs,
            ending: self.ending(choice_idx, whole.end),
            token_ids: self.asked.wants_token_ids.then(|| ids(&whole.tokens)),
        }
    }

    fn stream(mut self, generations: Generations, record: Arc<Record>) -> Response {
        let frames = self.frames();
        stream::respond(generations, record, move |delta| match delta {
            Some(delta) => self.piece(delta, &frames),
            None => self.last(),
        })
    }

    /// Of each choice; none where every chunk tells more than a text.
    fn frames(&self) -> Vec<Frames> {
        if self.asked.wants_token_ids || self.asked.delivery.counts_always() {
            return Vec::new();
        }
        let frame = |choice_idx, said, n_texts| {
            let chunk = self.chunk(Delta { choice_idx, ..Delta::default() }, said, false);
            Frame::of(&self.envelope(CHUNK, vec![chunk], None), n_texts)
        };
        let text = || Some(Frame::TEXT.to_owned());
        let of_choice = |choice_idx| Frames {
            content: frame(choice_idx, Said { content: text(), ..Said::default() }, 1),
            // Under both of its names.
            reasoning: frame(choice_idx, Said { reasoning: text(), ..Said::default() }, 2),
        };
        (0..self.choices.len()).map(of_choice).collect()
    }

    fn take(&mut self, delta: &Delta) -> Said {
        let choice = &mut self.choices[delta.choice_idx];
        choice.n_generated += usize::from(delta.token.is_some());
        choice.n_cached = delta.n_cached;
        let said = choice.speech.take(delta);
        if delta.end.is_some() {
            self.app.metrics.thought(choice.speech.n_reasoning_tokens());
        }
        said
    }

    fn piece(&mut self, delta: Delta, frames: &[Frames]) -> Option<Vec<u8>> {
        let said = self.take(&delta);
        let choice = &mut self.choices[delta.choice_idx];
        if choice.is_begun
            && stream::only_text(&delta).is_some()
            && let Some(event) = frames.get(delta.choice_idx).and_then(|of| of.event(&said))
        {
            return Some(event);
        }
        let is_first = !std::mem::replace(&mut choice.is_begun, true);
        let says_something = is_first
            || !said.is_empty()
            || delta.score.is_some()
            || delta.end.is_some()
            || (self.asked.wants_token_ids && delta.token.is_some());
        if !says_something {
            return None;
        }
        let usage = self.asked.delivery.counts_always().then(|| {
            let (n_prompt, n_cached) = (self.asked.prompt.len(), choice.n_cached);
            let usage = Usage::new(n_prompt, n_cached, choice.n_generated);
            usage.with_reasoning(choice.speech.n_reasoning_tokens())
        });
        let chunk = self.chunk(delta, said, is_first);
        let event = sse::event(&self.envelope(CHUNK, vec![chunk], usage));
        self.is_begun = true;
        Some(event)
    }

    /// The role comes with the first token, even where that token makes no text yet.
    fn chunk(&self, delta: Delta, said: Said, is_first: bool) -> ChatChunkChoice {
        let is_silent = said.is_empty();
        let content = if is_first && is_silent { Some(String::new()) } else { said.content };
        let logprob = delta.score.map(|score| chat_logprob(&self.app.text, &score));
        ChatChunkChoice {
            index: delta.choice_idx,
            delta: ChatDelta {
                role: is_first.then_some(ROLE),
                content,
                reasoning: said.reasoning.map(Reasoning::new),
                tool_calls: said.calls.into_iter().map(|call| WireCall::new(call, true)).collect(),
            },
            logprobs: logprob.map(|logprob| ChatLogprobs { content: vec![logprob] }),
            ending: self.ending(delta.choice_idx, delta.end),
            token_ids: self.asked.wants_token_ids.then(|| ids(delta.token.as_slice())),
        }
    }

    fn last(&mut self) -> Option<Vec<u8>> {
        let wants_usage =
            matches!(self.asked.delivery, Delivery::Stream { include_usage: true, .. });
        let none: Vec<ChatChunkChoice> = Vec::new();
        let usage = self.usage();
        wants_usage.then(|| sse::event(&self.envelope(CHUNK, none, Some(usage))))
    }

    fn usage(&self) -> Usage {
        let n_generated = self.choices.iter().map(|choice| choice.n_generated).sum();
        let n_reasoning = self.choices.iter().map(|choice| choice.speech.n_reasoning_tokens());
        // What the others found may be the first one's.
        let usage = Usage::new(self.asked.prompt.len(), self.choices[0].n_cached, n_generated);
        usage.with_reasoning(n_reasoning.sum())
    }

    fn ending(&self, choice_idx: usize, end: Option<End>) -> Ending {
        let Some(end) = end else { return Ending::default() };
        let finish_reason = Some(self.choices[choice_idx].speech.end_word(&end));
        Ending { finish_reason, ..ending(end, &self.asked.stop_tokens) }
    }

    fn envelope<Choice>(
        &self,
        object: &'static str,
        choices: Vec<Choice>,
        usage: Option<Usage>,
    ) -> Envelope<'_, Choice> {
        let Asked { id, model, created, .. } = &self.asked;
        let name = Name { id, object, created: *created, model };
        let wants_prompt = self.asked.wants_token_ids && !self.is_begun;
        let prompt_token_ids = wants_prompt.then(|| ids(&self.asked.prompt));
        Envelope { name, contents: Contents { choices, usage, prompt_token_ids } }
    }
}

impl Frames {
    /// The event, where there is nothing but a text.
    fn event(&self, said: &Said) -> Option<Vec<u8>> {
        match (&said.reasoning, &said.content, said.calls.is_empty()) {
            (None, Some(text), true) => Some(self.content.event(text)),
            (Some(text), None, true) => Some(self.reasoning.event(text)),
            _ => None,
        }
    }
}

fn ids(tokens: &[TokenId]) -> Vec<u32> {
    tokens.iter().map(|token| token.0).collect()
}
