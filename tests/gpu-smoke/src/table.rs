//! What a kernel takes on the device that is there, beside what its bytes would take at the
//! memory's own speed.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use engine::device::{CudaExec, DevicePtr};
use engine::kernels::attention::cuda::{DeviceRow, Launch, Workspace, WorkspaceSize, decode};
use engine::{KvDtype, PAGE_TOKENS};
use weights::AttentionSpec;

/// Of an H100 SXM's memory, from its data sheet.
const MEMORY_BYTES_PER_S: f64 = 3.35e12;

/// LN-Ultra's heads on one of eight ranks.
const ULTRA: AttentionSpec =
    AttentionSpec { n_q_heads: 16, n_kv_heads: 1, head_dim: 128, window: None };

/// Rows of the table, as README predicts them.
pub const SHAPES: &[Shape] = &[
    Shape { n_rows: 1, n_positions: 1024 },
    Shape { n_rows: 1, n_positions: 8192 },
    Shape { n_rows: 1, n_positions: 32_768 },
    Shape { n_rows: 64, n_positions: 1024 },
    Shape { n_rows: 64, n_positions: 8192 },
    Shape { n_rows: 64, n_positions: 32_768 },
];

/// A batch that decodes.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Sequences.
    pub n_rows: usize,
    /// Positions of each.
    pub n_positions: usize,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    shape: Shape,
    /// Of one launch, on average.
    pub duration: Duration,
    /// Keys and values, once.
    pub n_bytes: usize,
}

/// Attention of one block of LN-Ultra over an FP8 cache, `n_launches` times.
///
/// # Errors
/// What the device has against it.
pub fn attention(shape: Shape, n_launches: u32) -> Result<Line> {
    // Memory is given back with the executor.
    let exec = CudaExec::open(0)?;
    let Shape { n_rows, n_positions } = shape;
    let n_entries = n_positions.div_ceil(PAGE_TOKENS);
    let n_pages = n_rows * n_entries;
    let cache_bytes = n_pages * PAGE_TOKENS * ULTRA.head_dim;
    let width = ULTRA.n_q_heads * ULTRA.head_dim;
    let tables: Vec<i32> = (0..n_pages as i32).collect();
    let rows: Vec<DeviceRow> = (0..n_rows as i32)
        .map(|row| DeviceRow {
            slot: row,
            token_idx: row,
            n_tokens: 1,
            start: n_positions as i32 - 1,
        })
        .collect();
    let launch = Launch {
        share: &ULTRA,
        q: zeroes(&exec, n_rows * width * 2)?,
        q_stride: width,
        keys: zeroes(&exec, cache_bytes)?,
        values: zeroes(&exec, cache_bytes)?,
        kv_dtype: KvDtype::Fp8,
        k_scale: 1.0,
        v_scale: 1.0,
        tables: exec.alloc(size_of_val(&tables[..]))?,
        n_table_entries: n_entries,
        rows: exec.alloc(size_of_val(&rows[..]))?,
        n_rows,
        out: exec.alloc(n_rows * width)?,
        out_stride: width,
        out_scale: Some(1.0),
    };
    exec.upload(launch.tables, &tables)?;
    exec.upload(launch.rows, &rows)?;
    let size = WorkspaceSize::new(&ULTRA, n_rows, n_positions);
    let workspace = Workspace {
        sums: exec.alloc(size.n_sums_bytes)?,
        stats: exec.alloc(size.n_stats_bytes)?,
        n_arrived: zeroes(&exec, size.n_arrived_bytes)?,
    };
    // The first launch loads the code.
    decode(&exec, &launch, workspace, n_positions)?;
    exec.synchronize()?;
    let started = Instant::now();
    for _ in 0..n_launches {
        decode(&exec, &launch, workspace, n_positions)?;
    }
    exec.synchronize()?;
    let duration = started.elapsed() / n_launches;
    Ok(Line { shape, duration, n_bytes: 2 * cache_bytes })
}

fn zeroes(exec: &CudaExec, n_bytes: usize) -> Result<DevicePtr> {
    let ptr = exec.alloc(n_bytes)?;
    exec.zero(ptr, n_bytes)?;
    Ok(ptr)
}

impl Line {
    /// What the bytes alone would take.
    pub fn at_memory_speed(&self) -> Duration {
        Duration::from_secs_f64(self.n_bytes as f64 / MEMORY_BYTES_PER_S)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { n_rows, n_positions } = self.shape;
        let us = |duration: Duration| duration.as_secs_f64() * 1e6;
        write!(
            f,
            "attention, batch {n_rows:>3} x {n_positions:>6}: {:>9.1} us measured, {:>9.1} us at \
             the memory's speed",
            us(self.duration),
            us(self.at_memory_speed())
        )
    }
}
