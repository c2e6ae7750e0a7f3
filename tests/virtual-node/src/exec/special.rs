//! Special registers: what each thread knows of its place.

use crate::exec::grid::Launch;
use crate::exec::{Block, Warp};

/// A special register that does not change while a thread runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// Axis 0 to 2.
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    LaneMask(LaneMask),
    SmId,
    NSmId,
    /// Low half.
    GridId,
    ClusterId(u8),
    NClusterId(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtaRank,
    ClusterNctaRank,
    IsExplicitCluster,
    DynamicSharedBytes,
    TotalSharedBytes,
    Zero,
}

/// Which lanes relative to one's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LaneMask {
    Eq,
    Le,
    Lt,
    Ge,
    Gt,
}

/// Streaming multiprocessors of an H100 SXM.
pub const N_SM: u32 = 132;

/// Writes the special registers that a kernel reads into a warp's rows, and the addresses of the
/// module's variables.
pub(super) fn fill(warp: &mut Warp, launch: &Launch, block: &Block) {
    let constants = &launch.kernel.constants;
    for (row, special) in &constants.special {
        let warp_idx = warp.idx;
        let lanes = warp.registers.r32_mut(*row);
        for (lane, value) in lanes.iter_mut().enumerate() {
            *value = read(*special, launch, block, warp_idx * 32 + lane);
        }
    }
    for (row, global_idx, offset) in &constants.globals {
        let address = launch.globals[*global_idx].wrapping_add_signed(*offset);
        *warp.registers.r64_mut(*row) = [address; 32];
    }
}

/// The value for a thread of a block.
fn read(special: Special, launch: &Launch, block: &Block, thread: usize) -> u32 {
    let (thread, lane) = (thread as u32, thread as u32 % 32);
    let axis = |values: [u32; 3], axis: u8| values[axis as usize];
    let cluster = launch.cluster;
    let by_cluster = |values: [u32; 3], axis: u8, f: fn(u32, u32) -> u32| {
        f(values[axis as usize], cluster[axis as usize])
    };
    match special {
        Special::Tid(at) => axis(launch.thread_idx(thread), at),
        Special::Ntid(at) => axis(launch.block, at),
        Special::Ctaid(at) => axis(block.idx, at),
        Special::Nctaid(at) => axis(launch.grid, at),
        Special::LaneId => lane,
        Special::WarpId => thread / 32,
        Special::NWarpId => launch.threads_per_block().div_ceil(32) as u32,
        Special::LaneMask(LaneMask::Eq) => 1 << lane,
        Special::LaneMask(LaneMask::Lt) => (1 << lane) - 1,
        Special::LaneMask(LaneMask::Le) => (2u32 << lane).wrapping_sub(1),
        Special::LaneMask(LaneMask::Ge) => !((1 << lane) - 1),
        Special::LaneMask(LaneMask::Gt) => !(2u32 << lane).wrapping_sub(1),
        Special::SmId => {
            let [x, y, _] = launch.grid;
            (block.idx[0] + x * (block.idx[1] + y * block.idx[2])) % N_SM
        }
        Special::NSmId => N_SM,
        Special::ClusterId(at) => by_cluster(block.idx, at, |value, n| value / n),
        Special::NClusterId(at) => by_cluster(launch.grid, at, |value, n| value / n),
        Special::ClusterCtaid(at) => by_cluster(block.idx, at, |value, n| value % n),
        Special::ClusterNctaid(at) => axis(cluster, at),
        Special::ClusterCtaRank => block.rank,
        Special::ClusterNctaRank => launch.blocks_per_cluster() as u32,
        Special::DynamicSharedBytes => launch.dynamic_shared_bytes as u32,
        Special::TotalSharedBytes => launch.shared_bytes() as u32,
        Special::IsExplicitCluster | Special::GridId | Special::Zero => 0,
    }
}
