//! Communicators, and groups of calls.
//!
//! A group belongs to the calling thread. Its initializations are waited for together, so one
//! thread can join several ranks; its collectives are submitted when it ends.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::collective::{Collective, Kind, perform};
use super::faults::{self, What};
use super::types::{NcclError, NcclResult, invalid_argument, invalid_usage};
use super::world::{Outcome, World};
use crate::driver::{self, Failure, WorkCx};
use crate::handles::Registry;
use crate::memory::DeviceIdx;
use crate::report::{KernelCounters, record_collective, record_kernel};

/// `ncclUniqueId`.
pub const ID_BYTES: usize = 128;
/// Begins every id of ours.
const ID_MAGIC: u64 = 0x6c6e_6363_6c69_6400;

type CollectiveWorld = World<Collective>;

/// One rank's communicator.
pub struct Communicator {
    world: Arc<CollectiveWorld>,
    pub rank: usize,
    pub n_ranks: usize,
    pub device: DeviceIdx,
    is_finalized: AtomicBool,
    n_calls: AtomicU64,
    /// Registered buffers and windows: their addresses and bytes.
    pub registered: Registry<(u64, u64)>,
}

/// Communicators that programs hold.
pub static COMMUNICATORS: Registry<Arc<Communicator>> = Registry::new();

/// Worlds by their id, as long as anybody is in them.
static WORLDS: Mutex<Option<HashMap<u64, std::sync::Weak<CollectiveWorld>>>> = Mutex::new(None);

/// What a group has gathered.
#[derive(Default)]
struct Group {
    depth: usize,
    joined: Vec<Arc<Communicator>>,
    submitted: Vec<(Arc<Communicator>, Collective, usize)>,
    /// The first call that was refused.
    problem: Option<NcclError>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::new(Group::default());
}

/// An id that no other communicator has.
pub fn new_id() -> [u8; ID_BYTES] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut id = [0; ID_BYTES];
    id[..8].copy_from_slice(&ID_MAGIC.to_le_bytes());
    id[8..16].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    id
}

fn world_of(id: &[u8; ID_BYTES], n_ranks: usize) -> Result<Arc<CollectiveWorld>, NcclError> {
    let (words, _) = id.as_chunks::<8>();
    if u64::from_le_bytes(words[0]) != ID_MAGIC {
        return Err(invalid_argument("the id is none of ncclGetUniqueId"));
    }
    let mut worlds = WORLDS.lock();
    let worlds = worlds.get_or_insert_default();
    worlds.retain(|_, world| world.strong_count() > 0);
    let number = u64::from_le_bytes(words[1]);
    if let Some(world) = worlds.get(&number).and_then(std::sync::Weak::upgrade) {
        return Ok(world);
    }
    let world = World::new(n_ranks);
    worlds.insert(number, Arc::downgrade(&world));
    Ok(world)
}

/// Who comes to a communicator.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    pub id: &'a [u8; ID_BYTES],
    pub rank: usize,
    pub n_ranks: usize,
    pub device: DeviceIdx,
}

/// A rank comes. The handle is good at once; whether all are there is waited for if the
/// communicator is a blocking one, at the end of a group if there is one.
pub fn join(arrival: Arrival<'_>, is_blocking: bool) -> Result<(usize, NcclResult), NcclError> {
    let Arrival { id, rank, n_ranks, device } = arrival;
    if n_ranks == 0 || rank >= n_ranks {
        return Err(invalid_argument(format!("rank {rank} of {n_ranks}")));
    }
    driver::forbid_in_captures().map_err(driver_refused)?;
    let world = world_of(id, n_ranks)?;
    let joined = world.join(rank, n_ranks, device.index());
    let communicator = Arc::new(Communicator {
        world,
        rank,
        n_ranks,
        device,
        is_finalized: AtomicBool::new(false),
        n_calls: AtomicU64::new(0),
        registered: Registry::new(),
    });
    let handle = COMMUNICATORS.insert(communicator.clone());
    if !is_blocking {
        // What is wrong shows in ncclCommGetAsyncError.
        return Ok((handle, NcclResult::InProgress));
    }
    joined?;
    let waits_later = GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.joined.push(communicator.clone());
        }
        group.depth > 0
    });
    if !waits_later {
        communicator.world.wait_ready(rank)?;
    }
    Ok((handle, NcclResult::Success))
}

impl Communicator {
    /// What it is doing or what went wrong with it.
    pub fn status(&self) -> NcclResult {
        self.world.status(self.rank)
    }

    /// Releases this rank from whatever it waits in.
    pub fn abort(&self) {
        self.world.abort(self.rank);
    }

    /// No more calls will come.
    pub fn finalize(&self) -> Result<(), NcclError> {
        self.check()?;
        if self.is_finalized.swap(true, Ordering::Relaxed) {
            return Err(invalid_argument("the communicator is finalized already"));
        }
        Ok(())
    }

    /// Whether calls may be made.
    fn check(&self) -> Result<(), NcclError> {
        if let Some(problem) = self.world.problem(self.rank) {
            return Err(problem);
        }
        if self.status() == NcclResult::InProgress {
            let reason = "the communicator is used before its initialization has ended";
            return Err(invalid_argument(reason));
        }
        if self.is_finalized.load(Ordering::Relaxed) {
            return Err(invalid_usage("the communicator is finalized"));
        }
        Ok(())
    }

    /// Submits a collective to the stream, at the end of a group if there is one.
    pub fn submit(
        self: &Arc<Communicator>,
        collective: Collective,
        stream: usize,
    ) -> Result<(), NcclError> {
        let result = self.check_call(&collective, stream);
        GROUP.with_borrow_mut(|group| match result {
            Err(problem) => {
                if group.depth > 0 {
                    group.problem.get_or_insert(problem.clone());
                }
                Err(problem)
            }
            Ok(()) if group.depth > 0 => {
                group.submitted.push((self.clone(), collective, stream));
                Ok(())
            }
            Ok(()) => self.enqueue(collective, stream),
        })
    }

    fn check_call(&self, collective: &Collective, stream: usize) -> Result<(), NcclError> {
        self.check()?;
        let call = self.n_calls.fetch_add(1, Ordering::Relaxed) + 1;
        if faults::has(self.rank, Some(call), What::Error) {
            let reason = format!("call {call} of rank {} fails on request", self.rank);
            return Err(NcclError { result: NcclResult::SystemError, reason });
        }
        if let Kind::Reduce { root, .. } | Kind::Broadcast { root } = collective.kind
            && root >= self.n_ranks
        {
            return Err(invalid_argument(format!("root {root} of {} ranks", self.n_ranks)));
        }
        let (sent, received) = collective.extents(self.rank, self.n_ranks);
        if (sent > 0 && collective.send == 0) || (received > 0 && collective.receive == 0) {
            return Err(invalid_argument(format!("{:?} with a null buffer", collective.kind)));
        }
        let of_stream = driver::stream_device(stream).map_err(driver_refused)?;
        if of_stream != self.device {
            return Err(invalid_usage(format!(
                "rank {} is on device {}, its stream on device {of_stream}",
                self.rank, self.device
            )));
        }
        Ok(())
    }

    fn enqueue(
        self: &Arc<Communicator>,
        collective: Collective,
        stream: usize,
    ) -> Result<(), NcclError> {
        let communicator = self.clone();
        let task = move |cx: &WorkCx<'_>| communicator.run(&collective, cx);
        let name = collective.kind.name();
        driver::enqueue(stream, name, Arc::new(task)).map_err(driver_refused)
    }

    /// Takes part in the collective, on the stream's thread.
    fn run(&self, collective: &Collective, cx: &WorkCx<'_>) -> Result<(), Failure> {
        let work = |all: &[Collective]| perform(all, cx.memory, cx.is_dry);
        match self.world.meet(self.rank, collective, work) {
            Outcome::Done => {
                self.record(collective);
                Ok(())
            }
            // The kernel of an aborted communicator ends early, and leaves the device in order.
            Outcome::Aborted => Ok(()),
            Outcome::Failed(problem) => Err(Failure {
                status: driver::Status::LAUNCH_FAILED,
                text: format!("nccl, rank {}: {problem}", self.rank),
            }),
        }
    }

    fn record(&self, collective: &Collective) {
        use super::super::cublaslt::element::Element as Float;
        use super::types::Element;
        let (bytes_read, bytes_written) = collective.extents(self.rank, self.n_ranks);
        let mut counters =
            KernelCounters { n_launches: 1, bytes_read, bytes_written, ..Default::default() };
        let n_sums = bytes_read / collective.element.n_bytes() as u64;
        if matches!(collective.kind, Kind::AllReduce(_) | Kind::ReduceScatter(_)) {
            match collective.element {
                Element::F64 => counters.flops.f64 = n_sums,
                Element::Float(Float::F32 | Float::F16 | Float::Bf16) => {
                    counters.flops.f32 = n_sums;
                }
                _ => {}
            }
        }
        let (device, name) = (self.device.index(), collective.kind.name());
        record_kernel(device, &format!("nccl {name} {}", collective.element.name()), counters);
        record_collective(device, name, collective.message_bytes());
    }
}

fn driver_refused(status: driver::Status) -> NcclError {
    let reason = format!("the driver answered {status:?}");
    NcclError { result: NcclResult::UnhandledCudaError, reason }
}

/// Begins to gather calls.
pub fn group_start() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

/// Forgets what the innermost group has gathered: it cannot be completed.
pub fn group_forget() {
    GROUP.with_borrow_mut(|group| {
        group.joined.clear();
        group.submitted.clear();
    });
}

/// Does what the outermost group has gathered.
pub fn group_end() -> Result<(), NcclError> {
    let group = GROUP.with_borrow_mut(|group| {
        if group.depth == 0 {
            return Err(invalid_usage("ncclGroupEnd without ncclGroupStart"));
        }
        group.depth -= 1;
        Ok((group.depth == 0).then(|| std::mem::take(group)))
    })?;
    let Some(group) = group else { return Ok(()) };
    if let Some(problem) = group.problem {
        return Err(problem);
    }
    for communicator in group.joined {
        communicator.world.wait_ready(communicator.rank)?;
    }
    for (communicator, collective, stream) in group.submitted {
        communicator.enqueue(collective, stream)?;
    }
    Ok(())
}
