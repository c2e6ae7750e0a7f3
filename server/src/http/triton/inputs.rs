//! The members of a generate request: which of them are inputs of the model, under which names,
//! and of which types. Names are those of TensorRT-LLM's ensemble and of vLLM's backend.

use serde_json::Value;

use super::error::Refusal;
use super::json::Members;

/// What an input holds, in Triton's types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// BYTES: text.
    Text,
    /// INT32.
    Integer,
    /// UINT64.
    Unsigned,
    /// FP32.
    Number,
    /// BOOL.
    Boolean,
}

/// Name on the wire, the input that it means, and its type. The first two are required.
const INPUTS: [(&str, &str, Kind); 56] = [
    ("text_input", "text_input", Kind::Text),
    ("max_tokens", "max_tokens", Kind::Integer),
    ("stream", "stream", Kind::Boolean),
    ("streaming", "stream", Kind::Boolean),
    ("stop_words", "stop_words", Kind::Text),
    ("stop", "stop_words", Kind::Text),
    ("bad_words", "bad_words", Kind::Text),
    ("end_id", "end_id", Kind::Integer),
    ("pad_id", "pad_id", Kind::Integer),
    ("seed", "seed", Kind::Unsigned),
    ("random_seed", "seed", Kind::Unsigned),
    ("temperature", "temperature", Kind::Number),
    ("top_k", "top_k", Kind::Integer),
    ("top_p", "top_p", Kind::Number),
    ("min_p", "min_p", Kind::Number),
    ("repetition_penalty", "repetition_penalty", Kind::Number),
    ("presence_penalty", "presence_penalty", Kind::Number),
    ("frequency_penalty", "frequency_penalty", Kind::Number),
    ("length_penalty", "length_penalty", Kind::Number),
    ("early_stopping", "early_stopping", Kind::Boolean),
    ("min_tokens", "min_tokens", Kind::Integer),
    ("min_length", "min_tokens", Kind::Integer),
    ("beam_width", "beam_width", Kind::Integer),
    ("num_return_sequences", "num_return_sequences", Kind::Integer),
    ("return_log_probs", "return_log_probs", Kind::Boolean),
    ("return_logprobs", "return_log_probs", Kind::Boolean),
    ("return_context_logits", "return_context_logits", Kind::Boolean),
    ("return_generation_logits", "return_generation_logits", Kind::Boolean),
    ("return_perf_metrics", "return_perf_metrics", Kind::Boolean),
    ("return_finish_reason", "return_finish_reason", Kind::Boolean),
    ("return_num_input_tokens", "return_num_input_tokens", Kind::Boolean),
    ("return_num_output_tokens", "return_num_output_tokens", Kind::Boolean),
    ("exclude_input_in_output", "exclude_input_in_output", Kind::Boolean),
    ("guided_decoding_guide", "guided_decoding_guide", Kind::Text),
    ("guided_decoding_guide_type", "guided_decoding_guide_type", Kind::Text),
    ("ignore_eos", "ignore_eos", Kind::Boolean),
    ("sampling_parameters", "sampling_parameters", Kind::Text),
    ("sampling_param_max_tokens", "max_tokens", Kind::Integer),
    ("sampling_param_min_tokens", "min_tokens", Kind::Integer),
    ("sampling_param_stop", "stop_words", Kind::Text),
    ("sampling_param_seed", "seed", Kind::Unsigned),
    ("sampling_param_temperature", "temperature", Kind::Number),
    ("sampling_param_top_k", "top_k", Kind::Integer),
    ("sampling_param_top_p", "top_p", Kind::Number),
    ("sampling_param_min_p", "min_p", Kind::Number),
    ("sampling_param_repetition_penalty", "repetition_penalty", Kind::Number),
    ("sampling_param_presence_penalty", "presence_penalty", Kind::Number),
    ("sampling_param_frequency_penalty", "frequency_penalty", Kind::Number),
    ("sampling_param_length_penalty", "length_penalty", Kind::Number),
    ("sampling_param_early_stopping", "early_stopping", Kind::Boolean),
    ("sampling_param_best_of", "beam_width", Kind::Integer),
    ("sampling_param_n", "num_return_sequences", Kind::Integer),
    ("sampling_param_ignore_eos", "ignore_eos", Kind::Boolean),
    ("sampling_param_logprobs", "return_log_probs", Kind::Integer),
    ("sampling_param_end_id", "end_id", Kind::Integer),
    ("sampling_param_pad_id", "pad_id", Kind::Integer),
];

/// Triton's word for a request without an id.
const NO_ID: &str = "<id_unknown>";

/// What `sampling_parameters` means where it names no `max_tokens`: vLLM's default.
const N_NEW_VLLM: i64 = 16;

/// A request's inputs, each under its own name and of its own type.
#[derive(Debug)]
pub(super) struct Inputs {
    /// `id`, unless empty.
    pub(super) id: Option<String>,
    model: String,
    values: Vec<(&'static str, Vec<Value>)>,
}

impl Inputs {
    /// Sorts members into inputs and others, which are ignored.
    ///
    /// # Errors
    /// A member is of a wrong type, there twice, or required and missing.
    pub(super) fn read(members: Members, model: &str) -> Result<Inputs, Refusal> {
        let mut inputs = Inputs { id: None, model: model.to_owned(), values: Vec::new() };
        let mut given = Vec::new();
        let Members(members) = members;
        for (name, value) in &members {
            if name == "id" {
                let id = value.as_str().ok_or(Refusal::IdNotAString)?;
                inputs.id = (!id.is_empty()).then(|| id.to_owned());
            }
        }
        for (name, value) in members {
            match name.as_str() {
                "id" => {}
                "parameters" => {
                    let Value::Object(parameters) = value else {
                        return Err(Refusal::ParametersNotAnObject);
                    };
                    for (name, value) in parameters {
                        let within = "Converting keyword: 'parameters': ";
                        inputs.add(within, name, value, &mut given)?;
                    }
                }
                _ => inputs.add("", name, value, &mut given)?,
            }
        }
        inputs.unfold_sampling_parameters()?;
        inputs.check_required(&given)?;
        Ok(inputs)
    }

    /// An input's text.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, Refusal> {
        Ok(self.one(name)?.and_then(|value| value.as_str().map(str::to_owned)))
    }

    /// An input's texts; empty ones count as absent.
    pub(super) fn texts(&mut self, name: &'static str) -> Vec<String> {
        let texts =
            self.take(name).unwrap_or_default().into_iter().filter_map(|value| match value {
                Value::String(text) => Some(text),
                _ => None,
            });
        texts.filter(|text| !text.is_empty()).collect()
    }

    /// An input's integer.
    pub(super) fn integer(&mut self, name: &'static str) -> Result<Option<i64>, Refusal> {
        Ok(self.one(name)?.and_then(|value| value.as_i64()))
    }

    /// An input's number.
    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<f32>, Refusal> {
        Ok(self.one(name)?.and_then(|value| value.as_f64()).map(|number| number as f32))
    }

    /// A seed.
    pub(super) fn seed(&mut self) -> Result<Option<u64>, Refusal> {
        Ok(self.one("seed")?.and_then(|value| value.as_u64()))
    }

    /// An input's truth value; numbers other than 0 are true.
    pub(super) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, Refusal> {
        let value = self.one(name)?;
        Ok(value.and_then(|value| value.as_bool().or_else(|| value.as_i64().map(|n| n != 0))))
    }

    fn add(
        &mut self,
        within: &'static str,
        name: String,
        value: Value,
        given: &mut Vec<String>,
    ) -> Result<(), Refusal> {
        let Some(&(_, input, kind)) = INPUTS.iter().find(|(wire, ..)| *wire == name) else {
            if matches!(value, Value::Null | Value::Array(_) | Value::Object(_)) {
                return Err(Refusal::ParameterType { within, name });
            }
            return Ok(());
        };
        if given.contains(&name) {
            return Err(Refusal::InputTwice { id: self.id(), name });
        }
        let values = match value {
            Value::Array(items) => items,
            single => vec![single],
        };
        values.iter().try_for_each(|value| check(kind, value))?;
        given.push(name);
        if !self.values.iter().any(|(present, _)| *present == input) {
            self.values.push((input, values));
        }
        Ok(())
    }

    /// vLLM's backend takes all of it as one JSON string. What the request says itself goes first.
    fn unfold_sampling_parameters(&mut self) -> Result<(), Refusal> {
        let Some(text) = self.text("sampling_parameters")? else { return Ok(()) };
        let Members(members) = super::json::members(text.as_bytes())?;
        let mut given = Vec::new();
        for (name, value) in members {
            let is_text =
                |(wire, _, kind): &(&str, &str, Kind)| *wire == name && *kind == Kind::Text;
            // Numbers may be strings: the backend's own example writes "0.1".
            let value = match &value {
                Value::String(text) if !INPUTS.iter().any(is_text) => {
                    serde_json::from_str(text).unwrap_or(value)
                }
                _ => value,
            };
            self.add("", name, value, &mut given)?;
        }
        self.add("", "max_tokens".into(), N_NEW_VLLM.into(), &mut Vec::new())
    }

    fn check_required(&self, given: &[String]) -> Result<(), Refusal> {
        let has = |input: &str| self.values.iter().any(|(present, _)| *present == input);
        let missing: Vec<&str> =
            ["text_input", "max_tokens"].into_iter().filter(|input| !has(input)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let quoted = |name: &str| format!("'{name}'");
        let given: Vec<String> = given.iter().map(|name| quoted(name)).collect();
        let missing: Vec<String> = missing.into_iter().map(quoted).collect();
        Err(Refusal::InputsMissing {
            id: self.id(),
            model: self.model.clone(),
            n_required: 2,
            n_known: INPUTS.len(),
            n: given.len(),
            given: given.join(","),
            missing: missing.join(","),
        })
    }

    fn id(&self) -> String {
        self.id.clone().unwrap_or_else(|| NO_ID.into())
    }

    fn one(&mut self, name: &'static str) -> Result<Option<Value>, Refusal> {
        let Some(mut values) = self.take(name) else { return Ok(None) };
        if values.len() > 1 {
            let (id, model) = (self.id(), self.model.clone());
            return Err(Refusal::BatchSize { id, name: name.into(), model });
        }
        Ok(values.pop())
    }

    fn take(&mut self, name: &'static str) -> Option<Vec<Value>> {
        let idx = self.values.iter().position(|(present, _)| *present == name)?;
        Some(self.values.swap_remove(idx).1)
    }
}

fn check(kind: Kind, value: &Value) -> Result<(), Refusal> {
    let (fits, expected, read_as) = match kind {
        Kind::Text if value.is_string() => return Ok(()),
        Kind::Text => return Err(Refusal::NotText),
        Kind::Integer => (value.is_i64(), "signed-integer", "signed-integer"),
        Kind::Unsigned => (value.is_u64(), "unsigned-integer", "unsigned-integer"),
        Kind::Number => (value.is_number(), "number", "double"),
        Kind::Boolean => (value.is_boolean(), "boolean", "boolean"),
    };
    if fits { Ok(()) } else { Err(Refusal::NotData { expected, read_as }) }
}
