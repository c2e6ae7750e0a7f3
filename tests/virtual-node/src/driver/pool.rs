//! Memory pools, as far as ordinary programs notice them: handles, and attributes that are kept.
//!
//! A pool here holds no memory back: what is freed in a stream's order goes to the device.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::handles::{Registry, new_handle};
use super::status::{Answer, Status};
use crate::config::N_DEVICES_MAX;
use crate::memory::DeviceIdx;

/// The first attribute that only the driver sets.
const FIRST_MEASURED: i32 = 5;
/// The last attribute of CUDA 12.6.
const LAST: i32 = 8;

/// A pool of one device.
pub(super) struct Pool {
    pub(super) device: DeviceIdx,
    attributes: Mutex<BTreeMap<i32, u64>>,
}

static POOLS: Registry<Pool> = Registry::new(Status::INVALID_VALUE);
/// Handles of the devices' own pools, and of those that programs chose.
static DEFAULTS: Mutex<[usize; N_DEVICES_MAX]> = Mutex::new([0; N_DEVICES_MAX]);
static CHOSEN: Mutex<[usize; N_DEVICES_MAX]> = Mutex::new([0; N_DEVICES_MAX]);

/// A pool of its own.
pub(super) fn create(device: DeviceIdx) -> usize {
    let handle = new_handle();
    POOLS.insert(handle, Arc::new(Pool { device, attributes: Mutex::default() }));
    handle
}

/// The device's own pool.
pub(super) fn default_of(device: DeviceIdx) -> usize {
    let mut defaults = DEFAULTS.lock();
    let handle = &mut defaults[device.index()];
    if *handle == 0 {
        *handle = create(device);
    }
    *handle
}

/// The pool that allocations in the device's streams come from.
pub(super) fn chosen(device: DeviceIdx) -> usize {
    match CHOSEN.lock()[device.index()] {
        0 => default_of(device),
        handle => handle,
    }
}

/// `cuDeviceSetMemPool`.
pub(super) fn choose(device: DeviceIdx, handle: usize) -> Answer {
    if POOLS.get(handle)?.device != device {
        return Err(Status::INVALID_VALUE);
    }
    CHOSEN.lock()[device.index()] = handle;
    Ok(())
}

/// The pool with this handle.
pub(super) fn get(handle: usize) -> Answer<Arc<Pool>> {
    POOLS.get(handle)
}

/// `cuMemPoolDestroy`; a device's own pool stays.
pub(super) fn destroy(handle: usize) -> Answer {
    if DEFAULTS.lock().contains(&handle) {
        return Err(Status::INVALID_VALUE);
    }
    for chosen in CHOSEN.lock().iter_mut().filter(|chosen| **chosen == handle) {
        *chosen = 0;
    }
    POOLS.remove(handle).map(|_| ())
}

/// Whether the attribute is a 64-bit number; the others are 32-bit flags.
pub(super) fn is_wide(attribute: i32) -> bool {
    attribute > 3
}

impl Pool {
    pub(super) fn attribute(&self, attribute: i32) -> Answer<u64> {
        if !(1..=LAST).contains(&attribute) {
            return Err(Status::INVALID_VALUE);
        }
        // The three rules of reuse are on unless they were switched off.
        let unset = u64::from(!is_wide(attribute));
        Ok(self.attributes.lock().get(&attribute).copied().unwrap_or(unset))
    }

    pub(super) fn set_attribute(&self, attribute: i32, value: u64) -> Answer {
        // The high marks may be set back.
        let may_set = match attribute {
            6 | 8 => value == 0,
            _ => (1..FIRST_MEASURED).contains(&attribute),
        };
        if !may_set {
            return Err(Status::INVALID_VALUE);
        }
        self.attributes.lock().insert(attribute, value);
        Ok(())
    }
}
