//! The parsers of what strangers write, by themselves, for tests that feed them nonsense.

use crate::catalog::parse_index;
use crate::error::ConfigError;
use crate::header::{HeaderError, parse_header};
use crate::json::parse_strict;
use crate::quantization::Quantization;

/// Where the tensors of a safetensors file begin and end.
///
/// # Errors
/// As for any shard.
pub fn header(file: &[u8]) -> Result<Vec<(u64, u64)>, HeaderError> {
    let span = |offset: usize, n_bytes: u64| (offset as u64, offset as u64 + n_bytes);
    let entries = parse_header(file)?;
    Ok(entries.into_iter().map(|entry| span(entry.offset, entry.n_bytes)).collect())
}

/// How many tensors an index names.
///
/// # Errors
/// As for any index.
pub fn index(text: &[u8]) -> Result<usize, ConfigError> {
    Ok(parse_index(text)?.len())
}

/// What a `config.json` declares of its quantization.
///
/// # Errors
/// As for any configuration.
pub fn quantization(text: &[u8]) -> Result<Option<Quantization>, ConfigError> {
    Quantization::from_config(&parse_strict(text)?)
}

/// The same of a `hf_quant_config.json`.
///
/// # Errors
/// As for any.
pub fn hf_quant_config(text: &[u8]) -> Result<Quantization, ConfigError> {
    Quantization::from_hf_quant_config(&parse_strict(text)?)
}
