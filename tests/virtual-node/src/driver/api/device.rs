//! Initialisation, devices and their attributes.

use std::ffi::c_char;

use super::api;
use super::ffi::{Out, Text};
use crate::config::Config;
use crate::driver::status::{Answer, Status};
use crate::driver::{context, device, pool};
use crate::memory::{DeviceIdx, TOTAL_BYTES};

/// `CUdevprop`, of the oldest programs.
#[repr(C)]
struct Properties {
    n_block_threads_max: i32,
    block_max: [i32; 3],
    grid_max: [i32; 3],
    shared_bytes: i32,
    constant_bytes: i32,
    n_warp_threads: i32,
    pitch_max: i32,
    n_block_registers: i32,
    clock_khz: i32,
    texture_alignment: i32,
}

api! {
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        // A setting that is none is found out here.
        Config::get();
        context::initialize();
        Ok(())
    }

    fn cuDriverGetVersion(version: Out<i32>) {
        version.put(device::DRIVER_VERSION)
    }

    fn cuDeviceGetCount(count: Out<i32>) {
        count.put(Config::get().n_devices as i32)
    }

    fn cuDeviceGet(handle: Out<i32>, ordinal: i32) {
        handle.put(i32::from(context::device(ordinal)?.0))
    }

    fn cuDeviceGetName(name: Out<c_char>, n_room: i32, ordinal: i32) {
        context::device(ordinal)?;
        name.put_text(device::NAME, n_room)
    }

    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, ordinal: i32) {
        uuid.put(device::uuid(context::device(ordinal)?))
    }

    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, ordinal: i32) {
        uuid.put(device::uuid(context::device(ordinal)?))
    }

    fn cuDeviceGetLuid(_luid: Out<c_char>, _mask: Out<u32>, _ordinal: i32) {
        // Of Windows only.
        Err(Status::NOT_SUPPORTED)
    }

    fn cuDeviceTotalMem_v2(n_bytes: Out<usize>, ordinal: i32) {
        context::device(ordinal)?;
        n_bytes.put(TOTAL_BYTES as usize)
    }

    fn cuDeviceGetAttribute(value: Out<i32>, attribute: i32, ordinal: i32) {
        value.put(device::attribute(context::device(ordinal)?, attribute)?)
    }

    fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, ordinal: i32) {
        context::device(ordinal)?;
        major.put(9)?;
        minor.put(0)
    }

    fn cuDeviceGetProperties(properties: Out<Properties>, ordinal: i32) {
        let device = context::device(ordinal)?;
        properties.put(read_properties(device)?)
    }

    fn cuDeviceGetPCIBusId(id: Out<c_char>, n_room: i32, ordinal: i32) {
        id.put_text(&device::pci_bus_id(context::device(ordinal)?), n_room)
    }

    fn cuDeviceGetByPCIBusId(handle: Out<i32>, id: Text) {
        let found = device::by_pci_bus_id(&id.get()?, Config::get().n_devices)?;
        handle.put(i32::from(found.0))
    }

    fn cuDeviceCanAccessPeer(can: Out<i32>, from: i32, to: i32) {
        let (from, to) = (context::device(from)?, context::device(to)?);
        can.put(i32::from(from != to))
    }

    fn cuDeviceGetP2PAttribute(value: Out<i32>, attribute: i32, from: i32, to: i32) {
        let (from, to) = (context::device(from)?, context::device(to)?);
        value.put(device::peer_attribute(attribute, from, to)?)
    }

    fn cuDeviceGetExecAffinitySupport(is_supported: Out<i32>, _kind: i32, ordinal: i32) {
        context::device(ordinal)?;
        is_supported.put(0)
    }

    fn cuDeviceGetDefaultMemPool(handle: Out<usize>, ordinal: i32) {
        handle.put(pool::default_of(context::device(ordinal)?))
    }

    fn cuDeviceGetMemPool(handle: Out<usize>, ordinal: i32) {
        handle.put(pool::chosen(context::device(ordinal)?))
    }

    fn cuDeviceSetMemPool(ordinal: i32, handle: usize) {
        pool::choose(context::device(ordinal)?, handle)
    }

    fn cuDevicePrimaryCtxRetain(handle: Out<usize>, ordinal: i32) {
        handle.put(context::retain_primary(ordinal)?)
    }

    fn cuDevicePrimaryCtxRelease_v2(ordinal: i32) {
        context::release_primary(ordinal)
    }

    fn cuDevicePrimaryCtxReset_v2(ordinal: i32) {
        context::reset_primary(ordinal)
    }

    fn cuDevicePrimaryCtxSetFlags_v2(ordinal: i32, flags: u32) {
        context::set_primary_flags(ordinal, flags)
    }

    fn cuDevicePrimaryCtxGetState(ordinal: i32, flags: Out<u32>, is_active: Out<i32>) {
        let (own_flags, is_alive) = context::primary_state(ordinal)?;
        flags.put(own_flags)?;
        is_active.put(i32::from(is_alive))
    }
}

fn read_properties(device: DeviceIdx) -> Answer<Properties> {
    let attribute = |number| device::attribute(device, number);
    Ok(Properties {
        n_block_threads_max: attribute(1)?,
        block_max: [attribute(2)?, attribute(3)?, attribute(4)?],
        grid_max: [attribute(5)?, attribute(6)?, attribute(7)?],
        shared_bytes: attribute(8)?,
        constant_bytes: attribute(9)?,
        n_warp_threads: attribute(10)?,
        pitch_max: attribute(11)?,
        n_block_registers: attribute(12)?,
        clock_khz: attribute(13)?,
        texture_alignment: attribute(14)?,
    })
}
