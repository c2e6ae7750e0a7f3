//! `config.json` to a [`ModelSpec`]: Llama and the block lists of nemotron-nas.
//!
//! It reads strings and checks them; it knows no tensors and no files. Two schemas of
//! `block_configs` are published, and both may come with either model type.

mod block;
mod rope;

use serde::Deserialize;
use serde_json::Value;

use crate::error::ConfigError;
use crate::json::parse_strict;
use crate::spec::{AttentionSpec, BlockSpec, FfnSpec, MixerSpec, ModelSpec};

use block::BlockDefaults;

/// Largest hidden size, vocabulary, width or context: products of two stay far below 2^64.
const SIZE_MAX: usize = 1 << 24;
/// Most heads of a block, and widest head.
const HEADS_MAX: usize = 1 << 12;
/// Most blocks.
const BLOCKS_MAX: usize = 1 << 12;

impl ModelSpec {
    /// Parses and checks the text of a `config.json`.
    ///
    /// # Errors
    /// If it is not JSON, if a field is missing or makes no sense, or if it describes a model (or
    /// one block of it) that we cannot run; the error names the field, and the block.
    pub fn from_config_json(text: &str) -> Result<ModelSpec, ConfigError> {
        let root = parse_strict(text.as_bytes())?;
        ModelSpec::from_config_value(root)
    }

    /// The same from parsed JSON.
    pub(crate) fn from_config_value(root: Value) -> Result<ModelSpec, ConfigError> {
        let config: Config = serde_json::from_value(root)?;
        config.check_model_type()?;
        config.check_unsupported()?;
        let hidden_size = config.size("hidden_size", config.hidden_size)?;
        let vocab_size = config.size("vocab_size", config.vocab_size)?;
        let spec = ModelSpec {
            hidden_size,
            vocab_size,
            n_positions_max: config
                .size("max_position_embeddings", config.max_position_embeddings)?,
            norm_eps: config.norm_eps()?,
            rope: rope::parse(&config)?,
            ties_embeddings: config.tie_word_embeddings.unwrap_or(false),
            bos_token: config.bos_token_id,
            eos_tokens: config.eos_tokens(),
            blocks: config.blocks(hidden_size)?,
        };
        check_tokens(&spec)?;
        Ok(spec)
    }
}

/// The fields that we read; all others (training, generation, Python) mean nothing to us.
#[derive(Deserialize)]
struct Config {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    hidden_size: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    block_configs: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl Config {
    fn check_model_type(&self) -> Result<(), ConfigError> {
        let architecture = self.architectures.as_ref().and_then(|names| names.first());
        let is_known = match (&self.model_type, architecture) {
            (Some(model_type), _) => ["nemotron-nas", "llama"].contains(&model_type.as_str()),
            (None, Some(name)) => {
                ["DeciLMForCausalLM", "LlamaForCausalLM"].contains(&name.as_str())
            }
            (None, None) => return Err(ConfigError::Missing { field: "model_type" }),
        };
        if is_known {
            return Ok(());
        }
        let expected = "nemotron-nas (DeciLMForCausalLM) or llama (LlamaForCausalLM)";
        let found = self.model_type.as_ref().or(architecture).expect("one of them was matched");
        Err(field("model_type", format!("\"{found}\""), expected))
    }

    fn check_unsupported(&self) -> Result<(), ConfigError> {
        for (name, value) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)]
        {
            if value == Some(true) {
                return Err(field(name, "true".to_owned(), "false: biases are not supported"));
            }
        }
        if let Some(act) = self.hidden_act.as_ref().filter(|act| *act != "silu") {
            return Err(field("hidden_act", format!("\"{act}\""), "\"silu\""));
        }
        if let Some(factor) = self.partial_rotary_factor.filter(|&factor| factor != 1.0) {
            return Err(field("partial_rotary_factor", factor.to_string(), "1"));
        }
        Ok(())
    }

    /// A size that must be given, between 1 and [`SIZE_MAX`].
    fn size(&self, name: &'static str, value: Option<usize>) -> Result<usize, ConfigError> {
        check_range(name, value.ok_or(ConfigError::Missing { field: name })?, SIZE_MAX)
    }

    fn norm_eps(&self) -> Result<f32, ConfigError> {
        let eps = self.rms_norm_eps.ok_or(ConfigError::Missing { field: "rms_norm_eps" })?;
        if (0.0..1.0).contains(&eps) {
            return Ok(eps as f32);
        }
        Err(field("rms_norm_eps", eps.to_string(), "a number from 0 to 1"))
    }

    fn eos_tokens(&self) -> Vec<u32> {
        match &self.eos_token_id {
            None => Vec::new(),
            Some(OneOrMany::One(token)) => vec![*token],
            Some(OneOrMany::Many(tokens)) => tokens.clone(),
        }
    }

    fn blocks(&self, hidden_size: usize) -> Result<Vec<BlockSpec>, ConfigError> {
        let n_blocks = self.num_hidden_layers;
        let n_q_heads = self.num_attention_heads;
        let n_q_heads = n_q_heads.ok_or(ConfigError::Missing { field: "num_attention_heads" })?;
        check_range("num_attention_heads", n_q_heads, HEADS_MAX)?;
        let head_dim = self.checked_head_dim(hidden_size, n_q_heads)?;
        let defaults = BlockDefaults {
            hidden_size,
            n_q_heads,
            head_dim,
            n_kv_heads: self.num_key_value_heads,
            width: self.intermediate_size,
        };
        if let Some(entries) = &self.block_configs {
            if n_blocks.is_some_and(|n| n != entries.len()) {
                let expected = format!("{}, the length of block_configs", entries.len());
                let found = n_blocks.expect("it was compared").to_string();
                return Err(field("num_hidden_layers", found, &expected));
            }
            check_range("block_configs.length", entries.len(), BLOCKS_MAX)?;
            return entries.iter().enumerate().map(|(i, entry)| defaults.parse(i, entry)).collect();
        }
        if self.model_type.as_deref() == Some("nemotron-nas") {
            return Err(ConfigError::Missing { field: "block_configs" });
        }
        let n_blocks = n_blocks.ok_or(ConfigError::Missing { field: "num_hidden_layers" })?;
        check_range("num_hidden_layers", n_blocks, BLOCKS_MAX)?;
        let width = self.size("intermediate_size", self.intermediate_size)?;
        let n_kv_heads = self.num_key_value_heads.unwrap_or(n_q_heads);
        if n_kv_heads == 0 || !n_q_heads.is_multiple_of(n_kv_heads) {
            let expected = format!("a divisor of num_attention_heads, {n_q_heads}");
            return Err(field("num_key_value_heads", n_kv_heads.to_string(), &expected));
        }
        let attention = AttentionSpec { n_q_heads, n_kv_heads, head_dim, window: None };
        let mixer = Some(MixerSpec::Attention(attention));
        Ok(vec![BlockSpec { mixer, ffn: Some(FfnSpec::SwiGlu { width }) }; n_blocks])
    }

    fn checked_head_dim(&self, hidden: usize, n_q_heads: usize) -> Result<usize, ConfigError> {
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(n_q_heads) => hidden / n_q_heads,
            None => {
                let expected =
                    format!("a divisor of hidden_size, {hidden}, or an explicit head_dim");
                return Err(field("num_attention_heads", n_q_heads.to_string(), &expected));
            }
        };
        check_range("head_dim", head_dim, HEADS_MAX)?;
        if head_dim % 2 == 1 {
            return Err(field("head_dim", head_dim.to_string(), "an even number, for RoPE"));
        }
        Ok(head_dim)
    }
}

fn check_tokens(spec: &ModelSpec) -> Result<(), ConfigError> {
    let named = spec.bos_token.map(|token| ("bos_token_id", token)).into_iter();
    for (name, token) in named.chain(spec.eos_tokens.iter().map(|&t| ("eos_token_id", t))) {
        if token as usize >= spec.vocab_size {
            let expected = format!("an id below vocab_size, {}", spec.vocab_size);
            return Err(field(name, token.to_string(), &expected));
        }
    }
    Ok(())
}

fn check_range(name: &'static str, value: usize, max: usize) -> Result<usize, ConfigError> {
    if (1..=max).contains(&value) {
        return Ok(value);
    }
    Err(field(name, value.to_string(), &format!("1 to {max}")))
}

fn field(name: impl Into<String>, found: String, expected: &str) -> ConfigError {
    ConfigError::Field { field: name.into(), found, expected: expected.to_owned() }
}

#[cfg(test)]
mod tests;
