//! The generations of one HTTP request: submitted together, read as one sequence of pieces.
//!
//! Between the engine's thread and the request's task lies a channel with room for all that the
//! engine may yet say, so that a slow reader never holds up a step. Dropping [`Generations`]
//! cancels what still runs. It knows no JSON.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use engine::{
    EndReason, Finish, Guide, Output, ReaderGone, Request, Ticket, Timing, TokenId, TokenScore,
};
use tokio::sync::mpsc;

use super::answer::{AnswerText, TextRules, append};
use super::error::ApiError;
use super::observe::Record;
use super::state::App;
use crate::metrics::{Ended, GenerationSummary};
use crate::traces::{GenerationMoments, RequestSpan};

/// One generation to be submitted. Every field was checked.
pub struct Job {
    /// For the engine.
    pub request: Request,
    /// For its answer's text.
    pub rules: Arc<TextRules>,
    /// Holds the answer to its format.
    pub guide: Option<Guide>,
}

/// What one output of the engine adds to one answer.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// The answer, counted as the jobs were.
    pub choice_idx: usize,
    /// Scores of a run of prompt tokens; comes before any token.
    pub prompt_scores: Vec<TokenScore>,
    /// Text that may be shown now.
    pub text: String,
    /// The token, if it was one.
    pub token: Option<TokenId>,
    /// Its score, if asked for.
    pub score: Option<TokenScore>,
    /// The answer is over.
    pub end: Option<End>,
    /// With the end: its counts and moments. Where a stop string ended the answer, they are as this
    /// side saw them.
    pub finish: Option<Finish>,
    /// Tokens of its prompt that were not computed anew.
    pub n_cached: usize,
}

/// How an answer ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At a stop string.
    StopString(String),
    /// At a stop token.
    StopToken(TokenId),
    /// At the bound on new tokens, or the context's end.
    Length,
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Scores of the prompt's tokens from the second on, if asked for.
    pub prompt_scores: Vec<TokenScore>,
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<TokenId>,
    /// Their scores, if asked for.
    pub scores: Vec<TokenScore>,
    /// How it ended.
    pub end: Option<End>,
    /// Its counts and moments, as in [`Delta`].
    pub finish: Option<Finish>,
    /// Tokens of its prompt that were not computed anew.
    pub n_cached: usize,
}

/// Generations under way.
pub struct Generations {
    app: App,
    record: Arc<Record>,
    outputs: mpsc::Receiver<Stamped>,
    choices: Vec<Choice>,
    n_open: usize,
}

/// An output, with its choice and the moment when the engine delivered it.
struct Stamped {
    choice_idx: usize,
    at: Instant,
    output: Output,
}

/// One generation under way.
struct Choice {
    /// Gone once it has ended.
    ticket: Option<Ticket>,
    text: AnswerText,
    /// Of its priority.
    level: u32,
    n_prompt: usize,
    n_cached: usize,
    n_generated: usize,
    n_new_max: usize,
    stop_tokens: Arc<[TokenId]>,
    /// Its newest token ends it.
    is_at_its_end: bool,
    /// From its request's head to its submission.
    prepared: Duration,
    submitted: Instant,
    admitted: Option<Instant>,
    /// And the step that it came of.
    first_token: Option<(Instant, u64)>,
    last_token: Option<(Instant, u64)>,
}

impl End {
    /// OpenAI's and Triton's word for it.
    pub fn word(&self) -> &'static str {
        match self {
            End::StopString(_) | End::StopToken(_) => "stop",
            End::Length => "length",
        }
    }
}

impl Answer {
    /// Adds a piece.
    pub fn absorb(&mut self, delta: Delta) {
        self.prompt_scores.extend(delta.prompt_scores);
        append(&mut self.text, delta.text);
        self.tokens.extend(delta.token);
        self.scores.extend(delta.score);
        self.end = self.end.take().or(delta.end);
        self.finish = self.finish.take().or(delta.finish);
        self.n_cached = delta.n_cached;
    }
}

impl Generations {
    /// Submits all jobs, or none.
    ///
    /// # Errors
    /// What the engine says of the first one that it refuses.
    pub fn submit(
        app: &App,
        record: &Arc<Record>,
        jobs: Vec<Job>,
    ) -> Result<Generations, ApiError> {
        let capacity: usize = jobs.iter().map(n_outputs_max).sum();
        let (sender, outputs) = mpsc::channel(capacity);
        let mut generations = Generations {
            app: Arc::clone(app),
            record: Arc::clone(record),
            outputs,
            choices: Vec::with_capacity(jobs.len()),
            n_open: 0,
        };
        for (choice_idx, mut job) in jobs.into_iter().enumerate() {
            job.request.terms.tenant = record.tenant();
            job.request.terms.span = record.traced().and_then(RequestSpan::name);
            let (n_prompt, n_new_max) = (job.request.prompt.len(), job.request.n_new_max);
            let stop_tokens = Arc::clone(&job.request.stop_tokens);
            let level = app.engine.info().policy.priorities.level(job.request.terms.priority);
            let sender = sender.clone();
            let deliver = move |output| {
                let stamped = Stamped { choice_idx, at: Instant::now(), output };
                sender.try_send(stamped).map_err(|_| ReaderGone)
            };
            // Before the engine can have it: what it does comes after that by every clock.
            let (prepared, submitted) = (record.age(), Instant::now());
            let ticket = app.engine.submit_guided(job.request, job.guide, Box::new(deliver))?;
            record.add_prompt(n_prompt, prepared);
            generations.n_open += 1;
            generations.choices.push(Choice {
                ticket: Some(ticket),
                text: AnswerText::new(&app.text, job.rules),
                level,
                n_prompt,
                n_cached: 0,
                n_generated: 0,
                n_new_max,
                stop_tokens,
                is_at_its_end: false,
                prepared,
                submitted,
                admitted: None,
                first_token: None,
                last_token: None,
            });
        }
        Ok(generations)
    }

    /// The next piece of any answer; `None` once all have ended. May be dropped half-way without
    /// losing anything.
    ///
    /// # Errors
    /// The engine failed or stopped, or an answer's time has passed. Then all answers are void.
    pub async fn next(&mut self) -> Result<Option<Delta>, ApiError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Generations::next`] for who is polled itself.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Delta>, ApiError>> {
        while self.n_open > 0 {
            let Some(stamped) = ready!(self.outputs.poll_recv(cx)) else {
                return Poll::Ready(Err(self.failed()));
            };
            let choice = &mut self.choices[stamped.choice_idx];
            if let Output::Admitted { n_cached } = stamped.output {
                (choice.n_cached, choice.admitted) = (n_cached, Some(stamped.at));
                self.record.admitted(stamped.at);
            } else if choice.ticket.is_some() {
                return Poll::Ready(self.take(stamped).map(Some));
            }
            // What the engine said before it heard that a stop string had ended the answer.
        }
        Poll::Ready(Ok(None))
    }

    /// Waits for all answers, in the order of the jobs.
    ///
    /// # Errors
    /// As for [`Generations::next`].
    pub async fn collect(mut self) -> Result<Vec<Answer>, ApiError> {
        let mut answers = vec![Answer::default(); self.choices.len()];
        while let Some(delta) = self.next().await? {
            answers[delta.choice_idx].absorb(delta);
        }
        Ok(answers)
    }

    fn take(&mut self, stamped: Stamped) -> Result<Delta, ApiError> {
        let Stamped { choice_idx, at, output } = stamped;
        let n_cached = self.choices[choice_idx].n_cached;
        let delta = Delta { choice_idx, n_cached, ..Delta::default() };
        match output {
            Output::Admitted { .. } => Ok(delta),
            Output::PromptScores(prompt_scores) => Ok(Delta { prompt_scores, ..delta }),
            Output::Token { token, score, step_idx } => {
                self.count_token(choice_idx, (at, step_idx), token);
                let piece = self.choices[choice_idx].text.push(token);
                let end = piece.stop.map(End::StopString);
                let finish = end.is_some().then(|| self.choices[choice_idx].stopped());
                if end.is_some() {
                    self.end(choice_idx, Ended::Stop);
                }
                let score = score.map(|score| *score);
                Ok(Delta { text: piece.text, token: Some(token), score, end, finish, ..delta })
            }
            Output::Finish(finish) => {
                let (text, end) = self.finish(choice_idx, &finish)?;
                Ok(Delta { text, end: Some(end), finish: Some(*finish), ..delta })
            }
        }
    }

    /// Whether the choice's newest token is its last, so that its end is all that is to come.
    pub fn is_at_its_end(&self, choice_idx: usize) -> bool {
        self.choices[choice_idx].is_at_its_end
    }

    fn count_token(&mut self, choice_idx: usize, (at, step_idx): (Instant, u64), token: TokenId) {
        let choice = &mut self.choices[choice_idx];
        let metrics = &self.app.metrics;
        choice.n_generated += 1;
        choice.first_token.get_or_insert((at, step_idx));
        choice.is_at_its_end =
            choice.n_generated == choice.n_new_max || choice.stop_tokens.contains(&token);
        match choice.last_token.replace((at, step_idx)) {
            None => {
                let after = at.saturating_duration_since(choice.submitted);
                metrics.first_token(after, choice.prepared);
                self.record.began_to_speak((at, step_idx));
            }
            Some((last, _)) => metrics.token_gap(at.saturating_duration_since(last)),
        }
    }

    fn finish(&mut self, choice_idx: usize, finish: &Finish) -> Result<(String, End), ApiError> {
        let end = match finish.reason {
            EndReason::Stop(token) => End::StopToken(token),
            EndReason::Length => End::Length,
            EndReason::Cancelled => return Err(ApiError::ShuttingDown),
            EndReason::QueueTimeout => {
                self.end(choice_idx, Ended::QueueTimeout);
                return Err(ApiError::QueueTimeout);
            }
            EndReason::DeadlinePassed => {
                self.end(choice_idx, Ended::DeadlinePassed);
                return Err(ApiError::DeadlinePassed);
            }
            EndReason::GuideFailed => {
                self.end(choice_idx, Ended::Failed);
                return Err(ApiError::GuideFailed);
            }
            EndReason::EngineFailed => {
                self.end(choice_idx, Ended::Failed);
                return Err(self.failed());
            }
        };
        let piece = self.choices[choice_idx].text.finish();
        // The last characters may complete a stop string after all.
        let end = piece.stop.map_or(end, End::StopString);
        let ended = if end == End::Length { Ended::Length } else { Ended::Stop };
        self.end(choice_idx, ended);
        Ok((piece.text, end))
    }

    fn end(&mut self, choice_idx: usize, ended: Ended) {
        let choice = &mut self.choices[choice_idx];
        let Some(ticket) = choice.ticket.take() else { return };
        self.n_open -= 1;
        let since = |from: Instant, to: Instant| to.saturating_duration_since(from);
        let now = Instant::now();
        let summary = GenerationSummary {
            ended,
            level: choice.level,
            n_prompt: choice.n_prompt,
            n_generated: choice.n_generated,
            prepared: choice.prepared,
            total: since(choice.submitted, now),
            queued: choice.admitted.map(|admitted| since(choice.submitted, admitted)),
            handed_over: since(choice.last_token.map_or(now, |(at, _)| at), now),
        };
        if let Some(traced) = self.record.traced() {
            traced.generation(&choice.moments(choice_idx, now));
        }
        self.record.ended(&summary, choice.n_cached, choice.last_token.map(|(_, step)| step));
        self.app.metrics.generation(summary);
        // Cancels what is still to come, if anything is. Last, so that whoever sees the engine idle
        // finds the generation counted.
        drop(ticket);
    }

    fn failed(&self) -> ApiError {
        match self.app.engine.ready() {
            Err(refusal) => refusal.into(),
            // The engine runs on; this request alone met numbers that are none.
            Ok(()) => ApiError::EngineFailed { cause: "no finite logits for this prompt".into() },
        }
    }
}

impl Choice {
    /// For its trace.
    fn moments(&self, choice_idx: usize, ended: Instant) -> GenerationMoments {
        GenerationMoments {
            submitted: self.submitted,
            admitted: self.admitted,
            first_token: self.first_token,
            last_token: self.last_token,
            ended,
            choice_idx,
            n_generated: self.n_generated,
            n_cached: self.n_cached,
        }
    }

    /// What is known of an answer that a stop string ends now.
    fn stopped(&self) -> Finish {
        let timing = Timing {
            arrived: self.submitted,
            admitted: self.admitted,
            first_token: self.first_token.map(|(at, _)| at),
            finished: Instant::now(),
        };
        Finish {
            reason: EndReason::Cancelled,
            n_prompt: self.n_prompt,
            n_cached: 0,
            n_generated: self.n_generated,
            timing,
        }
    }
}

impl Drop for Generations {
    fn drop(&mut self) {
        for choice_idx in 0..self.choices.len() {
            self.end(choice_idx, Ended::Abandoned);
        }
    }
}

/// Messages that the engine sends for a job at most: the slot, each token, the prompt's scores in
/// as many runs as there are tokens, the end.
fn n_outputs_max(job: &Job) -> usize {
    let n_scored = job.request.n_prompt_logprobs.map_or(0, |_| job.request.prompt.len());
    job.request.n_new_max + n_scored + 2
}
