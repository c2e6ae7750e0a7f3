//! What chat and completions have in common in a request's body. Texts are not tokenized here, but
//! for words that must not be generated.

use std::sync::Arc;

use engine::{SamplingParams, TokenId};
use serde_json::Value;

use super::super::answer::TextRules;
use super::super::error::ApiError;
use super::super::fields::{Fields, at_most, integer, wrong_type};
use super::super::limits::HttpLimits;
use super::super::observe::random;
use super::super::request::{AnswerLimit, check_stops, checked, forbid_words};
use super::super::state::AppState;

/// How the answer travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// In one piece.
    Whole,
    /// Token by token.
    Stream {
        /// A last chunk carries the usage.
        include_usage: bool,
        /// Every chunk carries the usage so far.
        continuous_usage: bool,
    },
}

impl Delivery {
    /// Whether every chunk carries the usage so far.
    pub(super) fn counts_always(self) -> bool {
        matches!(self, Delivery::Stream { continuous_usage: true, .. })
    }
}

/// Fields that would change the answer if they were obeyed, and what to do without them.
const UNSUPPORTED: [(&str, &str); 8] = [
    ("functions", "send them as `tools`"),
    ("use_beam_search", "leave it out"),
    ("prompt_logprobs", "use /v1/completions with `echo` and `logprobs`"),
    ("suffix", "leave it out"),
    ("audio", "leave it out"),
    ("web_search_options", "leave it out: the model reads nothing but its prompt"),
    ("prompt_embeds", "send text or token ids"),
    ("truncate_prompt_tokens", "shorten the prompt before you send it"),
];

/// The name that the request calls the model by; the first one where it calls it nothing.
pub(super) fn model_name(fields: &mut Fields, app: &AppState) -> Result<String, ApiError> {
    match fields.string("model")? {
        None => Ok(app.name().to_owned()),
        Some(name) if app.is_served(&name) => Ok(name),
        Some(name) => Err(ApiError::UnknownModel { name }),
    }
}

/// Refuses what is not there yet, rather than answer as if it had not been asked for.
pub(super) fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    for (name, remedy) in UNSUPPORTED {
        let is_asked_for = match fields.take(name) {
            None | Some(Value::Bool(false)) => false,
            Some(Value::Array(items)) => !items.is_empty(),
            Some(Value::String(text)) => !text.is_empty(),
            Some(_) => true,
        };
        if is_asked_for {
            return Err(ApiError::Unsupported { field: name.into(), remedy });
        }
    }
    let modalities = fields.list("modalities")?.unwrap_or_default();
    match modalities.iter().all(|one| one == "text") {
        true => Ok(()),
        false => {
            let remedy = "the model writes text only: send `[\"text\"]`, or leave it out";
            Err(ApiError::Unsupported { field: "modalities".into(), remedy })
        }
    }
}

/// `stream` and `stream_options`.
pub(super) fn delivery(fields: &mut Fields) -> Result<Delivery, ApiError> {
    let is_stream = fields.flag("stream")?;
    let options = fields.object("stream_options")?;
    if !is_stream {
        let remedy = "it goes with `stream` set to true";
        return match options {
            None => Ok(Delivery::Whole),
            Some(_) => Err(ApiError::Unsupported { field: "stream_options".into(), remedy }),
        };
    }
    let (mut include_usage, mut continuous_usage) = (false, false);
    if let Some(mut options) = options {
        include_usage = options.flag("include_usage")?;
        // Without `include_usage` it means nothing, as with vLLM.
        continuous_usage = options.flag("continuous_usage_stats")? && include_usage;
    }
    Ok(Delivery::Stream { include_usage, continuous_usage })
}

/// `n`, and what else used to multiply answers.
pub(super) fn n_choices(fields: &mut Fields, limits: &HttpLimits) -> Result<usize, ApiError> {
    let n = fields.count_within("n", 1..=limits.n_choices_max)?.unwrap_or(1);
    if fields.count("best_of", 1)?.is_some_and(|best_of| best_of != n) {
        let remedy = "leave it out, or set it to `n`";
        return Err(ApiError::Unsupported { field: "best_of".into(), remedy });
    }
    Ok(n)
}

/// `cache_salt`, as with vLLM: requests that say the same share what their prompts have in common,
/// and nobody can tell by the time of an answer what others have asked.
pub(super) fn cache_salt(fields: &mut Fields) -> Result<Option<Arc<str>>, ApiError> {
    match fields.string("cache_salt")? {
        Some(salt) if salt.is_empty() => {
            Err(fields.out_of_range("cache_salt", "an empty text".into(), "at least a character"))
        }
        salt => Ok(salt.map(Into::into)),
    }
}

/// How tokens are drawn. Unless given: temperature 1, everything else off, a random seed.
pub(super) fn sampling(fields: &mut Fields, app: &AppState) -> Result<SamplingParams, ApiError> {
    let top_k = match fields.integer("top_k")? {
        // vLLM and Hugging Face write "all" in different ways.
        None | Some(-1 | 0) => 0,
        Some(k) if k > 0 => k as usize,
        Some(k) => {
            let range = "at least 1, or 0 for all";
            return Err(fields.out_of_range("top_k", k.to_string(), range));
        }
    };
    let mut logit_bias = logit_bias(fields, &app.config.limits)?;
    forbid_words(&mut logit_bias, &bad_words(fields, app)?, app)?;
    let sampling = SamplingParams {
        temperature: fields.number("temperature")?.unwrap_or(1.0),
        top_k,
        top_p: fields.number("top_p")?.unwrap_or(1.0),
        min_p: fields.number("min_p")?.unwrap_or(0.0),
        repetition_penalty: fields.number("repetition_penalty")?.unwrap_or(1.0),
        presence_penalty: fields.number("presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty")?.unwrap_or(0.0),
        logit_bias,
        n_tokens_min: fields.count("min_tokens", 0)?.unwrap_or(0),
        seed: fields.seed("seed")?.unwrap_or_else(random),
    };
    checked(sampling, app)
}

/// When an answer is over, and what of its end is shown. One that keeps a format ends with it,
/// whatever else is said.
pub(super) fn rules(
    fields: &mut Fields,
    app: &AppState,
    (n_tokens_min, has_format): (usize, bool),
) -> Result<Arc<TextRules>, ApiError> {
    let limits = &app.config.limits;
    let stops = fields.strings("stop", limits.n_stops_max)?;
    check_stops("stop", &stops, limits)?;
    let listed = fields.list("stop_token_ids")?.unwrap_or_default();
    at_most("stop_token_ids", "entries", listed.len(), limits.n_stop_tokens_max)?;
    let mut stop_tokens = Vec::with_capacity(listed.len());
    for (idx, value) in listed.iter().enumerate() {
        stop_tokens.push(token_id(&format!("stop_token_ids[{idx}]"), value)?);
    }
    if !fields.flag("ignore_eos")? || has_format {
        stop_tokens.extend_from_slice(app.text.stop_tokens());
    }
    Ok(Arc::new(TextRules {
        stops,
        keeps_stop: fields.flag("include_stop_str_in_output")?,
        skips_special: fields.boolean("skip_special_tokens")?.unwrap_or(true),
        stop_tokens: stop_tokens.into(),
        n_tokens_min,
    }))
}

/// The stop tokens that the request named: not the model's own.
pub(super) fn named_stop_tokens(rules: &TextRules, app: &AppState) -> Arc<[TokenId]> {
    let is_own = |token: &TokenId| app.text.stop_tokens().contains(token);
    rules.stop_tokens.iter().copied().filter(|token| !is_own(token)).collect()
}

/// Refuses a least length above the greatest.
pub(super) fn check_min_tokens(
    fields: &Fields,
    sampling: &SamplingParams,
    limit: AnswerLimit,
) -> Result<(), ApiError> {
    match limit {
        AnswerLimit::Asked(n_max) if sampling.n_tokens_min > n_max => {
            let range = format!("at most `max_tokens`, which is {n_max}");
            Err(fields.out_of_range("min_tokens", sampling.n_tokens_min.to_string(), &range))
        }
        _ => Ok(()),
    }
}

/// A token id; whether the vocabulary has it is not asked.
pub(super) fn token_id(field: &str, value: &Value) -> Result<TokenId, ApiError> {
    let id = integer(field, value)?;
    match u32::try_from(id) {
        Ok(id) => Ok(TokenId(id)),
        Err(_) => Err(ApiError::OutOfRange {
            field: field.into(),
            value: id.to_string(),
            range: "a token id".into(),
        }),
    }
}

fn bad_words(fields: &mut Fields, app: &AppState) -> Result<Vec<String>, ApiError> {
    fields.strings("bad_words", app.config.limits.n_stops_max)
}

/// `{"token id": bias}`.
fn logit_bias(fields: &mut Fields, limits: &HttpLimits) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let biases = biases.into_members();
    at_most("logit_bias", "entries", biases.len(), limits.n_logit_bias_max)?;
    let mut read = Vec::with_capacity(biases.len());
    for (key, value) in biases {
        let field = format!("logit_bias.{key}");
        let Ok(id) = key.parse::<u32>() else {
            let range = "a token id, as a key of `logit_bias`".into();
            return Err(ApiError::OutOfRange { field, value: format!("{key:?}"), range });
        };
        match value.as_f64() {
            Some(bias) => read.push((TokenId(id), bias as f32)),
            None => return Err(wrong_type(field, "a number", &value)),
        }
    }
    Ok(read)
}
