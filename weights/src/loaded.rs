//! One rank's tensors, as the engine takes them: slices of mapped files, never copies of weights.

use std::ops::Range;
use std::sync::Arc;

use crate::source::Bytes;
use crate::spec::AttentionSpec;

/// Stored element type of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// e4m3 with no infinities (OCP FP8, `F8_E4M3` in safetensors).
    F8E4m3,
}

impl Dtype {
    /// Bytes of one element.
    pub fn n_bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F8E4m3 => 1,
        }
    }
}

/// A rank's slice of a stored matrix `[n_rows, n_cols]`: every row is contiguous, rows are
/// `row_stride` bytes apart. Elements may lie at any byte address: no reader may assume alignment.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The mapped (or embedded) bytes that hold the tensor.
    pub bytes: Bytes,
    /// Where row 0 begins in `bytes`.
    pub offset: usize,
    /// Element type.
    pub dtype: Dtype,
    /// Rows: outputs of a projection, or vocabulary entries.
    pub n_rows: usize,
    /// Columns: inputs of a projection.
    pub n_cols: usize,
    /// Bytes from one row to the next.
    pub row_stride: usize,
}

impl Matrix {
    /// The stored bytes of row `row_idx`.
    #[inline]
    pub fn row(&self, row_idx: usize) -> &[u8] {
        assert!(row_idx < self.n_rows, "row {row_idx} of {}", self.n_rows);
        let begin = self.offset + row_idx * self.row_stride;
        &self.bytes.as_slice()[begin..begin + self.n_cols * self.dtype.n_bytes()]
    }

    /// From its first byte in `bytes` to its last, gaps between rows included.
    pub fn span(&self) -> Range<usize> {
        let Some(last_idx) = self.n_rows.checked_sub(1) else { return self.offset..self.offset };
        let last_begin = self.offset + last_idx * self.row_stride;
        self.offset..last_begin + self.n_cols * self.dtype.n_bytes()
    }

    /// Whether the slice is all zeroes that no disk holds.
    pub fn is_hole(&self) -> bool {
        self.bytes.is_hole(self.span())
    }

    /// Whether its rows follow each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.row_stride == self.n_cols * self.dtype.n_bytes()
    }

    /// Bytes that the slice itself holds, gaps between rows not counted.
    pub fn n_bytes(&self) -> usize {
        self.n_rows * self.n_cols * self.dtype.n_bytes()
    }
}

/// What multiplies the stored weights.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightScale {
    /// Nothing: the stored values are the weights.
    One,
    /// One factor for the whole tensor.
    PerTensor(f32),
    /// One factor per output row (this rank's rows).
    PerRow(Arc<[f32]>),
}

/// How a projection's input is quantized before the product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum InputScale {
    /// Not at all.
    None,
    /// To e4m3 with a calibrated factor: `e4m3(clamp(x / scale, ±448))`.
    Static(f32),
    /// To e4m3 with `max|x| / 448` of each token (a zero row takes 1).
    PerToken,
}

impl InputScale {
    /// Whether the input becomes e4m3.
    pub fn quantizes(self) -> bool {
        match self {
            InputScale::None => false,
            InputScale::Static(_) | InputScale::PerToken => true,
        }
    }
}

/// A projection `y = x · Wᵀ`: `W` is `[outputs, inputs]`.
#[derive(Clone, Debug)]
pub struct LinearWeights {
    /// This rank's slice.
    pub matrix: Matrix,
    /// Factor of the stored values.
    pub scale: WeightScale,
    /// Quantization of the input.
    pub input: InputScale,
}

/// A rank's share of attention: query heads `q_heads`, key/value heads `kv_heads` of the block.
#[derive(Clone, Debug)]
pub struct AttentionWeights {
    /// The whole block's sizes.
    pub spec: AttentionSpec,
    /// Sizes of this rank's share (its own head counts).
    pub share: AttentionSpec,
    /// `input_layernorm.weight`, `[hidden]`.
    pub norm: Arc<[f32]>,
    /// `[share.n_q_heads * head_dim, hidden]`
    pub q: LinearWeights,
    /// `[share.n_kv_heads * head_dim, hidden]`
    pub k: LinearWeights,
    /// `[share.n_kv_heads * head_dim, hidden]`
    pub v: LinearWeights,
    /// `[hidden, share.n_q_heads * head_dim]`: partial sums over ranks.
    pub o: LinearWeights,
    /// Factor of keys in an FP8 cache; 1 where the checkpoint names none.
    pub k_scale: f32,
    /// Factor of values in an FP8 cache; 1 where the checkpoint names none.
    pub v_scale: f32,
}

/// A rank's share of a SwiGLU network.
#[derive(Clone, Debug)]
pub struct SwiGluWeights {
    /// `post_attention_layernorm.weight`, `[hidden]`.
    pub norm: Arc<[f32]>,
    /// `[width / n_ranks, hidden]`
    pub gate: LinearWeights,
    /// `[width / n_ranks, hidden]`
    pub up: LinearWeights,
    /// `[hidden, width / n_ranks]`: partial sums over ranks.
    pub down: LinearWeights,
}

/// A square projection in a sub-block's place, cut by input columns: partial sums over ranks.
#[derive(Clone, Debug)]
pub struct ReplacementWeights {
    /// The sub-block's norm, `[hidden]`.
    pub norm: Arc<[f32]>,
    /// `[hidden, hidden / n_ranks]`
    pub projection: LinearWeights,
    /// First of this rank's input columns.
    pub col_begin: usize,
}

/// The first sub-block, loaded.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a model has a hundred of them, nearly all attention"
)]
pub enum MixerWeights {
    /// Grouped-query attention.
    Attention(AttentionWeights),
    /// A linear replacement.
    Linear(ReplacementWeights),
}

/// The second sub-block, loaded.
#[derive(Clone, Debug)]
pub enum FfnWeights {
    /// SwiGLU.
    SwiGlu(SwiGluWeights),
    /// A linear replacement.
    Linear(ReplacementWeights),
}

/// A block that is not empty.
#[derive(Clone, Debug)]
pub struct BlockWeights {
    /// Its index in [`ModelSpec::blocks`](crate::ModelSpec).
    pub block_idx: usize,
    /// The first sub-block.
    pub mixer: Option<MixerWeights>,
    /// The second sub-block.
    pub ffn: Option<FfnWeights>,
}

/// Everything that one rank holds.
#[derive(Clone, Debug)]
pub struct RankWeights {
    /// Vocabulary entries `vocab_begin ..` of this rank: `[n, hidden]`.
    pub embedding: Matrix,
    /// The blocks that are not empty, in order.
    pub blocks: Vec<BlockWeights>,
    /// `model.norm.weight`, `[hidden]`.
    pub final_norm: Arc<[f32]>,
    /// The same vocabulary entries of the head: `[n, hidden]`.
    pub head: LinearWeights,
    /// First vocabulary entry of this rank's embedding and head.
    pub vocab_begin: usize,
}
