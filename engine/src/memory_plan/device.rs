//! What a rank's device will hold. The same walks that place things on it are made from address
//! zero, so what is planned is what is taken.

use weights::{
    AttentionSpec, AttentionWeights, BlockSpec, Checkpoint, FfnWeights, InputScale, LinearWeights,
    Matrix, MixerWeights, ModelSpec, RankWeights, SwiGluWeights,
};

use super::reserve::{PAGE_BYTES, Reserve, ReserveSizes, Room};
use super::{MemoryError, RankMemory, WeightParts, WorkspaceParts};
use crate::blocks::{DeviceScratch, Scratch, Widths};
use crate::cache::{CacheLayout, CacheSizes};
use crate::config::{EngineConfig, KvDtype};
use crate::device::cuda::DevicePtr;
use crate::device::{Element, RopeFrequencies};
use crate::kernels::attention::cuda::{Workspace, WorkspaceSize, supports};
use crate::kernels::launching::{N_RANKS_MAX, N_TOKENS_MAX};
use crate::kernels::reduce_norm::HIDDEN_MAX;
use crate::loading::{Carve, Placer, Unsupported, WIDTH_MULTIPLE};
use crate::model::{
    DeviceLogits, InputPlaces, InputSizes, N_LOGIT_ROWS, Network, SamplingPlaces, SamplingSizes,
    n_recorded, widths,
};
use crate::peers::{Carrier, carrier};

/// A cache that shares no chunk with others, and needs no rounding up.
const KV_BYTES_LARGE: u64 = 1 << 30;

/// Kernels of a recorded step, for each sub-block and beside them: more than any step launches.
const N_NODES_PER_SUB_BLOCK: usize = 5;
const N_NODES_BESIDE: usize = 8;

/// What decides how large the memory of a step is.
#[derive(Clone, Debug)]
pub(crate) struct StepSizes {
    pub(crate) inputs: InputSizes,
    pub(crate) n_local: usize,
    pub(crate) n_logit_rows: usize,
    pub(crate) samples_on_host: bool,
    widths: Widths,
    attention: WorkspaceSize,
    quantizes_inner: bool,
    n_ranks: usize,
    n_vocab: usize,
    /// Tokens up to which partial results are summed in one shot.
    n_one_shot_tokens: usize,
}

/// Where everything lies that steps write.
pub(crate) struct StepMemory {
    pub(crate) scratch: Scratch,
    /// Where it begins. Kernels of all ranks reach it.
    pub(crate) first: DevicePtr,
    pub(crate) n_bytes: usize,
    pub(crate) magnitudes: DevicePtr,
    pub(crate) inputs: InputPlaces,
    pub(crate) attention: Workspace,
    pub(crate) n_arrived_bytes: usize,
    pub(crate) logits: DevicePtr,
    /// `n_bytes`, by what they are for.
    pub(crate) parts: WorkspaceParts,
    /// `None` where ranks' parts of the vocabulary are not alike: the host then samples.
    pub(crate) sampling: Option<SamplingPlaces>,
}

/// What fits beside the caches.
pub(super) struct DeviceBudget {
    /// Of each rank, without its cache.
    ranks: Vec<RankMemory>,
    rooms: Vec<Room>,
    reserve: ReserveSizes,
    pub(super) step: StepSizes,
    /// What is left for pages on the rank that has least.
    pub(super) kv_bytes: u64,
}

impl DeviceBudget {
    /// Places everything but the caches, on devices of which `room` says what they have.
    pub(super) fn new(
        checkpoint: &Checkpoint,
        config: &EngineConfig,
        (kv_dtype, room): (KvDtype, &dyn Fn(usize) -> Result<Room, MemoryError>),
    ) -> Result<DeviceBudget, MemoryError> {
        let spec = checkpoint.spec();
        check(spec, config, kv_dtype)?;
        let within = |what, value, max| match value <= max {
            true => Ok(()),
            false => Err(MemoryError::OutOfRange { what, value, min: 1, max }),
        };
        let what = "tokens a step on a device (--max-tokens-per-step)";
        within(what, config.n_tokens_per_step, N_TOKENS_MAX)?;
        within("the number of devices of a node", config.n_ranks, N_RANKS_MAX)?;
        let rooms = (0..config.n_ranks).map(room).collect::<Result<Vec<Room>, MemoryError>>()?;
        let mut weights = Vec::with_capacity(config.n_ranks);
        let mut quantizes_inner = false;
        for rank_idx in 0..config.n_ranks {
            let of_rank = checkpoint.load_rank(rank_idx, config.n_ranks)?;
            quantizes_inner |= quantizes_per_token(&of_rank);
            weights.push(placed(spec, of_rank, kv_dtype)?);
        }
        let step = StepSizes::new(spec, config, quantizes_inner);
        let reserve = ReserveSizes {
            n_ranks: config.n_ranks,
            n_graphs: n_recorded(config.n_slots),
            n_graph_nodes: n_graph_nodes(spec),
        };
        let workspace = step.parts();
        let rank = |(room, (weights_bytes, weights)): (&Room, &(u64, WeightParts))| RankMemory {
            weights_bytes: *weights_bytes,
            kv_bytes: 0,
            workspace_bytes: workspace.total_bytes(),
            collective_bytes: 0,
            weights: *weights,
            workspace,
            // A cache worth planning for is an allocation of its own.
            reserve: Some(Reserve::new(
                *room,
                reserve,
                [*weights_bytes, KV_BYTES_LARGE, workspace.total_bytes()],
            )),
        };
        let ranks: Vec<RankMemory> = rooms.iter().zip(&weights).map(rank).collect();
        let mut budget = DeviceBudget { ranks, rooms, reserve, step, kv_bytes: u64::MAX };
        budget.kv_bytes = budget.left_bytes()?;
        Ok(budget)
    }

    fn left_bytes(&self) -> Result<u64, MemoryError> {
        let left = |(device, (room, rank)): (usize, (&Room, &RankMemory))| {
            let (free_bytes, total_bytes) = (room.free_bytes(), room.device_bytes);
            let beside_bytes = rank.reserve.map_or(0, |reserve| reserve.beside_bytes());
            let taken_bytes = rank.weights_bytes + rank.workspace_bytes + beside_bytes;
            // The cache is rounded up to the driver's pages.
            let left_bytes =
                free_bytes.checked_sub(taken_bytes).map(|n| n / PAGE_BYTES * PAGE_BYTES);
            left_bytes.ok_or_else(|| {
                let rank = Box::new(*rank);
                MemoryError::DeviceTooSmall { device, rank, free_bytes, total_bytes }
            })
        };
        let ranks = self.rooms.iter().zip(&self.ranks).enumerate();
        ranks.map(left).try_fold(u64::MAX, |least, left_bytes| Ok(least.min(left_bytes?)))
    }

    /// What ranks hold with caches of `kv_bytes` each.
    pub(super) fn ranks(&self, kv_bytes: u64) -> Vec<RankMemory> {
        let with_cache = |(room, rank): (&Room, &RankMemory)| {
            let sizes = [rank.weights_bytes, kv_bytes, rank.workspace_bytes];
            RankMemory {
                kv_bytes,
                reserve: Some(Reserve::new(*room, self.reserve, sizes)),
                ..*rank
            }
        };
        self.rooms.iter().zip(&self.ranks).map(with_cache).collect()
    }
}

impl StepSizes {
    fn new(spec: &ModelSpec, config: &EngineConfig, quantizes_inner: bool) -> StepSizes {
        let n_ranks = config.n_ranks;
        let n_context = config.n_context_tokens.unwrap_or(spec.n_positions_max);
        let n_tokens = config.n_tokens_per_step;
        let shares = spec.blocks.iter().filter_map(|block| share(block.attention()?, n_ranks));
        let attention = shares
            .map(|share| WorkspaceSize::new(&share, config.n_slots, n_context))
            .fold(WorkspaceSize::default(), WorkspaceSize::max);
        let partial_bytes = |n_tokens| n_tokens * spec.hidden_size * Element::Bf16.n_bytes();
        let is_one_shot =
            |&n_tokens: &usize| carrier(partial_bytes(n_tokens), n_ranks) == Carrier::OneShot;
        StepSizes {
            inputs: InputSizes {
                n_tokens,
                n_slots: config.n_slots,
                n_groups: CacheLayout::new(spec).groups.len(),
                n_context,
                is_deterministic: config.is_deterministic,
            },
            n_local: spec.vocab_size.div_ceil(n_ranks),
            n_logit_rows: config.n_slots.max(N_LOGIT_ROWS),
            // A draw needs the one before it, and a device draws for all rows at once.
            samples_on_host: config.n_candidates_max > 0,
            widths: widths(spec, n_ranks, WIDTH_MULTIPLE),
            attention,
            quantizes_inner,
            n_ranks,
            n_vocab: spec.vocab_size,
            n_one_shot_tokens: (1..=n_tokens).take_while(is_one_shot).count(),
        }
    }

    /// Bytes that a step sends to a device, as far as it need not wait.
    pub(crate) fn n_sent_bytes(&self) -> usize {
        self.inputs.n_sent_bytes() + self.sampling().n_sent_bytes()
    }

    /// What sampling needs.
    pub(crate) fn sampling(&self) -> SamplingSizes {
        SamplingSizes {
            n_slots: self.inputs.n_slots,
            n_vocab: self.n_vocab,
            n_local: self.n_local,
            n_logit_rows: self.n_logit_rows,
            n_ranks: self.n_ranks,
            n_context: self.inputs.n_context,
        }
    }

    /// Bytes that a step writes, by what they are for.
    fn parts(&self) -> WorkspaceParts {
        self.carve(&mut Carve::new(DevicePtr::NULL)).parts
    }

    /// Places it all, alike on every rank.
    pub(crate) fn carve(&self, carve: &mut Carve) -> StepMemory {
        let InputSizes { n_tokens, .. } = self.inputs;
        let first = carve.take(0);
        let mut n_counted = 0;
        let mut since_last = |carve: &Carve| {
            let n_before = std::mem::replace(&mut n_counted, carve.n_bytes());
            (n_counted - n_before) as u64
        };
        let magnitudes = carve.take(n_tokens * Element::F32.n_bytes());
        let partial_bytes = self.n_one_shot_tokens * self.widths.hidden * Element::Bf16.n_bytes();
        let one_shot_partials =
            (self.n_ranks > 1).then(|| [(); 3].map(|()| carve.take(partial_bytes)));
        let exchange_bytes = since_last(carve);
        let scratch = DeviceScratch {
            widths: self.widths,
            n_tokens,
            quantizes_inner: self.quantizes_inner,
            one_shot_partials,
            n_one_shot_tokens: self.n_one_shot_tokens,
        };
        let inputs = InputPlaces::carve(self.inputs, carve);
        let inputs_bytes = since_last(carve);
        let sampling = self.sampling();
        let sampling = (sampling.is_possible() && !self.samples_on_host)
            .then(|| SamplingPlaces::carve(sampling, inputs.last_tokens, carve));
        let sampling_bytes = since_last(carve);
        let scratch = Scratch::on_device(scratch, carve);
        let activations_bytes = since_last(carve);
        let attention = Workspace {
            sums: carve.take(self.attention.n_sums_bytes),
            stats: carve.take(self.attention.n_stats_bytes),
            n_arrived: carve.take(self.attention.n_arrived_bytes),
        };
        let attention_bytes = since_last(carve);
        let logits = carve.take(DeviceLogits::n_bytes(self.n_logit_rows, self.n_local));
        let logits_bytes = since_last(carve);
        StepMemory {
            scratch,
            first,
            n_bytes: (carve.take(0).0 - first.0) as usize,
            magnitudes,
            inputs,
            attention,
            n_arrived_bytes: self.attention.n_arrived_bytes,
            logits,
            parts: WorkspaceParts {
                activations_bytes,
                exchange_bytes,
                attention_bytes,
                inputs_bytes,
                logits_bytes,
                sampling_bytes,
            },
            sampling,
        }
    }
}

/// What the kernels do not do is said before anything is opened.
fn check(spec: &ModelSpec, config: &EngineConfig, kv_dtype: KvDtype) -> Result<(), Unsupported> {
    if kv_dtype == KvDtype::F32 {
        return Err(Unsupported::KvF32);
    }
    let hidden_size = spec.hidden_size;
    if !hidden_size.is_multiple_of(WIDTH_MULTIPLE) || hidden_size > HIDDEN_MAX {
        return Err(Unsupported::Hidden { hidden_size, max: HIDDEN_MAX });
    }
    for (block_idx, block) in spec.blocks.iter().enumerate() {
        let Some(attention) = block.attention() else { continue };
        let Some(share) = share(attention, config.n_ranks) else { continue };
        if !supports(&share, kv_dtype) {
            let AttentionSpec { n_q_heads, n_kv_heads, head_dim, .. } = share;
            return Err(Unsupported::Heads { block_idx, n_q_heads, n_kv_heads, head_dim });
        }
    }
    Ok(())
}

/// A rank's heads; `None` where they cannot be shared, which loading says better.
fn share(attention: &AttentionSpec, n_ranks: usize) -> Option<AttentionSpec> {
    let n_q_heads = attention.n_q_heads / n_ranks;
    let n_kv_heads = (attention.n_kv_heads / n_ranks).max(1);
    (n_q_heads > 0).then(|| AttentionSpec { n_q_heads, n_kv_heads, ..attention.clone() })
}

/// Bytes of a rank's weights as its device will hold them, and what they are for.
fn placed(
    spec: &ModelSpec,
    weights: RankWeights,
    kv_dtype: KvDtype,
) -> Result<(u64, WeightParts), Unsupported> {
    let mut parts = weight_parts(&weights);
    let mut placer = Placer::on_device(DevicePtr::NULL, DevicePtr::NULL);
    let no_pages = vec![0; CacheLayout::new(spec).groups.len()];
    let caches = CacheSizes { kv_dtype, group_pages: &no_pages };
    Network::new(spec, weights, caches, &mut placer)?;
    let mut placement = placer.placement();
    placement.doubles(RopeFrequencies::of_model(spec).as_slice());
    let n_bytes = placement.weights.n_bytes() as u64;
    let WeightParts {
        embedding_bytes, attention_bytes, ffn_bytes, norms_bytes, head_bytes, ..
    } = parts;
    parts.scales_bytes =
        n_bytes - (embedding_bytes + attention_bytes + ffn_bytes + norms_bytes + head_bytes);
    Ok((n_bytes, parts))
}

/// The parameters' own elements, as a device stores them.
fn weight_parts(weights: &RankWeights) -> WeightParts {
    let elements = |matrix: &Matrix| (matrix.n_rows * matrix.n_cols) as u64;
    let dense = |matrix: &Matrix| elements(matrix) * Element::Bf16.n_bytes() as u64;
    let linear = |linear: &LinearWeights| {
        elements(&linear.matrix) * Element::of_input(linear.input).n_bytes() as u64
    };
    let norm = |norm: &[f32]| size_of_val(norm) as u64;
    let mut parts = WeightParts {
        embedding_bytes: dense(&weights.embedding),
        norms_bytes: norm(&weights.final_norm),
        head_bytes: dense(&weights.head.matrix),
        ..WeightParts::default()
    };
    for block in &weights.blocks {
        match &block.mixer {
            Some(MixerWeights::Attention(attention)) => {
                let AttentionWeights { q, k, v, o, .. } = attention;
                parts.attention_bytes += [q, k, v, o].map(linear).iter().sum::<u64>();
                parts.norms_bytes += norm(&attention.norm);
            }
            Some(MixerWeights::Linear(replacement)) => {
                parts.attention_bytes += linear(&replacement.projection);
                parts.norms_bytes += norm(&replacement.norm);
            }
            None => {}
        }
        match &block.ffn {
            Some(FfnWeights::SwiGlu(swiglu)) => {
                let SwiGluWeights { gate, up, down, .. } = swiglu;
                parts.ffn_bytes += [gate, up, down].map(linear).iter().sum::<u64>();
                parts.norms_bytes += norm(&swiglu.norm);
            }
            Some(FfnWeights::Linear(replacement)) => {
                parts.ffn_bytes += linear(&replacement.projection);
                parts.norms_bytes += norm(&replacement.norm);
            }
            None => {}
        }
    }
    parts
}

/// Kernels of a recorded step, at most.
fn n_graph_nodes(spec: &ModelSpec) -> usize {
    let n_sub_blocks =
        |block: &BlockSpec| usize::from(block.mixer.is_some()) + usize::from(block.ffn.is_some());
    let n_sub_blocks: usize = spec.blocks.iter().map(n_sub_blocks).sum();
    N_NODES_PER_SUB_BLOCK * n_sub_blocks + N_NODES_BESIDE
}

/// Whether some second projection's input is quantized token by token.
fn quantizes_per_token(weights: &RankWeights) -> bool {
    weights.blocks.iter().any(|block| {
        let mixer = match &block.mixer {
            Some(MixerWeights::Attention(attention)) => Some(attention.o.input),
            Some(MixerWeights::Linear(_)) | None => None,
        };
        let ffn = match &block.ffn {
            Some(FfnWeights::SwiGlu(swiglu)) => Some(swiglu.down.input),
            Some(FfnWeights::Linear(_)) | None => None,
        };
        [mixer, ffn].contains(&Some(InputScale::PerToken))
    })
}
