//! What the engine will allocate, decided and checked before anything is loaded.
//!
//! One plan serves all: the engine boots from it, and `on_paper` makes the same one for devices
//! that nobody has at hand.

mod device;
mod error;
mod host;
mod pools;
mod reserve;
mod terms;

use scheduler::{GroupLimits, Limits, Priorities};
use weights::{Checkpoint, LoadError};

use crate::blocks::Widths;
use crate::cache::{CacheLayout, CacheSizes, PAGE_TOKENS};
use crate::config::{DeviceKind, EngineConfig, KvDtype};
use crate::device::cuda;
use crate::model::widths;

pub use error::MemoryError;
pub use reserve::Reserve;
pub use terms::{RankMemory, Term, TermKind, WeightParts, WorkspaceParts};

use device::DeviceBudget;
pub(crate) use device::{StepMemory, StepSizes};
use pools::Pools;
use reserve::Room;

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
    /// The same for what falls out of the caches, in memory of the host.
    pub host_pages: Vec<usize>,
    /// What they take on each rank.
    pub host_kv_bytes: u64,
    /// Bytes of a page of each cache group, over all ranks.
    pub page_bytes: Vec<u64>,
    /// Windows of the cache groups, in the same order.
    pub group_windows: Vec<Option<usize>>,
    /// What each rank allocates.
    pub ranks: Vec<RankMemory>,
    /// Weights as they are stored, once: ranks on one machine share the mapped file.
    pub mapped_bytes: u64,
    /// Weights that a processor with tiles reads packed, over all ranks. What is mapped of them is
    /// the system's to keep or to drop.
    pub packed_bytes: u64,
    pub(crate) widths: Widths,
    /// Numbers in the largest collective.
    pub(crate) n_collective_floats: usize,
    /// On devices.
    pub(crate) step: Option<StepSizes>,
}

impl MemoryPlan {
    /// Decides every size. Devices are asked for what they have.
    ///
    /// # Errors
    /// What is out of range or does not fit, with what to change.
    pub fn new(checkpoint: &Checkpoint, config: &EngineConfig) -> Result<MemoryPlan, MemoryError> {
        MemoryPlan::within(checkpoint, config, &|device| {
            Ok(Room::asked(cuda::memory_bytes(device)?))
        })
    }

    /// The same for devices that have `device_bytes` each, as `nvidia-smi` counts them, and that
    /// nobody else uses.
    ///
    /// # Errors
    /// As [`MemoryPlan::new`].
    pub fn on_paper(
        checkpoint: &Checkpoint,
        config: &EngineConfig,
        device_bytes: u64,
    ) -> Result<MemoryPlan, MemoryError> {
        MemoryPlan::within(checkpoint, config, &|_| Ok(Room::on_paper(device_bytes)))
    }

    fn within(
        checkpoint: &Checkpoint,
        config: &EngineConfig,
        room: &dyn Fn(usize) -> Result<Room, MemoryError>,
    ) -> Result<MemoryPlan, MemoryError> {
        check_ranges(config)?;
        let spec = checkpoint.spec();
        // First, because it refuses what the ranks cannot share.
        let stored_bytes = (0..config.n_ranks)
            .map(|rank_idx| Ok(checkpoint.rank_bytes(rank_idx, config.n_ranks)?.total()))
            .collect::<Result<Vec<u64>, LoadError>>()?;
        let kv_dtype = config.kv_dtype.unwrap_or(match checkpoint.has_kv_scales() {
            true => KvDtype::Fp8,
            false => KvDtype::Bf16,
        });
        let layout = CacheLayout::new(spec);
        let budget = match config.device {
            DeviceKind::Cpu => None,
            DeviceKind::Cuda => Some(DeviceBudget::new(checkpoint, config, (kv_dtype, room))?),
        };
        let left_bytes = budget.as_ref().map(|budget| budget.kv_bytes * config.n_ranks as u64);
        if let (Some(kv_bytes), Some(left_bytes)) = (config.kv_bytes, left_bytes)
            && kv_bytes > left_bytes
        {
            return Err(MemoryError::KvTooLarge { kv_bytes, left_bytes });
        }
        let kv_default_max = left_bytes.unwrap_or(KV_BYTES_DEFAULT_MAX);
        let pools = Pools::new(spec, &layout, config, (kv_dtype, kv_default_max))?;
        let kv_bytes = pools.bytes_per_rank;
        let (host_pages, host_kv_bytes) = pools.on_host(config)?;
        let page_bytes = pools.page_bytes.iter().map(|n| n * config.n_ranks as u64).collect();
        let ranks = match &budget {
            None => host::ranks(checkpoint, config, &stored_bytes, kv_bytes),
            Some(budget) => budget.ranks(kv_bytes),
        };
        let packed_bytes = match &budget {
            None => {
                let other_bytes = ranks.iter().map(beside_weights).sum::<u64>()
                    + config.n_ranks as u64 * host_kv_bytes;
                let shared = (config.n_ranks, config.rounds_inputs);
                host::packed_bytes(checkpoint, shared, other_bytes, host::available_bytes())?
            }
            Some(_) => 0,
        };
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(MemoryPlan {
            n_ranks: config.n_ranks,
            n_threads_per_rank: (config.n_threads.unwrap_or(n_cores) / config.n_ranks).max(1),
            n_slots: config.n_slots,
            n_tokens_per_step: config.n_tokens_per_step,
            n_context_tokens: pools.n_context_tokens,
            kv_dtype,
            host_pages,
            page_bytes,
            host_kv_bytes,
            group_pages: pools.pages,
            group_windows: layout.groups.iter().map(|group| group.window).collect(),
            ranks,
            mapped_bytes: checkpoint.tensors().map(|tensor| tensor.n_bytes).sum(),
            packed_bytes,
            widths: widths(spec, config.n_ranks, 1),
            n_collective_floats: n_collective_floats(checkpoint, config),
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
        let weights_bytes = match self.step {
            None => self.mapped_bytes + self.packed_bytes,
            Some(_) => self.ranks.iter().map(|rank| rank.weights_bytes).sum(),
        };
        let host_kv_bytes = self.n_ranks as u64 * self.host_kv_bytes;
        weights_bytes + host_kv_bytes + self.ranks.iter().map(beside_weights).sum::<u64>()
    }

    /// Bytes of weights that are sent to devices, or packed.
    pub(crate) fn placed_bytes(&self) -> u64 {
        match self.step {
            None => self.packed_bytes,
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
            priorities: Priorities::single(),
            n_tenants: 1,
            latency: None,
            prefix_cache: None,
            host_tier: None,
            speculation: None,
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
            packed_mib = format!("{:.1}", mib(self.packed_bytes)),
            host_kv_mib = format!("{:.1}", mib(self.n_ranks as u64 * self.host_kv_bytes)),
            kv_mib = format!("{:.1}", mib(self.ranks.iter().map(|rank| rank.kv_bytes).sum())),
            total_mib = format!("{:.1}", mib(self.total_bytes())),
            "memory plan"
        );
    }
}

/// What a rank holds besides weights.
fn beside_weights(rank: &RankMemory) -> u64 {
    rank.kv_bytes + rank.workspace_bytes + rank.collective_bytes
}

/// Numbers in the largest collective of the host.
fn n_collective_floats(checkpoint: &Checkpoint, config: &EngineConfig) -> usize {
    let spec = checkpoint.spec();
    let n_local = spec.vocab_size.div_ceil(config.n_ranks);
    (config.n_tokens_per_step * spec.hidden_size).max(crate::model::N_LOGIT_ROWS * n_local)
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
