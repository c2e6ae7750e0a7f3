//! From a checkpoint and what the operator decided to a running engine.

mod device;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parallel::{PoolConfig, RankPool, Seat, SpawnError, World};
use scheduler::{HostTier, PrefixCache, Speculation};
use thiserror::Error;
use weights::{Checkpoint, LoadError};

use crate::cache::CacheLayout;
use crate::config::{EngineConfig, N_TENANTS};
use crate::device::{CpuExec, DeviceError, Exec};
use crate::engine::Engine;
use crate::handle::EngineInfo;
use crate::loading::{LoadingError, Meeting, Unsupported};
use crate::memory_plan::{MemoryError, MemoryPlan};
use crate::model::Model;
use crate::rank::{ModelWorker, StepError};
use crate::sampler::Sampler;

/// A step that takes longer has hung: the widest step of the largest model on the slowest arm that
/// anyone would wait for stays below it.
const STEP_DEADLINE: Duration = Duration::from_secs(600);

/// Loading may have to read hundreds of gigabytes.
const BUILD_DEADLINE: Duration = Duration::from_secs(3600);

/// Why an engine could not be started.
#[derive(Debug, Error)]
pub enum BootError {
    /// The memory plan does not come out.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A rank could not be built.
    #[error(transparent)]
    Rank(#[from] SpawnError<BuildError>),
}

/// Why a rank could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Its weights could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Its device could not be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Its device cannot do what the checkpoint asks for.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Its weights did not get to its device.
    #[error(transparent)]
    Loading(#[from] LoadingError),
    /// It did not find its peers, or a step could not be prepared.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Hears, on ranks' threads, how many bytes of weights have been sent to devices, or packed for a
/// processor with tiles, and of how many. On other processors weights stay where they are, and
/// there is nothing to hear.
pub type LoadProgress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Plans memory, starts the ranks, loads their weights, starts the loop.
///
/// # Errors
/// What does not fit, is missing or cannot be opened, with what to change.
pub fn boot(checkpoint: Arc<Checkpoint>, config: &EngineConfig) -> Result<Engine, BootError> {
    boot_watched(checkpoint, config, Arc::new(|_, _| {}))
}

/// The same, telling how loading gets on.
///
/// # Errors
/// As [`boot`].
pub fn boot_watched(
    checkpoint: Arc<Checkpoint>,
    config: &EngineConfig,
    progress: LoadProgress,
) -> Result<Engine, BootError> {
    let spec = Arc::new(checkpoint.spec().clone());
    let (pool, plan) = spawn_ranks(checkpoint, config, progress)?;
    let mut limits = plan.limits(config.n_waiting_max);
    limits.prefix_cache = config.caches_prefixes.then(|| PrefixCache { seed: random_seed() });
    limits.host_tier = config.host_kv.filter(|_| config.caches_prefixes).map(|host_kv| HostTier {
        group_pages: plan.host_pages.clone(),
        n_tokens_min: host_kv.n_tokens_min,
    });
    let n_candidates_max = config.n_candidates_max;
    limits.speculation = (n_candidates_max > 0).then_some(Speculation { n_candidates_max });
    limits.priorities = config.policy.priorities;
    limits.n_tenants = N_TENANTS;
    limits.latency = config.policy.latency();
    let draws_on_devices = n_candidates_max == 0
        && plan.step.as_ref().is_some_and(|step| step.sampling().is_possible());
    let info = EngineInfo {
        groups: CacheLayout::new(&spec).groups,
        device: config.device,
        n_context_tokens: plan.n_context_tokens,
        vocab_size: spec.vocab_size,
        spec,
        n_slots: plan.n_slots,
        n_waiting_max: config.n_waiting_max,
        n_tokens_per_step: plan.n_tokens_per_step,
        page_tokens: limits.page_tokens,
        n_ranks: plan.n_ranks,
        overlaps_steps: config.overlaps_steps,
        policy: config.policy,
        launches_ahead: config.overlaps_steps && draws_on_devices,
        host_kv_bytes: host_kv_bytes(limits.host_tier.as_ref(), &plan.page_bytes),
        page_bytes: plan.page_bytes,
    };
    Ok(Engine::start(pool, limits, info))
}

/// What KV on the host may take, over all ranks.
fn host_kv_bytes(tier: Option<&HostTier>, page_bytes: &[u64]) -> u64 {
    let pages = tier.iter().flat_map(|tier| &tier.group_pages).zip(page_bytes);
    pages.map(|(&n_pages, bytes)| n_pages as u64 * bytes).sum()
}

/// Another one in every process, from where the standard library's maps have theirs.
fn random_seed() -> u64 {
    RandomState::new().hash_one(())
}

/// Ranks with their weights loaded, and the plan that they were built by.
pub(crate) fn spawn_ranks(
    checkpoint: Arc<Checkpoint>,
    config: &EngineConfig,
    progress: LoadProgress,
) -> Result<(RankPool<ModelWorker>, MemoryPlan), BootError> {
    let plan = MemoryPlan::new(&checkpoint, config)?;
    plan.log();
    let pool_config = PoolConfig {
        world: World::new(plan.n_ranks),
        n_floats_max: plan.n_collective_floats,
        deadline: STEP_DEADLINE,
        build_deadline: BUILD_DEADLINE,
    };
    let rank_plan = plan.clone();
    let (n_sent, n_in_all) = (AtomicU64::new(0), plan.placed_bytes());
    let sent = move |n_bytes| {
        progress(n_sent.fetch_add(n_bytes, Ordering::Relaxed) + n_bytes, n_in_all);
    };
    let meeting = Meeting::new(plan.n_ranks);
    let rounds_inputs = config.rounds_inputs;
    let build = move |seat: Seat| match rank_plan.step {
        None => {
            let mut cpu = CpuExec::new(rank_plan.n_threads_per_rank)?;
            cpu.round_inputs(rounds_inputs);
            if rank_plan.packed_bytes == 0 {
                cpu.keep_weights_mapped();
            }
            build(&checkpoint, &rank_plan, (seat, cpu), &sent)
        }
        Some(_) => {
            let loading = meeting.seat(seat.rank.idx());
            let source = device::Source { checkpoint: &checkpoint, loading, progress: &sent };
            device::build(source, &rank_plan, seat)
        }
    };
    let pool = RankPool::spawn(pool_config, build)?;
    Ok((pool, plan))
}

/// On the rank's own thread, on the processor: its weights and its memory, behind its compute
/// threads.
fn build(
    checkpoint: &Checkpoint,
    plan: &MemoryPlan,
    (seat, cpu): (Seat, CpuExec),
    packed: &dyn Fn(u64),
) -> Result<ModelWorker, BuildError> {
    let weights = checkpoint.load_rank(seat.rank.idx(), plan.n_ranks)?;
    let spec = checkpoint.spec();
    let mut model = Model::host((&cpu, packed), spec, weights, plan, seat.rank);
    let exec = Exec::Cpu(cpu);
    model.keep_on_host(&exec, &plan.host_pages)?;
    let sampler = (seat.rank.idx() == 0).then(|| Sampler::new(plan.n_slots, spec.vocab_size));
    let mapped = Some(checkpoint.clone());
    Ok(ModelWorker { communicator: seat.communicator, model, exec, sampler, mapped })
}
