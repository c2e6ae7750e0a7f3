//! What attention's kernels take, word by word as they read it.

use std::f32::consts::LOG2_E;

use super::{Launch, Queries, Workspace, count, group};
use crate::device::cuda::DevicePtr;
use crate::kernels::launching::Factors;

/// `Args` of attention.cuh.
pub(super) fn args(launch: &Launch<'_>, workspace: Option<Workspace>) -> [u64; 15] {
    let Launch { share, .. } = launch;
    launch.check();
    let none =
        Workspace { sums: DevicePtr::NULL, stats: DevicePtr::NULL, n_arrived: DevicePtr::NULL };
    let workspace = workspace.unwrap_or(none);
    let (k_scale, v_scale) = launch.stored_scales();
    let (q, q_stride) = match launch.queries {
        Queries::Rotated { q, stride } => (q, stride),
        Queries::Projected { .. } => (DevicePtr::NULL, 0),
    };
    let score_factor = k_scale / (share.head_dim as f32).sqrt() * LOG2_E;
    [
        q.0,
        launch.keys.0,
        launch.values.0,
        launch.tables.0,
        launch.rows.0,
        launch.out.0,
        workspace.sums.0,
        workspace.stats.0,
        workspace.n_arrived.0,
        pair(count(q_stride), count(launch.out_stride)),
        pair(count(launch.n_table_entries), count(launch.n_rows)),
        pair(count(share.n_kv_heads), count(group(share))),
        pair(share.window.map_or(u32::MAX, count), launch.out_scale.is_some().into()),
        pair(score_factor.to_bits(), v_scale.to_bits()),
        pair(launch.out_scale.unwrap_or(1.0).to_bits(), 0),
    ]
}

/// `Projected` of rope.cuh; zeroes where queries are rotated.
pub(super) fn projected(launch: &Launch<'_>) -> [u64; 7] {
    let Queries::Projected { wide, stride, scales, frequencies } = launch.queries else {
        return [0; 7];
    };
    let factors = Factors::from(scales);
    let [q_factor, k_factor, v_factor] = factors.parts.map(f32::to_bits);
    let (k_scale, v_scale) = launch.stored_scales();
    [
        wide.0,
        factors.columns.0,
        factors.tokens.0,
        frequencies.0,
        pair(count(stride), q_factor),
        pair(k_factor, v_factor),
        pair(k_scale.to_bits(), v_scale.to_bits()),
    ]
}

/// Two neighbours of four bytes, the first in the lower half.
fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}
