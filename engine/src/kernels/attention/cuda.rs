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

mod args;

use weights::AttentionSpec;

use crate::KvDtype;
use crate::cache::PAGE_TOKENS;
use crate::device::cuda::{CudaExec, DevicePtr, Kernel, LaunchConfig, Param, Plain};
use crate::device::{Deferred, DeviceError, DeviceView};
use crate::kernels::ahead::Ahead;
use crate::kernels::launching::{CHUNK, Factors, by_value};

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
    /// What attends.
    pub queries: Queries,
    /// The block's pages, `[page][kv_head][16][head_dim]`.
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

/// Where queries come from.
#[derive(Clone, Copy, Debug)]
pub enum Queries {
    /// Rotated, without factors left to apply; the step's keys and values are in the cache.
    Rotated {
        /// bf16 `[T][n_q_heads * head_dim]`.
        q: DevicePtr,
        /// Elements from one token's queries to the next's.
        stride: usize,
    },
    /// Decode alone takes them as the projection left them, and writes the cache.
    Projected {
        /// bf16 `[T][(n_q_heads + 2 * n_kv_heads) * head_dim]`: queries, keys, values.
        wide: DevicePtr,
        /// Elements from one token's columns to the next's.
        stride: usize,
        /// Factors that they still lack.
        scales: Deferred,
        /// f64 `[head_dim / 2]`: what turns each pair.
        frequencies: DevicePtr,
    },
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

/// Attends for rows of one token. `n_context` bounds their positions; of `next`, the weights that
/// the next product reads, a part is fetched into the cache.
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
    next: Option<DeviceView>,
) -> Result<(), DeviceError> {
    let mut config = decode_config(launch.share, launch.kv_dtype, launch.n_rows, n_context);
    let (_, name) = kernel_names(launch.share, launch.kv_dtype);
    let kernel = Kernel { family: "attention", name };
    let args = args::args(launch, Some(workspace));
    let projected = args::projected(launch);
    let ahead = next.and_then(|weights| Ahead::new(weights, launch.n_rows));
    let ahead_words = Ahead::words(ahead, config.grid[2]);
    if ahead.is_some() && launch.n_rows > 0 {
        config.grid[2] += Ahead::N_BLOCKS.div_ceil(config.grid[0] * config.grid[1]);
    }
    let params = [by_value(&args), by_value(&projected), by_value(&ahead_words)];
    submit(exec, kernel, config, &params)
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
    let is_rotated = matches!(launch.queries, Queries::Rotated { .. });
    assert!(is_rotated, "a prompt's tokens attend to each other: all of them are written before");
    submit(exec, kernel, config, &[by_value(&args::args(launch, None))])
}

fn decode_config(
    share: &AttentionSpec,
    dtype: KvDtype,
    n_rows: usize,
    n_context: usize,
) -> LaunchConfig {
    let n_parts = n_parts_max(n_context, share.window);
    LaunchConfig {
        grid: [n_parts, share.n_kv_heads, n_rows].map(count),
        block: [count(32 * DECODE_WARPS), 1, 1],
        shared_bytes: count(shared_bytes(share.head_dim, dtype)),
        cluster: 1,
    }
}

/// `DecodeShared` of the kernel: pages on their way, and beside them a softmax for each warp's
/// rows, queries with padding, what turns them, and who came last.
fn shared_bytes(head_dim: usize, dtype: KvDtype) -> usize {
    let n_stages = if dtype == KvDtype::Fp8 { 4 } else { 3 };
    let page_bytes = 2 * PAGE_TOKENS * head_dim * dtype.n_bytes();
    let stats_bytes = DECODE_WARPS * MMA_ROWS * 2 * size_of::<f32>();
    let queries_bytes = MMA_ROWS * (head_dim + CHUNK) * 2;
    let angles_bytes = head_dim * size_of::<f32>();
    DECODE_WARPS * n_stages * page_bytes + stats_bytes + queries_bytes + angles_bytes + 16
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

impl Launch<'_> {
    /// What a stored key and a stored value must be multiplied by.
    fn stored_scales(&self) -> (f32, f32) {
        match self.kv_dtype {
            KvDtype::Fp8 => (self.k_scale, self.v_scale),
            KvDtype::Bf16 | KvDtype::F32 => (1.0, 1.0),
        }
    }

    fn check(&self) {
        let share = self.share;
        assert!(supports(share, self.kv_dtype), "{share:?} {:?}", self.kv_dtype);
        let width = share.n_q_heads * share.head_dim;
        let (first, stride, n_columns) = match self.queries {
            Queries::Rotated { q, stride } => (q, stride, width),
            Queries::Projected { wide, stride, scales, .. } => {
                let columns = Factors::from(scales).columns;
                assert!(columns.is_aligned(16), "{self:?}");
                (wide, stride, width + 2 * share.n_kv_heads * share.head_dim)
            }
        };
        assert!(stride >= n_columns && self.out_stride >= width, "{self:?}");
        // Everything is read in vectors of sixteen bytes.
        assert!(stride.is_multiple_of(8) && first.is_aligned(16), "{self:?}");
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
    params: &[Param<'_>],
) -> Result<(), DeviceError> {
    if config.grid.contains(&0) {
        return Ok(());
    }
    // SAFETY: the kernels' parameters are the structs that `decode` and `prefill` give, by value.
    // What they point to is as the caller says; the host never touches it.
    unsafe { exec.launch(kernel, config, params) }
}

#[cfg(test)]
mod tests;
