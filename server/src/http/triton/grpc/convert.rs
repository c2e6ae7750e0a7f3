//! Messages to tensors and back.

use std::collections::HashMap;

use super::super::VERSION;
use super::super::call::Parameters;
use super::super::check::{Given, Values};
use super::super::error::Refusal;
use super::super::inputs::Caller;
use super::super::interface;
use super::super::problem::Problem;
use super::super::tensor::{Data, Tensor};
use super::protocol::infer_parameter::ParameterChoice;
use super::protocol::model_infer_request::InferInputTensor;
use super::protocol::model_infer_response::InferOutputTensor;
use super::protocol::{InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse};

/// What an infer message says, taken apart.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) caller: Caller,
    pub(super) parameters: Parameters,
    pub(super) given: Vec<Given>,
    /// Names of the outputs; none asks for all.
    pub(super) outputs: Vec<String>,
    /// The end of a stream gets a response of its own.
    pub(super) wants_empty_end: bool,
}

/// Parameters of requests that are Triton's own: they may be sent, and mean nothing here.
const IGNORED: [&str; 5] =
    ["sequence_id", "sequence_start", "sequence_end", "binary_data_output", "headers"];

/// Takes a message apart.
///
/// # Errors
/// Its parameters or outputs are not what they should be, or its inputs come in two forms at once.
pub(super) fn read(request: ModelInferRequest) -> Result<Asked, Refusal> {
    let id = (!request.id.is_empty()).then_some(request.id);
    let caller = Caller { id, model: request.model_name };
    let (parameters, wants_empty_end) = read_parameters(&request.parameters, &caller)?;
    let n_raw = request.raw_input_contents.len();
    let n_inputs = request.inputs.len();
    if n_raw > 0 && n_raw != n_inputs {
        let problem = Problem::RawInputs { n_raw, n_inputs };
        return Err(caller.refuse(problem));
    }
    let mut raw = request.raw_input_contents.into_iter();
    let inputs = request.inputs.into_iter();
    let given = inputs.map(|input| read_input(input, raw.next().map(Into::into), &caller));
    let given = given.collect::<Result<Vec<Given>, Refusal>>()?;
    let mut outputs: Vec<String> = Vec::new();
    for output in request.outputs {
        let refuse = |problem| caller.refuse_input(&output.name, problem);
        if !interface::is_output(&output.name) {
            return Err(refuse(Problem::UnknownOutput));
        }
        if outputs.contains(&output.name) {
            return Err(refuse(Problem::OutputTwice));
        }
        refuse_region(&output.parameters).map_err(refuse)?;
        if output.parameters.contains_key("classification") {
            return Err(Refusal::Classification);
        }
        outputs.push(output.name);
    }
    Ok(Asked { caller, parameters, given, outputs, wants_empty_end })
}

fn read_parameters(
    given: &HashMap<String, InferParameter>,
    caller: &Caller,
) -> Result<(Parameters, bool), Refusal> {
    let mut parameters = Parameters::default();
    let mut wants_empty_end = false;
    for (name, parameter) in given {
        let unsigned = || match parameter.parameter_choice {
            Some(ParameterChoice::Int64Param(n)) => u64::try_from(n).ok(),
            Some(ParameterChoice::Uint64Param(n)) => Some(n),
            _ => None,
        };
        let wrong = |expected| {
            let name = name.clone();
            caller.refuse(Problem::ParameterKind { name, expected })
        };
        match name.as_str() {
            "priority" => parameters.priority = unsigned().ok_or_else(|| wrong("int64_param"))?,
            "timeout" => {
                parameters.set_timeout_us(unsigned().ok_or_else(|| wrong("int64_param"))?);
            }
            "triton_enable_empty_final_response" => match parameter.parameter_choice {
                Some(ParameterChoice::BoolParam(wants)) => wants_empty_end = wants,
                _ => return Err(wrong("bool_param")),
            },
            name if IGNORED.contains(&name) => {}
            name if name.starts_with("triton_") => {
                return Err(caller.refuse(Problem::ReservedParameter));
            }
            _ => {}
        }
    }
    Ok((parameters, wants_empty_end))
}

fn refuse_region(parameters: &HashMap<String, InferParameter>) -> Result<(), Problem> {
    let region = parameters.get("shared_memory_region");
    match region.and_then(|region| region.parameter_choice.as_ref()) {
        Some(ParameterChoice::StringParam(region)) => {
            Err(Problem::SharedMemory { region: region.clone() })
        }
        _ => Ok(()),
    }
}

fn read_input(
    input: InferInputTensor,
    raw: Option<Vec<u8>>,
    caller: &Caller,
) -> Result<Given, Refusal> {
    let InferInputTensor { name, datatype, shape, parameters, contents } = input;
    let refuse = |problem| caller.refuse_input(&name, problem);
    refuse_region(&parameters).map_err(refuse)?;
    let sizes = shape.iter().map(|&size| u64::try_from(size));
    let Ok(sizes) = sizes.collect::<Result<Vec<u64>, _>>() else {
        let expected = "sizes from 0 on".into();
        return Err(refuse(Problem::Shape { expected, given: format!("{shape:?}") }));
    };
    let values = match (raw, contents) {
        (Some(_), Some(contents)) if !is_empty(&contents) => {
            return Err(refuse(Problem::TwoContents));
        }
        (Some(raw), _) => Values::Binary(raw),
        (None, contents) => Values::Typed(typed(&datatype, contents.unwrap_or_default())),
    };
    Ok(Given { name, data_type: datatype, shape: sizes, values })
}

fn is_empty(contents: &InferTensorContents) -> bool {
    *contents == InferTensorContents::default()
}

/// The list that a data type's values stand in. A type that no input takes is refused later.
fn typed(data_type: &str, contents: InferTensorContents) -> Data {
    match data_type {
        "BOOL" => Data::Bool(contents.bool_contents),
        "INT32" => Data::Int32(contents.int_contents),
        "INT64" => Data::Int64(contents.int64_contents),
        "UINT64" => Data::Uint64(contents.uint64_contents),
        "FP32" => Data::Fp32(contents.fp32_contents),
        _ => Data::Bytes(contents.bytes_contents.into_iter().map(Into::into).collect()),
    }
}

/// An answer's message: tensors in binary form.
pub(super) fn write(caller: &Caller, outputs: &[String], tensors: &[Tensor]) -> ModelInferResponse {
    let is_wanted = |tensor: &&Tensor| outputs.is_empty() || outputs.contains(&tensor.name);
    let mut response = ModelInferResponse {
        model_name: caller.model.clone(),
        model_version: VERSION.to_owned(),
        id: caller.id.clone().unwrap_or_default(),
        ..ModelInferResponse::default()
    };
    for tensor in tensors.iter().filter(is_wanted) {
        response.outputs.push(InferOutputTensor {
            name: tensor.name.clone(),
            datatype: tensor.data.data_type().name().to_owned(),
            shape: tensor.shape.iter().map(|&size| size as i64).collect(),
            ..InferOutputTensor::default()
        });
        let mut bytes = Vec::new();
        tensor.data.write(&mut bytes);
        response.raw_output_contents.push(bytes.into());
    }
    response
}

/// Marks a stream's response as its last, or not.
pub(super) fn mark_final(response: &mut ModelInferResponse, is_final: bool) {
    let choice = Some(ParameterChoice::BoolParam(is_final));
    let parameter = InferParameter { parameter_choice: choice };
    response.parameters.insert("triton_final_response".to_owned(), parameter);
}
