//! What can be wrong with the tensors and parameters of a request, in Triton's words.

use std::fmt;

use axum::http::StatusCode;

use super::access::Access;

/// Triton's word for a request without an id.
const NO_ID: &str = "<id_unknown>";

/// What an input has to name one of.
const ONE_SOURCE: &str = "Input must set only one of the following fields: 'data', \
                          'binary_data_size' in 'parameters', 'shared_memory_region' in \
                          'parameters'";

/// What Triton adds to its complaint about a shape.
const SHAPE_NOTE: &str = "Setting a non-zero max_batch_size in the model config requires a batch \
                          dimension to be prepended to each input shape. If you want to specify \
                          the full shape including the batch dim in your input dims config, try \
                          setting max_batch_size to zero. See the model configuration docs for \
                          more info on max_batch_size.";

/// What is wrong, without the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// A member is missing or of another JSON type.
    Unparsed { member: String, access: Access },
    /// An input of text holds something else.
    NotText,
    /// An input's text is no UTF-8.
    NotUtf8,
    /// Lists within lists within lists.
    TooDeep { n_max: usize },
    /// JSON values are not as many as the shape says.
    ValueCount,
    /// Binary values take another number of bytes.
    ByteSize { expected: u64, n: usize },
    /// There are more or fewer strings than the shape says.
    StringCount { n: u64, expected: u64 },
    /// A string's length breaks off.
    StringLength { n_left: usize },
    /// A string is shorter than its length.
    StringData { n_bytes: usize, n_left: usize },
    /// There is no such input.
    UnknownInput,
    /// There is no such output.
    UnknownOutput,
    /// There is no such data type.
    UnknownType,
    /// The input takes another data type.
    WrongType { given: String, expected: &'static str },
    /// The input is there twice.
    InputTwice,
    /// The output is asked for twice.
    OutputTwice,
    /// The shape is none that the input takes.
    Shape { expected: String, given: String },
    /// The batch is larger than it may be.
    BatchTooLarge { n_max: usize },
    /// Inputs disagree about the batch.
    BatchSize,
    /// The input has no values.
    NoData,
    /// It has them in several places.
    SeveralData { places: Vec<&'static str> },
    /// Its shape has no sizes, not even the batch's.
    NoShape,
    /// The request's `parameters` are no object.
    ParametersNotAnObject,
    /// A member of `parameters` has a problem, told of generate only.
    InParameters(Box<Problem>),
    /// The values lie in memory of the client's, which is not offered.
    SharedMemory { region: String },
    /// The body is shorter than its binary tensors.
    BinaryShort { n_missing: u64 },
    /// The body is longer.
    BinaryLeft,
    /// The length of the JSON part is no number.
    HeaderLengthWord { given: String },
    /// The JSON part is longer than the body.
    HeaderLength { given: i64, n_bytes: usize },
    /// The body is one input's bytes, without a word which.
    Raw { n_inputs: usize },
    /// The body is compressed in a way that is not known.
    Compression,
    /// gRPC: bytes are not as many as inputs.
    RawInputs { n_raw: usize, n_inputs: usize },
    /// gRPC: an input has values in both forms.
    TwoContents,
    /// gRPC: a parameter of Triton's is of another type.
    ParameterKind { name: String, expected: &'static str },
    /// A parameter's name is Triton's own.
    ReservedParameter,
    /// An unknown parameter is neither number, truth value nor string.
    ParameterType { name: String },
    /// Required inputs are missing. Names are quoted.
    InputsMissing { n_required: usize, n_known: usize, given: Vec<String>, missing: Vec<String> },
}

/// A problem, and the request and input that have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    /// The request's id, if it has one.
    pub(super) id: Option<String>,
    pub(super) model: String,
    /// The input or output; empty where it is none's.
    pub(super) input: String,
    pub(super) problem: Problem,
}

impl Problem {
    /// What fails in the JSON reader is INTERNAL; the rest is the client's fault.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Problem::Unparsed { .. }
            | Problem::NotText
            | Problem::ValueCount
            | Problem::ParametersNotAnObject => StatusCode::INTERNAL_SERVER_ERROR,
            Problem::InParameters(problem) => problem.status(),
            Problem::SharedMemory { .. } => StatusCode::NOT_FOUND,
            Problem::Compression => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The metric's label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Problem::Unparsed { access: Access::Missing { .. }, .. }
            | Problem::InputsMissing { .. }
            | Problem::NoData => "missing_field",
            Problem::Unparsed { .. }
            | Problem::NotText
            | Problem::WrongType { .. }
            | Problem::ParametersNotAnObject
            | Problem::ParameterKind { .. }
            | Problem::ParameterType { .. } => "invalid_type",
            Problem::InParameters(problem) => problem.label(),
            Problem::NotUtf8 => "not_utf8",
            Problem::Compression => "body_encoded",
            Problem::SharedMemory { .. } => "unsupported",
            _ => "invalid_value",
        }
    }
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Located { id, model, input, problem } = self;
        if let Some(words) = problem.words() {
            return f.write_str(words);
        }
        let request = format!("[request id: {}]", id.as_deref().unwrap_or(NO_ID));
        match problem {
            Problem::Unparsed { member, access } => {
                write!(f, "Unable to parse '{member}': {access}")
            }
            Problem::TooDeep { n_max } => {
                write!(f, "JSON nesting depth exceeds maximum allowed limit ({n_max})")
            }
            Problem::SeveralData { places } => {
                write!(f, "{ONE_SOURCE}. But set")?;
                places.iter().try_for_each(|place| write!(f, " '{place}'"))
            }
            Problem::NoData => write!(f, "{ONE_SOURCE}. But no field is set"),
            Problem::InParameters(problem) => {
                let within = Located { problem: (**problem).clone(), ..self.clone() };
                write!(f, "Converting keyword: 'parameters': {within}")
            }
            Problem::SharedMemory { region } => {
                write!(f, "Unable to find shared memory region: '{region}'")
            }
            Problem::HeaderLengthWord { given } => {
                write!(f, "Unable to parse Inference-Header-Content-Length, got: {given}")
            }
            Problem::HeaderLength { given, n_bytes } => {
                write!(f, "inference header size should be in range (0, {n_bytes}), got: {given}")
            }
            Problem::ParameterType { name } => write!(
                f,
                "parameter '{name}' has invalid type. It should be either 'int', 'bool', \
                 or 'string'."
            ),
            Problem::Raw { n_inputs } => write!(
                f,
                "{request} Raw request must only have 1 input (found 1) to be deduced but got \
                 {n_inputs} inputs in '{model}' model configuration"
            ),
            Problem::RawInputs { n_raw, n_inputs } => write!(
                f,
                "expected {n_inputs} raw_input_contents, one for each input of model '{model}', \
                 but got {n_raw}"
            ),
            Problem::ParameterKind { name, expected } => {
                write!(f, "invalid value type for '{name}' parameter, expected {expected}.")
            }
            Problem::BinaryLeft => {
                write!(f, "unexpected additional input data for model '{model}'")
            }
            Problem::InputsMissing { n_required, n_known, given, missing } => write!(
                f,
                "{request} expected number of inputs between {n_required} and {n_known} but got \
                 {} inputs for model '{model}'. Got input(s) [{}], but missing required input(s) \
                 [{}]. Please provide all required input(s).",
                given.len(),
                given.join(","),
                missing.join(",")
            ),
            Problem::UnknownType => write!(f, "invalid datatype for input {input}"),
            of_one => of_one.fmt_input(f, &request, (input, model)),
        }
    }
}

impl Problem {
    /// What is said of it whatever the request.
    fn words(&self) -> Option<&'static str> {
        match self {
            Problem::NotText => Some(
                "Unable to parse JSON bytes array: attempt to access JSON non-string as string",
            ),
            Problem::ValueCount => {
                Some("Unable to parse 'data': Shape does not match true shape of 'data' field")
            }
            Problem::ParametersNotAnObject => {
                Some("failed to get request params.: attempt to get members for non-object")
            }
            Problem::Compression => Some("Unsupported compression type"),
            Problem::ReservedParameter => Some(
                "parameter keys starting with 'triton_' are reserved for Triton usage and should \
                 not be specified.",
            ),
            _ => None,
        }
    }

    /// Problems of one input or output.
    fn fmt_input(
        &self,
        f: &mut fmt::Formatter<'_>,
        request: &str,
        (input, model): (&str, &str),
    ) -> fmt::Result {
        match self {
            Problem::NotUtf8 => write!(f, "{request} input '{input}' is not UTF-8"),
            Problem::ByteSize { expected, n } => write!(
                f,
                "{request} input byte size mismatch for input '{input}' for model '{model}'. \
                 Expected {expected}, got {n}"
            ),
            Problem::TwoContents => write!(
                f,
                "contents field must not be specified when using raw_input_contents for \
                 '{input}' for model '{model}'"
            ),
            Problem::UnknownInput => {
                write!(f, "unexpected inference input '{input}' for model '{model}'")
            }
            Problem::UnknownOutput => {
                write!(f, "unexpected inference output '{input}' for model '{model}'")
            }
            Problem::WrongType { given, expected } => write!(
                f,
                "{request} inference input '{input}' data-type is '{given}', but model '{model}' \
                 expects '{expected}'"
            ),
            Problem::InputTwice => write!(f, "{request} input '{input}' already exists in request"),
            Problem::OutputTwice => {
                write!(f, "{request} output '{input}' already exists in request")
            }
            Problem::NoShape => write!(
                f,
                "{request} input '{input}' has no shape but model requires batch dimension for \
                 '{model}'"
            ),
            Problem::Shape { expected, given } => write!(
                f,
                "{request} unexpected shape for input '{input}' for model '{model}'. Expected \
                 {expected}, got {given}. NOTE: {SHAPE_NOTE}"
            ),
            Problem::BatchTooLarge { n_max } => {
                write!(f, "{request} inference request batch-size must be <= {n_max} for '{model}'")
            }
            Problem::BatchSize => write!(
                f,
                "{request} input '{input}' batch size does not match other inputs for '{model}'"
            ),
            Problem::BinaryShort { n_missing } => write!(
                f,
                "unexpected size for input '{input}', expecting {n_missing} additional bytes for \
                 model '{model}'"
            ),
            of_strings => of_strings.fmt_strings(f, request, (input, model)),
        }
    }

    /// Problems of an input's strings.
    fn fmt_strings(
        &self,
        f: &mut fmt::Formatter<'_>,
        request: &str,
        (input, model): (&str, &str),
    ) -> fmt::Result {
        match self {
            Problem::StringCount { n, expected } if n < expected => write!(
                f,
                "{request} expected {expected} string elements for inference input '{input}' for \
                 model '{model}', got {n}"
            ),
            Problem::StringCount { n, expected } => write!(
                f,
                "{request} unexpected number of string elements {n} for inference input \
                 '{input}' for model '{model}', expecting {expected}"
            ),
            Problem::StringLength { n_left } => write!(
                f,
                "{request} incomplete string length indicator for inference input '{input}' for \
                 model '{model}', expecting 4 bytes but only {n_left} bytes available. Please make \
                 sure the string length indicator is in one buffer."
            ),
            Problem::StringData { n_bytes, n_left } => write!(
                f,
                "{request} incomplete string data for inference input '{input}' for model \
                 '{model}', expecting string of length {n_bytes} but only {n_left} bytes \
                 available. Please make sure the string data is in one buffer."
            ),
            other => unreachable!("{other:?} is told without an input"),
        }
    }
}
