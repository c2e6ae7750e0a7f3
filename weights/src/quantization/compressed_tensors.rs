//! compressed-tensors' declaration: one group of FP8 linears in `config.json`.

use serde_json::Value;

use super::patterns::Patterns;
use super::{
    Fp8Scheme, InputQuantization, Quantization, QuantizationMethod, WeightGranularity,
    parse_kv_scheme, strings, unsupported,
};
use crate::error::ConfigError;

const PATH: &str = "quantization_config";

/// Parses the section.
pub(super) fn parse(section: &Value) -> Result<Quantization, ConfigError> {
    match section.get("format").and_then(Value::as_str) {
        Some("float-quantized" | "naive-quantized") => {}
        other => {
            let found = other.map_or("missing".to_owned(), |format| format!("\"{format}\""));
            return Err(unsupported(format!("{PATH}.format"), found, "\"float-quantized\""));
        }
    }
    check_no_sparsity(section)?;
    let (path, group) = only_group(section)?;
    let targets = strings(group, &path, "targets")?;
    let ignore = strings(section, PATH, "ignore")?;
    let scheme =
        Fp8Scheme { weights: parse_weights(group, &path)?, input: parse_inputs(group, &path)? };
    if let Some(output) = group.get("output_activations").filter(|value| !value.is_null()) {
        return Err(unsupported(format!("{path}.output_activations"), output.to_string(), "null"));
    }
    Ok(Quantization {
        method: QuantizationMethod::CompressedTensors,
        scheme: Some(scheme),
        declares_fp8_kv: parse_kv_scheme(section, PATH)?,
        targets: Patterns::compressed_tensors(&targets)?,
        ignored: Patterns::compressed_tensors(&ignore)?,
        ignore,
    })
}

fn check_no_sparsity(section: &Value) -> Result<(), ConfigError> {
    let format = section.get("sparsity_config").and_then(|sparsity| sparsity.get("format"));
    match format.and_then(Value::as_str) {
        None | Some("dense") => Ok(()),
        Some(other) => {
            let field = format!("{PATH}.sparsity_config.format");
            Err(unsupported(field, format!("\"{other}\""), "\"dense\""))
        }
    }
}

fn only_group(section: &Value) -> Result<(String, &Value), ConfigError> {
    let groups = section.get("config_groups").and_then(Value::as_object);
    let n_groups = groups.map_or(0, serde_json::Map::len);
    match groups.and_then(|groups| groups.iter().next()) {
        Some((name, group)) if n_groups == 1 => Ok((format!("{PATH}.config_groups.{name}"), group)),
        _ => {
            let field = format!("{PATH}.config_groups");
            Err(unsupported(field, format!("{n_groups} groups"), "exactly one group"))
        }
    }
}

fn parse_weights(group: &Value, path: &str) -> Result<WeightGranularity, ConfigError> {
    let weights = group.get("weights").unwrap_or(&Value::Null);
    if is_float8(weights) && weights.get("dynamic").and_then(Value::as_bool) != Some(true) {
        match weights.get("strategy").and_then(Value::as_str) {
            Some("channel") => return Ok(WeightGranularity::PerRow),
            Some("tensor") => return Ok(WeightGranularity::PerTensor),
            _ => {}
        }
    }
    let expected = "static symmetric 8-bit float with strategy \"channel\" or \"tensor\"";
    Err(unsupported(format!("{path}.weights"), weights.to_string(), expected))
}

fn parse_inputs(group: &Value, path: &str) -> Result<InputQuantization, ConfigError> {
    let inputs = group.get("input_activations").unwrap_or(&Value::Null);
    let is_dynamic = inputs.get("dynamic").and_then(Value::as_bool).unwrap_or(false);
    let strategy = inputs.get("strategy").and_then(Value::as_str);
    match (is_float8(inputs), is_dynamic, strategy) {
        (true, true, Some("token")) => Ok(InputQuantization::PerToken),
        (true, false, Some("tensor")) => Ok(InputQuantization::Static),
        _ => {
            let expected = "8-bit float: dynamic per \"token\", or static per \"tensor\"";
            Err(unsupported(format!("{path}.input_activations"), inputs.to_string(), expected))
        }
    }
}

fn is_float8(arguments: &Value) -> bool {
    arguments.get("num_bits").and_then(Value::as_u64) == Some(8)
        && arguments.get("type").and_then(Value::as_str) == Some("float")
        && arguments.get("symmetric").and_then(Value::as_bool) != Some(false)
}
