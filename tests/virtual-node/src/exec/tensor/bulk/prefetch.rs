//! Bulk prefetches: a stretch of device memory that the L2 cache is to have.

use super::{Extent, flat};
use crate::exec::WarpCx;
use crate::exec::fault::Trap;
use crate::exec::inst::{Address, R32};

/// Nothing can be read by it, but what lies beyond an allocation is a mistake all the same.
pub(super) fn issue(
    cx: &mut WarpCx<'_>,
    lane: usize,
    from: &Address,
    n_bytes: R32,
) -> Result<(), Trap> {
    if let Extent::Flat { address, n_bytes, .. } = flat(cx, lane, from, n_bytes, false)? {
        cx.cx.global(address, n_bytes, 1).map_err(|cause| cause.at(lane))?;
        cx.cx.counters.bytes_prefetched += n_bytes as u64;
    }
    Ok(())
}
