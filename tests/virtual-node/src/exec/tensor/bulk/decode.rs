//! What the bulk copies say: `cp.async.bulk`, its tensor form and its reductions.

use super::super::operands::{address, map_and_coordinates, operand, unsupported};
use super::reduce::Reduction;
use crate::exec::inst::{Address, R32};
use crate::ptx::{Instruction, Lowered, Lowering};

/// A bulk copy, issued by each active lane.
#[derive(Clone, Debug, PartialEq)]
pub struct BulkCopy {
    pub(super) route: Route,
    /// Blocks of the cluster that all get the data, as bits.
    pub(super) multicast: Option<R32>,
}

/// Where from and where to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Route {
    /// Device memory to shared memory, told to a barrier.
    Load {
        to: Address,
        from: Address,
        n_bytes: R32,
        barrier: Address,
    },
    /// Shared memory to another block's, told to a barrier.
    Exchange {
        to: Address,
        from: Address,
        n_bytes: R32,
        barrier: Address,
    },
    /// Shared memory to device memory, in a group of the thread.
    Store {
        to: Address,
        from: Address,
        n_bytes: R32,
        reduction: Option<Reduction>,
    },
    /// Device memory to the L2 cache: a hint, but of memory that is there.
    Prefetch {
        from: Address,
        n_bytes: R32,
    },
    TensorLoad {
        to: Address,
        tensor: Tensor,
        barrier: Address,
    },
    TensorStore {
        tensor: Tensor,
        from: Address,
        reduction: Option<Reduction>,
    },
}

/// A tensor map, and the place of a box in its tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) map: Address,
    pub(super) coordinates: Box<[R32]>,
}

/// Decodes a copy; prefetches of tensors are nothing.
pub(in super::super) fn decode(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
) -> Lowered<Option<BulkCopy>> {
    let mnemonic = &inst.mnemonic;
    if mnemonic.has("prefetch") && mnemonic.has("tensor") {
        return Ok(None);
    }
    if mnemonic.has("prefetch") {
        let (from, n_bytes) = (address(cx, inst, 0)?, cx.source32(operand(inst, 1)?)?);
        return Ok(Some(BulkCopy { route: Route::Prefetch { from, n_bytes }, multicast: None }));
    }
    if mnemonic.has("im2col") || mnemonic.has("tile::gather4") || mnemonic.has("cp_mask") {
        return unsupported(mnemonic);
    }
    let reduces = mnemonic.has("reduce");
    let reduction = if reduces { Some(Reduction::parse(mnemonic)?) } else { None };
    let spaces: Vec<&str> = mnemonic
        .modifiers()
        .iter()
        .map(String::as_str)
        .filter(|part| part.starts_with("shared") || *part == "global")
        .collect();
    let is_shared = |space: &str| space.starts_with("shared");
    let route = match (mnemonic.has("tensor"), spaces.as_slice()) {
        (true, [to, "global"]) if is_shared(to) && !reduces => {
            let (map, coordinates) = map_and_coordinates(cx, inst, 1)?;
            let (to, barrier) = (address(cx, inst, 0)?, address(cx, inst, 2)?);
            Route::TensorLoad { to, tensor: Tensor { map, coordinates }, barrier }
        }
        (true, ["global", from]) if is_shared(from) => {
            let (map, coordinates) = map_and_coordinates(cx, inst, 0)?;
            let from = address(cx, inst, 1)?;
            Route::TensorStore { tensor: Tensor { map, coordinates }, from, reduction }
        }
        (false, [to, from]) => {
            let n_bytes = cx.source32(operand(inst, 2)?)?;
            let (to_address, from_address) = (address(cx, inst, 0)?, address(cx, inst, 1)?);
            let (to, from) = ((is_shared(to), to_address), (is_shared(from), from_address));
            match (to, from) {
                ((true, to), (false, from)) if !reduces => {
                    Route::Load { to, from, n_bytes, barrier: address(cx, inst, 3)? }
                }
                ((true, to), (true, from)) if !reduces => {
                    Route::Exchange { to, from, n_bytes, barrier: address(cx, inst, 3)? }
                }
                ((false, to), (true, from)) => Route::Store { to, from, n_bytes, reduction },
                _ => return unsupported(mnemonic),
            }
        }
        _ => return unsupported(mnemonic),
    };
    let multicast_idx = if mnemonic.has("tensor") { 3 } else { 4 };
    let multicast = if mnemonic.has("multicast::cluster") {
        Some(cx.source32(operand(inst, multicast_idx)?)?)
    } else {
        None
    };
    Ok(Some(BulkCopy { route, multicast }))
}
