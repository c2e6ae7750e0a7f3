//! One entry of `block_configs`, in the schema of published nemotron-nas models or the newer one.
//!
//! A field that we do not know must be null, false, zero or empty: whoever set it to something
//! meant a block that we would compute wrongly.

use serde_json::{Map, Value};

use super::SIZE_MAX;
use crate::error::ConfigError;
use crate::spec::{AttentionSpec, BlockSpec, FfnSpec, MixerSpec};

/// FFN widths that come from `ffn_mult` are rounded up to a multiple of this.
const WIDTH_MULTIPLE: usize = 256;

/// What the model says for all its blocks.
pub(super) struct BlockDefaults {
    pub(super) hidden_size: usize,
    pub(super) n_q_heads: usize,
    pub(super) head_dim: usize,
    /// `num_key_value_heads`, null in published nemotron-nas models.
    pub(super) n_kv_heads: Option<usize>,
    /// `intermediate_size`, null in published nemotron-nas models.
    pub(super) width: Option<usize>,
}

impl BlockDefaults {
    /// Parses entry `block_idx`.
    pub(super) fn parse(&self, block_idx: usize, entry: &Value) -> Result<BlockSpec, ConfigError> {
        let Value::Object(fields) = entry else {
            return Err(ConfigError::Block {
                block_idx,
                field: "block_configs[..]".to_owned(),
                found: entry.to_string(),
                expected: "an object".to_owned(),
            });
        };
        let block = Fields { block_idx, path: "", fields };
        block.refuse_others(&["attention", "ffn"])?;
        Ok(BlockSpec {
            mixer: self.mixer(&block.section("attention")?)?,
            ffn: self.ffn(&block.section("ffn")?)?,
        })
    }

    fn mixer(&self, fields: &Fields<'_>) -> Result<Option<MixerSpec>, ConfigError> {
        match fields.stand_in()? {
            Some(StandIn::Nothing) => return Ok(None),
            Some(StandIn::Linear) => return Ok(Some(MixerSpec::Linear)),
            None => {}
        }
        fields.refuse_others(&[
            "no_op",
            "replace_with_linear",
            "n_heads_in_group",
            "num_key_value_heads",
            "window_length",
            "weights_precision",
        ])?;
        let group = fields.size("n_heads_in_group")?;
        let n_kv_heads = match (fields.size("num_key_value_heads")?, group) {
            (Some(n), Some(group)) if n * group != self.n_q_heads => {
                let expected = format!("{} query heads / n_heads_in_group", self.n_q_heads);
                return Err(fields.error("num_key_value_heads", n.to_string(), expected));
            }
            (Some(n), _) => n,
            (None, Some(group)) if self.n_q_heads.is_multiple_of(group) => self.n_q_heads / group,
            (None, Some(group)) => {
                let expected = format!("a divisor of num_attention_heads, {}", self.n_q_heads);
                return Err(fields.error("n_heads_in_group", group.to_string(), expected));
            }
            (None, None) => self.n_kv_heads.ok_or_else(|| {
                let expected = "a number, or num_key_value_heads".to_owned();
                fields.error("n_heads_in_group", "missing".to_owned(), expected)
            })?,
        };
        if n_kv_heads == 0 || !self.n_q_heads.is_multiple_of(n_kv_heads) {
            let expected = format!("a divisor of num_attention_heads, {}", self.n_q_heads);
            return Err(fields.error("num_key_value_heads", n_kv_heads.to_string(), expected));
        }
        Ok(Some(MixerSpec::Attention(AttentionSpec {
            n_q_heads: self.n_q_heads,
            n_kv_heads,
            head_dim: self.head_dim,
            window: fields.size("window_length")?,
        })))
    }

    fn ffn(&self, fields: &Fields<'_>) -> Result<Option<FfnSpec>, ConfigError> {
        match fields.stand_in()? {
            Some(StandIn::Nothing) => return Ok(None),
            Some(StandIn::Linear) => return Ok(Some(FfnSpec::Linear)),
            None => {}
        }
        fields.refuse_others(&[
            "no_op",
            "replace_with_linear",
            "ffn_mult",
            "intermediate_size",
            "hidden_act",
            "weights_precision",
        ])?;
        if let Some(act) = fields.get("hidden_act")
            && act.as_str() != Some("silu")
        {
            return Err(fields.error("hidden_act", act.to_string(), "\"silu\"".to_owned()));
        }
        let width = match (fields.size("intermediate_size")?, fields.get("ffn_mult")) {
            (Some(width), _) => width,
            (None, Some(mult)) => self.width_of(mult).ok_or_else(|| {
                let expected = "a positive number that gives a sane width".to_owned();
                fields.error("ffn_mult", mult.to_string(), expected)
            })?,
            (None, None) => {
                self.width.filter(|width| (1..=SIZE_MAX).contains(width)).ok_or_else(|| {
                    let expected = "a number, or intermediate_size".to_owned();
                    fields.error("ffn_mult", "missing".to_owned(), expected)
                })?
            }
        };
        Ok(Some(FfnSpec::SwiGlu { width }))
    }

    /// `ffn_mult` to a width, by the rule of the model's own code: two thirds of the product, cut
    /// to an integer, rounded up. The order of the operations is part of the rule.
    fn width_of(&self, mult: &Value) -> Option<usize> {
        let exact = 2.0 * mult.as_f64()? * self.hidden_size as f64 / 3.0;
        let width = (exact >= 1.0 && exact <= SIZE_MAX as f64).then_some(exact as usize)?;
        Some(width.next_multiple_of(WIDTH_MULTIPLE))
    }
}

/// What may stand where a sub-block would be.
enum StandIn {
    Nothing,
    Linear,
}

/// An object inside entry `block_idx`, with its path for messages.
struct Fields<'a> {
    block_idx: usize,
    path: &'static str,
    fields: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// A field that is there and not null.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    fn section(&self, path: &'static str) -> Result<Fields<'a>, ConfigError> {
        match self.get(path) {
            Some(Value::Object(fields)) => Ok(Fields { block_idx: self.block_idx, path, fields }),
            other => {
                let found = other.map_or("missing".to_owned(), Value::to_string);
                Err(self.error(path, found, "an object".to_owned()))
            }
        }
    }

    /// `no_op` or `replace_with_linear`; the sub-block's other fields then mean nothing.
    fn stand_in(&self) -> Result<Option<StandIn>, ConfigError> {
        match (self.flag("no_op")?, self.flag("replace_with_linear")?) {
            (false, false) => Ok(None),
            (true, false) => Ok(Some(StandIn::Nothing)),
            (false, true) => Ok(Some(StandIn::Linear)),
            (true, true) => {
                let expected = "false where no_op is true".to_owned();
                Err(self.error("replace_with_linear", "true".to_owned(), expected))
            }
        }
    }

    fn flag(&self, name: &str) -> Result<bool, ConfigError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => {
                Err(self.error(name, other.to_string(), "true, false or null".to_owned()))
            }
        }
    }

    fn size(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=SIZE_MAX as u64).contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.error(name, value.to_string(), format!("1 to {SIZE_MAX}, or null"))),
        }
    }

    fn refuse_others(&self, known: &[&str]) -> Result<(), ConfigError> {
        let is_inert = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        for (name, value) in self.fields {
            if !known.contains(&name.as_str()) && !is_inert(value) {
                return Err(ConfigError::BlockVariant {
                    block_idx: self.block_idx,
                    field: self.path_of(name),
                    found: value.to_string(),
                });
            }
        }
        Ok(())
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn error(&self, name: &str, found: String, expected: String) -> ConfigError {
        ConfigError::Block { block_idx: self.block_idx, field: self.path_of(name), found, expected }
    }
}
