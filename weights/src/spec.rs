//! What a checkpoint says the model is: sizes of the whole, then a list of blocks with their own.
//!
//! Plain data: it knows neither the strings it was parsed from nor any tensor.

use std::fmt;

/// A whole model, parsed once from `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Positions that the checkpoint was made for (`max_position_embeddings`).
    pub n_positions_max: usize,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f32,
    /// Rotary embedding, the same in every attention block.
    pub rope: RopeSpec,
    /// The head shares the embedding's tensor.
    pub ties_embeddings: bool,
    /// `bos_token_id`, if the configuration names one.
    pub bos_token: Option<u32>,
    /// `eos_token_id`: one or several.
    pub eos_tokens: Vec<u32>,
    /// Blocks in order, empty ones included.
    pub blocks: Vec<BlockSpec>,
}

/// One block: `h += mixer(norm(h))`, then `h += ffn(norm(h))`; what is absent adds nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSpec {
    /// Attention or what stands in its place.
    pub mixer: Option<MixerSpec>,
    /// Feed-forward network or what stands in its place.
    pub ffn: Option<FfnSpec>,
}

/// The first sub-block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MixerSpec {
    /// Grouped-query attention.
    Attention(AttentionSpec),
    /// `replace_with_linear`: one square projection.
    Linear,
}

/// Sizes of an attention sub-block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionSpec {
    /// Query heads.
    pub n_q_heads: usize,
    /// Key/value heads; divides `n_q_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Query i sees key j when `0 <= i - j < window`; `None` sees all.
    pub window: Option<usize>,
}

/// The second sub-block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FfnSpec {
    /// `down(silu(gate(x)) * up(x))`.
    SwiGlu {
        /// Rows of gate and up, columns of down.
        width: usize,
    },
    /// `replace_with_linear`: one square projection.
    Linear,
}

/// Rotary embedding that rotates halves (Su et al., arXiv 2104.09864).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
}

/// Stretching of rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Llama 3.1's per-frequency smoothing.
    Llama3 {
        /// `factor`.
        factor: f64,
        /// `low_freq_factor`.
        low_freq_factor: f64,
        /// `high_freq_factor`.
        high_freq_factor: f64,
        /// `original_max_position_embeddings`.
        n_positions_original: usize,
    },
}

/// What one rank caches for one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheSpec {
    /// Nothing: the block has no attention.
    None,
    /// Every token.
    Full {
        /// Key and value elements of a token.
        n_elements_per_token: usize,
    },
    /// The last `window` tokens.
    Window {
        /// Key and value elements of a token.
        n_elements_per_token: usize,
        /// Tokens that a query sees, itself included.
        window: usize,
    },
}

impl BlockSpec {
    /// What each of `n_ranks` ranks caches. With more ranks than key/value heads, a head is cached
    /// by several.
    pub fn cache(&self, n_ranks: usize) -> CacheSpec {
        let Some(attention) = self.attention() else { return CacheSpec::None };
        let n_kv_heads = attention.n_kv_heads.div_ceil(n_ranks);
        let n_elements_per_token = 2 * n_kv_heads * attention.head_dim;
        match attention.window {
            None => CacheSpec::Full { n_elements_per_token },
            Some(window) => CacheSpec::Window { n_elements_per_token, window },
        }
    }

    /// Neither sub-block is present: the block does nothing and holds nothing.
    pub fn is_empty(&self) -> bool {
        self.mixer.is_none() && self.ffn.is_none()
    }

    /// The attention sub-block, if there is one.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        match &self.mixer {
            Some(MixerSpec::Attention(attention)) => Some(attention),
            _ => None,
        }
    }
}

impl AttentionSpec {
    /// KV elements (keys and values) of one token.
    pub fn kv_elements_per_token(&self) -> usize {
        2 * self.n_kv_heads * self.head_dim
    }
}

impl fmt::Display for BlockSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mixer {
            Some(MixerSpec::Attention(attention)) => {
                write!(f, "attention {}q/{}kv", attention.n_q_heads, attention.n_kv_heads)?;
                if let Some(window) = attention.window {
                    write!(f, " window {window}")?;
                }
            }
            Some(MixerSpec::Linear) => write!(f, "linear")?,
            None => write!(f, "-")?,
        }
        match &self.ffn {
            Some(FfnSpec::SwiGlu { width }) => write!(f, " + ffn {width}"),
            Some(FfnSpec::Linear) => write!(f, " + linear"),
            None => write!(f, " + -"),
        }
    }
}
