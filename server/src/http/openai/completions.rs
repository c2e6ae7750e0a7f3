//! `POST /v1/completions`: prompts of text or token ids, with `echo` and log-probabilities.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Json, Response};
use engine::{N_LOGPROBS_MAX, Terms, TokenId};

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::generation::{Answer, Delta, Generations, Job};
use super::super::observe::Record;
use super::super::request::{AnswerLimit, Options};
use super::super::sse::{self, Frame};
use super::super::state::{App, AppState};
use super::error::Refusal;
use super::format;
use super::intake::Intake;
use super::logprobs::CompletionScores;
use super::options::{self, Delivery};
use super::prompts::{Prompt, prompts};
use super::stream;
use super::wire::{
    CompletionChoice, CompletionLogprobs, Contents, Ending, Envelope, Name, Usage, ending,
};
use crate::guide::AnswerRules;

/// OpenAI's default, and vLLM's.
const N_NEW_DEFAULT: usize = 16;

/// What a request asks for, beside its jobs.
struct Asked {
    id: String,
    model: String,
    created: u64,
    prompts: Vec<Prompt>,
    n_choices: usize,
    echo: bool,
    wants_logprobs: bool,
    wants_token_ids: bool,
    delivery: Delivery,
    /// Those that the request named.
    stop_tokens: Arc<[TokenId]>,
}

/// Answers a request.
pub(super) async fn handle(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let intake = Intake { app: Arc::clone(&app), record: Arc::clone(&record), headers, body };
    let (asked, generations) = intake.submit("cmpl-", parse).await?;
    let view = View::new(asked, app);
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
    let echo = fields.flag("echo")?;
    let limit = match (fields.is_null("max_tokens"), fields.count("max_tokens", 0)?) {
        (true, _) => AnswerLimit::Rest,
        (false, given) => AnswerLimit::Asked(given.unwrap_or(N_NEW_DEFAULT)),
    };
    if limit == AnswerLimit::Asked(0) && !echo {
        let range = "at least 1, or 0 with `echo`";
        return Err(fields.out_of_range("max_tokens", "0".into(), range));
    }
    let n_logprobs = fields.count_within("logprobs", 0..=N_LOGPROBS_MAX)?;
    let sampling = options::sampling(&mut fields, app)?;
    options::check_min_tokens(&fields, &sampling, limit)?;
    let format = format::wanted(&mut fields)?;
    let rules = options::rules(&mut fields, app, (sampling.n_tokens_min, format.is_some()))?;
    let wants_token_ids = fields.flag("return_token_ids")?;
    let cache_salt = options::cache_salt(&mut fields)?;
    let prompts = prompts(&mut fields, app)?;
    let format = format.map(|wanted| wanted.compile(app)).transpose()?;
    let answer = AnswerRules { format, ..AnswerRules::free() };
    // The engine runs nothing that makes neither tokens nor scores.
    let scores_prompt = echo && (n_logprobs.is_some() || limit == AnswerLimit::Asked(0));
    let options = Options {
        n_choices,
        limit,
        sampling,
        rules: Arc::clone(&rules),
        n_logprobs,
        n_prompt_logprobs: scores_prompt.then(|| n_logprobs.unwrap_or(0)),
        cache_salt,
        answer,
        terms: Terms::ordinary(),
    };
    let tokens: Vec<_> = prompts.iter().map(|prompt| Arc::clone(&prompt.tokens)).collect();
    let jobs = options.jobs(app, &tokens)?;
    let asked = Asked {
        id,
        model,
        created: app.created_now(),
        prompts,
        n_choices,
        echo,
        wants_logprobs: n_logprobs.is_some(),
        wants_token_ids,
        delivery,
        stop_tokens: options::named_stop_tokens(&rules, app),
    };
    Ok((asked, jobs))
}

/// Writes answers down.
struct View {
    asked: Asked,
    app: App,
    choices: Vec<ChoiceView>,
    n_generated: usize,
}

/// What has to be remembered of a choice while it is streamed.
#[derive(Default)]
struct ChoiceView {
    scores: CompletionScores,
    /// What the first chunk is to carry.
    pending: Answer,
    is_begun: bool,
    n_cached: usize,
    n_generated: usize,
}

impl View {
    fn new(asked: Asked, app: App) -> View {
        let n = asked.prompts.len() * asked.n_choices;
        let choices = (0..n).map(|_| ChoiceView::default()).collect();
        View { asked, app, choices, n_generated: 0 }
    }

    fn whole(mut self, answers: Vec<Answer>) -> Response {
        let mut choices = Vec::with_capacity(answers.len());
        for (choice_idx, answer) in answers.into_iter().enumerate() {
            self.count(choice_idx, answer.tokens.len());
            self.choices[choice_idx].n_cached = answer.n_cached;
            choices.push(self.choice(choice_idx, answer));
        }
        let usage = Usage::new(self.n_prompt(), self.n_cached(), self.n_generated);
        Json(self.envelope(choices, Some(usage))).into_response()
    }

    fn stream(mut self, generations: Generations, record: Arc<Record>) -> Response {
        let frames = self.frames();
        stream::respond(generations, record, move |delta| match delta {
            Some(delta) => self.piece(delta, &frames),
            None => self.last(),
        })
    }

    /// Of each choice's parts that tell a text and nothing else; none where every part tells more.
    fn frames(&self) -> Vec<Frame> {
        if self.asked.wants_token_ids || self.asked.delivery.counts_always() {
            return Vec::new();
        }
        let frame = |index| {
            let choice = CompletionChoice { index, text: Frame::TEXT.into(), ..Default::default() };
            Frame::of(&self.envelope(vec![choice], None), 1)
        };
        (0..self.choices.len()).map(frame).collect()
    }

    fn piece(&mut self, mut delta: Delta, frames: &[Frame]) -> Option<Vec<u8>> {
        let choice_idx = delta.choice_idx;
        let is_prompt = delta.token.is_none() && delta.end.is_none();
        self.count(choice_idx, usize::from(delta.token.is_some()));
        if self.choices[choice_idx].is_begun
            && let (Some(frame), Some(text)) = (frames.get(choice_idx), stream::only_text(&delta))
        {
            return Some(frame.event(text));
        }
        // A list that nobody reads is none.
        delta.token = delta.token.filter(|_| self.asked.wants_token_ids);
        let choice = &mut self.choices[choice_idx];
        choice.n_cached = delta.n_cached;
        choice.pending.absorb(delta);
        let pending = &choice.pending;
        let says_something = !choice.is_begun
            || !pending.text.is_empty()
            || !pending.scores.is_empty()
            || pending.end.is_some()
            || (self.asked.wants_token_ids && !pending.tokens.is_empty());
        // The prompt's scores go out together, with the first token.
        if is_prompt || !says_something {
            return None;
        }
        let piece = std::mem::take(&mut choice.pending);
        let (n_cached, n_generated) = (choice.n_cached, choice.n_generated);
        let choice = self.choice(choice_idx, piece);
        let usage = self.asked.delivery.counts_always().then(|| {
            let prompt = &self.asked.prompts[choice_idx / self.asked.n_choices];
            Usage::new(prompt.tokens.len(), n_cached, n_generated)
        });
        Some(sse::event(&self.envelope(vec![choice], usage)))
    }

    fn last(&mut self) -> Option<Vec<u8>> {
        let wants_usage =
            matches!(self.asked.delivery, Delivery::Stream { include_usage: true, .. });
        let usage = Usage::new(self.n_prompt(), self.n_cached(), self.n_generated);
        wants_usage.then(|| sse::event(&self.envelope(Vec::new(), Some(usage))))
    }

    fn count(&mut self, choice_idx: usize, n_tokens: usize) {
        self.choices[choice_idx].n_generated += n_tokens;
        self.n_generated += n_tokens;
    }

    /// Of each prompt's first answer: what the others found may be that one's.
    fn n_cached(&self) -> usize {
        let firsts = self.choices.iter().step_by(self.asked.n_choices);
        firsts.map(|choice| choice.n_cached).sum()
    }

    fn n_prompt(&self) -> usize {
        self.asked.prompts.iter().map(|prompt| prompt.tokens.len()).sum()
    }

    fn envelope(
        &self,
        choices: Vec<CompletionChoice>,
        usage: Option<Usage>,
    ) -> Envelope<'_, CompletionChoice> {
        let Asked { id, model, created, .. } = &self.asked;
        let name = Name { id, object: "text_completion", created: *created, model };
        Envelope { name, contents: Contents { choices, usage, prompt_token_ids: None } }
    }

    /// A choice, or the next part of it: what `echo` asks for stands before its first part.
    fn choice(&mut self, choice_idx: usize, part: Answer) -> CompletionChoice {
        let is_first = !std::mem::replace(&mut self.choices[choice_idx].is_begun, true);
        let logprobs = self.logprobs(choice_idx, is_first, &part);
        let prompt = &self.asked.prompts[choice_idx / self.asked.n_choices];
        let mut text = part.text;
        if is_first && self.asked.echo {
            let echoed = prompt.text.clone();
            let echoed = echoed.unwrap_or_else(|| self.app.text.decode(&prompt.tokens, true));
            text.insert_str(0, &echoed);
        }
        let ids = |tokens: &[TokenId]| tokens.iter().map(|token| token.0).collect();
        let wants_ids = self.asked.wants_token_ids;
        CompletionChoice {
            index: choice_idx,
            text,
            logprobs,
            ending: part.end.map_or(Ending::default(), |end| ending(end, &self.asked.stop_tokens)),
            token_ids: wants_ids.then(|| ids(&part.tokens)),
            prompt_token_ids: (wants_ids && is_first).then(|| ids(&prompt.tokens)),
        }
    }

    fn logprobs(
        &mut self,
        choice_idx: usize,
        is_first: bool,
        part: &Answer,
    ) -> Option<CompletionLogprobs> {
        if !self.asked.wants_logprobs {
            return None;
        }
        let text = &self.app.text;
        let scores = &mut self.choices[choice_idx].scores;
        if !(is_first && self.asked.echo) {
            return Some(scores.take(text, &part.scores));
        }
        let first = self.asked.prompts[choice_idx / self.asked.n_choices].tokens[0];
        let mut logprobs = scores.take_prompt(text, first, &part.prompt_scores);
        logprobs.append(scores.take(text, &part.scores));
        Some(logprobs)
    }
}
