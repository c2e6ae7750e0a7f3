//! A rank on its device: memory claimed as planned, weights sent, peers met, steps recorded.

use std::time::Duration;

use parallel::{Communicator, Seat};
use weights::Checkpoint;

use super::BuildError;
use crate::device::cuda::{CudaExec, DevicePtr};
use crate::device::{DeviceError, Exec, Gpu, Laps, Projection, RopeFrequencies, SharedMemory};
use crate::kernels::N_BYTES_AHEAD_MAX;
use crate::kernels::linear::cuda::{Choice, Gemms};
use crate::loading::{Carve, Copying, LoadingError, LoadingSeat, Placer, stage};
use crate::memory_plan::{MemoryPlan, StepMemory, StepSizes};
use crate::model::{
    DeviceInputs, DeviceLogits, DeviceSampling, DeviceSteps, DeviceStepsConfig, Model, Network,
    Outbox,
};
use crate::peers::Peers;
use crate::rank::{ModelWorker, StepError};
use crate::sampler::Sampler;

/// How long ranks may take to find each other.
const MEETING_DEADLINE: Duration = Duration::from_secs(120);

/// How long a step may run on a device before its rank is given up.
const STEP_DEADLINE: Duration = Duration::from_secs(300);

/// Where a rank's weights come from.
pub(super) struct Source<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    /// Its place among the ranks that load.
    pub(super) loading: LoadingSeat<'a>,
    /// Hears of bytes that are sent to the device.
    pub(super) progress: &'a dyn Fn(u64),
}

/// On the rank's own thread.
pub(super) fn build(
    source: Source<'_>,
    plan: &MemoryPlan,
    seat: Seat,
) -> Result<ModelWorker, BuildError> {
    let Source { checkpoint, loading, progress } = source;
    let Seat { rank, communicator, .. } = seat;
    let spec = checkpoint.spec();
    let sizes = plan.step.as_ref().expect("the plan is a device's");
    let exec = open(rank.idx())?;
    let mut communicator =
        communicator.connect_devices(MEETING_DEADLINE).map_err(StepError::from)?;

    let weights = checkpoint.load_rank(rank.idx(), plan.n_ranks)?;
    let n_local = weights.head.matrix.n_rows;
    let planned = plan.ranks[rank.idx()];
    let region = |n_bytes: u64| match n_bytes {
        0 => Ok(DevicePtr::NULL),
        n_bytes => exec.alloc(n_bytes as usize),
    };
    let mut placer = Placer::on_device(region(planned.weights_bytes)?, region(planned.kv_bytes)?);
    let network = Network::new(spec, weights, plan.caches(), &mut placer)?;
    let mut placement = placer.placement();
    let frequencies = placement.doubles(RopeFrequencies::of_model(spec).as_slice());
    let placed = [placement.weights.n_bytes(), placement.pages.n_bytes()].map(|n| n as u64);
    assert_eq!(placed, [planned.weights_bytes, planned.kv_bytes], "what was planned is taken");
    load(&exec, (loading, progress), &placement.copies, &mut communicator)?;
    checkpoint.check_intact()?;

    let mut carve = Carve::new(region(planned.workspace_bytes)?);
    let memory = sizes.carve(&mut carve);
    assert_eq!(carve.n_bytes() as u64, planned.workspace_bytes, "what was planned is taken");
    exec.zero(memory.attention.n_arrived, memory.n_arrived_bytes.max(1))?;
    let peers = match plan.n_ranks {
        1 => None,
        _ => Some(Peers::connect(&exec, &mut communicator, STEP_DEADLINE)?),
    };
    let is_deterministic = sizes.inputs.is_deterministic;
    let shared = share(&mut communicator, peers.as_ref(), &memory, is_deterministic)?;
    let StepMemory { scratch, magnitudes, inputs, attention, logits, sampling, .. } = memory;
    let sampling = sampling.map(|places| DeviceSampling::new(&exec, sizes.sampling(), places));
    let steps = DeviceStepsConfig {
        spec,
        rank,
        n_ranks: plan.n_ranks,
        inputs: DeviceInputs::new(sizes.inputs, inputs, frequencies, attention),
        outbox: Outbox::new(&exec, sizes.n_sent_bytes())?,
        logits: DeviceLogits {
            first: logits,
            n_rows: sizes.n_logit_rows,
            n_local,
            host: exec.alloc_pinned(DeviceLogits::n_bytes(sizes.n_logit_rows, n_local))?,
        },
        peers,
        sampling: sampling.transpose()?,
    };
    let steps = DeviceSteps::new(&exec, steps)?;
    let gemms = gemms(&exec, &network, sizes)?;
    let laps = laps(&exec, plan.n_ranks, spec.blocks.len())?;
    let mut exec = Exec::Cuda(Box::new(Gpu { exec, gemms, magnitudes, shared, laps }));
    let mut model = Model::on_device(network, scratch, steps);
    model.keep_on_host(&exec, &plan.host_pages)?;
    model.record(&mut exec, &mut communicator)?;
    if let Exec::Cuda(gpu) = &exec {
        gpu.exec.seal();
    }
    let sampler = (rank.idx() == 0).then(|| Sampler::new(plan.n_slots, spec.vocab_size));
    Ok(ModelWorker { communicator, model, exec, sampler, mapped: None })
}

/// A rank's device, with room in its cache for what steps fetch ahead.
fn open(ordinal: usize) -> Result<CudaExec, DeviceError> {
    let exec = CudaExec::open(ordinal)?;
    let n_bytes = exec.set_aside(N_BYTES_AHEAD_MAX)?;
    tracing::debug!(device = ordinal, n_bytes, "a part of the L2 cache is put aside");
    Ok(exec)
}

/// For a sum behind each sub-block, and one behind the embedding.
fn laps(exec: &CudaExec, n_ranks: usize, n_blocks: usize) -> Result<Laps, BuildError> {
    let n_sums = if n_ranks > 1 { 2 * n_blocks + 1 } else { 0 };
    Ok(Laps::new(exec, n_sums)?)
}

/// Sends everything to the device.
fn load(
    exec: &CudaExec,
    (seat, progress): (LoadingSeat<'_>, &dyn Fn(u64)),
    copies: &[Copying],
    communicator: &mut Communicator,
) -> Result<(), BuildError> {
    let staged = stage(exec, seat, copies, progress);
    if let Err(LoadingError::CalledOff) = staged {
        // The rank that gave up says why before it aborts this meeting, so its reason is the first.
        communicator.all_gather_word(0).map_err(StepError::from)?;
    }
    Ok(staged?)
}

/// The memory that kernels of all ranks reach.
fn share(
    communicator: &mut Communicator,
    peers: Option<&Peers>,
    memory: &StepMemory,
    is_deterministic: bool,
) -> Result<Option<SharedMemory>, StepError> {
    let Some(peers) = peers else { return Ok(None) };
    Ok(Some(SharedMemory {
        pieces: peers.share(communicator, memory.first)?,
        n_bytes: memory.n_bytes,
        exchange: peers.exchange(),
        is_deterministic,
    }))
}

/// Plans the products of every projection.
fn gemms(exec: &CudaExec, network: &Network, sizes: &StepSizes) -> Result<Gemms, BuildError> {
    let n_tokens_max = sizes.inputs.n_tokens.max(sizes.n_logit_rows);
    let choice = match sizes.inputs.is_deterministic {
        true => Choice::Fixed,
        false => Choice::PerBucket,
    };
    let mut gemms = Gemms::new(n_tokens_max, choice);
    let shapes = network.projections().filter_map(|Projection { device, .. }| device.as_ref());
    for device in shapes {
        gemms.plan(exec, device.shape)?;
    }
    Ok(gemms)
}
