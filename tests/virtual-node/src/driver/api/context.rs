//! Contexts, their limits and peers, and the profiler, which there is none of.

use std::sync::atomic::Ordering;

use super::api;
use super::ffi::{In, Out};
use crate::driver::status::Status;
use crate::driver::{alloc, capture, context, device, stream};
use crate::report;

/// Limits by number, with what they are unless set.
const LIMITS: &[(i32, usize)] =
    &[(0, 1024), (1, 1 << 20), (2, 8 << 20), (3, 2), (4, 2048), (5, 64), (6, 0)];

/// Of the L2 cache.
const SET_ASIDE: i32 = 6;

/// The device's attribute that bounds it.
const MAX_SET_ASIDE: i32 = 108;

api! {
    fn cuCtxCreate_v2(handle: Out<usize>, flags: u32, ordinal: i32) {
        handle.put(context::create(ordinal, flags)?)
    }

    fn cuCtxCreate_v3(handle: Out<usize>, _affinities: usize, n: i32, flags: u32, ordinal: i32) {
        if n != 0 {
            return Err(Status::UNSUPPORTED_EXEC_AFFINITY);
        }
        handle.put(context::create(ordinal, flags)?)
    }

    fn cuCtxCreate_v4(handle: Out<usize>, parameters: In<u8>, flags: u32, ordinal: i32) {
        if !parameters.is_null() {
            return Err(Status::NOT_SUPPORTED);
        }
        handle.put(context::create(ordinal, flags)?)
    }

    fn cuCtxDestroy_v2(handle: usize) {
        context::destroy(handle)
    }

    fn cuCtxPushCurrent_v2(handle: usize) {
        context::push(context::get(handle)?);
        Ok(())
    }

    fn cuCtxPopCurrent_v2(handle: Out<usize>) {
        let popped = context::pop()?;
        handle.offer(popped.handle);
        Ok(())
    }

    fn cuCtxSetCurrent(handle: usize) {
        context::set_current(handle)
    }

    fn cuCtxGetCurrent(handle: Out<usize>) {
        handle.put(context::peek().map_or(0, |context| context.handle))
    }

    fn cuCtxGetDevice(ordinal: Out<i32>) {
        let context = context::peek().ok_or(Status::INVALID_CONTEXT)?;
        ordinal.put(i32::from(context.device.0))
    }

    fn cuCtxGetFlags(flags: Out<u32>) {
        flags.put(context::current()?.flags.load(Ordering::Relaxed))
    }

    fn cuCtxSetFlags(flags: u32) {
        context::current()?.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetId(handle: usize, id: Out<u64>) {
        let context = if handle == 0 { context::current()? } else { context::get(handle)? };
        id.put(context.handle as u64)
    }

    fn cuCtxGetApiVersion(handle: usize, version: Out<u32>) {
        if handle != 0 {
            context::get(handle)?;
        }
        version.put(device::DRIVER_VERSION as u32)
    }

    fn cuCtxSynchronize() {
        capture::forbid_unsafe_call()?;
        let context = context::current()?;
        capture::forbid_legacy(&context)?;
        context.synchronize();
        report::record(context.device.index(), |device| device.n_host_syncs += 1);
        context.check().map(|_| ())
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        context::current()?;
        least.offer(0);
        greatest.offer(stream::GREATEST_PRIORITY);
        Ok(())
    }

    fn cuCtxSetLimit(limit: i32, value: usize) {
        let context = context::current()?;
        if !LIMITS.iter().any(|(number, _)| *number == limit) {
            return Err(Status::UNSUPPORTED_LIMIT);
        }
        // The driver gives what there is, and says so when it is asked.
        let value = match limit {
            SET_ASIDE => value.min(device::attribute(context.device, MAX_SET_ASIDE)? as usize),
            _ => value,
        };
        context.limits.lock().insert(limit, value);
        if limit == SET_ASIDE {
            let n_bytes = value as u64;
            report::record(context.device.index(), |device| device.set_aside_bytes += n_bytes);
        }
        Ok(())
    }

    fn cuCtxGetLimit(value: Out<usize>, limit: i32) {
        let context = context::current()?;
        let unset = LIMITS.iter().find(|(number, _)| *number == limit);
        let (_, unset) = unset.ok_or(Status::UNSUPPORTED_LIMIT)?;
        let set = context.limits.lock().get(&limit).copied();
        value.put(set.unwrap_or(*unset))
    }

    fn cuCtxGetCacheConfig(config: Out<i32>) {
        context::current()?;
        config.put(0)
    }

    fn cuCtxSetCacheConfig(_config: i32) {
        context::current().map(|_| ())
    }

    fn cuCtxGetSharedMemConfig(config: Out<i32>) {
        context::current()?;
        config.put(1)
    }

    fn cuCtxSetSharedMemConfig(_config: i32) {
        context::current().map(|_| ())
    }

    fn cuCtxResetPersistingL2Cache() {
        context::current().map(|_| ())
    }

    fn cuCtxEnablePeerAccess(peer: usize, flags: u32) {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        alloc::enable_peer(peer)
    }

    fn cuCtxDisablePeerAccess(peer: usize) {
        alloc::disable_peer(peer)
    }

    fn cuProfilerStart() {
        context::current().map(|_| ())
    }

    fn cuProfilerStop() {
        context::current().map(|_| ())
    }
}
