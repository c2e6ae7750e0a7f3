//! Contexts: what a program holds on one device, each thread's current one, and how they fail.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};

use super::handles::{Registry, new_handle};
use super::operation::Failure;
use super::status::{Answer, Status};
use super::stream::Stream;
use super::{alloc, module, stream};
use crate::config::{Config, N_DEVICES_MAX};
use crate::memory::{CONTEXT_BYTES, DeviceIdx, Memory};

/// A program's state on one device.
pub(super) struct Context {
    pub(super) handle: usize,
    pub(super) device: DeviceIdx,
    pub(super) flags: AtomicU32,
    /// Set by the first kernel that fails; all calls answer with it from then on.
    failure: RwLock<Option<Failure>>,
    is_alive: AtomicBool,
    /// Every live stream, the null stream among them once it was used.
    pub(super) streams: Mutex<Vec<Arc<Stream>>>,
    /// Device and host memory that ends with the context.
    pub(super) allocations: Mutex<BTreeSet<u64>>,
    /// Values of `cuCtxSetLimit`, by limit.
    pub(super) limits: Mutex<BTreeMap<i32, usize>>,
    /// Devices that this context may reach.
    pub(super) peers: Mutex<BTreeSet<DeviceIdx>>,
}

static CONTEXTS: Registry<Context> = Registry::new(Status::INVALID_CONTEXT);

impl Context {
    fn create(device: DeviceIdx, flags: u32) -> Answer<Arc<Context>> {
        let charged = Memory::global().charge(device, CONTEXT_BYTES);
        charged.map_err(|_| Status::OUT_OF_MEMORY)?;
        let context = Arc::new(Context {
            handle: new_handle(),
            device,
            flags: AtomicU32::new(flags),
            failure: RwLock::new(None),
            is_alive: AtomicBool::new(true),
            streams: Mutex::default(),
            allocations: Mutex::default(),
            limits: Mutex::default(),
            peers: Mutex::default(),
        });
        CONTEXTS.insert(context.handle, context.clone());
        Ok(context)
    }

    /// Waits for all work, and takes everything away that the context held.
    fn destroy(self: &Arc<Context>) {
        self.synchronize();
        self.is_alive.store(false, Ordering::Release);
        // The registry may have lost it to another thread that destroys it too: then that one
        // does the rest.
        if CONTEXTS.remove(self.handle).is_err() {
            return;
        }
        stream::forget(self);
        module::forget(self);
        for address in std::mem::take(&mut *self.allocations.lock()) {
            alloc::release(address);
        }
        for peer in std::mem::take(&mut *self.peers.lock()) {
            Memory::global().disable_peer(self.device, peer);
        }
        Memory::global().refund(self.device, CONTEXT_BYTES);
    }

    /// Why the context is of no more use, if it is not.
    pub(super) fn failure(&self) -> Option<Status> {
        self.failure.read().as_ref().map(|failure| failure.status)
    }

    /// Makes every later call answer with the failure's code; the first one stays.
    pub(super) fn fail(&self, failure: Failure) {
        let mut first = self.failure.write();
        if first.is_none() {
            eprintln!("virtual node: device {}: {failure}", self.device);
            *first = Some(failure);
        }
    }

    /// The context, unless it failed or was destroyed.
    pub(super) fn check(self: Arc<Context>) -> Answer<Arc<Context>> {
        if !self.is_alive.load(Ordering::Acquire) {
            return Err(Status::CONTEXT_IS_DESTROYED);
        }
        match self.failure() {
            Some(status) => Err(status),
            None => Ok(self),
        }
    }

    /// Waits for the work of all streams.
    pub(super) fn synchronize(&self) {
        let tails: Vec<_> = self.streams.lock().iter().map(|stream| stream.queue.tail()).collect();
        // All gates first: the streams may wait for each other.
        tails.iter().for_each(super::queue::Ticket::release);
        tails.iter().for_each(super::queue::Ticket::wait);
    }
}

#[derive(Default)]
struct Primary {
    n_retained: usize,
    flags: u32,
    context: Option<Arc<Context>>,
}

static PRIMARIES: [Mutex<Primary>; N_DEVICES_MAX] =
    [const { Mutex::new(Primary { n_retained: 0, flags: 0, context: None }) }; N_DEVICES_MAX];

thread_local! {
    /// The thread's contexts; the last is the current one.
    static STACK: RefCell<Vec<Arc<Context>>> = const { RefCell::new(Vec::new()) };
}

static IS_INITIALIZED: AtomicBool = AtomicBool::new(false);

/// `cuInit`.
pub(super) fn initialize() {
    IS_INITIALIZED.store(true, Ordering::Release);
}

/// Whether `cuInit` was called.
pub(super) fn is_initialized() -> bool {
    IS_INITIALIZED.load(Ordering::Acquire)
}

/// The device with this number.
pub(super) fn device(ordinal: i32) -> Answer<DeviceIdx> {
    match u8::try_from(ordinal) {
        Ok(idx) if usize::from(idx) < Config::get().n_devices => Ok(DeviceIdx(idx)),
        _ => Err(Status::INVALID_DEVICE),
    }
}

/// The thread's current context, in good health.
pub(super) fn current() -> Answer<Arc<Context>> {
    let top = STACK.with_borrow(|stack| stack.last().cloned());
    top.ok_or(Status::INVALID_CONTEXT)?.check()
}

/// The thread's current context, whatever its state.
pub(super) fn peek() -> Option<Arc<Context>> {
    STACK.with_borrow(|stack| stack.last().cloned())
}

/// The context with this handle.
pub(super) fn get(handle: usize) -> Answer<Arc<Context>> {
    CONTEXTS.get(handle)
}

/// Puts a context on top of the thread's.
pub(super) fn push(context: Arc<Context>) {
    STACK.with_borrow_mut(|stack| stack.push(context));
}

/// Takes the top of the thread's contexts away.
pub(super) fn pop() -> Answer<Arc<Context>> {
    STACK.with_borrow_mut(Vec::pop).ok_or(Status::INVALID_CONTEXT)
}

/// Makes the context with this handle the thread's current one; 0 for none.
pub(super) fn set_current(handle: usize) -> Answer {
    let context = if handle == 0 { None } else { Some(get(handle)?) };
    STACK.with_borrow_mut(|stack| {
        stack.pop();
        stack.extend(context);
    });
    Ok(())
}

/// `cuCtxCreate`.
pub(super) fn create(ordinal: i32, flags: u32) -> Answer<usize> {
    let context = Context::create(device(ordinal)?, flags)?;
    push(context.clone());
    Ok(context.handle)
}

/// `cuCtxDestroy`.
pub(super) fn destroy(handle: usize) -> Answer {
    let context = get(handle)?;
    let is_primary = PRIMARIES[context.device.index()]
        .lock()
        .context
        .as_ref()
        .is_some_and(|primary| primary.handle == handle);
    if is_primary {
        return Err(Status::INVALID_CONTEXT);
    }
    STACK.with_borrow_mut(|stack| {
        if stack.last().is_some_and(|top| top.handle == handle) {
            stack.pop();
        }
    });
    context.destroy();
    Ok(())
}

/// `cuDevicePrimaryCtxRetain`.
pub(super) fn retain_primary(ordinal: i32) -> Answer<usize> {
    let device = device(ordinal)?;
    let mut primary = PRIMARIES[device.index()].lock();
    if primary.context.is_none() {
        primary.context = Some(Context::create(device, primary.flags)?);
    }
    primary.n_retained += 1;
    Ok(primary.context.as_ref().expect("it was just made").handle)
}

/// `cuDevicePrimaryCtxRelease`: the last release takes the context away.
pub(super) fn release_primary(ordinal: i32) -> Answer {
    let device = device(ordinal)?;
    let mut primary = PRIMARIES[device.index()].lock();
    if primary.n_retained == 0 {
        return Err(Status::INVALID_CONTEXT);
    }
    primary.n_retained -= 1;
    if primary.n_retained == 0
        && let Some(context) = primary.context.take()
    {
        context.destroy();
    }
    Ok(())
}

/// `cuDevicePrimaryCtxReset`.
pub(super) fn reset_primary(ordinal: i32) -> Answer {
    let device = device(ordinal)?;
    let mut primary = PRIMARIES[device.index()].lock();
    primary.n_retained = 0;
    if let Some(context) = primary.context.take() {
        context.destroy();
    }
    Ok(())
}

/// The primary context's flags, and whether it lives.
pub(super) fn primary_state(ordinal: i32) -> Answer<(u32, bool)> {
    let device = device(ordinal)?;
    let primary = PRIMARIES[device.index()].lock();
    Ok((primary.flags, primary.context.is_some()))
}

/// `cuDevicePrimaryCtxSetFlags`.
pub(super) fn set_primary_flags(ordinal: i32, flags: u32) -> Answer {
    PRIMARIES[device(ordinal)?.index()].lock().flags = flags;
    Ok(())
}
