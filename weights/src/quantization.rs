//! How a checkpoint's projections are quantized, in the words of its producer.
//!
//! It reads `quantization_config` of `config.json`, or ModelOpt's `hf_quant_config.json`. It knows
//! module names, not tensors.

mod compressed_tensors;
mod modelopt;
mod patterns;

use std::fmt;

use serde_json::Value;

use crate::error::ConfigError;

use patterns::Patterns;

/// Who quantized the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantizationMethod {
    /// Nobody.
    None,
    /// NVIDIA's ModelOpt.
    ModelOpt,
    /// llm-compressor's compressed-tensors.
    CompressedTensors,
}

/// Over what one weight scale reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightGranularity {
    /// The whole tensor.
    PerTensor,
    /// An output row.
    PerRow,
}

/// How a projection's input is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputQuantization {
    /// With a calibrated factor that is in the checkpoint.
    Static,
    /// With a factor of each token's own.
    PerToken,
}

/// An FP8 (e4m3) scheme of weights and inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp8Scheme {
    /// Scales of the weights.
    pub weights: WeightGranularity,
    /// Scales of the inputs.
    pub input: InputQuantization,
}

/// What the checkpoint declares about its quantization.
#[derive(Clone, Debug)]
pub struct Quantization {
    /// Who quantized it.
    pub method: QuantizationMethod,
    /// The scheme of the projections that are quantized; `None` if none is.
    pub scheme: Option<Fp8Scheme>,
    /// The cache is meant to be FP8.
    pub declares_fp8_kv: bool,
    /// Modules that are not quantized: names or patterns, as the producer wrote them.
    pub ignore: Vec<String>,
    targets: Patterns,
    ignored: Patterns,
}

impl Quantization {
    /// No quantization.
    pub fn none() -> Quantization {
        Quantization {
            method: QuantizationMethod::None,
            scheme: None,
            declares_fp8_kv: false,
            ignore: Vec::new(),
            targets: Patterns::default(),
            ignored: Patterns::default(),
        }
    }

    /// The scheme of the projection `module`, `None` if it is stored as it is.
    pub fn scheme_of(&self, module: &str) -> Option<Fp8Scheme> {
        self.scheme.filter(|_| self.targets.matches(module) && !self.ignored.matches(module))
    }

    /// Reads the `quantization_config` of a parsed `config.json`; `None` if it has none.
    pub(crate) fn from_config(root: &Value) -> Result<Option<Quantization>, ConfigError> {
        let section = match root.get("quantization_config").or(root.get("compression_config")) {
            None | Some(Value::Null) => return Ok(None),
            Some(section) => section,
        };
        let at = |name: &str| format!("quantization_config.{name}");
        match section.get("quant_method").and_then(Value::as_str) {
            Some("modelopt") => modelopt::parse(section, "quantization_config").map(Some),
            Some("compressed-tensors") => compressed_tensors::parse(section).map(Some),
            other => Err(unsupported(
                at("quant_method"),
                other.map_or("missing".to_owned(), |method| format!("\"{method}\"")),
                "\"modelopt\" (FP8) or \"compressed-tensors\" (FP8)",
            )),
        }
    }

    /// Reads a parsed `hf_quant_config.json`.
    pub(crate) fn from_hf_quant_config(root: &Value) -> Result<Quantization, ConfigError> {
        modelopt::parse(root, "hf_quant_config")
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(scheme) = self.scheme else { return f.write_str("none") };
        let method = match self.method {
            QuantizationMethod::ModelOpt => "ModelOpt",
            QuantizationMethod::CompressedTensors => "compressed-tensors",
            QuantizationMethod::None => "unknown",
        };
        let weights = match scheme.weights {
            WeightGranularity::PerTensor => "per tensor",
            WeightGranularity::PerRow => "per row",
        };
        let input = match scheme.input {
            InputQuantization::Static => "static",
            InputQuantization::PerToken => "per token",
        };
        write!(f, "{method} FP8, weights {weights}, inputs {input}")
    }
}

fn unsupported(field: String, found: String, expected: &str) -> ConfigError {
    ConfigError::Field { field, found, expected: expected.to_owned() }
}

/// A list of strings; absent and null are empty.
fn strings(section: &Value, path: &str, name: &str) -> Result<Vec<String>, ConfigError> {
    match section.get(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(list) => serde_json::from_value(list.clone()).map_err(|_| {
            unsupported(format!("{path}.{name}"), list.to_string(), "a list of strings")
        }),
    }
}

/// `kv_cache_scheme`, which both producers write: static e4m3, or null.
fn parse_kv_scheme(section: &Value, path: &str) -> Result<bool, ConfigError> {
    let scheme = match section.get("kv_cache_scheme") {
        None | Some(Value::Null) => return Ok(false),
        Some(scheme) => scheme,
    };
    let is_e4m3 = scheme.get("num_bits").and_then(Value::as_u64) == Some(8)
        && scheme.get("type").and_then(Value::as_str) == Some("float")
        && scheme.get("dynamic").and_then(Value::as_bool) != Some(true)
        && matches!(scheme.get("strategy").and_then(Value::as_str), None | Some("tensor"));
    if is_e4m3 {
        return Ok(true);
    }
    let expected = "null or static 8-bit float per tensor";
    Err(unsupported(format!("{path}.kv_cache_scheme"), scheme.to_string(), expected))
}

#[cfg(test)]
mod tests;
