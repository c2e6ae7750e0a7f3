//! The one list of a model's tensors: name, shape, role, and how a rank's slice is cut.
//!
//! Loading, checking, byte counts and the synthetic writer all derive from it. It knows neither
//! files nor how values are stored.

use std::ops::Range;

use crate::error::Uneven;
use crate::spec::{AttentionSpec, BlockSpec, FfnSpec, MixerSpec, ModelSpec};

/// What a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `model.embed_tokens`.
    Embedding,
    /// Norm before the first sub-block.
    MixerNorm,
    /// `self_attn.q_proj`.
    Query,
    /// `self_attn.k_proj`.
    Key,
    /// `self_attn.v_proj`.
    Value,
    /// `self_attn.o_proj`.
    AttentionOut,
    /// `self_attn.linear_attn`.
    MixerLinear,
    /// Norm before the second sub-block.
    FfnNorm,
    /// `mlp.gate_proj`.
    Gate,
    /// `mlp.up_proj`.
    Up,
    /// `mlp.down_proj`.
    Down,
    /// `mlp.linear_mlp`.
    FfnLinear,
    /// `model.norm`.
    FinalNorm,
    /// `lm_head`.
    Head,
}

impl Role {
    /// A vector of RMSNorm gains.
    pub fn is_norm(self) -> bool {
        matches!(self, Role::MixerNorm | Role::FfnNorm | Role::FinalNorm)
    }

    /// A matrix that multiplies activations, and so may be quantized.
    pub fn is_projection(self) -> bool {
        !self.is_norm() && self != Role::Embedding
    }
}

/// How the ranks share a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Every rank holds all of it.
    Replicated,
    /// `ceil(rows / n_ranks)` rows each, the last ranks may have fewer or none.
    Vocabulary,
    /// Rows in equal shares of whole units of `unit_rows` rows.
    Rows {
        /// Rows that stay together: a head's, or 1.
        unit_rows: usize,
    },
    /// As `Rows`, but with more ranks than heads a head's rows go to several ranks.
    KvRows {
        /// Rows of a head.
        unit_rows: usize,
    },
    /// Columns in equal shares of whole units of `unit_cols` columns.
    Cols {
        /// Columns that stay together: a head's, or 1.
        unit_cols: usize,
    },
}

/// A parameter of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    /// The module's name; the tensor's is [`tensor_name`](ParameterSpec::tensor_name).
    pub module: String,
    /// What it is for.
    pub role: Role,
    /// Outputs of a projection, vocabulary entries, or a norm's gains.
    pub n_rows: usize,
    /// Inputs of a projection; 1 for a norm.
    pub n_cols: usize,
    /// How the ranks share it.
    pub placement: Placement,
}

/// One rank's share of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Of all rows.
    pub rows: Range<usize>,
    /// Of all columns.
    pub cols: Range<usize>,
}

impl Slice {
    /// Elements in it.
    pub fn n_elements(&self) -> u64 {
        self.rows.len() as u64 * self.cols.len() as u64
    }
}

impl ParameterSpec {
    /// The tensor that holds its values.
    pub fn tensor_name(&self) -> String {
        format!("{}.weight", self.module)
    }

    /// The tensor's shape as it is stored.
    pub fn shape(&self) -> Vec<usize> {
        if self.role.is_norm() { vec![self.n_rows] } else { vec![self.n_rows, self.n_cols] }
    }

    /// Elements of the whole parameter.
    pub fn n_elements(&self) -> u64 {
        self.n_rows as u64 * self.n_cols as u64
    }

    /// The share of rank `rank_idx`.
    ///
    /// # Errors
    /// If `n_ranks` ranks cannot share it evenly.
    ///
    /// # Panics
    /// If `rank_idx` is not below `n_ranks`.
    pub fn slice(&self, rank_idx: usize, n_ranks: usize) -> Result<Slice, Uneven> {
        assert!(rank_idx < n_ranks, "rank {rank_idx} of {n_ranks}");
        let (all_rows, all_cols) = (0..self.n_rows, 0..self.n_cols);
        let uneven = |unit: &'static str, n_units: usize| Uneven {
            parameter: self.tensor_name(),
            unit,
            n_units,
            n_ranks,
        };
        let share = |n_units: usize, unit_size: usize| {
            let size = n_units / n_ranks * unit_size;
            n_units.is_multiple_of(n_ranks).then_some(rank_idx * size..(rank_idx + 1) * size)
        };
        let (rows, cols) = match self.placement {
            Placement::Replicated => (all_rows, all_cols),
            Placement::Vocabulary => {
                let n_each = self.n_rows.div_ceil(n_ranks);
                let begin = (rank_idx * n_each).min(self.n_rows);
                (begin..(begin + n_each).min(self.n_rows), all_cols)
            }
            Placement::Rows { unit_rows } => {
                let n_units = self.n_rows / unit_rows;
                let unit = if unit_rows == 1 { "rows" } else { "heads" };
                (share(n_units, unit_rows).ok_or_else(|| uneven(unit, n_units))?, all_cols)
            }
            Placement::KvRows { unit_rows } => {
                let n_heads = self.n_rows / unit_rows;
                let rows = if n_ranks > n_heads && n_ranks.is_multiple_of(n_heads) {
                    let head_idx = rank_idx * n_heads / n_ranks;
                    head_idx * unit_rows..(head_idx + 1) * unit_rows
                } else {
                    share(n_heads, unit_rows).ok_or_else(|| uneven("heads", n_heads))?
                };
                (rows, all_cols)
            }
            Placement::Cols { unit_cols } => {
                let n_units = self.n_cols / unit_cols;
                let unit = if unit_cols == 1 { "columns" } else { "heads" };
                (all_rows, share(n_units, unit_cols).ok_or_else(|| uneven(unit, n_units))?)
            }
        };
        Ok(Slice { rows, cols })
    }
}

impl ModelSpec {
    /// Every parameter of the model: embedding, blocks in order, final norm, and the head unless
    /// it shares the embedding's tensor.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let mut parameters = vec![self.embedding()];
        for (block_idx, block) in self.blocks.iter().enumerate() {
            parameters.extend(block.parameters(block_idx, self.hidden_size));
        }
        parameters.push(self.final_norm());
        parameters.extend(self.head());
        parameters
    }

    /// Elements of all parameters.
    pub fn n_parameters(&self) -> u64 {
        self.parameters().iter().map(ParameterSpec::n_elements).sum()
    }

    /// Checks that `n_ranks` ranks can share every parameter.
    ///
    /// # Errors
    /// The first parameter that they cannot share evenly.
    pub fn check_sharding(&self, n_ranks: usize) -> Result<(), Uneven> {
        self.parameters().iter().try_for_each(|p| p.slice(0, n_ranks).map(drop))
    }

    pub(crate) fn embedding(&self) -> ParameterSpec {
        self.vocabulary("model.embed_tokens", Role::Embedding)
    }

    pub(crate) fn final_norm(&self) -> ParameterSpec {
        norm("model.norm".to_owned(), Role::FinalNorm, self.hidden_size)
    }

    /// `None` where the head shares the embedding's tensor.
    pub(crate) fn head(&self) -> Option<ParameterSpec> {
        (!self.ties_embeddings).then(|| self.vocabulary("lm_head", Role::Head))
    }

    fn vocabulary(&self, module: &str, role: Role) -> ParameterSpec {
        ParameterSpec {
            module: module.to_owned(),
            role,
            n_rows: self.vocab_size,
            n_cols: self.hidden_size,
            placement: Placement::Vocabulary,
        }
    }
}

impl BlockSpec {
    /// The parameters of this block, which is entry `block_idx` of the list; none if it is empty.
    pub fn parameters(&self, block_idx: usize, hidden_size: usize) -> Vec<ParameterSpec> {
        let block = format!("model.layers.{block_idx}");
        let mut parameters = Vec::new();
        if let Some(mixer) = &self.mixer {
            let module = format!("{block}.input_layernorm");
            parameters.push(norm(module, Role::MixerNorm, hidden_size));
            match mixer {
                MixerSpec::Attention(attention) => {
                    parameters.extend(attention_parameters(&block, attention, hidden_size));
                }
                MixerSpec::Linear => {
                    let module = format!("{block}.self_attn.linear_attn");
                    parameters.push(replacement(module, Role::MixerLinear, hidden_size));
                }
            }
        }
        if let Some(ffn) = &self.ffn {
            let module = format!("{block}.post_attention_layernorm");
            parameters.push(norm(module, Role::FfnNorm, hidden_size));
            match *ffn {
                FfnSpec::SwiGlu { width } => {
                    parameters.extend(swiglu_parameters(&block, width, hidden_size));
                }
                FfnSpec::Linear => {
                    let module = format!("{block}.mlp.linear_mlp");
                    parameters.push(replacement(module, Role::FfnLinear, hidden_size));
                }
            }
        }
        parameters
    }
}

fn attention_parameters(
    block: &str,
    attention: &AttentionSpec,
    hidden_size: usize,
) -> [ParameterSpec; 4] {
    let unit_rows = attention.head_dim;
    let n_q_rows = attention.n_q_heads * attention.head_dim;
    let n_kv_rows = attention.n_kv_heads * attention.head_dim;
    let input = |name: &str, role, n_rows, placement| ParameterSpec {
        module: format!("{block}.self_attn.{name}"),
        role,
        n_rows,
        n_cols: hidden_size,
        placement,
    };
    [
        input("q_proj", Role::Query, n_q_rows, Placement::Rows { unit_rows }),
        input("k_proj", Role::Key, n_kv_rows, Placement::KvRows { unit_rows }),
        input("v_proj", Role::Value, n_kv_rows, Placement::KvRows { unit_rows }),
        ParameterSpec {
            module: format!("{block}.self_attn.o_proj"),
            role: Role::AttentionOut,
            n_rows: hidden_size,
            n_cols: n_q_rows,
            placement: Placement::Cols { unit_cols: attention.head_dim },
        },
    ]
}

fn swiglu_parameters(block: &str, width: usize, hidden_size: usize) -> [ParameterSpec; 3] {
    let input = |name: &str, role| ParameterSpec {
        module: format!("{block}.mlp.{name}"),
        role,
        n_rows: width,
        n_cols: hidden_size,
        placement: Placement::Rows { unit_rows: 1 },
    };
    [
        input("gate_proj", Role::Gate),
        input("up_proj", Role::Up),
        ParameterSpec {
            module: format!("{block}.mlp.down_proj"),
            role: Role::Down,
            n_rows: hidden_size,
            n_cols: width,
            placement: Placement::Cols { unit_cols: 1 },
        },
    ]
}

fn replacement(module: String, role: Role, hidden_size: usize) -> ParameterSpec {
    let placement = Placement::Cols { unit_cols: 1 };
    ParameterSpec { module, role, n_rows: hidden_size, n_cols: hidden_size, placement }
}

fn norm(module: String, role: Role, hidden_size: usize) -> ParameterSpec {
    let placement = Placement::Replicated;
    ParameterSpec { module, role, n_rows: hidden_size, n_cols: 1, placement }
}

#[cfg(test)]
mod tests;
