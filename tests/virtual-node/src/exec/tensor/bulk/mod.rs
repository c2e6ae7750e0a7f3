//! Bulk copies: whole stretches and boxes of tensors between device and shared memory.
//!
//! A load lands when no warp of the block can go on without it, one copy at a time, and the
//! destination reads as poison until then. A store reads shared memory at the wait of its thread.

mod decode;
mod prefetch;
mod reduce;

pub use decode::BulkCopy;
pub(super) use decode::decode;
use decode::{Route, Tensor};
use reduce::{Number, Reduction};

use super::tensor_map::{MAP_BYTES, Row, TensorMap};
use super::{Arrival, POISON_BYTE, TensorFault, barrier};
use crate::exec::checks::{self, AsyncAccess};
use crate::exec::context::lanes;
use crate::exec::fault::{Cause, Flow, Trap};
use crate::exec::inst::{Address, R32, Space};
use crate::exec::{BlockCx, CLUSTER_SHIFT, N_LANES, WarpCx};

/// What a copy moves.
#[derive(Clone, Debug)]
enum Extent {
    /// A stretch of device memory (or of shared memory, for an exchange between blocks).
    Flat { address: u64, n_bytes: usize, is_shared: bool },
    /// A box of a tensor.
    Box { map: TensorMap, coordinates: Vec<i32> },
}

/// A copy into shared memory that is under way.
#[derive(Debug)]
pub(super) struct Load {
    extent: Extent,
    /// Address and barrier, in each block that gets the data.
    to: Vec<(u64, u64)>,
    access: Option<AsyncAccess>,
}

/// A copy out of shared memory that is under way.
#[derive(Debug)]
pub(super) struct Store {
    warp_idx: usize,
    lane: usize,
    /// Groups that the lane had committed before.
    group: u64,
    from: u64,
    extent: Extent,
    reduction: Option<(Reduction, Number)>,
    access: Option<AsyncAccess>,
}

/// Copies out of shared memory, and the groups of each thread.
#[derive(Debug, Default)]
pub(super) struct Stores {
    under_way: Vec<Store>,
    /// By warp: groups that each lane has committed.
    n_groups: Vec<[u64; N_LANES]>,
}

impl Stores {
    pub(super) fn n_under_way(&self) -> usize {
        self.under_way.len()
    }

    pub(super) fn reset(&mut self) {
        self.under_way.clear();
        self.n_groups.clear();
    }

    fn n_groups(&mut self, warp_idx: usize) -> &mut [u64; N_LANES] {
        if self.n_groups.len() <= warp_idx {
            self.n_groups.resize(warp_idx + 1, [0; N_LANES]);
        }
        &mut self.n_groups[warp_idx]
    }
}

/// Issues a copy for each active lane.
pub(super) fn issue(copy: &BulkCopy, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    for lane in cx.lanes() {
        let multicast = copy.multicast.map(|row| cx.warp.registers.r32(row)[lane]);
        match &copy.route {
            Route::Load { to, from, n_bytes, barrier } => {
                let extent = flat(cx, lane, from, *n_bytes, false)?;
                load(cx, lane, extent, (to, barrier), multicast)?;
            }
            Route::Exchange { to, from, n_bytes, barrier } => {
                let extent = flat(cx, lane, from, *n_bytes, true)?;
                load(cx, lane, extent, (to, barrier), multicast)?;
            }
            Route::Prefetch { from, n_bytes } => prefetch::issue(cx, lane, from, *n_bytes)?,
            Route::TensorLoad { to, tensor, barrier } => {
                let extent = boxed(cx, lane, tensor)?;
                load(cx, lane, extent, (to, barrier), multicast)?;
            }
            Route::Store { to, from, n_bytes, reduction } => {
                let extent = flat(cx, lane, to, *n_bytes, false)?;
                store(cx, lane, extent, from, *reduction)?;
            }
            Route::TensorStore { tensor, from, reduction } => {
                let extent = boxed(cx, lane, tensor)?;
                store(cx, lane, extent, from, *reduction)?;
            }
        }
    }
    Ok(Flow::Next)
}

fn flat(
    cx: &WarpCx<'_>,
    lane: usize,
    at: &Address,
    n_bytes: R32,
    is_shared: bool,
) -> Result<Extent, Trap> {
    let address = cx.addresses(at)[lane];
    let n_bytes = cx.warp.registers.r32(n_bytes)[lane] as usize;
    if !n_bytes.is_multiple_of(16) {
        return Err(Cause::from(TensorFault::BulkBytes { n_bytes }).at(lane));
    }
    if !address.is_multiple_of(16) {
        let space = if is_shared { Space::Shared } else { Space::Global };
        return Err(Cause::Misaligned { space, address, n_bytes }.at(lane));
    }
    Ok(Extent::Flat { address, n_bytes, is_shared })
}

fn boxed(cx: &mut WarpCx<'_>, lane: usize, tensor: &Tensor) -> Result<Extent, Trap> {
    let address = cx.addresses(&tensor.map)[lane];
    let map = read_map(cx, lane, address)?;
    let registers = &cx.warp.registers;
    let coordinate = |row: &R32| registers.r32(*row)[lane] as i32;
    let coordinates: Vec<i32> = tensor.coordinates.iter().map(coordinate).collect();
    let map = TensorMap::decode(&map)
        .and_then(|map| map.rows(&coordinates).map(|_| map))
        .map_err(|error| Cause::from(TensorFault::from(error)).at(lane))?;
    Ok(Extent::Box { map, coordinates })
}

/// The 128 bytes at a generic address, which is a multiple of 64.
pub(super) fn read_map(
    cx: &mut WarpCx<'_>,
    lane: usize,
    address: u64,
) -> Result<[u8; MAP_BYTES], Trap> {
    let mut map = [0; MAP_BYTES];
    for half in [0, MAP_BYTES / 2] {
        let at = cx.generic(lane, address + half as u64, MAP_BYTES / 2)?;
        // SAFETY: `generic` gave 64 readable bytes.
        unsafe { at.as_ptr().copy_to_nonoverlapping(map[half..].as_mut_ptr(), MAP_BYTES / 2) };
    }
    Ok(map)
}

impl Extent {
    /// Bytes that it takes in shared memory.
    fn shared_bytes(&self) -> usize {
        match self {
            Extent::Flat { n_bytes, .. } => *n_bytes,
            Extent::Box { map, .. } => map.box_bytes(),
        }
    }

    /// What a shared address must be a multiple of.
    fn align(&self) -> u64 {
        if matches!(self, Extent::Box { .. }) { 128 } else { 16 }
    }

    /// The addresses of the 16-byte chunks that it takes in shared memory from `start` on.
    fn chunks(&self, start: u64) -> Vec<usize> {
        let linear = (0..self.shared_bytes()).step_by(16).map(|offset| start as usize + offset);
        match self {
            Extent::Flat { .. } => linear.collect(),
            Extent::Box { map, .. } => linear.map(|at| map.swizzle.apply(at)).collect(),
        }
    }

    fn check_shared(&self, start: u64) -> Result<(), Cause> {
        let n_bytes = self.shared_bytes();
        if start.is_multiple_of(self.align()) {
            return Ok(());
        }
        Err(Cause::Misaligned { space: Space::Shared, address: start, n_bytes })
    }
}

fn load(
    cx: &mut WarpCx<'_>,
    lane: usize,
    extent: Extent,
    (to, barrier): (&Address, &Address),
    multicast: Option<u32>,
) -> Result<(), Trap> {
    let at = |cause: Cause| cause.at(lane);
    let (to, barrier) = (cx.addresses(to)[lane], cx.addresses(barrier)[lane]);
    extent.check_shared(to).map_err(at)?;
    let own = (1u64 << CLUSTER_SHIFT) - 1;
    let in_block = |rank: usize| {
        let window = (rank as u64 + 1) << CLUSTER_SHIFT;
        (to & own | window, barrier & own | window)
    };
    let to = match multicast {
        Some(ranks) => lanes(ranks).map(in_block).collect(),
        None => vec![(to, barrier)],
    };
    let warp_idx = cx.warp.idx;
    let mut access = None;
    for (to, barrier) in &to {
        let chunks = extent.chunks(*to);
        if cx.cx.launch.checks.races || cx.cx.launch.checks.init {
            let written = checks::observe_async_write(&mut cx.cx, warp_idx, &chunks);
            access = Some(written.map_err(at)?);
        }
        for chunk in chunks {
            write_chunk(&mut cx.cx, chunk, &[POISON_BYTE; 16]).map_err(at)?;
        }
        // A barrier that is none is the fault of this instruction, not of the landing.
        barrier::change(&mut cx.cx, *barrier, |_| Ok(())).map_err(at)?;
    }
    cx.cx.block.tensor.push(Arrival::Bulk(Box::new(Load { extent, to, access })));
    Ok(())
}

fn store(
    cx: &mut WarpCx<'_>,
    lane: usize,
    extent: Extent,
    from: &Address,
    reduction: Option<Reduction>,
) -> Result<(), Trap> {
    let at = |cause: Cause| cause.at(lane);
    let from = cx.addresses(from)[lane];
    extent.check_shared(from).map_err(at)?;
    let of_map = match &extent {
        Extent::Box { map, .. } => Number::of_map(map.element_type),
        Extent::Flat { .. } => None,
    };
    let element = |reduction: Reduction| {
        let element = reduction.element(of_map).ok_or(Cause::from(TensorFault::Reduction));
        element.map(|element| (reduction, element))
    };
    let reduction = reduction.map(element).transpose().map_err(at)?;
    let warp_idx = cx.warp.idx;
    let mut access = None;
    if cx.cx.launch.checks.races || cx.cx.launch.checks.init {
        let chunks = extent.chunks(from);
        let read = checks::observe_async_read(&mut cx.cx, warp_idx, &chunks);
        access = Some(read.map_err(at)?);
    }
    let stores = &mut cx.cx.block.tensor.stores;
    let group = stores.n_groups(warp_idx)[lane];
    stores.under_way.push(Store { warp_idx, lane, group, from, extent, reduction, access });
    Ok(())
}

/// `cp.async.bulk.commit_group`.
pub(super) fn commit(cx: &mut WarpCx<'_>) -> Flow {
    let mask = cx.mask;
    let n_groups = cx.cx.block.tensor.stores.n_groups(cx.warp.idx);
    for lane in lanes(mask) {
        n_groups[lane] += 1;
    }
    Flow::Next
}

/// `cp.async.bulk.wait_group{.read}`: until no more than `n_outstanding` groups are under way.
pub(super) fn wait(n_outstanding: u64, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    let warp_idx = cx.warp.idx;
    for lane in cx.lanes() {
        let stores = &mut cx.cx.block.tensor.stores;
        let until = stores.n_groups(warp_idx)[lane].saturating_sub(n_outstanding);
        let is_due = |store: &mut Store| {
            store.warp_idx == warp_idx && store.lane == lane && store.group < until
        };
        let due: Vec<Store> = stores.under_way.extract_if(.., is_due).collect();
        for store in due {
            finish(&mut cx.cx, &store).map_err(|cause| cause.at(lane))?;
            if let Some(access) = store.access {
                checks::observe_async_done(&mut cx.cx, warp_idx, access);
            }
        }
    }
    Ok(Flow::Next)
}

/// Lands a copy into shared memory and tells its barriers.
pub(super) fn land(cx: &mut BlockCx<'_>, load: &Load) -> Result<(), Cause> {
    let n_bytes = load.extent.shared_bytes();
    let mut data = vec![0; n_bytes];
    match &load.extent {
        Extent::Flat { address, is_shared, .. } => {
            let from = if *is_shared {
                cx.shared(*address, n_bytes, 16)?
            } else {
                count_read(cx, *address, n_bytes);
                cx.global(*address, n_bytes, 16)?
            };
            // SAFETY: either gave `n_bytes` readable bytes.
            unsafe { from.as_ptr().copy_to_nonoverlapping(data.as_mut_ptr(), n_bytes) };
        }
        Extent::Box { map, coordinates } => {
            let rows = map.rows(coordinates).map_err(TensorFault::from)?;
            for row in rows {
                read_row(cx, map, &row, &mut data[row.offset..row.offset + row.n_bytes])?;
            }
        }
    }
    for (to, barrier) in &load.to {
        for (chunk, bytes) in load.extent.chunks(*to).into_iter().zip(data.chunks_exact(16)) {
            let bytes = bytes.try_into().expect("chunks of 16 bytes");
            write_chunk(cx, chunk, bytes)?;
        }
        let is_over =
            barrier::change(cx, *barrier, |barrier| barrier.complete_bytes(n_bytes as u32))?;
        if let Some(access) = load.access {
            checks::observe_async_arrival(cx, *barrier, access, is_over);
        }
    }
    Ok(())
}

fn read_row(
    cx: &mut BlockCx<'_>,
    map: &TensorMap,
    row: &Row,
    data: &mut [u8],
) -> Result<(), Cause> {
    data.fill(map.fill);
    let Some(inside) = row.inside else { return Ok(()) };
    count_read(cx, inside.address, inside.n_bytes);
    let from = cx.global(inside.address, inside.n_bytes, 1)?;
    let to = &mut data[inside.skip..inside.skip + inside.n_bytes];
    // SAFETY: `global` gave that many readable bytes, and `to` is as long.
    unsafe { from.as_ptr().copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
    Ok(())
}

fn count_read(cx: &mut BlockCx<'_>, address: u64, n_bytes: usize) {
    cx.counters.bytes_read += n_bytes as u64;
    if cx.launch.checks.sectors {
        cx.counters.sectors_read += checks::n_sectors(address, n_bytes);
    }
}

/// Does a copy out of shared memory.
fn finish(cx: &mut BlockCx<'_>, store: &Store) -> Result<(), Cause> {
    let mut data = Vec::with_capacity(store.extent.shared_bytes());
    for chunk in store.extent.chunks(store.from) {
        let at = cx.shared(chunk as u64, 16, 16)?.cast::<[u8; 16]>();
        // SAFETY: `shared` gave 16 readable bytes.
        data.extend(unsafe { at.read() });
    }
    match &store.extent {
        Extent::Flat { address, .. } => write_global(cx, *address, &data, store.reduction),
        Extent::Box { map, coordinates } => {
            let rows = map.rows(coordinates).map_err(TensorFault::from)?;
            for row in rows {
                let Some(inside) = row.inside else { continue };
                let first = row.offset + inside.skip;
                let data = &data[first..first + inside.n_bytes];
                write_global(cx, inside.address, data, store.reduction)?;
            }
            Ok(())
        }
    }
}

fn write_global(
    cx: &mut BlockCx<'_>,
    address: u64,
    data: &[u8],
    reduction: Option<(Reduction, Number)>,
) -> Result<(), Cause> {
    cx.counters.bytes_written += data.len() as u64;
    if cx.launch.checks.sectors {
        cx.counters.sectors_written += checks::n_sectors(address, data.len());
    }
    let to = cx.global(address, data.len(), 1)?;
    match reduction {
        Some((reduction, element)) => reduction.apply(element, to, data),
        // SAFETY: `global` gave as many writable bytes as `data` has.
        None => unsafe { to.as_ptr().copy_from_nonoverlapping(data.as_ptr(), data.len()) },
    }
    Ok(())
}

fn write_chunk(cx: &mut BlockCx<'_>, address: usize, bytes: &[u8; 16]) -> Result<(), Cause> {
    let at = cx.shared(address as u64, 16, 16)?.cast::<[u8; 16]>();
    // SAFETY: `shared` gave 16 bytes of the cluster's memory, whose blocks share a thread.
    unsafe { at.write(*bytes) };
    Ok(())
}
