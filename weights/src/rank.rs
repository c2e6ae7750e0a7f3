//! One rank's slices: offsets into the mapped files, and small vectors widened to f32.

use std::fmt;
use std::ops::AddAssign;

use crate::checkpoint::Checkpoint;
use crate::error::{LoadError, Uneven};
use crate::loaded::{
    AttentionWeights, BlockWeights, Dtype, FfnWeights, LinearWeights, Matrix, MixerWeights,
    RankWeights, ReplacementWeights, SwiGluWeights, WeightScale,
};
use crate::parameters::{ParameterSpec, Role};
use crate::resolve::{KvScales, Stored, StoredBlock};
use crate::spec::{AttentionSpec, BlockSpec, FfnSpec, MixerSpec};

/// Bytes of one rank's share, by what they are for. Matrices count as they are stored, norms and
/// scales as the f32 that they become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankBytes {
    /// The embedding's vocabulary entries.
    pub embedding: u64,
    /// Projections of first sub-blocks.
    pub attention: u64,
    /// Projections of second sub-blocks.
    pub ffn: u64,
    /// All norms.
    pub norms: u64,
    /// Scales of weights, of inputs and of the cache.
    pub scales: u64,
    /// The head's vocabulary entries; none where it shares the embedding's tensor.
    pub head: u64,
}

impl RankBytes {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.embedding + self.attention + self.ffn + self.norms + self.scales + self.head
    }

    /// One rank's share of one parameter, without scales.
    pub(crate) fn of_parameter(
        parameter: &ParameterSpec,
        dtype: Dtype,
        rank_idx: usize,
        n_ranks: usize,
    ) -> Result<RankBytes, Uneven> {
        let n_elements = parameter.slice(rank_idx, n_ranks)?.n_elements();
        let stored = n_elements * dtype.n_bytes() as u64;
        let mut bytes = RankBytes::default();
        match parameter.role {
            Role::Embedding => bytes.embedding = stored,
            Role::Head => bytes.head = stored,
            Role::MixerNorm | Role::FfnNorm | Role::FinalNorm => bytes.norms = n_elements * F32,
            Role::Gate | Role::Up | Role::Down | Role::FfnLinear => bytes.ffn = stored,
            Role::Query | Role::Key | Role::Value | Role::AttentionOut | Role::MixerLinear => {
                bytes.attention = stored;
            }
        }
        Ok(bytes)
    }
}

impl AddAssign for RankBytes {
    fn add_assign(&mut self, other: RankBytes) {
        self.embedding += other.embedding;
        self.attention += other.attention;
        self.ffn += other.ffn;
        self.norms += other.norms;
        self.scales += other.scales;
        self.head += other.head;
    }
}

impl fmt::Display for RankBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "embedding {}, attention {}, ffn {}, norms {}, scales {}, head {}: {} bytes",
            self.embedding,
            self.attention,
            self.ffn,
            self.norms,
            self.scales,
            self.head,
            self.total()
        )
    }
}

/// Bytes of an f32.
const F32: u64 = 4;

impl Checkpoint {
    /// The share of rank `rank_idx`. Matrices point into the mapped files.
    ///
    /// # Errors
    /// If `n_ranks` ranks cannot share a parameter evenly.
    ///
    /// # Panics
    /// If `rank_idx` is not below `n_ranks`.
    pub fn load_rank(&self, rank_idx: usize, n_ranks: usize) -> Result<RankWeights, LoadError> {
        assert!(rank_idx < n_ranks, "rank {rank_idx} of {n_ranks}");
        self.check_sharding(n_ranks)?;
        let seat = Seat { rank_idx, n_ranks };
        let model = self.model();
        let embedding = seat.linear(&model.embedding)?;
        let head = match &model.head {
            Some(head) => seat.linear(head)?,
            None => embedding.clone(),
        };
        let mut blocks = Vec::new();
        for (block_idx, (spec, stored)) in self.spec().blocks.iter().zip(&model.blocks).enumerate()
        {
            if !spec.is_empty() {
                let (mixer, ffn) = seat.block(spec, stored)?;
                blocks.push(BlockWeights { block_idx, mixer, ffn });
            }
        }
        Ok(RankWeights {
            embedding: embedding.matrix,
            blocks,
            final_norm: model.final_norm.gains(),
            head,
            vocab_begin: model.embedding.spec.slice(rank_idx, n_ranks)?.rows.start,
        })
    }

    /// Bytes that [`load_rank`](Checkpoint::load_rank) makes reachable, by what they are for.
    ///
    /// # Errors
    /// If `n_ranks` ranks cannot share a parameter evenly.
    ///
    /// # Panics
    /// If `rank_idx` is not below `n_ranks`.
    pub fn rank_bytes(&self, rank_idx: usize, n_ranks: usize) -> Result<RankBytes, LoadError> {
        let model = self.model();
        let mut bytes = RankBytes::default();
        let blocks = model.blocks.iter().flat_map(|block| &block.parameters);
        let ends = [&model.embedding, &model.final_norm].into_iter().chain(&model.head);
        for stored in ends.chain(blocks) {
            let dtype = stored.tensor.dtype;
            bytes += RankBytes::of_parameter(&stored.spec, dtype, rank_idx, n_ranks)?;
            bytes.scales += match &stored.scale {
                WeightScale::One => 0,
                WeightScale::PerTensor(_) => F32,
                WeightScale::PerRow(_) => {
                    stored.spec.slice(rank_idx, n_ranks)?.rows.len() as u64 * F32
                }
            };
            bytes.scales += match stored.input {
                crate::InputScale::Static(_) => F32,
                _ => 0,
            };
        }
        let n_kv_scales = model.blocks.iter().filter(|block| block.kv_scales.is_some()).count();
        bytes.scales += 2 * F32 * n_kv_scales as u64;
        Ok(bytes)
    }
}

/// Which share is cut.
#[derive(Clone, Copy)]
pub(crate) struct Seat {
    pub(crate) rank_idx: usize,
    pub(crate) n_ranks: usize,
}

impl Seat {
    fn block(
        self,
        spec: &BlockSpec,
        stored: &StoredBlock,
    ) -> Result<(Option<MixerWeights>, Option<FfnWeights>), LoadError> {
        let mixer = match &spec.mixer {
            None => None,
            Some(MixerSpec::Attention(attention)) => {
                Some(MixerWeights::Attention(self.attention(attention, stored)?))
            }
            Some(MixerSpec::Linear) => {
                let linear = self.replacement(stored, Role::MixerNorm, Role::MixerLinear)?;
                Some(MixerWeights::Linear(linear))
            }
        };
        let ffn = match &spec.ffn {
            None => None,
            Some(FfnSpec::SwiGlu { .. }) => Some(FfnWeights::SwiGlu(SwiGluWeights {
                norm: stored.get(Role::FfnNorm).gains(),
                gate: self.linear(stored.get(Role::Gate))?,
                up: self.linear(stored.get(Role::Up))?,
                down: self.linear(stored.get(Role::Down))?,
            })),
            Some(FfnSpec::Linear) => Some(FfnWeights::Linear(self.replacement(
                stored,
                Role::FfnNorm,
                Role::FfnLinear,
            )?)),
        };
        Ok((mixer, ffn))
    }

    fn attention(
        self,
        spec: &AttentionSpec,
        stored: &StoredBlock,
    ) -> Result<AttentionWeights, LoadError> {
        let q = self.linear(stored.get(Role::Query))?;
        let k = self.linear(stored.get(Role::Key))?;
        let share = AttentionSpec {
            n_q_heads: q.matrix.n_rows / spec.head_dim,
            n_kv_heads: k.matrix.n_rows / spec.head_dim,
            ..spec.clone()
        };
        let kv_scales = stored.kv_scales.unwrap_or(KvScales { k: 1.0, v: 1.0 });
        Ok(AttentionWeights {
            spec: spec.clone(),
            share,
            norm: stored.get(Role::MixerNorm).gains(),
            q,
            k,
            v: self.linear(stored.get(Role::Value))?,
            o: self.linear(stored.get(Role::AttentionOut))?,
            k_scale: kv_scales.k,
            v_scale: kv_scales.v,
        })
    }

    fn replacement(
        self,
        block: &StoredBlock,
        norm_role: Role,
        role: Role,
    ) -> Result<ReplacementWeights, LoadError> {
        let stored = block.get(role);
        Ok(ReplacementWeights {
            norm: block.get(norm_role).gains(),
            projection: self.linear(stored)?,
            col_begin: stored.spec.slice(self.rank_idx, self.n_ranks)?.cols.start,
        })
    }

    /// The rank's slice of a matrix.
    pub(crate) fn linear(self, stored: &Stored) -> Result<LinearWeights, LoadError> {
        let slice = stored.spec.slice(self.rank_idx, self.n_ranks)?;
        let tensor = &stored.tensor;
        let n_element_bytes = tensor.dtype.n_bytes();
        // Where each rank has a file, what it holds is the slice.
        let (part, first, n_stored_cols) = match tensor.parts.get(self.rank_idx) {
            Some(part) => (part, (0, 0), slice.cols.len()),
            None => (tensor, (slice.rows.start, slice.cols.start), stored.spec.n_cols),
        };
        let row_stride = n_stored_cols * n_element_bytes;
        let matrix = Matrix {
            bytes: part.bytes.clone(),
            offset: part.offset + first.0 * row_stride + first.1 * n_element_bytes,
            dtype: tensor.dtype,
            n_rows: slice.rows.len(),
            n_cols: slice.cols.len(),
            row_stride,
        };
        let scale = match &stored.scale {
            WeightScale::PerRow(scales) => WeightScale::PerRow(scales[slice.rows].into()),
            whole => whole.clone(),
        };
        Ok(LinearWeights { matrix, scale, input: stored.input })
    }
}

impl StoredBlock {
    fn get(&self, role: Role) -> &Stored {
        let found = self.parameters.iter().find(|stored| stored.spec.role == role);
        found.expect("every parameter of the block was resolved when it was opened")
    }
}
