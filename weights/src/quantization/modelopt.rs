//! ModelOpt's declaration: `hf_quant_config.json`, or the same in `config.json`.

use serde_json::Value;

use super::patterns::Patterns;
use super::{
    Fp8Scheme, InputQuantization, Quantization, QuantizationMethod, WeightGranularity,
    parse_kv_scheme, strings, unsupported,
};
use crate::error::ConfigError;

/// Parses a section at `path`; its fields may lie in an inner `quantization` object.
pub(super) fn parse(section: &Value, path: &str) -> Result<Quantization, ConfigError> {
    let (section, path) = match section.get("quantization") {
        Some(inner @ Value::Object(_)) => (inner, format!("{path}.quantization")),
        _ => (section, path.to_owned()),
    };
    let mut ignore = strings(section, &path, "exclude_modules")?;
    ignore.extend(strings(section, &path, "ignore")?);
    Ok(Quantization {
        method: QuantizationMethod::ModelOpt,
        scheme: parse_algorithm(section, &path)?,
        declares_fp8_kv: parse_kv_algorithm(section, &path)? || parse_kv_scheme(section, &path)?,
        targets: Patterns::everything(),
        ignored: Patterns::modelopt(&ignore)?,
        ignore,
    })
}

fn parse_algorithm(section: &Value, path: &str) -> Result<Option<Fp8Scheme>, ConfigError> {
    let algorithm = match section.get("quant_algo") {
        // Only the cache is quantized.
        Some(Value::Null) => return Ok(None),
        other => other.and_then(Value::as_str),
    };
    match algorithm {
        Some("FP8") => Ok(Some(Fp8Scheme {
            weights: WeightGranularity::PerTensor,
            input: InputQuantization::Static,
        })),
        Some("FP8_PER_CHANNEL_PER_TOKEN") => Ok(Some(Fp8Scheme {
            weights: WeightGranularity::PerRow,
            input: InputQuantization::PerToken,
        })),
        other => Err(unsupported(
            format!("{path}.quant_algo"),
            other.map_or("missing".to_owned(), |algorithm| format!("\"{algorithm}\"")),
            "\"FP8\" or \"FP8_PER_CHANNEL_PER_TOKEN\"",
        )),
    }
}

fn parse_kv_algorithm(section: &Value, path: &str) -> Result<bool, ConfigError> {
    match section.get("kv_cache_quant_algo") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::String(algorithm)) if algorithm == "FP8" => Ok(true),
        Some(other) => {
            let field = format!("{path}.kv_cache_quant_algo");
            Err(unsupported(field, other.to_string(), "\"FP8\" or null"))
        }
    }
}
