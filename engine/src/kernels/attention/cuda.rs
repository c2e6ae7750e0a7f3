//! Attention on the GPU: which kernel, how many blocks, how much memory beside the arguments.
//!
//! Rows of one token go to [`decode`], whose launch depends on the number of rows and the longest
//! context alone, so that a graph can hold it; rows of any length go to [`prefill`]. The two agree
//! within the bound below, not in every bit: a sequence's token must always take the same one.
//!
//! An output is within `(2 e + 2^-7) · max|v|` of the exact one over what the cache holds, plus
//! half a unit in the last place of the output's own type, where e, the error of a score, is under
//! `head_dim / 8 + 12` roundings of `max_j Σ_d |q[d] · k[j][d]| / sqrt(head_dim)`: products are
//! exact, sums are in f32, weights are rounded to bf16 and divided by the sum of the rounded ones.

use std::f32::consts::LOG2_E;

use weights::AttentionSpec;

use crate::KvDtype;
use crate::cache::PAGE_TOKENS;
use crate::device::DeviceError;
use crate::device::cuda::{CudaExec, DevicePtr, Kernel, LaunchConfig, Param, Plain, bytes_of};

const DECODE_WARPS: usize = 4;
const PREFILL_WARPS: usize = 8;
/// Query heads of a key/value head, or the heads of several tokens: rows of an mma.
const MMA_ROWS: usize = 16;

/// One row as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// Whose page table; -1 is padding.
    pub slot: i32,
    /// First of its tokens in the step.
    pub token_idx: i32,
    /// How many; decode reads it as 1.
    pub n_tokens: i32,
    /// Position of the first in its sequence.
    pub start: i32,
}

// SAFETY: four numbers of one size.
unsafe impl Plain for DeviceRow {}

/// What is attended to and where the answer goes. Tokens are in batch order.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// This rank's heads, and the window.
    pub share: &'a AttentionSpec,
    /// bf16 `[T][n_q_heads * head_dim]`, rotated and without factors left to apply.
    pub q: DevicePtr,
    /// Elements from one token's queries to the next's.
    pub q_stride: usize,
    /// The block's pages, `[page][kv_head][16][head_dim]`; the step's own tokens are written.
    pub keys: DevicePtr,
    /// The same for values.
    pub values: DevicePtr,
    /// Element type of both.
    pub kv_dtype: KvDtype,
    /// Factor of keys in an FP8 cache.
    pub k_scale: f32,
    /// Factor of values in an FP8 cache.
    pub v_scale: f32,
    /// i32 `[n_slots][n_table_entries]`. Entries that no row sees are not read.
    pub tables: DevicePtr,
    /// Entries of a slot's table.
    pub n_table_entries: usize,
    /// `[n_rows]` of [`DeviceRow`].
    pub rows: DevicePtr,
    /// Rows, padding among them.
    pub n_rows: usize,
    /// `[T][n_q_heads * head_dim]`, bf16 or e4m3. Tokens of no row are not written.
    pub out: DevicePtr,
    /// Elements from one token's outputs to the next's.
    pub out_stride: usize,
    /// Writes `e4m3(clamp(x / scale))`; bf16 without one.
    pub out_scale: Option<f32>,
}

/// Memory that decode needs beside its arguments; the same for all blocks of a model, because
/// they follow each other on one stream.
#[derive(Clone, Copy, Debug)]
pub struct Workspace {
    /// As many bytes as [`WorkspaceSize::n_sums_bytes`].
    pub sums: DevicePtr,
    /// As many bytes as [`WorkspaceSize::n_stats_bytes`].
    pub stats: DevicePtr,
    /// As many bytes as [`WorkspaceSize::n_arrived_bytes`], zero before the first launch and after
    /// every launch.
    pub n_arrived: DevicePtr,
}

/// How large a [`Workspace`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkspaceSize {
    /// Weighted sums of values, of every part.
    pub n_sums_bytes: usize,
    /// Greatest scores and sums of weights, of every part.
    pub n_stats_bytes: usize,
    /// A count for each row and key/value head.
    pub n_arrived_bytes: usize,
}

impl WorkspaceSize {
    /// For at most `n_rows` rows of at most `n_context` positions.
    pub fn new(share: &AttentionSpec, n_rows: usize, n_context: usize) -> WorkspaceSize {
        let n_heads = n_rows * share.n_kv_heads;
        let n_parts = n_heads * n_parts_max(n_context, share.window);
        WorkspaceSize {
            n_sums_bytes: n_parts * MMA_ROWS * share.head_dim * size_of::<f32>(),
            n_stats_bytes: n_parts * MMA_ROWS * 2 * size_of::<f32>(),
            n_arrived_bytes: n_heads * size_of::<u32>(),
        }
    }

    /// What serves both.
    #[must_use]
    pub fn max(self, other: WorkspaceSize) -> WorkspaceSize {
        WorkspaceSize {
            n_sums_bytes: self.n_sums_bytes.max(other.n_sums_bytes),
            n_stats_bytes: self.n_stats_bytes.max(other.n_stats_bytes),
            n_arrived_bytes: self.n_arrived_bytes.max(other.n_arrived_bytes),
        }
    }
}

/// Tokens of a part of a context in which `n_seen` positions are seen: `part_shift` of the kernel.
fn part_tokens(n_seen: usize) -> usize {
    match n_seen {
        0..=2048 => 256,
        2049..=4096 => 512,
        4097..=65536 => 1024,
        _ => 2048,
    }
}

/// Most parts that a row can have while contexts have at most `n_context` positions.
pub fn n_parts_max(n_context: usize, window: Option<usize>) -> usize {
    // Parts grow in steps: the longest context of each length of part has the most of them. A
    // window begins anywhere, so it may touch one more.
    let parts = |n_seen: usize| {
        let is_cut = n_seen < n_context;
        n_seen.div_ceil(part_tokens(n_seen)) + usize::from(is_cut && window.is_some())
    };
    let n_seen = window.unwrap_or(n_context).min(n_context).max(1);
    [2048, 4096, 65536, n_seen].into_iter().filter(|&n| n <= n_seen).map(parts).max().unwrap_or(1)
}

/// Blocks that [`prefill`] needs for rows of so many tokens.
pub fn n_tiles(share: &AttentionSpec, n_tokens_of_rows: impl Iterator<Item = usize>) -> usize {
    let tile_tokens = PREFILL_WARPS * (MMA_ROWS / group(share));
    n_tokens_of_rows.map(|n_tokens| n_tokens.div_ceil(tile_tokens)).sum()
}

/// Attends for rows of one token. `n_context` bounds their positions.
///
/// # Errors
/// What the driver has against the launch.
///
/// Every pointer must be as its field says, on this device, for as long as the launch (or the graph
/// that records it) may run; rows' slots, tokens and pages lie within what the pointers point to.
pub fn decode(
    exec: &CudaExec,
    launch: &Launch<'_>,
    workspace: Workspace,
    n_context: usize,
) -> Result<(), DeviceError> {
    let grid = decode_config(launch.share, launch.n_rows, n_context);
    let (_, name) = kernel_names(launch.share, launch.kv_dtype);
    let kernel = Kernel { family: "attention", name };
    submit(exec, kernel, grid, DeviceArgs::new(launch, Some(workspace)))
}

/// Attends for rows of any number of tokens, in `n_tiles` blocks: see [`n_tiles`].
///
/// # Errors
/// What the driver has against the launch.
///
/// What [`decode`] asks of pointers and rows holds here too.
pub fn prefill(exec: &CudaExec, launch: &Launch<'_>, n_tiles: usize) -> Result<(), DeviceError> {
    let config = prefill_config(launch.share, n_tiles);
    let (name, _) = kernel_names(launch.share, launch.kv_dtype);
    let kernel = Kernel { family: "attention_prefill", name };
    submit(exec, kernel, config, DeviceArgs::new(launch, None))
}

fn decode_config(share: &AttentionSpec, n_rows: usize, n_context: usize) -> LaunchConfig {
    let n_parts = n_parts_max(n_context, share.window);
    LaunchConfig {
        grid: [n_parts, share.n_kv_heads, n_rows].map(count),
        block: [count(32 * DECODE_WARPS), 1, 1],
        shared_bytes: 0,
        cluster: 1,
    }
}

fn prefill_config(share: &AttentionSpec, n_tiles: usize) -> LaunchConfig {
    LaunchConfig {
        grid: [count(n_tiles), count(share.n_kv_heads), 1],
        block: [count(32 * PREFILL_WARPS), 1, 1],
        shared_bytes: 0,
        cluster: 1,
    }
}

/// Of prefill and of decode.
fn kernel_names(share: &AttentionSpec, dtype: KvDtype) -> (&'static str, &'static str) {
    match (share.head_dim, dtype) {
        (32, KvDtype::Bf16) => ("attention_prefill_d32_bf16", "attention_decode_d32_bf16"),
        (64, KvDtype::Bf16) => ("attention_prefill_d64_bf16", "attention_decode_d64_bf16"),
        (96, KvDtype::Bf16) => ("attention_prefill_d96_bf16", "attention_decode_d96_bf16"),
        (128, KvDtype::Bf16) => ("attention_prefill_d128_bf16", "attention_decode_d128_bf16"),
        (32, KvDtype::Fp8) => ("attention_prefill_d32_f8", "attention_decode_d32_f8"),
        (64, KvDtype::Fp8) => ("attention_prefill_d64_f8", "attention_decode_d64_f8"),
        (96, KvDtype::Fp8) => ("attention_prefill_d96_f8", "attention_decode_d96_f8"),
        (128, KvDtype::Fp8) => ("attention_prefill_d128_f8", "attention_decode_d128_f8"),
        // Refused at boot: see `supports`.
        (head_dim, dtype) => panic!("no attention kernel for head_dim {head_dim} and {dtype:?}"),
    }
}

/// Whether there are kernels for these heads and this cache.
pub fn supports(share: &AttentionSpec, dtype: KvDtype) -> bool {
    matches!(share.head_dim, 32 | 64 | 96 | 128)
        && matches!(dtype, KvDtype::Bf16 | KvDtype::Fp8)
        && share.n_q_heads.is_multiple_of(share.n_kv_heads)
        && (1..=MMA_ROWS).contains(&group(share))
}

fn group(share: &AttentionSpec) -> usize {
    share.n_q_heads / share.n_kv_heads
}

fn count(n: usize) -> u32 {
    u32::try_from(n).expect("sizes of a launch are in 32 bits")
}

/// `Args` of attention.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct DeviceArgs {
    q: u64,
    keys: u64,
    values: u64,
    tables: u64,
    rows: u64,
    out: u64,
    part_sums: u64,
    part_stats: u64,
    n_arrived: u64,
    q_stride: u32,
    out_stride: u32,
    n_table_entries: u32,
    n_rows: u32,
    n_kv_heads: u32,
    group: u32,
    window: u32,
    out_is_f8: u32,
    score_factor: f32,
    value_factor: f32,
    out_scale: f32,
    unused: u32,
}

// SAFETY: nine numbers of eight bytes, then twelve of four: no gap.
unsafe impl Plain for DeviceArgs {}

impl DeviceArgs {
    fn new(launch: &Launch<'_>, workspace: Option<Workspace>) -> DeviceArgs {
        let Launch { share, .. } = launch;
        launch.check();
        let none =
            Workspace { sums: DevicePtr::NULL, stats: DevicePtr::NULL, n_arrived: DevicePtr::NULL };
        let workspace = workspace.unwrap_or(none);
        let (k_scale, v_scale) = match launch.kv_dtype {
            KvDtype::Fp8 => (launch.k_scale, launch.v_scale),
            KvDtype::Bf16 | KvDtype::F32 => (1.0, 1.0),
        };
        DeviceArgs {
            q: launch.q.0,
            keys: launch.keys.0,
            values: launch.values.0,
            tables: launch.tables.0,
            rows: launch.rows.0,
            out: launch.out.0,
            part_sums: workspace.sums.0,
            part_stats: workspace.stats.0,
            n_arrived: workspace.n_arrived.0,
            q_stride: count(launch.q_stride),
            out_stride: count(launch.out_stride),
            n_table_entries: count(launch.n_table_entries),
            n_rows: count(launch.n_rows),
            n_kv_heads: count(share.n_kv_heads),
            group: count(group(share)),
            window: share.window.map_or(u32::MAX, count),
            out_is_f8: launch.out_scale.is_some().into(),
            score_factor: k_scale / (share.head_dim as f32).sqrt() * LOG2_E,
            value_factor: v_scale,
            out_scale: launch.out_scale.unwrap_or(1.0),
            unused: 0,
        }
    }
}

impl Launch<'_> {
    fn check(&self) {
        let share = self.share;
        assert!(supports(share, self.kv_dtype), "{share:?} {:?}", self.kv_dtype);
        let width = share.n_q_heads * share.head_dim;
        assert!(self.q_stride >= width && self.out_stride >= width, "{self:?}");
        // Everything is read in vectors of sixteen bytes.
        assert!(self.q_stride.is_multiple_of(8) && self.q.is_aligned(16), "{self:?}");
        assert!(self.out_stride.is_multiple_of(2) && self.out.is_aligned(4), "{self:?}");
        assert!(self.keys.is_aligned(16) && self.values.is_aligned(16), "{self:?}");
        assert!(self.rows.is_aligned(16), "{self:?}");
        assert_eq!(PAGE_TOKENS, 16, "the kernels' pages");
    }
}

fn submit(
    exec: &CudaExec,
    kernel: Kernel,
    config: LaunchConfig,
    args: DeviceArgs,
) -> Result<(), DeviceError> {
    if config.grid.contains(&0) {
        return Ok(());
    }
    // SAFETY: the kernel's one parameter is this struct, by value. What it points to is as the
    // caller says; the host never touches it.
    unsafe { exec.launch(kernel, config, &[Param::Bytes(bytes_of(&[args]))]) }
}

#[cfg(test)]
mod tests;
