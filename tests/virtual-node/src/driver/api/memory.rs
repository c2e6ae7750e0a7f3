//! Device memory, host memory, pools, and what an address is.

use super::api;
use super::ffi::{In, Out, out_at_address};
use crate::driver::status::{Answer, Status};
use crate::driver::{alloc, complain, context, pool, stream};
use crate::memory::{Allocation, Memory, Place};

/// Rows of pitched memory begin at multiples of this.
const PITCH_BYTES: usize = 512;
/// `CU_MEMHOSTALLOC_PORTABLE`, `_DEVICEMAP` and `_WRITECOMBINED`.
const HOST_FLAGS: u32 = 7;

/// `CUmemPoolProps`.
#[derive(Clone, Copy)]
#[repr(C)]
struct PoolProperties {
    kind: i32,
    handle_types: i32,
    location_kind: i32,
    location: i32,
    rest: [u64; 9],
}

/// `CUipcMemHandle` and `CUipcEventHandle`.
#[derive(Clone, Copy)]
#[repr(C)]
struct IpcHandle {
    _reserved: [u64; 8],
}

api! {
    fn cuMemAlloc_v2(address: Out<u64>, n_bytes: usize) {
        address.put(alloc::allocate(n_bytes)?)
    }

    fn cuMemAllocPitch_v2(
        address: Out<u64>,
        pitch: Out<usize>,
        row_bytes: usize,
        n_rows: usize,
        element_bytes: u32,
    ) {
        if !matches!(element_bytes, 4 | 8 | 16) {
            return Err(Status::INVALID_VALUE);
        }
        let pitch_bytes = row_bytes.next_multiple_of(PITCH_BYTES);
        let n_bytes = pitch_bytes.checked_mul(n_rows).ok_or(Status::OUT_OF_MEMORY)?;
        address.put(alloc::allocate(n_bytes)?)?;
        pitch.put(pitch_bytes)
    }

    fn cuMemFree_v2(address: u64) {
        alloc::free(address)
    }

    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let (free_bytes, total_bytes) = alloc::info()?;
        free.put(free_bytes)?;
        total.put(total_bytes)
    }

    fn cuMemGetAddressRange_v2(start: Out<u64>, n_bytes: Out<usize>, address: u64) {
        let found = alloc::range(address)?;
        start.offer(found.start);
        n_bytes.offer(found.n_bytes as usize);
        Ok(())
    }

    fn cuMemAllocManaged(_address: Out<u64>, _n_bytes: usize, _flags: u32) {
        complain(format_args!("there is no managed memory: the host may not reach a device's"));
        Err(Status::NOT_SUPPORTED)
    }

    fn cuMemHostAlloc(address: Out<u64>, n_bytes: usize, flags: u32) {
        if flags & !HOST_FLAGS != 0 {
            return Err(Status::INVALID_VALUE);
        }
        address.put(alloc::allocate_host(n_bytes)?)
    }

    fn cuMemAllocHost_v2(address: Out<u64>, n_bytes: usize) {
        address.put(alloc::allocate_host(n_bytes)?)
    }

    fn cuMemFreeHost(address: u64) {
        alloc::free_host(address)
    }

    fn cuMemHostRegister_v2(address: u64, n_bytes: usize, _flags: u32) {
        alloc::register_host(address, n_bytes)
    }

    fn cuMemHostUnregister(address: u64) {
        alloc::unregister_host(address)
    }

    fn cuMemHostGetDevicePointer_v2(device: Out<u64>, address: u64, flags: u32) {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        device.put(alloc::device_pointer(address)?)
    }

    fn cuMemHostGetFlags(flags: Out<u32>, address: u64) {
        alloc::device_pointer(address)?;
        // Portable and mapped: with unified addresses all host memory is.
        flags.put(3)
    }

    fn cuMemAllocAsync(address: Out<u64>, n_bytes: usize, stream: usize) {
        address.put(alloc::allocate_async(&*stream::get(stream)?, n_bytes)?)
    }

    fn cuMemAllocFromPoolAsync(address: Out<u64>, n_bytes: usize, pool: usize, stream: usize) {
        let stream = stream::get(stream)?;
        if pool::get(pool)?.device != stream.context.device {
            return Err(Status::INVALID_VALUE);
        }
        address.put(alloc::allocate_async(&stream, n_bytes)?)
    }

    fn cuMemFreeAsync(address: u64, stream: usize) {
        alloc::free_async(&*stream::get(stream)?, address)
    }

    fn cuMemPoolCreate(handle: Out<usize>, properties: In<PoolProperties>) {
        let properties = properties.get()?;
        // Pinned memory of a device, not to be exported: the one kind that there is.
        if properties.kind != 1 || properties.location_kind != 1 {
            return Err(Status::INVALID_VALUE);
        }
        if properties.handle_types != 0 {
            return Err(Status::NOT_SUPPORTED);
        }
        handle.put(pool::create(context::device(properties.location)?))
    }

    fn cuMemPoolDestroy(handle: usize) {
        pool::destroy(handle)
    }

    fn cuMemPoolTrimTo(handle: usize, _n_bytes: usize) {
        pool::get(handle).map(|_| ())
    }

    fn cuMemPoolSetAttribute(handle: usize, attribute: i32, value: In<u32>) {
        let wide = pool::is_wide(attribute);
        let value = if wide { value.cast::<u64>().get()? } else { u64::from(value.get()?) };
        pool::get(handle)?.set_attribute(attribute, value)
    }

    fn cuMemPoolGetAttribute(handle: usize, attribute: i32, value: usize) {
        let found = pool::get(handle)?.attribute(attribute)?;
        match pool::is_wide(attribute) {
            true => out_at_address::<u64>(value).put(found),
            false => out_at_address::<u32>(value).put(found as u32),
        }
    }

    fn cuMemPoolSetAccess(handle: usize, _access: usize, _n: usize) {
        pool::get(handle).map(|_| ())
    }

    fn cuPointerGetAttribute(value: usize, attribute: i32, address: u64) {
        let found = Memory::global().find(address).ok_or(Status::INVALID_VALUE)?;
        put_attribute(value, attribute, found, address)
    }

    fn cuPointerGetAttributes(n: u32, attributes: In<i32>, values: In<usize>, address: u64) {
        let n = n as usize;
        let found = Memory::global().find(address);
        for (attribute, value) in attributes.slice(n)?.into_iter().zip(values.slice(n)?) {
            match found {
                Some(found) => put_attribute(value, attribute, found, address)?,
                // Of memory that nobody allocated here everything is 0.
                None if is_wide(attribute) => out_at_address::<u64>(value).put(0)?,
                None => out_at_address::<u32>(value).put(0)?,
            }
        }
        Ok(())
    }

    fn cuPointerSetAttribute(_value: usize, attribute: i32, address: u64) {
        Memory::global().find(address).ok_or(Status::INVALID_VALUE)?;
        // Whether copies of the memory are synchronous; they may always be.
        if attribute == 6 { Ok(()) } else { Err(Status::INVALID_VALUE) }
    }

    fn cuMemAdvise(_address: u64, _n_bytes: usize, _advice: i32, _device: i32) {
        Err(Status::NOT_SUPPORTED)
    }

    fn cuMemPrefetchAsync(_address: u64, _n_bytes: usize, _device: i32, _stream: usize) {
        Err(Status::NOT_SUPPORTED)
    }

    fn cuIpcGetMemHandle(_handle: usize, _address: u64) {
        refuse_ipc()
    }

    fn cuIpcOpenMemHandle_v2(_address: Out<u64>, _handle: IpcHandle, _flags: u32) {
        refuse_ipc()
    }

    fn cuIpcCloseMemHandle(_address: u64) {
        refuse_ipc()
    }

    fn cuIpcGetEventHandle(_handle: usize, _event: usize) {
        refuse_ipc()
    }

    fn cuIpcOpenEventHandle(_event: Out<usize>, _handle: IpcHandle) {
        refuse_ipc()
    }
}

fn refuse_ipc() -> Answer {
    complain(format_args!("memory and events are not shared between processes: use threads"));
    Err(Status::NOT_SUPPORTED)
}

/// Whether a pointer's attribute has 64 bits.
fn is_wide(attribute: i32) -> bool {
    matches!(attribute, 1 | 3 | 4 | 7 | 11 | 12 | 17 | 18 | 19 | 20)
}

fn put_attribute(value: usize, attribute: i32, found: Allocation, address: u64) -> Answer {
    let (device, is_host) = match found.place {
        Place::Device(device) => (i32::from(device.0), false),
        Place::Host(_) => (context::peek().map_or(0, |context| i32::from(context.device.0)), true),
    };
    let wide = |number: u64| out_at_address::<u64>(value).put(number);
    let word = |number: u32| out_at_address::<u32>(value).put(number);
    match attribute {
        1 => wide(context::peek().map_or(0, |context| context.handle as u64)),
        2 => word(if is_host { 1 } else { 2 }),
        3 => wide(address),
        4 if is_host => wide(address),
        4 => Err(Status::INVALID_VALUE),
        6 | 8 | 10 | 14 | 15 => word(0),
        7 | 20 => wide(found.start >> 9),
        9 => word(device as u32),
        11 | 19 => wide(found.start),
        12 | 18 => wide(found.n_bytes),
        13 => word(1),
        16 => word(3),
        17 => wide(0),
        _ => Err(Status::INVALID_VALUE),
    }
}
