//! What a request gives to the model: the inputs of one row of its batch, each under its own name
//! and of its own type, whatever the wire was and whatever the client called it.

use serde_json::Value;

use super::error::{InferProblem, Refusal};
use super::interface::{self, REQUIRED};
use super::json::Members;
use super::problem::{Located, Problem};
use super::tensor::{Data, DataType, Tensor};

/// What `sampling_parameters` means where it names no `max_tokens`: vLLM's default.
const N_NEW_VLLM: i32 = 16;

/// Whose inputs these are.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller {
    /// The request's id, unless empty.
    pub(super) id: Option<String>,
    /// The model, as the request calls it.
    pub(super) model: String,
}

/// The inputs of one row.
#[derive(Debug)]
pub(super) struct Inputs {
    caller: Caller,
    values: Vec<(&'static str, Data)>,
}

impl Caller {
    /// A problem of the whole request.
    pub(super) fn refuse(&self, problem: Problem) -> Refusal {
        self.refuse_input("", problem)
    }

    /// A problem of an input or output.
    pub(super) fn refuse_input(&self, input: &str, problem: Problem) -> Refusal {
        let (id, model) = (self.id.clone(), self.model.clone());
        let located = Located { id, model, input: input.to_owned(), problem };
        Refusal::Infer(Box::new(InferProblem(located)))
    }
}

impl Inputs {
    /// The inputs of each row of checked tensors.
    ///
    /// # Errors
    /// A required input is missing, or `sampling_parameters` is not what it should be.
    pub(super) fn rows(
        caller: &Caller,
        tensors: &[Tensor],
        n_rows: usize,
    ) -> Result<Vec<Inputs>, Refusal> {
        let given: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let row = |row_idx| {
            let mut inputs = Inputs { caller: caller.clone(), values: Vec::new() };
            for tensor in tensors {
                let spec = interface::input(&tensor.name).expect("names were checked");
                inputs.put(spec.input, tensor.data.part(row_idx, n_rows));
            }
            inputs.unfold_sampling_parameters()?;
            inputs.check_required(&given)?;
            Ok(inputs)
        };
        (0..n_rows).map(row).collect()
    }

    /// An input's text.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, Refusal> {
        match self.one(name)? {
            Some(Data::Bytes(mut texts)) => {
                texts.pop().map(|text| self.utf8(name, text)).transpose()
            }
            _ => Ok(None),
        }
    }

    /// An input's texts; empty ones count as absent.
    pub(super) fn texts(&mut self, name: &'static str) -> Result<Vec<String>, Refusal> {
        let Some(Data::Bytes(texts)) = self.take(name) else { return Ok(Vec::new()) };
        let texts = texts.into_iter().filter(|text| !text.is_empty());
        texts.map(|text| self.utf8(name, text)).collect()
    }

    /// An input's integer.
    pub(super) fn integer(&mut self, name: &'static str) -> Result<Option<i64>, Refusal> {
        match self.one(name)? {
            Some(Data::Int32(values)) => Ok(values.first().map(|&value| value.into())),
            _ => Ok(None),
        }
    }

    /// An input's number.
    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<f32>, Refusal> {
        match self.one(name)? {
            Some(Data::Fp32(values)) => Ok(values.first().copied()),
            _ => Ok(None),
        }
    }

    /// A seed.
    pub(super) fn seed(&mut self) -> Result<Option<u64>, Refusal> {
        match self.one("seed")? {
            Some(Data::Uint64(values)) => Ok(values.first().copied()),
            _ => Ok(None),
        }
    }

    /// An input's truth value; numbers other than 0 are true.
    pub(super) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, Refusal> {
        match self.one(name)? {
            Some(Data::Bool(values)) => Ok(values.first().copied()),
            Some(Data::Int32(values)) => Ok(values.first().map(|&value| value != 0)),
            _ => Ok(None),
        }
    }

    /// An input's truth value, false unless given.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, Refusal> {
        Ok(self.boolean(name)?.unwrap_or(false))
    }

    /// The first value wins: the primary names are read first where a request uses two for one.
    fn put(&mut self, input: &'static str, data: Data) {
        if data.len() > 0 && !self.values.iter().any(|(present, _)| *present == input) {
            self.values.push((input, data));
        }
    }

    /// vLLM's backend takes all of it as one JSON string. What the request says itself goes first.
    fn unfold_sampling_parameters(&mut self) -> Result<(), Refusal> {
        let Some(text) = self.text("sampling_parameters")? else { return Ok(()) };
        let Members(members) = super::json::members(text.as_bytes())?;
        for (name, value) in members {
            let Some(spec) = interface::input(&name) else { continue };
            // Numbers may be strings: the backend's own example writes "0.1".
            let value = match &value {
                Value::String(text) if spec.data_type != DataType::Bytes => {
                    serde_json::from_str(text).unwrap_or(value)
                }
                _ => value,
            };
            let data = spec.data_type.read_json(&value);
            let data = data.map_err(|problem| self.caller.refuse_input(&name, problem))?;
            self.put(spec.input, data);
        }
        self.put("max_tokens", Data::Int32(vec![N_NEW_VLLM]));
        Ok(())
    }

    fn check_required(&self, given: &[&str]) -> Result<(), Refusal> {
        let has = |input: &str| self.values.iter().any(|(present, _)| *present == input);
        let quoted = |name: &str| format!("'{name}'");
        let missing = REQUIRED.into_iter().filter(|input| !has(input));
        let missing: Vec<String> = missing.map(quoted).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(self.caller.refuse(Problem::InputsMissing {
            n_required: REQUIRED.len(),
            n_known: interface::announced().count(),
            given: given.iter().map(|name| quoted(name)).collect(),
            missing,
        }))
    }

    fn utf8(&self, name: &str, text: Vec<u8>) -> Result<String, Refusal> {
        String::from_utf8(text).map_err(|_| self.caller.refuse_input(name, Problem::NotUtf8))
    }

    fn one(&mut self, name: &'static str) -> Result<Option<Data>, Refusal> {
        match self.take(name) {
            Some(data) if data.len() > 1 => Err(self.caller.refuse_input(name, Problem::BatchSize)),
            data => Ok(data),
        }
    }

    fn take(&mut self, name: &'static str) -> Option<Data> {
        let idx = self.values.iter().position(|(present, _)| *present == name)?;
        Some(self.values.swap_remove(idx).1)
    }
}
