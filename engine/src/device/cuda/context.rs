//! A device's context and what lives as long as it: its memory and its streams.
//!
//! Memory is claimed at boot and given back with the context, never before: whatever holds the
//! context (a graph, an event) may rely on every address that it was given.

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdevice_attribute as Attribute, CUresult};

use super::driver::{check, check_late, require_libraries};
use crate::device::DeviceError;

/// The compute capability that the kernels are compiled for. `sm_90a` runs on no other.
const CAPABILITY: (usize, usize) = (9, 0);

/// What the device says of itself.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Which device of the node.
    pub ordinal: usize,
    /// Its marketing name.
    pub name: String,
    /// Streaming multiprocessors.
    pub n_multiprocessors: usize,
    /// Shared memory that a block may have at most, opted in.
    pub shared_bytes_max: usize,
}

/// The primary context of one device, current on the thread that opened it.
pub(super) struct Context {
    pub(super) info: DeviceInfo,
    device: CUdevice,
    raw: CUcontext,
    device_memory: RefCell<Vec<u64>>,
    pinned_memory: RefCell<Vec<*mut c_void>>,
    is_sealed: Cell<bool>,
}

impl Context {
    pub(super) fn open(ordinal: usize) -> Result<Context, DeviceError> {
        require_libraries()?;
        // SAFETY: the library is there; initializing again does nothing.
        check("cuInit", unsafe { sys::cuInit(0) })?;
        let device = device(ordinal)?;
        let info = describe(ordinal, device)?;
        let mut raw = ptr::null_mut();
        // SAFETY: `device` is the driver's own handle.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&mut raw, device)
        })?;
        let context = Context {
            info,
            device,
            raw,
            device_memory: RefCell::default(),
            pinned_memory: RefCell::default(),
            is_sealed: Cell::new(false),
        };
        context.make_current()?;
        Ok(context)
    }

    /// Has this thread's calls go to this device.
    pub(super) fn make_current(&self) -> Result<(), DeviceError> {
        // SAFETY: the context was retained and not released.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }

    /// Nothing is claimed from here on.
    pub(super) fn seal(&self) {
        self.is_sealed.set(true);
    }

    /// Memory of the device, as poisonous as the driver gives it.
    pub(super) fn claim(&self, n_bytes: usize) -> Result<u64, DeviceError> {
        self.assert_open(n_bytes);
        let mut address = 0;
        // SAFETY: `address` outlives the call; the context is current on this thread.
        let result = unsafe { sys::cuMemAlloc_v2(&mut address, n_bytes) };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free_bytes, total_bytes) = self.memory_bytes()?;
            let device = self.info.ordinal;
            return Err(DeviceError::OutOfMemory { device, n_bytes, free_bytes, total_bytes });
        }
        check("cuMemAlloc", result)?;
        self.device_memory.borrow_mut().push(address);
        Ok(address)
    }

    /// Memory of the host that the device reaches by itself.
    pub(super) fn claim_pinned(&self, n_bytes: usize) -> Result<*mut u8, DeviceError> {
        self.assert_open(n_bytes);
        let mut address = ptr::null_mut();
        // SAFETY: `address` outlives the call; the context is current on this thread.
        check("cuMemHostAlloc", unsafe {
            sys::cuMemHostAlloc(&mut address, n_bytes, sys::CU_MEMHOSTALLOC_PORTABLE)
        })?;
        self.pinned_memory.borrow_mut().push(address);
        Ok(address.cast())
    }

    /// Free and total bytes of the device.
    pub(super) fn memory_bytes(&self) -> Result<(usize, usize), DeviceError> {
        let (mut free_bytes, mut total_bytes) = (0, 0);
        // SAFETY: both outlive the call.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free_bytes, &mut total_bytes) })?;
        Ok((free_bytes, total_bytes))
    }

    /// Lets kernels of this device reach memory of device `peer`.
    pub(super) fn enable_peer(&self, peer: usize) -> Result<(), DeviceError> {
        let (from, to) = (self.info.ordinal, peer);
        let peer = device(peer)?;
        let mut can_access = 0;
        // SAFETY: both are the driver's own handles.
        check("cuDeviceCanAccessPeer", unsafe {
            sys::cuDeviceCanAccessPeer(&mut can_access, self.device, peer)
        })?;
        if can_access == 0 {
            return Err(DeviceError::NoPeerAccess { from, to });
        }
        let mut context = ptr::null_mut();
        // SAFETY: `peer` is the driver's own handle. The peer's rank holds its context as well, so
        // giving back this reference right away does not end it.
        let result = unsafe {
            check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, peer))?;
            let result = sys::cuCtxEnablePeerAccess(context, 0);
            check_late("cuDevicePrimaryCtxRelease", sys::cuDevicePrimaryCtxRelease_v2(peer));
            result
        };
        match result {
            CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            _ => check("cuCtxEnablePeerAccess", result),
        }
    }

    /// Puts so much of the L2 cache aside for what is to be evicted last, or what the device has of
    /// it: how much that is.
    pub(super) fn set_aside(&self, n_bytes: usize) -> Result<usize, DeviceError> {
        const LIMIT: sys::CUlimit = sys::CUlimit::CU_LIMIT_PERSISTING_L2_CACHE_SIZE;
        let most = Attribute::CU_DEVICE_ATTRIBUTE_MAX_PERSISTING_L2_CACHE_SIZE;
        let n_bytes = n_bytes.min(attribute(self.device, most)?);
        // A slice of a device may have none.
        if n_bytes == 0 {
            return Ok(0);
        }
        let mut granted = 0;
        // SAFETY: `granted` outlives the calls; the context is current on this thread.
        unsafe {
            check("cuCtxSetLimit", sys::cuCtxSetLimit(LIMIT, n_bytes))?;
            check("cuCtxGetLimit", sys::cuCtxGetLimit(&mut granted, LIMIT))?;
        }
        Ok(granted)
    }

    /// Whether memory may still be claimed.
    pub(super) fn assert_open(&self, n_bytes: usize) {
        assert!(n_bytes > 0, "an allocation of nothing");
        assert!(!self.is_sealed.get(), "{n_bytes} bytes are claimed after boot");
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: what is freed was claimed from this context and never freed before; nothing that
        // uses it is left, because whatever runs on the device holds the context.
        unsafe {
            check_late("cuCtxSetCurrent", sys::cuCtxSetCurrent(self.raw));
            check_late("cuCtxSynchronize", sys::cuCtxSynchronize());
            for address in self.device_memory.get_mut().drain(..) {
                check_late("cuMemFree", sys::cuMemFree_v2(address));
            }
            for address in self.pinned_memory.get_mut().drain(..) {
                check_late("cuMemFreeHost", sys::cuMemFreeHost(address));
            }
            check_late("cuDevicePrimaryCtxRelease", sys::cuDevicePrimaryCtxRelease_v2(self.device));
        }
    }
}

fn device(ordinal: usize) -> Result<CUdevice, DeviceError> {
    let mut n_devices = 0;
    // SAFETY: `n_devices` outlives the call.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut n_devices) })?;
    let n_devices = n_devices as usize;
    if ordinal >= n_devices {
        return Err(DeviceError::NoDevice { ordinal, n_devices });
    }
    let mut device = 0;
    // SAFETY: `device` outlives the call.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as c_int) })?;
    Ok(device)
}

fn describe(ordinal: usize, device: CUdevice) -> Result<DeviceInfo, DeviceError> {
    let name = device_name(device)?;
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if (major, minor) != CAPABILITY {
        return Err(DeviceError::WrongDevice { ordinal, name, major, minor });
    }
    Ok(DeviceInfo {
        ordinal,
        name,
        n_multiprocessors: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_max: attribute(
            device,
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
    })
}

fn attribute(device: CUdevice, attribute: Attribute) -> Result<usize, DeviceError> {
    let mut value = 0;
    // SAFETY: `value` outlives the call; `device` is the driver's own handle.
    check("cuDeviceGetAttribute", unsafe {
        sys::cuDeviceGetAttribute(&mut value, attribute, device)
    })?;
    Ok(value as usize)
}

fn device_name(device: CUdevice) -> Result<String, DeviceError> {
    let mut name = [0 as c_char; 128];
    // SAFETY: the driver writes at most as many characters as it is told, the final zero included.
    check("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device)
    })?;
    let name: Vec<u8> = name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}
