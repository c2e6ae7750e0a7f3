//! One product, from the moment that its pointers are known: their rules, the arithmetic around
//! the sums, and what it counts as.
//!
//! `D = s_D · activation(alpha · s_A · s_B · op(A) op(B) + beta · s_C · C + bias)`, in single
//! precision until it is rounded to D's type. Factors on the device are read when the product
//! runs, not when it is submitted, so a graph may be launched with others.

use std::sync::atomic::{AtomicU32, Ordering};

use super::descriptors::{Activation, Layout};
use super::element::Element;
use super::heuristic::Algo;
use super::product::{Product, Rows};
use super::rules::{F8_ALIGNMENT_BYTES, Problem, WORKSPACE_ALIGNMENT_BYTES};
use super::status::{Refusal, invalid, unsupported};
use crate::memory::{DeviceIdx, Fault, Memory};
use crate::report::{Flops, KernelCounters};

/// Alpha or beta.
#[derive(Debug, Clone, Copy)]
pub enum Factor {
    Value(f32),
    /// Where it is on the device.
    At(u64),
}

/// A product whose matrices are known.
#[derive(Debug, Clone)]
pub struct Matmul {
    pub problem: Problem,
    pub alpha: Factor,
    pub beta: Factor,
    /// Device addresses.
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub d: u64,
    /// Parts of `k` that are summed apart.
    pub n_parts: usize,
}

/// Device memory for partial sums.
#[derive(Debug, Clone, Copy)]
pub struct Workspace {
    pub address: u64,
    pub n_bytes: u64,
}

impl Matmul {
    /// Holds the pointers against the rules.
    pub fn check(&self, algo: &Algo, workspace: Workspace) -> Result<(), Refusal> {
        algo.check(&self.problem)?;
        let layouts = self.problem.layouts;
        let matrices = [
            ("A", self.a, layouts.a),
            ("B", self.b, layouts.b),
            ("C", self.c, layouts.c),
            ("D", self.d, layouts.d),
        ];
        let is_f8 = layouts.a.element.is_f8();
        for (what, address, layout) in matrices {
            if address == 0 && !(what == "C" && self.ignores_c()) {
                return Err(invalid(format!("the pointer to {what} is null")));
            }
            let element_bytes = layout.element.n_bytes() as u64;
            let alignment = if is_f8 { F8_ALIGNMENT_BYTES } else { algo.alignment_bytes };
            let alignment = alignment.max(element_bytes);
            if !address.is_multiple_of(alignment) {
                let reason = format!("{what} at {address:#x} is not aligned to {alignment} bytes");
                return Err(if is_f8 { unsupported(reason) } else { invalid(reason) });
            }
        }
        self.check_overlaps()?;
        if self.problem.operation.epilogue.has_bias && self.problem.operation.bias == 0 {
            return Err(invalid("the epilogue has a bias, the pointer to it is null"));
        }
        let needed = algo.workspace_bytes(&self.problem);
        if needed > workspace.n_bytes || (needed > 0 && workspace.address == 0) {
            let given = workspace.n_bytes;
            return Err(invalid(format!(
                "{given} bytes of workspace, the algorithm needs {needed}"
            )));
        }
        if !workspace.address.is_multiple_of(WORKSPACE_ALIGNMENT_BYTES) {
            let reason =
                format!("the workspace is not aligned to {WORKSPACE_ALIGNMENT_BYTES} bytes");
            return Err(invalid(reason));
        }
        Ok(())
    }

    /// A real kernel would read what its other blocks have already overwritten.
    fn check_overlaps(&self) -> Result<(), Refusal> {
        let layouts = self.problem.layouts;
        let end = |address: u64, layout: &Layout| address + extent_bytes(layout);
        let overlaps = |address: u64, layout: &Layout| {
            address < end(self.d, &layouts.d) && self.d < end(address, layout)
        };
        for (what, address, layout) in [("A", self.a, layouts.a), ("B", self.b, layouts.b)] {
            if overlaps(address, &layout) {
                return Err(invalid(format!("D lies over {what}")));
            }
        }
        let is_in_place = self.c == self.d && layouts.c == layouts.d;
        if !self.ignores_c() && overlaps(self.c, &layouts.c) && !is_in_place {
            return Err(invalid("D lies over C without being the same matrix"));
        }
        Ok(())
    }

    fn ignores_c(&self) -> bool {
        matches!(self.beta, Factor::Value(beta) if beta == 0.0)
    }

    /// What it counts as: every matrix is moved once.
    pub fn counters(&self) -> KernelCounters {
        let Problem { m, n, k, n_batches, layouts, .. } = self.problem;
        let bytes = |n: usize, layout: Layout| (n * n_batches * layout.element.n_bytes()) as u64;
        let c_bytes = if self.ignores_c() { 0 } else { bytes(m * n, layouts.c) };
        let bytes_read = bytes(m * k, layouts.a) + bytes(k * n, layouts.b) + c_bytes;
        let bytes_written = bytes(m * n, layouts.d);
        let mut flops = Flops::default();
        *match layouts.a.element {
            Element::E4m3 | Element::E5m2 => &mut flops.tensor_f8,
            Element::F16 | Element::Bf16 => &mut flops.tensor_f16,
            Element::F32 => &mut flops.f32,
        } = self.problem.n_flops();
        KernelCounters {
            n_launches: 1,
            bytes_read,
            bytes_written,
            sectors_read: bytes_read.div_ceil(32),
            sectors_written: bytes_written.div_ceil(32),
            flops,
            ..KernelCounters::default()
        }
    }

    /// Whether the device may reach all that it needs, without looking at any of it.
    pub fn check_memory(&self, memory: &Memory, device: DeviceIdx) -> Result<(), Fault> {
        let layouts = self.problem.layouts;
        let scales = self.problem.operation.scales;
        let bias_bytes = (self.problem.m * self.problem.bias_element.n_bytes()) as u64;
        let bias =
            if self.problem.operation.epilogue.has_bias { self.problem.operation.bias } else { 0 };
        let c = if self.ignores_c() { 0 } else { self.c };
        for (address, n_bytes) in [
            (self.a, extent_bytes(&layouts.a)),
            (self.b, extent_bytes(&layouts.b)),
            (c, extent_bytes(&layouts.c)),
            (self.d, extent_bytes(&layouts.d)),
            (bias, bias_bytes),
            (scales.a, 4),
            (scales.b, 4),
            (scales.c, 4),
            (scales.d, 4),
            (self.problem.operation.amax_d, 4),
        ] {
            if address != 0 {
                memory.check(device, address, n_bytes)?;
            }
        }
        Ok(())
    }

    /// Computes it.
    pub fn run(
        &self,
        memory: &Memory,
        device: DeviceIdx,
        n_threads_max: usize,
    ) -> Result<(), Fault> {
        let reach = Reach { memory, device };
        let epilogue = Epilogue::new(self, &reach)?;
        for batch in 0..self.problem.n_batches {
            let layouts = &self.problem.layouts;
            let operation = &self.problem.operation;
            let product = Product {
                a: rows(
                    reach.matrix(self.a, &layouts.a, batch)?,
                    &layouts.a,
                    operation.transposes_a,
                ),
                b: rows(
                    reach.matrix(self.b, &layouts.b, batch)?,
                    &layouts.b,
                    !operation.transposes_b,
                ),
                n_rows: self.problem.m,
                n_cols: self.problem.n,
                depth: self.problem.k,
            };
            let c = match self.ignores_c() {
                true => None,
                false => Some(Cells::new(&reach, self.c, &layouts.c, batch)?),
            };
            let d = Cells::new(&reach, self.d, &layouts.d, batch)?;
            product.run_split(self.n_parts, n_threads_max, &|row, col, sum| {
                let c = c.as_ref().map_or(0.0, |c| c.read(row, col));
                d.write(row, col, epilogue.apply(row, sum, c));
            });
        }
        if let Some(address) = epilogue.amax_address {
            let largest = f32::from_bits(epilogue.largest.load(Ordering::Relaxed));
            Element::F32.write(largest, reach.bytes_mut(address, 4)?);
        }
        Ok(())
    }
}

/// Bytes from the first element of the first matrix of a batch to behind the last of the last.
fn extent_bytes(layout: &Layout) -> u64 {
    let n_between = layout.n_batches.saturating_sub(1) * layout.batch_stride;
    (n_between * layout.element.n_bytes() + layout.n_bytes()) as u64
}

/// A matrix as rows along `k`: its columns, if that is where `k` runs.
fn rows<'a>(bytes: &'a [u8], layout: &Layout, k_runs_down: bool) -> Rows<'a> {
    let (row, col) = layout.strides();
    let (row_stride, k_stride) = if k_runs_down { (col, row) } else { (row, col) };
    Rows { bytes, element: layout.element, row_stride, k_stride }
}

/// Memory, as one device sees it.
struct Reach<'a> {
    memory: &'a Memory,
    device: DeviceIdx,
}

impl<'a> Reach<'a> {
    fn bytes(&self, address: u64, n_bytes: u64) -> Result<&'a [u8], Fault> {
        let pointer = self.memory.resolve(self.device, address, n_bytes)?;
        // SAFETY: `resolve` found the whole range in one live allocation. That nobody writes it
        // meanwhile is what the order of streams is for; a program that breaks it reads garbage.
        Ok(unsafe { std::slice::from_raw_parts(pointer.as_ptr(), n_bytes as usize) })
    }

    fn bytes_mut(&self, address: u64, n_bytes: u64) -> Result<&'a mut [u8], Fault> {
        let pointer = self.memory.resolve(self.device, address, n_bytes)?;
        // SAFETY: as above; nothing else of this product touches the range.
        Ok(unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr(), n_bytes as usize) })
    }

    fn matrix(&self, address: u64, layout: &Layout, batch: usize) -> Result<&'a [u8], Fault> {
        let offset = batch * layout.batch_stride * layout.element.n_bytes();
        self.bytes(address + offset as u64, layout.n_bytes() as u64)
    }

    fn factor(&self, factor: Factor) -> Result<f32, Fault> {
        match factor {
            Factor::Value(value) => Ok(value),
            Factor::At(0) => Ok(1.0),
            Factor::At(address) => Ok(Element::F32.read(self.bytes(address, 4)?)),
        }
    }
}

/// A matrix whose elements several threads read and write, each its own.
struct Cells {
    first: *mut u8,
    layout: Layout,
}

// SAFETY: `Product::run` hands every row and column to exactly one thread, once.
unsafe impl Sync for Cells {}

impl Cells {
    fn new(reach: &Reach<'_>, address: u64, layout: &Layout, batch: usize) -> Result<Cells, Fault> {
        let offset = batch * layout.batch_stride * layout.element.n_bytes();
        let n_bytes = layout.n_bytes() as u64;
        let first = reach.memory.resolve(reach.device, address + offset as u64, n_bytes)?;
        Ok(Cells { first: first.as_ptr(), layout: *layout })
    }

    fn at(&self, row: usize, col: usize) -> *mut u8 {
        let Layout { n_rows, n_cols, element, .. } = self.layout;
        assert!(row < n_rows && col < n_cols, "{row}, {col} of {n_rows} x {n_cols}");
        let (row_stride, col_stride) = self.layout.strides();
        let offset = (row * row_stride + col * col_stride) * element.n_bytes();
        // SAFETY: the element is within the matrix, all of which was resolved.
        unsafe { self.first.add(offset) }
    }

    fn read(&self, row: usize, col: usize) -> f32 {
        let n_bytes = self.layout.element.n_bytes();
        // SAFETY: `at` is within the matrix, and this element belongs to this thread.
        let bytes = unsafe { std::slice::from_raw_parts(self.at(row, col), n_bytes) };
        self.layout.element.read(bytes)
    }

    fn write(&self, row: usize, col: usize, value: f32) {
        let n_bytes = self.layout.element.n_bytes();
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.at(row, col), n_bytes) };
        self.layout.element.write(value, bytes);
    }
}

/// What becomes of a sum.
struct Epilogue {
    /// Of the sum, of C, and of the result.
    alpha: f32,
    beta: f32,
    scale_d: f32,
    bias: Option<Vec<f32>>,
    activation: Option<Activation>,
    amax_address: Option<u64>,
    /// Bits of the largest magnitude so far, which order as the magnitudes do.
    largest: AtomicU32,
}

impl Epilogue {
    fn new(matmul: &Matmul, reach: &Reach<'_>) -> Result<Epilogue, Fault> {
        let operation = &matmul.problem.operation;
        let scale = |address| reach.factor(Factor::At(address));
        let bias = match operation.epilogue.has_bias {
            false => None,
            true => {
                let element = matmul.problem.bias_element;
                let n_bytes = matmul.problem.m * element.n_bytes();
                let bytes = reach.bytes(operation.bias, n_bytes as u64)?;
                Some(bytes.chunks_exact(element.n_bytes()).map(|one| element.read(one)).collect())
            }
        };
        let scales = operation.scales;
        Ok(Epilogue {
            alpha: reach.factor(matmul.alpha)? * scale(scales.a)? * scale(scales.b)?,
            beta: reach.factor(matmul.beta)? * scale(scales.c)?,
            scale_d: scale(scales.d)?,
            bias,
            activation: operation.epilogue.activation,
            amax_address: Some(operation.amax_d).filter(|address| *address != 0),
            largest: AtomicU32::new(0),
        })
    }

    fn apply(&self, row: usize, sum: f32, c: f32) -> f32 {
        let mut value = self.alpha * sum;
        if self.beta != 0.0 {
            value += self.beta * c;
        }
        if let Some(bias) = &self.bias {
            value += bias[row];
        }
        value = match self.activation {
            None => value,
            // A NaN stays one.
            Some(Activation::Relu) => {
                if value < 0.0 {
                    0.0
                } else {
                    value
                }
            }
            Some(Activation::Gelu) => gelu(value),
        };
        if self.amax_address.is_some() {
            self.largest.fetch_max(value.abs().to_bits(), Ordering::Relaxed);
        }
        value * self.scale_d
    }
}

fn gelu(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

#[cfg(test)]
mod tests;
