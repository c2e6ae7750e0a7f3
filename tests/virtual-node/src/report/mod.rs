//! What the node did, counted: the one store that the driver, the executor and the libraries'
//! doubles add to. It neither measures time nor judges.

#[doc(hidden)]
pub mod api;
pub mod counters;
pub mod file;
pub mod summary;

pub use counters::{
    CopyKind, Counters, DeviceCounters, Flops, GraphCounters, KernelCounters, Transfers,
};

use parking_lot::Mutex;

static COUNTERS: Mutex<Counters> = Mutex::new(Counters { devices: Vec::new() });

/// Adds to what a device did, for example
/// `record(device_idx, |device| device.n_host_syncs += 1)`.
pub fn record(device_idx: usize, add: impl FnOnce(&mut DeviceCounters)) {
    file::write_at_exit();
    let mut counters = COUNTERS.lock();
    if counters.devices.len() <= device_idx {
        counters.devices.resize_with(device_idx + 1, DeviceCounters::default);
    }
    add(&mut counters.devices[device_idx]);
}

/// Adds what the launches of a kernel did.
pub fn record_kernel(device_idx: usize, name: &str, launched: KernelCounters) {
    record(device_idx, |device| match device.kernels.get_mut(name) {
        Some(kernel) => *kernel += launched,
        None => {
            device.kernels.insert(name.to_owned(), launched);
        }
    });
}

/// Adds one copy.
pub fn record_copy(device_idx: usize, kind: CopyKind, n_bytes: u64) {
    record(device_idx, |device| device.copies.entry(kind).or_default().record(n_bytes));
}

/// Adds one collective of one rank, with the bytes of its message.
pub fn record_collective(device_idx: usize, name: &str, n_bytes: u64) {
    record(device_idx, |device| {
        device.collectives.entry(name.to_owned()).or_default().record(n_bytes);
    });
}

/// What was counted so far.
pub fn counters() -> Counters {
    COUNTERS.lock().clone()
}

/// Begins to count anew.
pub fn reset() {
    COUNTERS.lock().devices.clear();
}
