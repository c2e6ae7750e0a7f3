//! The launch of `rope_kv.cu`.

use crate::device::cuda::{CudaExec, Kernel, LaunchConfig};
use crate::device::{Deferred, DeviceError, DevicePtr};
use crate::kernels::launching::{CHUNK, Factors, count, is_wide};

const N_THREADS_MAX: usize = 256;
/// Pairs of a head that the kernel has room for.
const N_PAIRS_MAX: usize = 256;

/// What to launch, on memory of the executor's device.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Launch {
    /// bf16 `[n_tokens, wide_stride]`: queries, keys, values.
    pub(in crate::kernels) wide: DevicePtr,
    pub(in crate::kernels) wide_stride: usize,
    /// Factors that `wide` still lacks.
    pub(in crate::kernels) scales: Deferred,
    pub(in crate::kernels) n_tokens: usize,
    /// f64 `[head_dim / 2]`.
    pub(in crate::kernels) frequencies: DevicePtr,
    /// i32 `[n_tokens]`.
    pub(in crate::kernels) positions: DevicePtr,
    /// i32 `[n_tokens]`; negative for padding.
    pub(in crate::kernels) slots: DevicePtr,
    pub(in crate::kernels) heads: Heads,
    /// bf16 `[n_tokens, n_q_heads * head_dim]`.
    pub(in crate::kernels) q: DevicePtr,
    pub(in crate::kernels) cache: Cache,
}

/// This rank's heads.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Heads {
    pub(in crate::kernels) n_q_heads: usize,
    pub(in crate::kernels) n_kv_heads: usize,
    pub(in crate::kernels) head_dim: usize,
}

/// Where keys and values go.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Cache {
    /// `[page][kv_head][token of 16][head_dim]`.
    pub(in crate::kernels) keys: DevicePtr,
    /// The same.
    pub(in crate::kernels) values: DevicePtr,
    pub(in crate::kernels) element: Cached,
    /// i32 `[n_slots, n_pages_per_slot]`.
    pub(in crate::kernels) page_tables: DevicePtr,
    pub(in crate::kernels) n_pages_per_slot: usize,
}

/// What the cache holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::kernels) enum Cached {
    Bf16,
    /// `key / k_scale` and `value / v_scale`.
    E4m3 {
        k_scale: f32,
        v_scale: f32,
    },
}

/// Launches; nothing where there are no tokens.
pub(in crate::kernels) fn launch(exec: &CudaExec, launch: &Launch) -> Result<(), DeviceError> {
    let Launch { wide, wide_stride, n_tokens, frequencies, positions, slots, q, .. } = *launch;
    let Heads { n_q_heads, n_kv_heads, head_dim } = launch.heads;
    let Cache { keys, values, element, page_tables, n_pages_per_slot } = launch.cache;
    assert!((n_q_heads + 2 * n_kv_heads) * head_dim <= wide_stride, "{launch:?}");
    let is_head = head_dim.is_multiple_of(2) && head_dim / 2 <= N_PAIRS_MAX;
    assert!(is_head, "heads of {head_dim}");
    if n_tokens == 0 {
        return Ok(());
    }
    let factors = Factors::from(launch.scales);
    let [q_factor, k_factor, v_factor] = factors.parts;
    let (name, k_scale, v_scale) = match element {
        Cached::Bf16 => ("rope_kv_bf16", 1.0, 1.0),
        Cached::E4m3 { k_scale, v_scale } => ("rope_kv_e4m3", k_scale, v_scale),
    };
    let addresses = [wide, q, keys, values, factors.columns];
    let params = [
        wide.into(),
        factors.columns.into(),
        factors.tokens.into(),
        frequencies.into(),
        positions.into(),
        slots.into(),
        page_tables.into(),
        q.into(),
        count(wide_stride).into(),
        count(n_pages_per_slot).into(),
        count(n_q_heads).into(),
        count(n_kv_heads).into(),
        count(head_dim).into(),
        is_wide(&[head_dim / 2, wide_stride], &addresses).into(),
        q_factor.into(),
        k_factor.into(),
        v_factor.into(),
        k_scale.into(),
        v_scale.into(),
        keys.into(),
        values.into(),
    ];
    let config = config(n_tokens, launch.heads);
    // SAFETY: these are the parameters of `rope_kv.cu`'s kernels, and the caller's arrays have the
    // shapes that `Launch` states.
    unsafe { exec.launch(Kernel { family: "rope_kv", name }, config, &params) }
}

/// A token a block, with a thread for each pair of chunks as far as threads go.
fn config(n_tokens: usize, heads: Heads) -> LaunchConfig {
    let Heads { n_q_heads, n_kv_heads, head_dim } = heads;
    let n_items = (n_q_heads + 2 * n_kv_heads) * (head_dim / 2).div_ceil(CHUNK);
    let n_threads = n_items.next_multiple_of(32).min(N_THREADS_MAX);
    LaunchConfig {
        grid: [n_tokens as u32, 1, 1],
        block: [n_threads as u32, 1, 1],
        shared_bytes: 0,
        cluster: 1,
    }
}

#[cfg(test)]
mod tests;
