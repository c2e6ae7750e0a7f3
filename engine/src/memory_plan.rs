//! What the engine will allocate, decided and checked before anything is loaded.

mod device;

use scheduler::{GroupLimits, Limits};
use thiserror::Error;
use weights::{AttentionSpec, Checkpoint, LoadError, ModelSpec};

use crate::blocks::{Scratch, Widths};
use crate::cache::{CacheGroup, CacheLayout, CacheSizes, PAGE_TOKENS};
use crate::config::{DeviceKind, EngineConfig, KvDtype};
use crate::device::DeviceError;
use crate::loading::Unsupported;
use crate::model::{logits_bytes, widths};
use crate::sampler::Sampler;

use device::DeviceBudget;
pub(crate) use device::{StepMemory, StepSizes};

/// KV bytes over all ranks where the operator names none and the slots could use more: a machine
/// that tries the program out should keep most of its memory.
pub const KV_BYTES_DEFAULT_MAX: u64 = 4 << 30;

/// Sizes of everything that is allocated at boot.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// Ranks.
    pub n_ranks: usize,
    /// Compute threads of each rank.
    pub n_threads_per_rank: usize,
    /// Sequences that may run at once.
    pub n_slots: usize,
    /// Tokens of a step.
    pub n_tokens_per_step: usize,
    /// Tokens of a sequence.
    pub n_context_tokens: usize,
    /// Element type of the cache.
    pub kv_dtype: KvDtype,
    /// Pages of each cache group, on every rank.
    pub group_pages: Vec<usize>,
    /// Windows of the cache groups, in the same order.
    pub group_windows: Vec<Option<usize>>,
    /// What each rank allocates.
    pub ranks: Vec<RankMemory>,
    /// Weights as they are stored, once: ranks on one machine share the mapped file.
    pub mapped_bytes: u64,
    pub(crate) widths: Widths,
    /// Numbers in the largest collective.
    pub(crate) n_collective_floats: usize,
    /// On devices.
    pub(crate) step: Option<StepSizes>,
}

/// What one rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankMemory {
    /// Its slices of the mapped weights.
    pub weights_bytes: u64,
    /// KV pages.
    pub kv_bytes: u64,
    /// Step-local buffers, logits and sampling.
    pub workspace_bytes: u64,
    /// Staging for collectives.
    pub collective_bytes: u64,
}

/// Why the plan does not come out.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A number that must be at least one is zero, or beyond its bound.
    #[error("{what} is {value}, but must be between {min} and {max}")]
    OutOfRange {
        /// The setting.
        what: &'static str,
        /// What was given.
        value: usize,
        /// Least allowed.
        min: usize,
        /// Greatest allowed.
        max: usize,
    },
    /// Not every running sequence could generate in a step.
    #[error(
        "a step of {n_tokens_per_step} tokens is too small for {n_slots} sequences: raise \
         --max-tokens-per-step or lower --max-seqs"
    )]
    StepTooSmall {
        /// Tokens of a step.
        n_tokens_per_step: usize,
        /// Sequences.
        n_slots: usize,
    },
    /// The cache cannot hold one sequence of full length.
    #[error(
        "a sequence of {n_context_tokens} tokens needs {needed_bytes} bytes of KV cache over all \
         ranks, but {kv_bytes} are given: raise --kv-memory or lower --max-model-len"
    )]
    KvTooSmall {
        /// Tokens of the sequence.
        n_context_tokens: usize,
        /// What it needs.
        needed_bytes: u64,
        /// What there is.
        kv_bytes: u64,
    },
    /// The ranks cannot share the checkpoint.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A device cannot do what the checkpoint asks for.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A device does not say what it has.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Weights and step do not fit a device.
    #[error(
        "CUDA device {device} has {free_bytes} of {total_bytes} bytes free, but its rank needs \
         {weights_bytes} for weights, {step_bytes} for a step and {reserved_bytes} for the \
         libraries: use more ranks (--tp), shorter steps (--max-tokens-per-step), fewer sequences \
         (--max-seqs) or a shorter context (--max-model-len)"
    )]
    DeviceTooSmall {
        /// Which.
        device: usize,
        /// The rank's weights.
        weights_bytes: u64,
        /// What steps write.
        step_bytes: u64,
        /// What the plan leaves alone.
        reserved_bytes: u64,
        /// Free now.
        free_bytes: u64,
        /// In all.
        total_bytes: u64,
    },
    /// The cache that was asked for does not fit the devices.
    #[error(
        "{kv_bytes} bytes of KV cache over all ranks are asked for, but the devices have room for \
         {left_bytes} beside the weights: lower --kv-memory, or choose --kv-dtype fp8, fewer \
         sequences (--max-seqs) or a shorter context (--max-model-len)"
    )]
    KvTooLarge {
        /// Asked for.
        kv_bytes: u64,
        /// What there is.
        left_bytes: u64,
    },
}

impl MemoryPlan {
    /// Decides every size.
    ///
    /// # Errors
    /// What is out of range or does not fit, with what to change.
    pub fn new(checkpoint: &Checkpoint, config: &EngineConfig) -> Result<MemoryPlan, MemoryError> {
        check_ranges(config)?;
        let spec = checkpoint.spec();
        // First, because it refuses what the ranks cannot share.
        let weights_bytes = (0..config.n_ranks)
            .map(|rank_idx| Ok(checkpoint.rank_bytes(rank_idx, config.n_ranks)?.total()))
            .collect::<Result<Vec<u64>, LoadError>>()?;
        let kv_dtype = config.kv_dtype.unwrap_or(match checkpoint.has_kv_scales() {
            true => KvDtype::Fp8,
            false => KvDtype::Bf16,
        });
        let layout = CacheLayout::new(spec);
        let budget = match config.device {
            DeviceKind::Cpu => None,
            DeviceKind::Cuda => Some(DeviceBudget::new(checkpoint, config, kv_dtype)?),
        };
        let left_bytes = budget.as_ref().map(|budget| budget.kv_bytes * config.n_ranks as u64);
        if let (Some(kv_bytes), Some(left_bytes)) = (config.kv_bytes, left_bytes)
            && kv_bytes > left_bytes
        {
            return Err(MemoryError::KvTooLarge { kv_bytes, left_bytes });
        }
        let kv_default_max = left_bytes.unwrap_or(KV_BYTES_DEFAULT_MAX);
        let pools = Pools::new(spec, &layout, config, (kv_dtype, kv_default_max))?;
        let widths = widths(spec, config.n_ranks, 1);
        let n_tokens = config.n_tokens_per_step;
        let n_local = spec.vocab_size.div_ceil(config.n_ranks);
        let n_collective_floats =
            (n_tokens * spec.hidden_size).max(crate::model::N_LOGIT_ROWS * n_local);
        let of_host = |rank_idx, weights_bytes| RankMemory {
            weights_bytes,
            kv_bytes: pools.bytes_per_rank,
            workspace_bytes: Scratch::n_bytes(widths, n_tokens)
                + logits_bytes(spec, config.n_ranks, rank_idx)
                + if rank_idx == 0 { Sampler::n_bytes(spec.vocab_size) } else { 0 },
            collective_bytes: collective_bytes(config.n_ranks, n_collective_floats),
        };
        let ranks =
            weights_bytes.into_iter().enumerate().map(|(rank_idx, weights_bytes)| match &budget {
                None => of_host(rank_idx, weights_bytes),
                Some(budget) => RankMemory {
                    weights_bytes: budget.weights_bytes[rank_idx],
                    kv_bytes: pools.bytes_per_rank,
                    workspace_bytes: budget.step_bytes,
                    collective_bytes: 0,
                },
            });
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(MemoryPlan {
            n_ranks: config.n_ranks,
            n_threads_per_rank: (config.n_threads.unwrap_or(n_cores) / config.n_ranks).max(1),
            n_slots: config.n_slots,
            n_tokens_per_step: n_tokens,
            n_context_tokens: pools.n_context_tokens,
            kv_dtype,
            group_pages: pools.pages,
            group_windows: layout.groups.iter().map(|group| group.window).collect(),
            ranks: ranks.collect(),
            mapped_bytes: checkpoint.tensors().map(|tensor| tensor.n_bytes).sum(),
            widths,
            n_collective_floats,
            step: budget.map(|budget| budget.step),
        })
    }

    /// Tokens whose KV fits, where a full-attention group limits it.
    pub fn n_kv_tokens(&self) -> usize {
        let pages = self.group_pages.iter().zip(&self.group_windows);
        let full = pages.filter(|(_, window)| window.is_none()).map(|(pages, _)| *pages).next();
        full.or_else(|| self.group_pages.first().copied()).unwrap_or(0) * PAGE_TOKENS
    }

    /// Everything over all ranks. Mapped weights count once; devices hold a copy each of their own.
    pub fn total_bytes(&self) -> u64 {
        let per_rank =
            |rank: &RankMemory| rank.kv_bytes + rank.workspace_bytes + rank.collective_bytes;
        let weights_bytes = match self.step {
            None => self.mapped_bytes,
            Some(_) => self.ranks.iter().map(|rank| rank.weights_bytes).sum(),
        };
        weights_bytes + self.ranks.iter().map(per_rank).sum::<u64>()
    }

    /// Bytes of weights that are sent to devices.
    pub(crate) fn placed_bytes(&self) -> u64 {
        match self.step {
            None => 0,
            Some(_) => self.ranks.iter().map(|rank| rank.weights_bytes).sum(),
        }
    }

    /// Of a rank.
    pub(crate) fn caches(&self) -> CacheSizes<'_> {
        CacheSizes { kv_dtype: self.kv_dtype, group_pages: &self.group_pages }
    }

    /// The scheduler's bounds.
    pub fn limits(&self, n_waiting_max: usize) -> Limits {
        let groups = self.group_pages.iter().zip(&self.group_windows);
        Limits {
            n_slots: self.n_slots,
            n_waiting_max,
            n_tokens_per_step: self.n_tokens_per_step,
            n_context_tokens: self.n_context_tokens,
            page_tokens: PAGE_TOKENS,
            prefix_cache: None,
            groups: groups.map(|(&n_pages, &window)| GroupLimits { n_pages, window }).collect(),
        }
    }

    /// One line at boot.
    pub(crate) fn log(&self) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        tracing::info!(
            n_ranks = self.n_ranks,
            n_threads_per_rank = self.n_threads_per_rank,
            kv_dtype = ?self.kv_dtype,
            n_kv_tokens = self.n_kv_tokens(),
            n_context_tokens = self.n_context_tokens,
            weights_mib = format!("{:.1}", mib(self.mapped_bytes)),
            kv_mib = format!("{:.1}", mib(self.ranks.iter().map(|rank| rank.kv_bytes).sum())),
            total_mib = format!("{:.1}", mib(self.total_bytes())),
            "memory plan"
        );
    }
}

/// Pages of every group within the given bytes.
struct Pools {
    pages: Vec<usize>,
    bytes_per_rank: u64,
    n_context_tokens: usize,
}

impl Pools {
    fn new(
        spec: &ModelSpec,
        layout: &CacheLayout,
        config: &EngineConfig,
        (kv_dtype, kv_default_max): (KvDtype, u64),
    ) -> Result<Pools, MemoryError> {
        let page_bytes: Vec<u64> = layout
            .groups
            .iter()
            .map(|group| page_bytes_per_rank(spec, group, config.n_ranks, kv_dtype))
            .collect();
        let n_ranks = config.n_ranks as u64;
        let wanted = config.n_context_tokens.unwrap_or(spec.n_positions_max);
        let sized = |n_context_tokens, n_full_sequences| {
            let pages: Vec<usize> = layout
                .groups
                .iter()
                .map(|group| group_pages(group, config, n_context_tokens, n_full_sequences))
                .collect();
            let bytes: u64 =
                pages.iter().zip(&page_bytes).map(|(&pages, bytes)| pages as u64 * bytes).sum();
            (pages, bytes * n_ranks)
        };
        let (all_pages, all_bytes) = sized(wanted, config.n_slots as f64);
        let kv_bytes = config.kv_bytes.unwrap_or(all_bytes.min(kv_default_max));
        if all_bytes <= kv_bytes {
            let (pages, bytes_per_rank) = (all_pages, all_bytes / n_ranks);
            return Ok(Pools { pages, bytes_per_rank, n_context_tokens: wanted });
        }
        let mut n_context_tokens = wanted;
        let (_, mut one_bytes) = sized(n_context_tokens, 1.0);
        // A length that nobody asked for may shrink to what fits.
        while one_bytes > kv_bytes && config.n_context_tokens.is_none() && n_context_tokens > 512 {
            n_context_tokens /= 2;
            one_bytes = sized(n_context_tokens, 1.0).1;
        }
        if one_bytes > kv_bytes {
            let needed_bytes = one_bytes;
            return Err(MemoryError::KvTooSmall { n_context_tokens, needed_bytes, kv_bytes });
        }
        // The windowed groups keep their size; full attention takes the rest.
        let (_, none_bytes) = sized(n_context_tokens, 0.0);
        let per_sequence = (one_bytes - none_bytes).max(1);
        let n_full_sequences = (kv_bytes - none_bytes) as f64 / per_sequence as f64;
        let (pages, bytes) = sized(n_context_tokens, n_full_sequences.max(1.0));
        Ok(Pools { pages, bytes_per_rank: bytes / n_ranks, n_context_tokens })
    }
}

/// Pages that a group needs for `n_full_sequences` of full length; a windowed group holds what all
/// slots see and one step writes.
fn group_pages(
    group: &CacheGroup,
    config: &EngineConfig,
    n_context_tokens: usize,
    n_full_sequences: f64,
) -> usize {
    let per_sequence = n_context_tokens.div_ceil(PAGE_TOKENS);
    match group.window {
        None => (per_sequence as f64 * n_full_sequences) as usize,
        Some(window) => {
            let seen = (window.div_ceil(PAGE_TOKENS) + 2).min(per_sequence);
            seen * config.n_slots + config.n_tokens_per_step.div_ceil(PAGE_TOKENS)
        }
    }
}

/// Bytes of a page of `group` in one rank's pools, over the group's blocks.
fn page_bytes_per_rank(
    spec: &ModelSpec,
    group: &CacheGroup,
    n_ranks: usize,
    kv_dtype: KvDtype,
) -> u64 {
    let elements = |attention: &AttentionSpec| {
        2 * (attention.n_kv_heads / n_ranks).max(1) * attention.head_dim
    };
    let blocks = group.blocks.iter().filter_map(|&idx| spec.blocks[idx].attention());
    (PAGE_TOKENS * kv_dtype.n_bytes() * blocks.map(elements).sum::<usize>()) as u64
}

/// Bytes that one rank's share of the host communicator holds: two buffers that alternate, and its
/// share of the sums.
fn collective_bytes(n_ranks: usize, n_floats: usize) -> u64 {
    if n_ranks == 1 {
        return 0;
    }
    ((2 * n_floats + n_floats.div_ceil(n_ranks)) * size_of::<f32>()) as u64
}

fn check_ranges(config: &EngineConfig) -> Result<(), MemoryError> {
    let within = |what, value, max| {
        if (1..=max).contains(&value) {
            return Ok(());
        }
        Err(MemoryError::OutOfRange { what, value, min: 1, max })
    };
    within("the number of ranks (--tp)", config.n_ranks, 64)?;
    within("the number of sequences (--max-seqs)", config.n_slots, 65_536)?;
    within("the queue's length (--max-waiting)", config.n_waiting_max, 1 << 20)?;
    within("tokens a step (--max-tokens-per-step)", config.n_tokens_per_step, 1 << 20)?;
    if config.n_tokens_per_step < config.n_slots {
        let (n_tokens_per_step, n_slots) = (config.n_tokens_per_step, config.n_slots);
        return Err(MemoryError::StepTooSmall { n_tokens_per_step, n_slots });
    }
    if let Some(n_threads) = config.n_threads {
        within("the number of threads (--threads)", n_threads, 4096)?;
    }
    within("the context (--max-model-len)", config.n_context_tokens.unwrap_or(1), 1 << 24)
}
