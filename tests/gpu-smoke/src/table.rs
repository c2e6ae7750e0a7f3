//! Kernels' own times on the device that is there: LN-Ultra's largest on one of eight ranks, a line
//! each, beside what is predicted and what their bytes would take at the memory's own speed.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use benches::cost::machine::Machine;
use benches::cost::work::{Kind, Launch as Work};
use engine::device::cuda::{Operands, Pick, ProductShape, ProductTypes};
use engine::device::{CudaExec, Deferred, DeviceError, DevicePtr};
use engine::kernels::attention::cuda::{
    DeviceRow, Launch, Queries, Workspace, WorkspaceSize, decode,
};
use engine::{KvDtype, PAGE_TOKENS};
use weights::AttentionSpec;

/// Of an H100 SXM's memory, from its data sheet.
const MEMORY_BYTES_PER_S: f64 = 3.35e12;

/// LN-Ultra's heads on one of eight ranks.
const ULTRA: AttentionSpec =
    AttentionSpec { n_q_heads: 16, n_kv_heads: 1, head_dim: 128, window: None };

/// Its products there; those of an FFN are of the most frequent width, 53,248.
pub const ULTRA_PRODUCTS: [Product; 5] = [
    Product::f8("qkv", 2304, 16_384),
    Product::f8("o", 16_384, 2048),
    Product::f8("gate_up", 13_312, 16_384),
    Product::f8("down", 16_384, 6656),
    Product { name: "head", n_outputs: 16_032, n_inputs: 16_384, types: ProductTypes::Bf16ToF32 },
];

/// A product's name and shape.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Of the projection.
    pub name: &'static str,
    /// Rows of the weights.
    pub n_outputs: usize,
    /// Columns of the weights.
    pub n_inputs: usize,
    /// Of operands and result.
    pub types: ProductTypes,
}

/// How kernels are timed.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Launches that one measurement is the mean of.
    pub n_launches: usize,
    /// Bytes that launches go round, so that none finds its own in the L2 cache: in a step, the
    /// weights of other blocks lie between.
    pub n_cold_bytes: usize,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    what: String,
    /// Of one launch, on average.
    pub measured: Duration,
    /// What it moves and computes.
    pub work: Work,
}

/// One product of weights that are all zeroes, for a number of tokens.
///
/// # Errors
/// What the device has against it.
pub fn product(product: &Product, n_tokens: usize, timing: Timing) -> Result<Line> {
    let &Product { name, n_outputs, n_inputs, types } = product;
    // Memory is given back with the executor.
    let exec = CudaExec::open(0)?;
    let (kind, in_bytes, out_bytes) = match types {
        ProductTypes::F8ToBf16 => (Kind::ProductF8, 1, 2),
        ProductTypes::Bf16ToBf16 => (Kind::ProductBf16, 2, 2),
        ProductTypes::Bf16ToF32 => (Kind::ProductBf16, 2, 4),
    };
    let weights_bytes = n_outputs * n_inputs * in_bytes;
    let n_copies = timing.n_copies(weights_bytes);
    let weights = zeroes(&exec, n_copies * weights_bytes)?;
    let x = zeroes(&exec, n_tokens * n_inputs * in_bytes)?;
    let out = exec.alloc(n_tokens * n_outputs * out_bytes)?;
    let shape = ProductShape { n_outputs, n_inputs, types, is_scaled: false };
    let product = exec.plan_product(shape, n_tokens, Pick::Fastest)?;
    let measured = timing.measure(&exec, |idx| {
        let weights = weights.offset(idx % n_copies * weights_bytes);
        exec.submit_product(&product, Operands { x, weights, out, scales: None }, n_tokens)
    })?;
    let resident_bytes = weights_bytes as u64;
    let activations = n_tokens * (n_inputs * in_bytes + n_outputs * out_bytes);
    let work = Work {
        name,
        kind,
        resident_bytes,
        ahead_bytes: 0,
        given_bytes: 0,
        bytes: resident_bytes + activations as u64,
        flops: 2 * (n_tokens * n_outputs * n_inputs) as u64,
    };
    Ok(Line { what: format!("{name} of {n_tokens} tokens"), measured, work })
}

/// Attention of one block of LN-Ultra over an FP8 cache: `n_rows` sequences of `n_positions`.
///
/// # Errors
/// What the device has against it.
pub fn attention(n_rows: usize, n_positions: usize, timing: Timing) -> Result<Line> {
    let exec = CudaExec::open(0)?;
    let n_entries = n_positions.div_ceil(PAGE_TOKENS);
    let n_pages = n_rows * n_entries;
    let cache_bytes = n_pages * PAGE_TOKENS * ULTRA.head_dim;
    let n_copies = timing.n_copies(2 * cache_bytes);
    let width = ULTRA.n_q_heads * ULTRA.head_dim;
    let n_cached = 2 * ULTRA.n_kv_heads * ULTRA.head_dim;
    let n_columns = width + n_cached;
    let frequency_bytes = ULTRA.head_dim / 2 * size_of::<f64>();
    let tables: Vec<i32> = (0..n_pages as i32).collect();
    let row = |row| DeviceRow { slot: row, token_idx: row, n_tokens: 1, start: last(n_positions) };
    let rows: Vec<DeviceRow> = (0..n_rows as i32).map(row).collect();
    let launch = Launch {
        share: &ULTRA,
        queries: Queries::Projected {
            wide: zeroes(&exec, n_rows * n_columns * 2)?,
            stride: n_columns,
            scales: Deferred::Nothing,
            frequencies: zeroes(&exec, frequency_bytes)?,
        },
        keys: zeroes(&exec, n_copies * cache_bytes)?,
        values: zeroes(&exec, n_copies * cache_bytes)?,
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
    let measured = timing.measure(&exec, |idx| {
        let turn = |first: DevicePtr| first.offset(idx % n_copies * cache_bytes);
        let launch = Launch { keys: turn(launch.keys), values: turn(launch.values), ..launch };
        decode(&exec, &launch, workspace, n_positions, None)
    })?;
    let resident_bytes = (2 * n_rows * n_positions * ULTRA.head_dim) as u64;
    let work = Work {
        name: "attention",
        kind: Kind::Attention,
        resident_bytes,
        ahead_bytes: 0,
        given_bytes: 0,
        bytes: resident_bytes
            + (n_rows * (2 * n_columns + frequency_bytes + n_cached + width)) as u64,
        flops: 4 * (n_rows * n_positions * width) as u64,
    };
    Ok(Line { what: format!("attention, batch {n_rows} x {n_positions}"), measured, work })
}

fn last(n_positions: usize) -> i32 {
    n_positions as i32 - 1
}

fn zeroes(exec: &CudaExec, n_bytes: usize) -> Result<DevicePtr> {
    let ptr = exec.alloc(n_bytes)?;
    exec.zero(ptr, n_bytes)?;
    Ok(ptr)
}

impl Product {
    const fn f8(name: &'static str, n_outputs: usize, n_inputs: usize) -> Product {
        Product { name, n_outputs, n_inputs, types: ProductTypes::F8ToBf16 }
    }
}

impl Timing {
    /// How many of `n_bytes` launches take in turn.
    fn n_copies(self, n_bytes: usize) -> usize {
        self.n_cold_bytes.div_ceil(n_bytes).clamp(1, self.n_launches)
    }

    /// The mean of launches from a graph, so that the host's part is not in it.
    fn measure(
        self,
        exec: &CudaExec,
        launch: impl Fn(usize) -> Result<(), DeviceError>,
    ) -> Result<Duration> {
        // The first launch loads the code.
        launch(0)?;
        exec.synchronize()?;
        let stream = exec.stream();
        stream.begin_capture()?;
        let launched: Result<(), DeviceError> = (0..self.n_launches).try_for_each(launch);
        let graph = stream.end_capture();
        launched?;
        let graph = graph?;
        stream.launch(&graph)?;
        exec.synchronize()?;
        let started = Instant::now();
        stream.launch(&graph)?;
        exec.synchronize()?;
        Ok(started.elapsed() / self.n_launches as u32)
    }
}

impl Line {
    /// What is predicted of it.
    pub fn predicted(&self) -> Duration {
        Duration::from_secs_f64(Machine::EXPECTED.seconds(&[self.work]))
    }

    /// What the bytes alone would take.
    pub fn at_memory_speed(&self) -> Duration {
        Duration::from_secs_f64(self.work.bytes as f64 / MEMORY_BYTES_PER_S)
    }

    /// What the columns are.
    pub fn head() -> String {
        let [what, measured, predicted] = ["us of a kernel", "measured", "predicted"];
        format!(
            "{what:<28} {measured:>10} {predicted:>10} {:>15} {:>10}",
            "at memory speed", "bytes"
        )
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |duration: Duration| duration.as_secs_f64() * 1e6;
        write!(
            f,
            "{:<28} {:>10.1} {:>10.1} {:>15.1} {:>10}",
            self.what,
            us(self.measured),
            us(self.predicted()),
            us(self.at_memory_speed()),
            self.work.bytes
        )
    }
}
