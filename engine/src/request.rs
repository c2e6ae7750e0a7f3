//! What enters the engine and what comes back: values that are already checked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scheduler::{TenantId, TokenId};

use crate::error::InvalidSampling;

/// One generation. Made at the edge, where every field was checked.
#[derive(Clone, Debug)]
pub struct Request {
    /// The whole prompt; not empty. Requests whose prompts are one allocation are several answers
    /// to it, and share its pages.
    pub prompt: Arc<[TokenId]>,
    /// Tokens to generate at most.
    pub n_new_max: usize,
    /// A generated token among these ends the request. It is still delivered.
    pub stop_tokens: Arc<[TokenId]>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Alternatives to report with each generated token: `Some(0)` reports the token's own
    /// log-probability only.
    pub n_logprobs: Option<usize>,
    /// The same for the prompt's tokens.
    pub n_prompt_logprobs: Option<usize>,
    /// Whether every reported score says which logits it was made from
    /// ([`TokenScore::logits_hash`]): two engines, or two runs, can be compared bit for bit without
    /// their vocabularies' worth of numbers. For tests, and to find where two runs part.
    pub hashes_logits: bool,
    /// What is computed for this request is shared with requests of the same salt, and with no
    /// others.
    pub cache_salt: Option<Arc<str>>,
    /// Whom it may pass, and how long it is wanted.
    pub terms: Terms,
}

/// What a request asks for besides tokens. A time that passes ends it with
/// [`EndReason::QueueTimeout`] or [`EndReason::DeadlinePassed`], at the end of the step that runs
/// then, whatever it has generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// As with Triton: 1 goes first; 0 is the default level, and so is any number that is no level.
    pub priority: u32,
    /// Whose share of the machine it takes: those who say the same share one share.
    pub tenant: TenantId,
    /// From its submission to a slot at most.
    pub queue_timeout: Option<Duration>,
    /// From its submission to its end at most.
    pub timeout: Option<Duration>,
    /// The span that [step traces](crate::StepTrace) are to name, if it has one.
    pub span: Option<SpanName>,
}

/// What a span of the caller's is called, as W3C's Trace Context has it. The engine only hands it
/// on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanName {
    /// The trace that it is part of; not 0.
    pub trace: u128,
    /// The span; not 0.
    pub span: u64,
}

impl Terms {
    /// The default priority, the first tenant, all the time in the world.
    pub fn ordinary() -> Terms {
        Terms { priority: 0, tenant: TenantId(0), queue_timeout: None, timeout: None, span: None }
    }
}

/// How a token is drawn from its logits. Order: logit bias, penalties, `n_tokens_min`, what a
/// guide allows, temperature, top-k, top-p, min-p, draw.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set whose probability reaches this, in (0, 1].
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the most likely one, in [0, 1].
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output
    /// (Keskar et al., arXiv 1909.05858), in [0.01, 10]; 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracted once from logits of generated tokens, in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted per occurrence from logits of generated tokens, in [-2, 2].
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens; [-100, 100] each.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Stop tokens cannot be drawn before this many tokens are generated.
    pub n_tokens_min: usize,
    /// Seed of every draw of this request: the same seed gives the same tokens.
    pub seed: u64,
}

impl SamplingParams {
    /// The most likely token, always.
    pub fn greedy() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            n_tokens_min: 0,
            seed: 0,
        }
    }

    /// Refuses what is out of range, naming field, value and range. NaN is out of every range.
    pub fn check(&self) -> Result<(), InvalidSampling> {
        let within = |field, value: f32, range: std::ops::RangeInclusive<f32>| {
            if range.contains(&value) {
                return Ok(());
            }
            Err(InvalidSampling { field, value, min: *range.start(), max: *range.end() })
        };
        within("temperature", self.temperature, 0.0..=100.0)?;
        within("top_p", self.top_p, f32::MIN_POSITIVE..=1.0)?;
        within("min_p", self.min_p, 0.0..=1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01..=10.0)?;
        within("presence_penalty", self.presence_penalty, -2.0..=2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?;
        for &(_, bias) in &self.logit_bias {
            within("logit_bias", bias, -100.0..=100.0)?;
        }
        Ok(())
    }
}

/// What a request's reader gets, in this order: that it has a slot, prompt scores (if asked),
/// tokens, one end. Who never gets a slot gets the end alone. Small, because every token is one and
/// goes from one core's cache to another's: what few of them have lies behind a pointer.
#[derive(Clone, Debug)]
pub enum Output {
    /// It has its first slot.
    Admitted {
        /// Tokens of its prompt whose KV was there already.
        n_cached: usize,
    },
    /// Log-probabilities of a run of prompt tokens, from the second token on, in order.
    PromptScores(Vec<TokenScore>),
    /// A generated token.
    Token {
        /// The token.
        token: TokenId,
        /// Its log-probability and alternatives, if asked for.
        score: Option<Box<TokenScore>>,
        /// The step that it came of, as in [`StepRecord::idx`](crate::StepRecord::idx).
        step_idx: u64,
    },
    /// The end. Nothing follows.
    Finish(Box<Finish>),
}

/// Log-probability of a token under the model's own logits, before penalties and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most likely tokens, most likely first, as many as were asked for.
    pub top: Vec<(TokenId, f32)>,
    /// Of all logits' bits, in the vocabulary's order, where the request wants it. The same logits
    /// have the same hash in every build.
    pub logits_hash: Option<u64>,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub struct Finish {
    /// Why.
    pub reason: EndReason,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Of these, tokens whose KV was there already when it first got a slot.
    pub n_cached: usize,
    /// Tokens generated.
    pub n_generated: usize,
    /// When what happened.
    pub timing: Timing,
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// A stop token was generated.
    Stop(TokenId),
    /// `n_new_max` or the context's end.
    Length,
    /// Its reader went away, or it was cancelled.
    Cancelled,
    /// It had no slot within its [queue timeout](Terms::queue_timeout); nothing was computed.
    QueueTimeout,
    /// It had not ended within its [timeout](Terms::timeout).
    DeadlinePassed,
    /// Its guide could not go on; see the log.
    GuideFailed,
    /// The engine failed; see the log.
    EngineFailed,
}

/// Instants of a request's life.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Submitted.
    pub arrived: Instant,
    /// First given a slot.
    pub admitted: Option<Instant>,
    /// First token delivered.
    pub first_token: Option<Instant>,
    /// Ended.
    pub finished: Instant,
}
