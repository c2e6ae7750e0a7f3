//! The C functions of libnccl 2.27, as far as they concern the collectives of one process.

use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;

use super::collective::{Collective, Kind};
use super::communicator::{
    Arrival, COMMUNICATORS, Communicator, ID_BYTES, group_end, group_forget, group_start, join,
    new_id,
};
use super::types::{Config, Element, NcclError, NcclResult, Reduction, invalid_argument};
use crate::config;
use crate::driver;
use crate::handles::{caller_room, caller_values};
use crate::memory::{DeviceIdx, Memory, MemoryError};

/// 2.27.3.
const VERSION: c_int = 22_703;
/// NCCL allocates in pages of this size.
const PAGE_BYTES: u64 = 2 << 20;

/// What the latest error was, for `ncclGetLastError`.
static LAST_ERROR: Mutex<Option<CString>> = Mutex::new(None);

/// Exports functions that answer with a result, and say on standard error why they refuse.
macro_rules! api {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            // SAFETY: the name is NVIDIA's, and the process has one libnccl: this one.
            #[unsafe(no_mangle)]
            pub extern "C" fn $name($($argument: $type),*) -> NcclResult {
                answer(stringify!($name), move || $body)
            }
        )*
    };
}

fn answer(name: &str, body: impl FnOnce() -> Result<NcclResult, NcclError>) -> NcclResult {
    let result = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(result)) => result,
        Ok(Err(problem)) => {
            let text = format!("{name}: {problem}");
            eprintln!("virtual-node: {text}");
            *LAST_ERROR.lock() = CString::new(text).ok();
            problem.result
        }
        Err(_) => NcclResult::InternalError,
    };
    if config::Config::get().trace {
        eprintln!("virtual node: {name}: {result:?}");
    }
    result
}

const OK: Result<NcclResult, NcclError> = Ok(NcclResult::Success);

fn put<T>(out: Option<&mut T>, value: T) -> Result<NcclResult, NcclError> {
    *out.ok_or_else(|| invalid_argument("a pointer that must not be null is"))? = value;
    OK
}

fn communicator(handle: usize) -> Result<Arc<Communicator>, NcclError> {
    let found = COMMUNICATORS.get(handle);
    found.ok_or_else(|| invalid_argument(format!("{handle:#x} is no communicator")))
}

fn rank_of(rank: c_int) -> Result<usize, NcclError> {
    usize::try_from(rank).map_err(|_| invalid_argument(format!("rank {rank}")))
}

/// The 128 bytes are handed over by value.
#[repr(C)]
pub struct UniqueId([u8; ID_BYTES]);

api! {
    fn ncclGetVersion(version: Option<&mut c_int>) {
        put(version, VERSION)
    }

    fn ncclGetUniqueId(id: Option<&mut UniqueId>) {
        put(id, UniqueId(new_id()))
    }

    fn ncclCommInitRank(comm: Option<&mut usize>, n_ranks: c_int, id: UniqueId, rank: c_int) {
        init_rank(comm, n_ranks, &id, rank, true)
    }

    fn ncclCommInitRankConfig(
        comm: Option<&mut usize>, n_ranks: c_int, id: UniqueId, rank: c_int,
        config: Option<&Config>,
    ) {
        let is_blocking = config.map_or(Ok(true), Config::is_blocking)?;
        init_rank(comm, n_ranks, &id, rank, is_blocking)
    }

    fn ncclCommInitAll(comms: usize, n_devices: c_int, devices: usize) {
        init_all(comms, rank_of(n_devices)?, devices)
    }

    fn ncclCommFinalize(comm: usize) {
        communicator(comm)?.finalize()?;
        OK
    }

    fn ncclCommDestroy(comm: usize) {
        communicator(comm)?;
        COMMUNICATORS.remove(comm);
        OK
    }

    fn ncclCommAbort(comm: usize) {
        communicator(comm)?.abort();
        COMMUNICATORS.remove(comm);
        OK
    }

    fn ncclCommGetAsyncError(comm: usize, result: Option<&mut u32>) {
        put(result, communicator(comm)?.status() as u32)
    }

    fn ncclCommCount(comm: usize, count: Option<&mut c_int>) {
        put(count, communicator(comm)?.n_ranks as c_int)
    }

    fn ncclCommCuDevice(comm: usize, device: Option<&mut c_int>) {
        put(device, communicator(comm)?.device.index() as c_int)
    }

    fn ncclCommUserRank(comm: usize, rank: Option<&mut c_int>) {
        put(rank, communicator(comm)?.rank as c_int)
    }

    fn ncclGroupStart() {
        group_start();
        OK
    }

    fn ncclGroupEnd() {
        group_end()?;
        OK
    }

    fn ncclAllReduce(
        send: u64, receive: u64, count: usize, element: c_int, reduction: c_int, comm: usize,
        stream: usize,
    ) {
        let kind = Kind::AllReduce(Reduction::from_number(reduction)?);
        Message { send, receive, count, element }.submit(kind, comm, stream)
    }

    fn ncclReduce(
        send: u64, receive: u64, count: usize, element: c_int, reduction: c_int, root: c_int,
        comm: usize, stream: usize,
    ) {
        let reduction = Reduction::from_number(reduction)?;
        let kind = Kind::Reduce { reduction, root: rank_of(root)? };
        Message { send, receive, count, element }.submit(kind, comm, stream)
    }

    fn ncclReduceScatter(
        send: u64, receive: u64, count: usize, element: c_int, reduction: c_int, comm: usize,
        stream: usize,
    ) {
        let kind = Kind::ReduceScatter(Reduction::from_number(reduction)?);
        Message { send, receive, count, element }.submit(kind, comm, stream)
    }

    fn ncclAllGather(
        send: u64, receive: u64, count: usize, element: c_int, comm: usize, stream: usize,
    ) {
        Message { send, receive, count, element }.submit(Kind::AllGather, comm, stream)
    }

    fn ncclBroadcast(
        send: u64, receive: u64, count: usize, element: c_int, root: c_int, comm: usize,
        stream: usize,
    ) {
        let kind = Kind::Broadcast { root: rank_of(root)? };
        Message { send, receive, count, element }.submit(kind, comm, stream)
    }

    fn ncclBcast(
        buffer: u64, count: usize, element: c_int, root: c_int, comm: usize, stream: usize,
    ) {
        let kind = Kind::Broadcast { root: rank_of(root)? };
        let message = Message { send: buffer, receive: buffer, count, element };
        message.submit(kind, comm, stream)
    }

    fn ncclMemAlloc(pointer: Option<&mut u64>, n_bytes: usize) {
        driver::forbid_in_captures().map_err(|status| driver_refused(&status))?;
        let device = driver::current_device().map_err(|status| driver_refused(&status))?;
        if n_bytes == 0 {
            return Err(invalid_argument("an allocation of no bytes"));
        }
        let n_bytes = (n_bytes as u64).next_multiple_of(PAGE_BYTES);
        let allocated = Memory::global().allocate(device, n_bytes);
        put(pointer, allocated.map_err(|problem| memory_refused(&problem))?)
    }

    fn ncclMemFree(pointer: u64) {
        driver::forbid_in_captures().map_err(|status| driver_refused(&status))?;
        Memory::global().free(pointer).map_err(|problem| memory_refused(&problem))?;
        OK
    }

    fn ncclCommRegister(
        comm: usize, buffer: u64, n_bytes: usize, handle: Option<&mut usize>,
    ) {
        register(&*communicator(comm)?, buffer, n_bytes, handle)
    }

    fn ncclCommDeregister(comm: usize, handle: usize) {
        deregister(&*communicator(comm)?, handle)
    }

    fn ncclCommWindowRegister(
        comm: usize, buffer: u64, n_bytes: usize, window: Option<&mut usize>, _flags: c_int,
    ) {
        register(&*communicator(comm)?, buffer, n_bytes, window)
    }

    fn ncclCommWindowDeregister(comm: usize, window: usize) {
        deregister(&*communicator(comm)?, window)
    }
}

fn init_rank(
    comm: Option<&mut usize>,
    n_ranks: c_int,
    id: &UniqueId,
    rank: c_int,
    is_blocking: bool,
) -> Result<NcclResult, NcclError> {
    let device = driver::current_device().map_err(|status| driver_refused(&status))?;
    let (rank, n_ranks) = (rank_of(rank)?, rank_of(n_ranks)?);
    let (handle, result) = join(Arrival { id: &id.0, rank, n_ranks, device }, is_blocking)?;
    put(comm, handle)?;
    Ok(result)
}

/// One rank for each of the devices, or for the first ones, in this thread.
fn init_all(comms: usize, n_devices: usize, devices: usize) -> Result<NcclResult, NcclError> {
    let comms = caller_room(comms, n_devices).filter(|comms| !comms.is_empty());
    let wrong = || invalid_argument(format!("communicators for {n_devices} devices"));
    let comms = comms.ok_or_else(wrong)?;
    let devices = caller_values(devices, n_devices);
    let id = new_id();
    group_start();
    let joined = comms.iter_mut().enumerate().try_for_each(|(rank, comm)| {
        let device = device_of(devices.map_or(rank as c_int, |devices| devices[rank]))?;
        let (handle, _) = join(Arrival { id: &id, rank, n_ranks: n_devices, device }, true)?;
        comm.write(handle);
        Ok(())
    });
    if joined.is_err() {
        group_forget();
    }
    joined.and(group_end())?;
    OK
}

fn device_of(ordinal: c_int) -> Result<DeviceIdx, NcclError> {
    match u8::try_from(ordinal) {
        Ok(idx) if usize::from(idx) < config::Config::get().n_devices => Ok(DeviceIdx(idx)),
        _ => Err(invalid_argument(format!("device {ordinal}"))),
    }
}

/// What all collectives have in common.
struct Message {
    send: u64,
    receive: u64,
    count: usize,
    element: c_int,
}

impl Message {
    fn submit(self, kind: Kind, comm: usize, stream: usize) -> Result<NcclResult, NcclError> {
        let communicator = communicator(comm)?;
        let Message { send, receive, count, element } = self;
        let element = Element::from_number(element)?;
        let device = communicator.device;
        let collective = Collective { kind, element, count, device, send, receive };
        communicator.submit(collective, stream)?;
        OK
    }
}

fn register(
    communicator: &Communicator,
    buffer: u64,
    n_bytes: usize,
    handle: Option<&mut usize>,
) -> Result<NcclResult, NcclError> {
    let n_bytes = n_bytes as u64;
    let check = Memory::global().check(communicator.device, buffer, n_bytes);
    check.map_err(|fault| invalid_argument(fault.to_string()))?;
    put(handle, communicator.registered.insert((buffer, n_bytes)))
}

fn deregister(communicator: &Communicator, handle: usize) -> Result<NcclResult, NcclError> {
    let found = communicator.registered.remove(handle);
    found.ok_or_else(|| invalid_argument(format!("{handle:#x} is not registered")))?;
    OK
}

fn driver_refused(status: &driver::Status) -> NcclError {
    let reason = format!("the driver answered {status:?}");
    NcclError { result: NcclResult::UnhandledCudaError, reason }
}

fn memory_refused(problem: &MemoryError) -> NcclError {
    NcclError { result: NcclResult::UnhandledCudaError, reason: problem.to_string() }
}

// SAFETY: as above.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(result: u32) -> *const c_char {
    NcclResult::from_number(result).map_or(c"unknown result code", NcclResult::text).as_ptr()
}

/// Good until the next error.
// SAFETY: as above.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_comm: usize) -> *const c_char {
    LAST_ERROR.lock().as_ref().map_or(c"".as_ptr(), |text| text.as_ptr())
}
