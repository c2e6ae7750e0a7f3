//! The HTTP form of an infer request and its answer: JSON, and behind it the binary tensors that
//! the JSON announces.

use std::io::Read;

use axum::http::{HeaderMap, HeaderValue, header};
use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder, ZlibDecoder, ZlibEncoder};
use serde_json::{Map, Value};

use super::super::error::ApiError;
use super::VERSION;
use super::access::{Access, array, boolean, member, object, string, unsigned};
use super::call::Parameters;
use super::check::{Given, Values};
use super::error::Refusal;
use super::inputs::Caller;
use super::interface;
use super::json;
use super::node::{self, Node};
use super::problem::Problem;
use super::tensor::Tensor;

/// Where the length of the JSON part stands, both ways.
pub(super) const HEADER_LENGTH: &str = "inference-header-content-length";

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

/// An infer request.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) caller: Caller,
    pub(super) parameters: Parameters,
    pub(super) given: Vec<Given>,
    pub(super) outputs: Outputs,
}

/// Which outputs, and in which form.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    /// Named ones and whether they are to be binary; none named asks for all that there are.
    named: Vec<(String, bool)>,
    /// Whether those that are not named are binary.
    are_binary: bool,
}

/// An answer's body.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) bytes: Vec<u8>,
    /// Bytes of the JSON part, where something follows it.
    pub(super) n_header: Option<usize>,
}

impl Encoding {
    /// Of a request's body.
    ///
    /// # Errors
    /// It is one that is not known.
    pub(super) fn of_body(headers: &HeaderMap) -> Result<Encoding, Problem> {
        let given = headers.get(header::CONTENT_ENCODING).map_or(&b""[..], HeaderValue::as_bytes);
        match given.to_ascii_lowercase().as_slice() {
            b"" | b"identity" => Ok(Encoding::Identity),
            b"gzip" => Ok(Encoding::Gzip),
            b"deflate" => Ok(Encoding::Deflate),
            _ => Err(Problem::Compression),
        }
    }

    /// The one that a client likes best in answers.
    pub(super) fn accepted(headers: &HeaderMap) -> Encoding {
        let given = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
        let mut best = (Encoding::Identity, 0.0);
        for choice in given.unwrap_or_default().split(',') {
            let (name, quality) = choice.split_once(';').unwrap_or((choice, "q=1"));
            let quality = quality.trim().strip_prefix("q=").and_then(|text| text.parse().ok());
            let encoding = match name.trim() {
                "gzip" => Encoding::Gzip,
                "deflate" => Encoding::Deflate,
                _ => continue,
            };
            if quality.unwrap_or(0.0) > best.1 {
                best = (encoding, quality.unwrap_or(0.0));
            }
        }
        best.0
    }

    /// Its name in headers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Encoding::Identity => "identity",
            Encoding::Gzip => "gzip",
            Encoding::Deflate => "deflate",
        }
    }

    /// The plain bytes, `n_max` at most: however small a bomb is, it gets no more room.
    ///
    /// # Errors
    /// The body is not what it says, or too large.
    pub(super) fn decode(self, body: Vec<u8>, n_max: usize) -> Result<Vec<u8>, ApiError> {
        let reader: &mut dyn Read = match self {
            Encoding::Identity => return Ok(body),
            Encoding::Gzip => &mut GzDecoder::new(body.as_slice()),
            Encoding::Deflate => &mut ZlibDecoder::new(body.as_slice()),
        };
        let mut plain = Vec::new();
        let read = reader.take(n_max as u64 + 1).read_to_end(&mut plain);
        if read.is_err() {
            return Err(ApiError::BodyGarbled { encoding: self.name() });
        }
        match plain.len() <= n_max {
            true => Ok(plain),
            false => Err(ApiError::BodyTooLarge { n_bytes: plain.len(), n_bytes_max: n_max }),
        }
    }

    /// The bytes as the client likes them.
    pub(super) fn encode(self, plain: Vec<u8>) -> Vec<u8> {
        let mut encoded = Vec::new();
        let read = match self {
            Encoding::Identity => return plain,
            Encoding::Gzip => {
                GzEncoder::new(plain.as_slice(), Compression::fast()).read_to_end(&mut encoded)
            }
            Encoding::Deflate => {
                ZlibEncoder::new(plain.as_slice(), Compression::fast()).read_to_end(&mut encoded)
            }
        };
        read.expect("memory can be read");
        encoded
    }
}

/// Reads a plain body.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(body: &[u8], headers: &HeaderMap, model: &str) -> Result<Asked, Refusal> {
    let mut caller = Caller { id: None, model: model.to_owned() };
    let n_header = header_length(headers, body.len()).map_err(|problem| caller.refuse(problem))?;
    if n_header == Some(0) || body.is_empty() {
        let n_inputs = interface::announced().count();
        return Err(caller.refuse(Problem::Raw { n_inputs }));
    }
    let (text, binary) = body.split_at(n_header.unwrap_or(body.len()));
    let members = json::members_if_any(text)?;
    let plain = |access: Access, member: &str| Problem::Unparsed { member: member.into(), access };
    if let Some(id) = members.get("id") {
        let id = string(id).map_err(|access| caller.refuse(plain(access, "id")))?;
        caller.id = (!id.is_empty()).then(|| id.to_owned());
    }
    let refuse = |problem| caller.refuse(problem);
    let (parameters, are_binary) = parameters(members.get("parameters")).map_err(refuse)?;
    let inputs = member(&members, "inputs").and_then(array);
    let inputs = inputs.map_err(|access| refuse(plain(access, "inputs")))?;
    let mut left = binary;
    let mut given = Vec::with_capacity(inputs.len().min(64));
    for input in inputs {
        given.push(read_input(input, &mut left, &caller)?);
    }
    if !left.is_empty() {
        return Err(refuse(Problem::BinaryLeft));
    }
    let named = match members.get("outputs") {
        None => Vec::new(),
        Some(outputs) => read_outputs(outputs, are_binary, &caller)?,
    };
    Ok(Asked { caller, parameters, given, outputs: Outputs { named, are_binary } })
}

/// Bytes of the JSON part, where the request says so.
fn header_length(headers: &HeaderMap, n_bytes: usize) -> Result<Option<usize>, Problem> {
    let Some(given) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let given = String::from_utf8_lossy(given.as_bytes()).into_owned();
    let Ok(length) = given.trim().parse::<i64>() else {
        return Err(Problem::HeaderLengthWord { given });
    };
    match usize::try_from(length) {
        Ok(n_header) if n_header <= n_bytes => Ok(Some(n_header)),
        _ => Err(Problem::HeaderLength { given: length, n_bytes }),
    }
}

/// What `parameters` says, and whether all outputs are to be binary.
fn parameters(given: Option<&Value>) -> Result<(Parameters, bool), Problem> {
    let mut parameters = Parameters::default();
    let mut are_binary = false;
    let Some(given) = given else { return Ok((parameters, are_binary)) };
    for (name, value) in given.as_object().ok_or(Problem::ParametersNotAnObject)? {
        let of_name = |access: Access| access.of(name.as_str());
        match name.as_str() {
            "priority" => parameters.priority = unsigned(value).map_err(of_name)?,
            "timeout" => parameters.set_timeout_us(unsigned(value).map_err(of_name)?),
            "binary_data_output" => are_binary = boolean(value).map_err(of_name)?,
            "sequence_start" | "sequence_end" => drop(boolean(value).map_err(of_name)?),
            _ if name.starts_with("triton_") => return Err(Problem::ReservedParameter),
            _ if value.is_null() || value.is_array() || value.is_object() => {
                return Err(Problem::ParameterType { name: name.clone() });
            }
            _ => {}
        }
    }
    Ok((parameters, are_binary))
}

/// One of `inputs`; takes its bytes from `left`.
fn read_input(input: &Value, left: &mut &[u8], caller: &Caller) -> Result<Given, Refusal> {
    let members = object(input).map_err(|_| caller.refuse(Problem::NoData))?;
    let source = source(members).map_err(|problem| caller.refuse(problem))?;
    let text = |name: &'static str| {
        let read = member(members, name).and_then(string);
        read.map(str::to_owned).map_err(|access| caller.refuse(access.of(name)))
    };
    let name = text("name")?;
    let shape = member(members, "shape")
        .and_then(array)
        .and_then(|sizes| sizes.iter().map(unsigned).collect::<Result<Vec<u64>, Access>>());
    let shape = shape.map_err(|access| caller.refuse(access.of("shape")))?;
    let data_type = text("datatype")?;
    let refuse = |problem| caller.refuse_input(&name, problem);
    if interface::input(&name).is_none() && super::tensor::is_data_type(&data_type) {
        return Err(refuse(Problem::UnknownInput));
    }
    let values = match source {
        Source::Json(data) => Values::Json(data.clone()),
        Source::Region(region) => {
            return Err(refuse(Problem::SharedMemory { region: region.to_owned() }));
        }
        Source::Binary(n_bytes) => {
            let n_left = left.len() as u64;
            let Some((bytes, rest)) =
                usize::try_from(n_bytes).ok().and_then(|n| left.split_at_checked(n))
            else {
                return Err(refuse(Problem::BinaryShort { n_missing: n_bytes - n_left }));
            };
            *left = rest;
            Values::Binary(bytes.to_vec())
        }
    };
    Ok(Given { name, data_type, shape, values })
}

/// Where an input says that its values are.
enum Source<'a> {
    Json(&'a Value),
    /// So many of the bytes behind the JSON.
    Binary(u64),
    /// Memory of the client's.
    Region(&'a str),
}

/// The one place that an input names. `parameters` that are no object name none.
fn source(input: &Map<String, Value>) -> Result<Source<'_>, Problem> {
    let parameters = input.get("parameters");
    let parameter = |name: &str| parameters.and_then(|parameters| parameters.get(name));
    let places = [
        ("data", input.get("data")),
        ("binary_data_size", parameter("binary_data_size")),
        ("shared_memory_region", parameter("shared_memory_region")),
    ];
    let named = places.into_iter().filter_map(|(place, value)| Some((place, value?)));
    match named.collect::<Vec<_>>().as_slice() {
        [] => Err(Problem::NoData),
        [("data", data)] => Ok(Source::Json(data)),
        [("binary_data_size", n_bytes)] => {
            unsigned(n_bytes).map(Source::Binary).map_err(|access| access.of("binary_data_size"))
        }
        [(place, region)] => string(region).map(Source::Region).map_err(|access| access.of(*place)),
        several => {
            Err(Problem::SeveralData { places: several.iter().map(|(place, _)| *place).collect() })
        }
    }
}

fn read_outputs(
    outputs: &Value,
    are_binary: bool,
    caller: &Caller,
) -> Result<Vec<(String, bool)>, Refusal> {
    let outputs = array(outputs).map_err(|access| caller.refuse(access.of("outputs")))?;
    let mut named: Vec<(String, bool)> = Vec::new();
    for output in outputs {
        let name = output.get("name").ok_or(Access::Missing { member: "name" }).and_then(string);
        let name = name.map_err(|access| caller.refuse(access.of("name")))?;
        let refuse = |problem| caller.refuse_input(name, problem);
        if !interface::is_output(name) {
            return Err(refuse(Problem::UnknownOutput));
        }
        if named.iter().any(|(given, _)| given == name) {
            return Err(refuse(Problem::OutputTwice));
        }
        let mut is_binary = are_binary;
        if let Some(parameters) = output.get("parameters") {
            if let Some(binary) = parameters.get("binary_data") {
                is_binary = boolean(binary).map_err(|access| refuse(access.of("binary_data")))?;
            }
            if let Some(region) = parameters.get("shared_memory_region") {
                let place = "shared_memory_region";
                let region = string(region).map_err(|access| refuse(access.of(place)))?.to_owned();
                return Err(refuse(Problem::SharedMemory { region }));
            }
            if parameters.get("classification").is_some_and(|n| n.as_u64() != Some(0)) {
                return Err(Refusal::Classification);
            }
        }
        named.push((name.to_owned(), is_binary));
    }
    Ok(named)
}

impl Outputs {
    /// Those of the tensors that were asked for, and whether they are to be binary.
    fn select<'a>(&self, tensors: &'a [Tensor]) -> Vec<(&'a Tensor, bool)> {
        let form = |tensor: &Tensor| match self.named.as_slice() {
            [] => Some(self.are_binary),
            named => {
                named.iter().find(|(name, _)| *name == tensor.name).map(|(_, is_binary)| *is_binary)
            }
        };
        tensors.iter().filter_map(|tensor| Some((tensor, form(tensor)?))).collect()
    }
}

/// Writes an answer.
pub(super) fn write(caller: &Caller, outputs: &Outputs, tensors: &[Tensor]) -> Written {
    let mut binary = Vec::new();
    let selected = outputs.select(tensors);
    let is_binary = selected.iter().any(|&(_, is_binary)| is_binary);
    let nodes = selected.into_iter().map(|(tensor, is_binary)| {
        let shape = node::list(tensor.shape.iter().map(|&size| size.into()));
        let values = if is_binary {
            let before = binary.len();
            tensor.data.write(&mut binary);
            let n_bytes = binary.len() - before;
            ("parameters", node::object([("binary_data_size", n_bytes.into())]))
        } else {
            ("data", node::list(tensor.data.json().into_iter().map(Node::Value)))
        };
        let name = ("name", tensor.name.as_str().into());
        let data_type = ("datatype", tensor.data.data_type().name().into());
        node::object([name, data_type, ("shape", shape), values])
    });
    let nodes = node::list(nodes);
    let mut members = vec![
        ("model_name", caller.model.as_str().into()),
        ("model_version", VERSION.into()),
        ("outputs", nodes),
    ];
    if let Some(id) = &caller.id {
        members.insert(0, ("id", id.as_str().into()));
    }
    let mut bytes = Node::Object(members).text().into_bytes();
    let n_header = is_binary.then_some(bytes.len());
    bytes.append(&mut binary);
    Written { bytes, n_header }
}

#[cfg(test)]
mod tests;
