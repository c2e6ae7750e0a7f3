//! Where a rank's weights and pages go: into mapped files and host memory as they are, or to
//! addresses of a device, decided first and copied later.
//!
//! Placing on a device only computes addresses. Placed from address zero it yields how many bytes
//! there are, which the memory plan asks before anything is opened; placed from the arena's
//! beginning it yields what is to be copied where. One walk serves both.

mod meeting;
mod ring;
mod scales;
mod schedule;
mod staging;

use std::sync::Arc;

use thiserror::Error;
use weights::{Dtype, LinearWeights, LoadError, Matrix, WeightScale};

use crate::device::cuda::{ALIGNMENT, DevicePtr, ProductShape, ProductTypes, bytes_of};
use crate::device::{
    CpuExec, DeviceArray, DeviceError, DevicePages, DeviceProjection, DeviceView, Element,
    KvRegion, KvShape, Projection, Table, Vector, WeightFactors,
};

pub(crate) use meeting::{LoadingSeat, Meeting};
pub(crate) use staging::stage;

use scales::{LeftOver, Scales};

/// What widths on a device are rounded up to, with zeroes: FP8 products ask for it, and every width
/// of the models that are served has it already.
pub(crate) const WIDTH_MULTIPLE: usize = 16;

/// What a device cannot do with a checkpoint that is valid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unsupported {
    /// An f32 cache.
    #[error("a device's KV cache is FP8 or BF16: choose --kv-dtype fp8 or bf16")]
    KvF32,
    /// Heads that the attention kernels do not know.
    #[error(
        "block {block_idx}: no attention kernel for {n_q_heads} query and {n_kv_heads} key/value \
         heads of {head_dim} on a rank; there are kernels for heads of 32, 64, 96 and 128, of \
         which up to 16 queries share a key/value head"
    )]
    Heads {
        /// The block.
        block_idx: usize,
        /// On a rank.
        n_q_heads: usize,
        /// On a rank.
        n_kv_heads: usize,
        /// Width.
        head_dim: usize,
    },
    /// A residual stream that products and norms do not take.
    #[error("hidden size {hidden_size}: a device takes multiples of 16 up to {max}")]
    Hidden {
        /// The model's.
        hidden_size: usize,
        /// Greatest.
        max: usize,
    },
    /// Inputs are quantized, weights are not.
    #[error("a projection quantizes its input, but its weights are {dtype:?}: FP8 is needed")]
    NotFp8 {
        /// Of the weights.
        dtype: Dtype,
    },
    /// The head is quantized.
    #[error("lm_head is quantized: on a device it must be BF16, F16 or F32")]
    QuantizedHead,
}

/// Why weights did not get to a device.
#[derive(Debug, Error)]
pub enum LoadingError {
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A file.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Whoever gave up says why.
    #[error("another rank gave up while weights were loaded")]
    CalledOff,
}

/// Hands out addresses of one run of device memory, one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carve {
    begin: DevicePtr,
    next: DevicePtr,
}

/// Where weights and pages go.
pub(crate) enum Placer<'a> {
    /// Weights stay where they are mapped, but for those that the processor wants packed, of whose
    /// bytes somebody hears; pages are allocated.
    Host(&'a CpuExec, &'a dyn Fn(u64)),
    /// Both get addresses.
    Device(Placement),
}

/// Addresses on a device, and what must be copied to them.
pub(crate) struct Placement {
    pub(crate) weights: Carve,
    pub(crate) pages: Carve,
    pub(crate) copies: Vec<Copying>,
}

/// Something to be copied to a device.
pub(crate) enum Copying {
    Matrix(MatrixCopy),
    Bytes { to: DevicePtr, bytes: Vec<u8> },
}

/// A stored matrix on its way into one with zeroes around it.
pub(crate) struct MatrixCopy {
    pub(crate) matrix: Matrix,
    pub(crate) to: DeviceView,
    /// Where the stored columns begin.
    pub(crate) col_begin: usize,
}

/// What a projection is for: decides who applies its scales, and its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A sub-block's first: its parts' factors wait for the kernel that reads them.
    First,
    /// A sub-block's second, cut by columns: its input has `n_cols`, of which the stored weights
    /// have those from `col_begin` on, and the others weigh nothing.
    Second { n_cols: usize, col_begin: usize },
    /// The vocabulary's.
    Head,
}

impl Carve {
    /// From `begin` on.
    pub(crate) fn new(begin: DevicePtr) -> Carve {
        Carve { begin, next: begin }
    }

    /// The next `n_bytes`, aligned as the device's allocations are.
    pub(crate) fn take(&mut self, n_bytes: usize) -> DevicePtr {
        let taken = self.next;
        self.next = taken.offset(n_bytes.next_multiple_of(ALIGNMENT));
        taken
    }

    /// Bytes handed out.
    pub(crate) fn n_bytes(&self) -> usize {
        (self.next.0 - self.begin.0) as usize
    }
}

impl Placer<'_> {
    pub(crate) fn on_device(weights: DevicePtr, pages: DevicePtr) -> Placer<'static> {
        Placer::Device(Placement {
            weights: Carve::new(weights),
            pages: Carve::new(pages),
            copies: Vec::new(),
        })
    }

    /// What was placed on a device.
    pub(crate) fn placement(self) -> Placement {
        match self {
            Placer::Host(..) => panic!("nothing was placed on a device"),
            Placer::Device(placement) => placement,
        }
    }

    pub(crate) fn vector(&mut self, values: Arc<[f32]>) -> Vector {
        match self {
            Placer::Host(..) => Vector::Host(values),
            Placer::Device(placement) => Vector::Device(placement.vector(&values)),
        }
    }

    pub(crate) fn table(&mut self, matrix: Matrix) -> Table {
        match self {
            Placer::Host(..) => Table::Host(matrix),
            Placer::Device(placement) => {
                let shape = (matrix.n_rows, matrix.n_cols);
                let view = placement.view(Element::Bf16, shape.0, shape.1);
                placement.matrix(matrix, view, 0);
                Table::Device(view)
            }
        }
    }

    pub(crate) fn cache(&mut self, shape: KvShape) -> KvRegion {
        match self {
            Placer::Host(..) => KvRegion::new(
                shape.dtype,
                shape.n_pages,
                shape.page_tokens,
                shape.n_kv_heads,
                shape.head_dim,
            ),
            Placer::Device(placement) => {
                let keys = placement.pages.take(shape.n_bytes());
                let values = placement.pages.take(shape.n_bytes());
                KvRegion::on_device(shape, DevicePages { keys, values })
            }
        }
    }

    pub(crate) fn projection(
        &mut self,
        parts: Vec<LinearWeights>,
        purpose: Use,
    ) -> Result<Projection, Unsupported> {
        match self {
            Placer::Host(cpu, packed) => Ok(told(packed, Projection::host(cpu, parts))),
            Placer::Device(placement) => placement.projection(Projection::new(parts), purpose),
        }
    }

    /// A first projection that is a gate and what it gates.
    pub(crate) fn gated(&mut self, parts: [LinearWeights; 2]) -> Result<Projection, Unsupported> {
        match self {
            Placer::Host(cpu, packed) => Ok(told(packed, Projection::gated(cpu, parts))),
            Placer::Device(_) => self.projection(parts.into(), Use::First),
        }
    }
}

/// Tells how much of a projection was packed, if any was.
fn told(packed: &dyn Fn(u64), projection: Projection) -> Projection {
    let n_bytes = projection.n_packed_bytes();
    if n_bytes > 0 {
        packed(n_bytes as u64);
    }
    projection
}

impl Placement {
    fn vector(&mut self, values: &[f32]) -> DeviceArray {
        let bytes = bytes_of(values).to_vec();
        let to = self.bytes(bytes);
        DeviceArray { first: to, n: values.len() }
    }

    fn bytes(&mut self, bytes: Vec<u8>) -> DevicePtr {
        let to = self.weights.take(bytes.len());
        self.copies.push(Copying::Bytes { to, bytes });
        to
    }

    /// Places f64.
    pub(crate) fn doubles(&mut self, values: &[f64]) -> DevicePtr {
        self.bytes(bytes_of(values).to_vec())
    }

    fn view(&mut self, element: Element, n_rows: usize, n_cols: usize) -> DeviceView {
        let first = self.weights.take(n_rows * n_cols * element.n_bytes());
        DeviceView { first, element, n_rows, n_cols, stride: n_cols }
    }

    fn matrix(&mut self, matrix: Matrix, to: DeviceView, col_begin: usize) {
        self.copies.push(Copying::Matrix(MatrixCopy { matrix, to, col_begin }));
    }

    fn projection(
        &mut self,
        mut projection: Projection,
        purpose: Use,
    ) -> Result<Projection, Unsupported> {
        let element = Element::of_input(projection.input());
        check(&projection, purpose)?;
        let (n_cols, col_begin) = match purpose {
            Use::Second { n_cols, col_begin } => (n_cols, col_begin),
            Use::First | Use::Head => (projection.n_cols(), 0),
        };
        let n_rows_of = |part: &LinearWeights| match purpose {
            Use::First => part.matrix.n_rows.next_multiple_of(WIDTH_MULTIPLE),
            Use::Second { .. } | Use::Head => part.matrix.n_rows,
        };
        let n_rows: Vec<usize> = projection.parts.iter().map(n_rows_of).collect();
        let whole = self.view(element, n_rows.iter().sum(), n_cols);
        let mut begin = 0;
        for (part, n_rows) in projection.parts.iter().zip(&n_rows) {
            self.matrix(part.matrix.clone(), whole.rows(begin..begin + n_rows), col_begin);
            begin += n_rows;
        }
        let scales = match purpose {
            Use::First => Scales::left_over(&projection, &n_rows),
            Use::Second { .. } => Scales::of_second(&projection),
            Use::Head => Scales::NONE,
        };
        projection.device = Some(self.scaled(whole, purpose, scales));
        Ok(projection)
    }

    fn scaled(&mut self, matrix: DeviceView, purpose: Use, scales: Scales) -> DeviceProjection {
        let Scales { of_product, left_over } = scales;
        let types = match (purpose, matrix.element) {
            (Use::Head, _) => ProductTypes::Bf16ToF32,
            (_, Element::F8) => ProductTypes::F8ToBf16,
            (_, Element::Bf16 | Element::F32) => ProductTypes::Bf16ToBf16,
        };
        let shape = ProductShape {
            n_outputs: matrix.n_rows,
            n_inputs: matrix.n_cols,
            types,
            is_scaled: of_product.is_some(),
        };
        let [weight_scale, input_scale] = match of_product {
            Some(scales) => scales.map(|scale| self.vector(&[scale]).first),
            None => [DevicePtr::NULL; 2],
        };
        let deferred = match left_over {
            LeftOver::Nothing => WeightFactors::None,
            LeftOver::PerPart(factors) => WeightFactors::PerPart(factors),
            LeftOver::PerRow(factors) => WeightFactors::PerRow(self.vector(&factors).first),
        };
        DeviceProjection { matrix, input_scale, weight_scale, shape, deferred }
    }
}

fn check(projection: &Projection, purpose: Use) -> Result<(), Unsupported> {
    let is_quantized = projection.input().quantizes();
    for part in &projection.parts {
        let dtype = part.matrix.dtype;
        if is_quantized && dtype != Dtype::F8E4m3 {
            return Err(Unsupported::NotFp8 { dtype });
        }
        if purpose == Use::Head && (is_quantized || part.scale != WeightScale::One) {
            return Err(Unsupported::QuantizedHead);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
