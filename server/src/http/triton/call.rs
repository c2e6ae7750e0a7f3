//! One inference, whatever the wire: from checked tensors to jobs for the engine, and from answers
//! to tensors.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Terms, TokenId};

use super::super::error::ApiError;
use super::super::generation::{Answer, Job};
use super::super::request::encode;
use super::super::state::AppState;
use super::error::Refusal;
use super::inputs::{Caller, Inputs};
use super::options::options;
use super::tensor::{Data, Tensor};
use crate::text::SpecialTokens;

/// What a request says beside its tensors.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parameters {
    /// 1 goes first; 0 is the default.
    pub(super) priority: u64,
    /// How long the request may wait for a slot.
    pub(super) timeout: Option<Duration>,
}

impl Parameters {
    /// The same for the engine.
    pub(super) fn terms(&self) -> Terms {
        Terms {
            // A number that is no level is the default one.
            priority: u32::try_from(self.priority).unwrap_or(0),
            queue_timeout: self.timeout,
            ..Terms::ordinary()
        }
    }

    /// Takes over Triton's timeout: microseconds, of which 0 is none.
    pub(super) fn set_timeout_us(&mut self, timeout_us: u64) {
        self.timeout = (timeout_us > 0).then(|| Duration::from_micros(timeout_us));
    }
}

/// What a request asks for, beside its jobs.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) caller: Caller,
    /// Answers come in pieces.
    pub(super) is_stream: bool,
    /// Rows of the batch.
    pub(super) n_rows: usize,
    /// Answers to each.
    n_choices: usize,
    prompts: Vec<Prompt>,
    wants: Wants,
    page_tokens: usize,
    began: Instant,
}

#[derive(Debug)]
struct Prompt {
    /// The prompt, if the answer is to begin with it.
    echo: Option<String>,
    n_tokens: usize,
}

/// Outputs that come only if asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wants {
    scores: bool,
    finish_reason: bool,
    n_input: bool,
    n_output: bool,
    perf_metrics: bool,
}

impl Call {
    /// Reads every row, tokenizes its prompt and makes its jobs.
    ///
    /// # Errors
    /// What the model refuses.
    pub(super) fn prepare(
        caller: Caller,
        rows: Vec<Inputs>,
        parameters: Parameters,
        app: &AppState,
    ) -> Result<(Call, Vec<Job>), Refusal> {
        let mut call = Call {
            caller,
            is_stream: false,
            n_rows: rows.len(),
            n_choices: 1,
            prompts: Vec::with_capacity(rows.len()),
            wants: Wants::default(),
            page_tokens: app.engine.info().page_tokens,
            began: app.began,
        };
        let mut jobs = Vec::new();
        for (row_idx, mut inputs) in rows.into_iter().enumerate() {
            jobs.extend(call.add(row_idx, &mut inputs, parameters, app)?);
        }
        let n_max = app.engine.info().n_slots + app.engine.info().n_waiting_max;
        if jobs.len() > n_max {
            let (field, n) = ("num_return_sequences".into(), jobs.len());
            return Err(ApiError::TooMany { field, what: "answers", n, n_max }.into());
        }
        if call.is_stream && jobs.len() > 1 {
            let remedy = "more than one answer cannot be streamed";
            let field = "num_return_sequences".into();
            return Err(ApiError::Unsupported { field, remedy }.into());
        }
        Ok((call, jobs))
    }

    fn add(
        &mut self,
        row_idx: usize,
        inputs: &mut Inputs,
        parameters: Parameters,
        app: &AppState,
    ) -> Result<Vec<Job>, Refusal> {
        let text = inputs.text("text_input")?.unwrap_or_default();
        let options = options(inputs, parameters, app)?;
        let prompt: Arc<[TokenId]> = encode(app, &text, SpecialTokens::Add)?;
        if row_idx > 0 && options.n_choices != self.n_choices {
            let remedy = "all rows of a batch get as many answers";
            let field = "num_return_sequences".into();
            return Err(ApiError::Unsupported { field, remedy }.into());
        }
        self.n_choices = options.n_choices;
        let excludes_input = inputs.boolean("exclude_input_in_output")?.unwrap_or(true);
        let echo = (!excludes_input).then_some(text);
        self.prompts.push(Prompt { echo, n_tokens: prompt.len() });
        self.is_stream |= inputs.flag("stream")?;
        let wants = &mut self.wants;
        wants.scores |= options.n_logprobs.is_some();
        wants.finish_reason |= inputs.flag("return_finish_reason")?;
        wants.n_input |= inputs.flag("return_num_input_tokens")?;
        wants.n_output |= inputs.flag("return_num_output_tokens")?;
        wants.perf_metrics |= inputs.flag("return_perf_metrics")?;
        Ok(options.jobs(app, &[prompt])?)
    }

    /// Whether the end of a stream is worth a response of its own though it adds no text.
    pub(super) fn tells_of_its_end(&self) -> bool {
        self.wants.finish_reason || self.wants.perf_metrics
    }

    /// What a piece of the only answer says, where nothing but text was asked for.
    pub(super) fn only_text<'a>(&self, piece: &'a Answer) -> Option<&'a str> {
        let is_plain = self.wants == Wants::default() && self.prompts[0].echo.is_none();
        is_plain.then_some(&piece.text)
    }

    /// The prompt has been said; the rest of a stream goes without it.
    pub(super) fn forget_prompt(&mut self) {
        for prompt in &mut self.prompts {
            prompt.echo = None;
        }
    }

    /// The tensors of whole answers, in the order of the jobs, or of a piece of the only one.
    pub(super) fn outputs(&self, answers: &[Answer]) -> Vec<Tensor> {
        let shape = [self.n_rows as u64, self.n_choices as u64];
        let tensor = |name: &str, shape: &[u64], data| {
            let (name, shape) = (name.to_owned(), shape.to_vec());
            Tensor { name, shape, data }
        };
        let text = |(idx, answer): (usize, &Answer)| {
            let echo = self.prompts[idx / self.n_choices].echo.as_deref().unwrap_or_default();
            [echo.as_bytes(), answer.text.as_bytes()].concat()
        };
        let texts = answers.iter().enumerate().map(text).collect();
        let mut outputs = vec![tensor("text_output", &shape, Data::Bytes(texts))];
        if self.wants.scores {
            outputs.extend(self.scores(answers));
        }
        if self.wants.finish_reason {
            let word = |answer: &Answer| {
                answer.end.as_ref().map_or("not_finished", |end| end.word()).as_bytes().to_vec()
            };
            let words = answers.iter().map(word).collect();
            outputs.push(tensor("finish_reason", &shape, Data::Bytes(words)));
        }
        if self.wants.n_input {
            let counts = self.prompts.iter().map(|prompt| prompt.n_tokens as i32).collect();
            outputs.push(tensor("num_input_tokens", &[shape[0], 1], Data::Int32(counts)));
        }
        if self.wants.n_output {
            let counts = answers.iter().map(|answer| answer.tokens.len() as i32).collect();
            outputs.push(tensor("num_output_tokens", &shape, Data::Int32(counts)));
        }
        if self.wants.perf_metrics && answers.iter().all(|answer| answer.finish.is_some()) {
            outputs.extend(self.perf_metrics(answers));
        }
        outputs
    }

    /// Sums, and one a token; shorter answers are filled up with zeros.
    fn scores(&self, answers: &[Answer]) -> [Tensor; 2] {
        let shape = vec![self.n_rows as u64, self.n_choices as u64];
        let n_max = answers.iter().map(|answer| answer.scores.len()).max().unwrap_or(0);
        let mut sums = Vec::with_capacity(answers.len());
        let mut each = Vec::with_capacity(answers.len() * n_max);
        for answer in answers {
            let logprobs = answer.scores.iter().map(|score| score.logprob);
            sums.push(logprobs.clone().sum());
            each.extend(logprobs);
            each.resize(sums.len() * n_max, 0.0);
        }
        let each_shape = [shape.as_slice(), &[n_max as u64]].concat();
        [
            Tensor { name: "cum_log_probs".into(), shape, data: Data::Fp32(sums) },
            Tensor { name: "output_log_probs".into(), shape: each_shape, data: Data::Fp32(each) },
        ]
    }

    /// Pages of the KV cache, and nanoseconds since serving began.
    fn perf_metrics(&self, answers: &[Answer]) -> Vec<Tensor> {
        let ends: Vec<_> = answers.iter().filter_map(|answer| answer.finish.as_ref()).collect();
        let shape = vec![self.n_rows as u64, self.n_choices as u64];
        let tensor = |name: &str, data| Tensor { name: name.into(), shape: shape.clone(), data };
        let total = |end: &engine::Finish| {
            (end.n_prompt + end.n_generated).div_ceil(self.page_tokens) as i32
        };
        let reused = |end: &engine::Finish| (end.n_cached / self.page_tokens) as i32;
        let pages = |count: &dyn Fn(&engine::Finish) -> i32| {
            Data::Int32(ends.iter().map(|end| count(end)).collect())
        };
        let at = |moment: &dyn Fn(&engine::Timing) -> Instant| {
            let since = |end: &&engine::Finish| {
                moment(&end.timing).saturating_duration_since(self.began).as_nanos() as i64
            };
            Data::Int64(ends.iter().map(since).collect())
        };
        vec![
            tensor("kv_cache_alloc_new_blocks", pages(&|end| total(end) - reused(end))),
            tensor("kv_cache_reused_blocks", pages(&reused)),
            tensor("kv_cache_alloc_total_blocks", pages(&total)),
            tensor("arrival_time_ns", at(&|timing| timing.arrived)),
            tensor(
                "first_scheduled_time_ns",
                at(&|timing| timing.admitted.unwrap_or(timing.arrived)),
            ),
            tensor(
                "first_token_time_ns",
                at(&|timing| timing.first_token.unwrap_or(timing.finished)),
            ),
            tensor("last_token_time_ns", at(&|timing| timing.finished)),
        ]
    }
}
