//! What the lines of the table launch, over memory that is all zeroes.

use anyhow::Result;
use benches::cost::work::{Kind, Launch as Work};
use engine::device::cuda::{Operands, Pick, ProductShape, ProductTypes};
use engine::device::{
    CudaExec, Deferred, DeviceError, DevicePtr, DeviceView, Element, cuda::Product as Planned,
};
use engine::kernels::attention::cuda::{
    DeviceRow, Launch, Queries, Workspace, WorkspaceSize, decode,
};
use engine::{KvDtype, PAGE_TOKENS};
use weights::AttentionSpec;

use crate::table::Timing;

/// LN-Ultra's heads on one of eight ranks.
const ULTRA: AttentionSpec =
    AttentionSpec { n_q_heads: 16, n_kv_heads: 1, head_dim: 128, window: None };

/// Columns of a token's queries, and of its output.
const WIDTH: usize = ULTRA.n_q_heads * ULTRA.head_dim;

/// Columns of its key and value.
const N_CACHED: usize = 2 * ULTRA.n_kv_heads * ULTRA.head_dim;

/// Columns that the projection leaves.
const N_COLUMNS: usize = WIDTH + N_CACHED;

/// What turns the pairs of a head.
const FREQUENCY_BYTES: usize = ULTRA.head_dim / 2 * size_of::<f64>();

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

/// A product whose launches go round copies of its weights.
pub(crate) struct Multiplying {
    product: Product,
    planned: Planned,
    n_tokens: usize,
    first: DevicePtr,
    weights_bytes: usize,
    n_copies: usize,
    x: DevicePtr,
    out: DevicePtr,
}

/// Attention of one block of LN-Ultra, whose launches go round copies of its cache.
pub(crate) struct Attending {
    launch: Launch<'static>,
    workspace: Workspace,
    n_positions: usize,
    cache_bytes: usize,
    n_copies: usize,
}

impl Product {
    const fn f8(name: &'static str, n_outputs: usize, n_inputs: usize) -> Product {
        Product { name, n_outputs, n_inputs, types: ProductTypes::F8ToBf16 }
    }
}

impl Multiplying {
    pub(crate) fn new(
        exec: &CudaExec,
        product: &Product,
        n_tokens: usize,
        timing: Timing,
    ) -> Result<Multiplying> {
        let &Product { n_outputs, n_inputs, types, .. } = product;
        let (in_bytes, out_bytes) = product.element_bytes();
        let weights_bytes = n_outputs * n_inputs * in_bytes;
        let n_copies = timing.n_copies(weights_bytes);
        let shape = ProductShape { n_outputs, n_inputs, types, is_scaled: false };
        Ok(Multiplying {
            product: *product,
            planned: exec.plan_product(shape, n_tokens, Pick::Fastest)?,
            n_tokens,
            first: zeroes(exec, n_copies * weights_bytes)?,
            weights_bytes,
            n_copies,
            x: zeroes(exec, n_tokens * n_inputs * in_bytes)?,
            out: exec.alloc(n_tokens * n_outputs * out_bytes)?,
        })
    }

    pub(crate) fn submit(&self, exec: &CudaExec, idx: usize) -> Result<(), DeviceError> {
        let weights = self.weights(idx).first;
        let operands = Operands { x: self.x, weights, out: self.out, scales: None };
        exec.submit_product(&self.planned, operands, self.n_tokens)
    }

    /// Those of a launch.
    pub(crate) fn weights(&self, idx: usize) -> DeviceView {
        let Product { n_outputs, n_inputs, types, .. } = self.product;
        let element = if types == ProductTypes::F8ToBf16 { Element::F8 } else { Element::Bf16 };
        let first = self.first.offset(idx % self.n_copies * self.weights_bytes);
        DeviceView { first, element, n_rows: n_outputs, n_cols: n_inputs, stride: n_inputs }
    }

    pub(crate) fn work(&self) -> Work {
        let Product { name, n_outputs, n_inputs, types } = self.product;
        let (in_bytes, out_bytes) = self.product.element_bytes();
        let activations = self.n_tokens * (n_inputs * in_bytes + n_outputs * out_bytes);
        let is_f8 = types == ProductTypes::F8ToBf16;
        Work {
            name,
            kind: if is_f8 { Kind::ProductF8 } else { Kind::ProductBf16 },
            resident_bytes: self.weights_bytes as u64,
            ahead_bytes: 0,
            given_bytes: 0,
            bytes: (self.weights_bytes + activations) as u64,
            flops: 2 * (self.n_tokens * n_outputs * n_inputs) as u64,
        }
    }
}

impl Product {
    /// Of operands and result.
    fn element_bytes(&self) -> (usize, usize) {
        match self.types {
            ProductTypes::F8ToBf16 => (1, 2),
            ProductTypes::Bf16ToBf16 => (2, 2),
            ProductTypes::Bf16ToF32 => (2, 4),
        }
    }
}

impl Attending {
    pub(crate) fn new(
        exec: &CudaExec,
        n_rows: usize,
        n_positions: usize,
        timing: Timing,
    ) -> Result<Attending> {
        let n_entries = n_positions.div_ceil(PAGE_TOKENS);
        let n_pages = n_rows * n_entries;
        let cache_bytes = n_pages * PAGE_TOKENS * ULTRA.head_dim;
        let n_copies = timing.n_copies(2 * cache_bytes);
        let tables: Vec<i32> = (0..n_pages as i32).collect();
        let start = n_positions as i32 - 1;
        let row = |row| DeviceRow { slot: row, token_idx: row, n_tokens: 1, start };
        let rows: Vec<DeviceRow> = (0..n_rows as i32).map(row).collect();
        let launch = Launch {
            share: &ULTRA,
            queries: Queries::Projected {
                wide: zeroes(exec, n_rows * N_COLUMNS * 2)?,
                stride: N_COLUMNS,
                scales: Deferred::Nothing,
                frequencies: zeroes(exec, FREQUENCY_BYTES)?,
            },
            keys: zeroes(exec, n_copies * cache_bytes)?,
            values: zeroes(exec, n_copies * cache_bytes)?,
            kv_dtype: KvDtype::Fp8,
            k_scale: 1.0,
            v_scale: 1.0,
            tables: exec.alloc(size_of_val(&tables[..]))?,
            n_table_entries: n_entries,
            rows: exec.alloc(size_of_val(&rows[..]))?,
            n_rows,
            out: exec.alloc(n_rows * WIDTH)?,
            out_stride: WIDTH,
            out_scale: Some(1.0),
        };
        exec.upload(launch.tables, &tables)?;
        exec.upload(launch.rows, &rows)?;
        let size = WorkspaceSize::new(&ULTRA, n_rows, n_positions);
        let workspace = Workspace {
            sums: exec.alloc(size.n_sums_bytes)?,
            stats: exec.alloc(size.n_stats_bytes)?,
            n_arrived: zeroes(exec, size.n_arrived_bytes)?,
        };
        Ok(Attending { launch, workspace, n_positions, cache_bytes, n_copies })
    }

    pub(crate) fn submit(
        &self,
        exec: &CudaExec,
        idx: usize,
        next: Option<DeviceView>,
    ) -> Result<(), DeviceError> {
        let turn = |first: DevicePtr| first.offset(idx % self.n_copies * self.cache_bytes);
        let (keys, values) = (turn(self.launch.keys), turn(self.launch.values));
        let launch = Launch { keys, values, ..self.launch.clone() };
        decode(exec, &launch, self.workspace, self.n_positions, next)
    }

    pub(crate) fn work(&self) -> Work {
        let n_rows = self.launch.n_rows;
        let resident_bytes = (2 * n_rows * self.n_positions * ULTRA.head_dim) as u64;
        Work {
            name: "attention",
            kind: Kind::Attention,
            resident_bytes,
            ahead_bytes: 0,
            given_bytes: 0,
            bytes: resident_bytes
                + (n_rows * (2 * N_COLUMNS + FREQUENCY_BYTES + N_CACHED + WIDTH)) as u64,
            flops: 4 * (n_rows * self.n_positions * WIDTH) as u64,
        }
    }
}

fn zeroes(exec: &CudaExec, n_bytes: usize) -> Result<DevicePtr> {
    let ptr = exec.alloc(n_bytes)?;
    exec.zero(ptr, n_bytes)?;
    Ok(ptr)
}
