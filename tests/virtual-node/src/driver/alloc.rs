//! Device and host memory of contexts.

use std::sync::Arc;

use super::capture;
use super::complain;
use super::context::{self, Context};
use super::operation::Operation;
use super::status::{Answer, Status};
use super::stream::Stream;
use crate::memory::{Allocation, Memory, MemoryError, Place};

/// What allocating or freeing answers for an error.
pub(super) fn status(error: MemoryError) -> Status {
    if !matches!(error, MemoryError::OutOfMemory { .. }) {
        complain(format_args!("{error}"));
    }
    match error {
        MemoryError::OutOfMemory { .. } | MemoryError::Host { .. } => Status::OUT_OF_MEMORY,
        MemoryError::NotAllocated { .. } => Status::INVALID_VALUE,
        MemoryError::Registered { .. } => Status::HOST_MEMORY_ALREADY_REGISTERED,
    }
}

/// `cuMemAlloc`.
pub(super) fn allocate(n_bytes: usize) -> Answer<u64> {
    capture::forbid_unsafe_call()?;
    let context = context::current()?;
    allocate_in(&context, n_bytes)
}

/// Memory of a context, during a capture too.
pub(super) fn allocate_in(context: &Context, n_bytes: usize) -> Answer<u64> {
    if n_bytes == 0 {
        return Err(Status::INVALID_VALUE);
    }
    let address = Memory::global().allocate(context.device, n_bytes as u64).map_err(status)?;
    context.allocations.lock().insert(address);
    Ok(address)
}

/// `cuMemFree`: waits for all work of the context first, as the real driver does.
pub(super) fn free(address: u64) -> Answer {
    if address == 0 {
        return Ok(());
    }
    capture::forbid_unsafe_call()?;
    let context = context::current()?;
    context.synchronize();
    context.clone().check()?;
    let memory = Memory::global();
    if memory.owner(address).is_none() {
        complain(format_args!("{address:#x} is no device memory to be freed"));
        return Err(Status::INVALID_VALUE);
    }
    memory.free(address).map_err(status)?;
    context.allocations.lock().remove(&address);
    Ok(())
}

/// `cuMemAllocAsync`: the address is good at once, for work that comes behind in the stream.
pub(super) fn allocate_async(stream: &Stream, n_bytes: usize) -> Answer<u64> {
    let context = stream.context.clone().check()?;
    if n_bytes == 0 {
        return Ok(0);
    }
    allocate_in(&context, n_bytes)
}

/// `cuMemFreeAsync`: the memory goes when its turn in the stream comes.
pub(super) fn free_async(stream: &Stream, address: u64) -> Answer {
    if address == 0 {
        return Ok(());
    }
    let found = Memory::global().find(address);
    let is_device = |found: &Allocation| matches!(found.place, Place::Device(_));
    if found.filter(is_device).is_none_or(|found| found.start != address) {
        complain(format_args!("no device memory to be freed begins at {address:#x}"));
        return Err(Status::INVALID_VALUE);
    }
    stream.context.allocations.lock().remove(&address);
    stream.submit(Operation::Free(address)).map(|_| ())
}

/// The turn of an asynchronous free. A second one of the same address has been complained about.
pub(super) fn free_now(address: u64) {
    if let Err(error) = Memory::global().free(address) {
        complain(format_args!("{error}"));
    }
}

/// Gives back what a context that ends still held.
pub(super) fn release(address: u64) {
    let memory = Memory::global();
    let freed = match memory.owner(address) {
        Some(_) => memory.free(address).map(|_| ()),
        None => memory.free_host(address),
    };
    if let Err(error) = freed {
        complain(format_args!("{error}"));
    }
}

/// `cuMemHostAlloc`.
pub(super) fn allocate_host(n_bytes: usize) -> Answer<u64> {
    capture::forbid_unsafe_call()?;
    let context = context::current()?;
    if n_bytes == 0 {
        return Err(Status::INVALID_VALUE);
    }
    let address = Memory::global().allocate_host(n_bytes as u64).map_err(status)?;
    context.allocations.lock().insert(address);
    Ok(address)
}

/// `cuMemFreeHost`: waits for all work first.
pub(super) fn free_host(address: u64) -> Answer {
    if address == 0 {
        return Ok(());
    }
    capture::forbid_unsafe_call()?;
    let context = context::current()?;
    context.synchronize();
    Memory::global().free_host(address).map_err(status)?;
    context.allocations.lock().remove(&address);
    Ok(())
}

/// `cuMemHostRegister`.
pub(super) fn register_host(address: u64, n_bytes: usize) -> Answer {
    context::current()?;
    if address == 0 || n_bytes == 0 {
        return Err(Status::INVALID_VALUE);
    }
    Memory::global().register_host(address, n_bytes as u64).map_err(status)
}

/// `cuMemHostUnregister`.
pub(super) fn unregister_host(address: u64) -> Answer {
    context::current()?.synchronize();
    let unregistered = Memory::global().unregister_host(address);
    unregistered.map_err(|_| Status::HOST_MEMORY_NOT_REGISTERED)
}

/// The device's address of host memory that devices may reach: the same.
pub(super) fn device_pointer(address: u64) -> Answer<u64> {
    context::current()?;
    match Memory::global().find(address) {
        Some(Allocation { place: Place::Host(_), .. }) => Ok(address),
        _ => Err(Status::INVALID_VALUE),
    }
}

/// `cuMemGetInfo`: bytes free and in all.
pub(super) fn info() -> Answer<(usize, usize)> {
    let info = Memory::global().info(context::current()?.device);
    Ok((info.free_bytes as usize, info.total_bytes as usize))
}

/// The allocation that holds the address.
pub(super) fn range(address: u64) -> Answer<Allocation> {
    context::current()?;
    Memory::global().find(address).ok_or(Status::NOT_FOUND)
}

/// `cuCtxEnablePeerAccess`: the current context may reach the other's memory.
pub(super) fn enable_peer(peer: usize) -> Answer {
    let (context, peer) = pair(peer)?;
    if !context.peers.lock().insert(peer.device) {
        return Err(Status::PEER_ACCESS_ALREADY_ENABLED);
    }
    Memory::global().enable_peer(context.device, peer.device);
    Ok(())
}

/// `cuCtxDisablePeerAccess`.
pub(super) fn disable_peer(peer: usize) -> Answer {
    let (context, peer) = pair(peer)?;
    if !context.peers.lock().remove(&peer.device) {
        return Err(Status::PEER_ACCESS_NOT_ENABLED);
    }
    context.synchronize();
    Memory::global().disable_peer(context.device, peer.device);
    Ok(())
}

fn pair(peer: usize) -> Answer<(Arc<Context>, Arc<Context>)> {
    let (context, peer) = (context::current()?, context::get(peer)?);
    if context.device == peer.device {
        return Err(Status::INVALID_CONTEXT);
    }
    Ok((context, peer))
}
