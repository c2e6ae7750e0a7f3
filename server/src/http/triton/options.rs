//! From a row's inputs to what the engine is to do.

use std::sync::Arc;

use engine::{SamplingParams, TokenId};

use super::super::answer::TextRules;
use super::super::error::ApiError;
use super::super::observe::random;
use super::super::request::{AnswerLimit, Options, check_stops, checked, forbid_words};
use super::super::state::AppState;
use super::call::Parameters;
use super::error::Refusal;
use super::inputs::Inputs;
use crate::guide::{AnswerRules, Format};

/// Reads how to answer.
pub(super) fn options(
    inputs: &mut Inputs,
    parameters: Parameters,
    app: &AppState,
) -> Result<Options, Refusal> {
    refuse_unsupported(inputs)?;
    let limit = AnswerLimit::Capped(count(inputs, "max_tokens", 1)?.unwrap_or(1));
    let n_choices = count(inputs, "num_return_sequences", 1)?.unwrap_or(1);
    if n_choices > app.config.limits.n_choices_max {
        let n_max = app.config.limits.n_choices_max;
        let range = format!("at most {n_max}");
        return Err(out_of_range("num_return_sequences", n_choices.to_string(), range));
    }
    let sampling = sampling(inputs, app)?;
    let format = match format(inputs)? {
        Some(format) => Some(app.compile(GUIDE, &format)?),
        None => None,
    };
    let rules = rules(inputs, app, (sampling.n_tokens_min, format.is_some()))?;
    let wants_scores = inputs.flag("return_log_probs")?;
    Ok(Options {
        n_choices,
        limit,
        sampling,
        rules,
        n_logprobs: wants_scores.then_some(0),
        n_prompt_logprobs: None,
        cache_salt: None,
        answer: AnswerRules { format, ..AnswerRules::free() },
        terms: parameters.terms(),
    })
}

/// Greedy unless the request says how to draw, as in TensorRT-LLM. Its ways to write "off" (top-p
/// 0, top-k 0) are taken as that.
fn sampling(inputs: &mut Inputs, app: &AppState) -> Result<SamplingParams, Refusal> {
    let temperature = inputs.number("temperature")?;
    let top_k = match inputs.integer("top_k")? {
        Some(k) if k > 0 => Some(k as usize),
        Some(-1 | 0) | None => None,
        Some(k) => return Err(out_of_range("top_k", k.to_string(), "at least 0".into())),
    };
    let top_p = inputs.number("top_p")?.filter(|&top_p| top_p != 0.0);
    let min_p = inputs.number("min_p")?;
    let draws = temperature.is_some() || top_k.is_some() || top_p.is_some() || min_p.is_some();
    let mut logit_bias = Vec::new();
    let bad_words = inputs.texts("bad_words")?;
    check_stops("bad_words", &bad_words, &app.config.limits)?;
    forbid_words(&mut logit_bias, &bad_words, app)?;
    let sampling = SamplingParams {
        temperature: temperature.unwrap_or(if draws { 1.0 } else { 0.0 }),
        top_k: top_k.unwrap_or(0),
        top_p: top_p.unwrap_or(1.0),
        min_p: min_p.unwrap_or(0.0),
        repetition_penalty: inputs.number("repetition_penalty")?.unwrap_or(1.0),
        presence_penalty: inputs.number("presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: inputs.number("frequency_penalty")?.unwrap_or(0.0),
        logit_bias,
        n_tokens_min: count(inputs, "min_tokens", 0)?.unwrap_or(0),
        seed: inputs.seed()?.unwrap_or_else(random),
    };
    Ok(checked(sampling, app)?)
}

fn rules(
    inputs: &mut Inputs,
    app: &AppState,
    (n_tokens_min, has_format): (usize, bool),
) -> Result<Arc<TextRules>, Refusal> {
    let stops = inputs.texts("stop_words")?;
    check_stops("stop_words", &stops, &app.config.limits)?;
    let mut stop_tokens = Vec::new();
    // An answer that keeps a format ends with it.
    if !inputs.flag("ignore_eos")? || has_format {
        stop_tokens.extend_from_slice(app.text.stop_tokens());
    }
    // Load tools send an id beyond every vocabulary, so that nothing ends an answer early.
    let end_id = inputs.integer("end_id")?.and_then(|id| u32::try_from(id).ok());
    if let Some(id) = end_id.filter(|&id| (id as usize) < app.engine.info().vocab_size) {
        stop_tokens.push(TokenId(id));
    }
    Ok(Arc::new(TextRules {
        stops,
        keeps_stop: false,
        skips_special: true,
        stop_tokens: stop_tokens.into(),
        n_tokens_min,
    }))
}

const GUIDE: &str = "guided_decoding_guide";

/// The format that the answer must keep, in TensorRT-LLM's words.
fn format(inputs: &mut Inputs) -> Result<Option<Format>, Refusal> {
    let kind = inputs.text("guided_decoding_guide_type")?.unwrap_or_default();
    let guide = inputs.text(GUIDE)?.unwrap_or_default();
    let format = match kind.as_str() {
        "" if guide.is_empty() => return Ok(None),
        "json" => Format::JsonObject,
        _ if guide.is_empty() => {
            let remedy = "what the answer must keep to";
            return Err(ApiError::Empty { field: GUIDE.into(), remedy }.into());
        }
        "json_schema" => match serde_json::from_str(&guide) {
            Ok(schema) => Format::JsonSchema(schema),
            Err(error) => {
                let (field, problem) = (GUIDE.into(), error.to_string());
                return Err(ApiError::Uncompilable { field, problem }.into());
            }
        },
        "regex" => Format::Regex(guide),
        "ebnf_grammar" => Format::Grammar(guide),
        other => {
            let range = "json, json_schema, regex or ebnf_grammar".into();
            let field = "guided_decoding_guide_type";
            return Err(out_of_range(field, format!("{other:?}"), range));
        }
    };
    Ok(Some(format))
}

fn refuse_unsupported(inputs: &mut Inputs) -> Result<(), Refusal> {
    let beams = inputs.integer("beam_width")?.unwrap_or(1);
    let context_logits = inputs.flag("return_context_logits")?;
    let generation_logits = inputs.flag("return_generation_logits")?;
    let asked_for = [
        (beams > 1, "beam_width", "set it to 1"),
        (context_logits, "return_context_logits", "ask for return_log_probs"),
        (generation_logits, "return_generation_logits", "ask for return_log_probs"),
    ];
    for (is_asked_for, field, remedy) in asked_for {
        if is_asked_for {
            return Err(ApiError::Unsupported { field: field.into(), remedy }.into());
        }
    }
    Ok(())
}

fn count(inputs: &mut Inputs, name: &'static str, n_min: i64) -> Result<Option<usize>, Refusal> {
    match inputs.integer(name)? {
        None => Ok(None),
        Some(n) if n >= n_min => Ok(Some(n as usize)),
        Some(n) => Err(out_of_range(name, n.to_string(), format!("at least {n_min}"))),
    }
}

fn out_of_range(field: &str, value: String, range: String) -> Refusal {
    ApiError::OutOfRange { field: field.into(), value, range }.into()
}
