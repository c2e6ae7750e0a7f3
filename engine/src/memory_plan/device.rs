//! What a rank's device will hold. The same walks that place things on it are made from address
//! zero, so what is planned is what is taken.

use weights::{AttentionSpec, Checkpoint, InputScale, ModelSpec, RankWeights};
use weights::{FfnWeights, MixerWeights};

use super::MemoryError;
use crate::blocks::{DeviceScratch, Scratch, Widths};
use crate::cache::{CacheLayout, CacheSizes};
use crate::config::{EngineConfig, KvDtype};
use crate::device::cuda::{self, DevicePtr};
use crate::device::{Element, RopeFrequencies};
use crate::kernels::attention::cuda::{Workspace, WorkspaceSize, supports};
use crate::kernels::launching::N_TOKENS_MAX;
use crate::kernels::reduce_norm::HIDDEN_MAX;
use crate::loading::{Carve, Placer, Unsupported, WIDTH_MULTIPLE};
use crate::model::{
    DeviceLogits, InputPlaces, InputSizes, N_LOGIT_ROWS, Network, SamplingPlaces, SamplingSizes,
    widths,
};
use crate::peers::{Carrier, carrier};

/// What the plan leaves to the driver, its modules and recorded steps, and to the arena's chunks.
const RESERVED_BYTES: usize = (512 << 20) + cuda::WORKSPACE_BYTES;

/// What NCCL takes for eight ranks on one node, with room to spare.
const NCCL_BYTES: usize = 1 << 30;

/// What decides how large the memory of a step is.
#[derive(Clone, Debug)]
pub(crate) struct StepSizes {
    pub(crate) inputs: InputSizes,
    pub(crate) n_local: usize,
    pub(crate) n_logit_rows: usize,
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
    /// `None` where ranks' parts of the vocabulary are not alike: the host then samples.
    pub(crate) sampling: Option<SamplingPlaces>,
}

/// What fits beside the caches.
pub(crate) struct DeviceBudget {
    /// Of each rank.
    pub(crate) weights_bytes: Vec<u64>,
    pub(crate) step: StepSizes,
    pub(crate) step_bytes: u64,
    /// What is left for pages on the rank that has least.
    pub(crate) kv_bytes: u64,
}

impl DeviceBudget {
    /// Asks the devices what they have, and places everything but the caches.
    pub(super) fn new(
        checkpoint: &Checkpoint,
        config: &EngineConfig,
        kv_dtype: KvDtype,
    ) -> Result<DeviceBudget, MemoryError> {
        let spec = checkpoint.spec();
        check(spec, config, kv_dtype)?;
        if config.n_tokens_per_step > N_TOKENS_MAX {
            let (value, max) = (config.n_tokens_per_step, N_TOKENS_MAX);
            let what = "tokens a step on a device (--max-tokens-per-step)";
            return Err(MemoryError::OutOfRange { what, value, min: 1, max });
        }
        let mut weights_bytes = Vec::with_capacity(config.n_ranks);
        let mut quantizes_inner = false;
        for rank_idx in 0..config.n_ranks {
            let weights = checkpoint.load_rank(rank_idx, config.n_ranks)?;
            quantizes_inner |= quantizes_per_token(&weights);
            weights_bytes.push(placed_bytes(spec, weights, kv_dtype)? as u64);
        }
        let step = StepSizes::new(spec, config, quantizes_inner);
        let step_bytes = step.n_bytes() as u64;
        let nccl_bytes = if config.n_ranks > 1 { NCCL_BYTES } else { 0 };
        let reserved_bytes = (RESERVED_BYTES + nccl_bytes) as u64;
        let mut kv_bytes = u64::MAX;
        for (device, &weights_bytes) in weights_bytes.iter().enumerate() {
            let (free_bytes, total_bytes) = cuda::memory_bytes(device)?;
            let (free_bytes, total_bytes) = (free_bytes as u64, total_bytes as u64);
            let taken_bytes = weights_bytes + step_bytes + reserved_bytes;
            let Some(left_bytes) = free_bytes.checked_sub(taken_bytes) else {
                return Err(MemoryError::DeviceTooSmall {
                    device,
                    weights_bytes,
                    step_bytes,
                    reserved_bytes,
                    free_bytes,
                    total_bytes,
                });
            };
            kv_bytes = kv_bytes.min(left_bytes);
        }
        Ok(DeviceBudget { weights_bytes, step, step_bytes, kv_bytes })
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
            widths: widths(spec, n_ranks, WIDTH_MULTIPLE),
            attention,
            quantizes_inner,
            n_ranks,
            n_vocab: spec.vocab_size,
            n_one_shot_tokens: (1..=n_tokens).take_while(is_one_shot).count(),
        }
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

    /// Bytes that a step writes.
    pub(crate) fn n_bytes(&self) -> usize {
        let mut carve = Carve::new(DevicePtr::NULL);
        self.carve(&mut carve);
        carve.n_bytes()
    }

    /// Places it all, alike on every rank.
    pub(crate) fn carve(&self, carve: &mut Carve) -> StepMemory {
        let InputSizes { n_tokens, .. } = self.inputs;
        let first = carve.take(0);
        let magnitudes = carve.take(n_tokens * Element::F32.n_bytes());
        let partial_bytes = self.n_one_shot_tokens * self.widths.hidden * Element::Bf16.n_bytes();
        let one_shot_partials =
            (self.n_ranks > 1).then(|| [(); 3].map(|()| carve.take(partial_bytes)));
        let scratch = DeviceScratch {
            widths: self.widths,
            n_tokens,
            quantizes_inner: self.quantizes_inner,
            one_shot_partials,
            n_one_shot_tokens: self.n_one_shot_tokens,
        };
        let inputs = InputPlaces::carve(self.inputs, carve);
        let sampling = self.sampling();
        StepMemory {
            sampling: sampling
                .is_possible()
                .then(|| SamplingPlaces::carve(sampling, inputs.last_tokens, carve)),
            scratch: Scratch::on_device(scratch, carve),
            first,
            magnitudes,
            inputs,
            attention: Workspace {
                sums: carve.take(self.attention.n_sums_bytes),
                stats: carve.take(self.attention.n_stats_bytes),
                n_arrived: carve.take(self.attention.n_arrived_bytes),
            },
            n_arrived_bytes: self.attention.n_arrived_bytes,
            logits: carve.take(DeviceLogits::n_bytes(self.n_logit_rows, self.n_local)),
            n_bytes: (carve.take(0).0 - first.0) as usize,
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

/// Bytes of a rank's weights as its device will hold them.
fn placed_bytes(
    spec: &ModelSpec,
    weights: RankWeights,
    kv_dtype: KvDtype,
) -> Result<usize, Unsupported> {
    let mut placer = Placer::on_device(DevicePtr::NULL, DevicePtr::NULL);
    let no_pages = vec![0; CacheLayout::new(spec).groups.len()];
    let caches = CacheSizes { kv_dtype, group_pages: &no_pages };
    Network::new(spec, weights, caches, &mut placer)?;
    let mut placement = placer.placement();
    placement.doubles(RopeFrequencies::of_model(spec).as_slice());
    Ok(placement.weights.n_bytes())
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
