//! Weights with a place: projections, norms and the embedding, as kernels take them.

use std::sync::Arc;

use weights::{InputScale, LinearWeights, Matrix};

use super::cuda::ProductShape;
use super::simd::TileWeights;
use super::{Array, CpuExec, DeviceArray, DevicePtr, DeviceView};

/// Parts of a [`Projection`] at most: q, k and v.
pub const N_PARTS_MAX: usize = 3;

/// One product, or several that share their input and stand side by side in their output: q, k
/// and v, or gate and up. Each part keeps its own scales.
#[derive(Clone, Debug)]
pub struct Projection {
    /// In the order of the output's columns. On a device only their shapes and scales count.
    pub parts: Vec<LinearWeights>,
    /// The same weights where the rank computes on a device.
    pub device: Option<DeviceProjection>,
    /// The same weights, part by part, packed for a processor that multiplies tiles.
    pub(crate) tiles: Option<Arc<[TileWeights]>>,
}

/// All parts as one matrix in device memory.
#[derive(Clone, Copy, Debug)]
pub struct DeviceProjection {
    /// `[N, K]`, parts one below another; N and K as the GEMM wants them, what was added is zero.
    pub matrix: DeviceView,
    /// One f32: the factor of the input that the GEMM applies.
    pub input_scale: DevicePtr,
    /// One f32: the factor of the weights that the GEMM applies.
    pub weight_scale: DevicePtr,
    /// What the GEMM computes, and whether it applies the two.
    pub shape: ProductShape,
    /// Factors that the consumer of the output applies.
    pub deferred: WeightFactors,
}

/// Factors of a projection's outputs; a static input's factor is in them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WeightFactors {
    /// There are none.
    None,
    /// One for each part.
    PerPart([f32; N_PARTS_MAX]),
    /// One f32 for each of the N outputs.
    PerRow(DevicePtr),
}

/// What a product still lacks. The processor finishes its products; a device leaves factors to
/// the kernel that reads them next, where they cost nothing and each part can have its own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Deferred {
    /// Nothing.
    #[default]
    Nothing,
    /// `y[t][n]` stands for `y[t][n] * weights[n] * tokens[t]`.
    Scales {
        /// Of the outputs.
        weights: WeightFactors,
        /// `[T]` f32, where the input was quantized token by token.
        tokens: Option<DevicePtr>,
    },
}

/// An f32 vector of the model, such as a norm's weight.
#[derive(Clone, Debug)]
pub enum Vector {
    /// In this machine's memory.
    Host(Arc<[f32]>),
    /// In the rank's device.
    Device(DeviceArray),
}

/// A stored matrix that is looked up rather than multiplied.
#[derive(Clone, Debug)]
pub enum Table {
    /// In the mapped file.
    Host(Matrix),
    /// In the rank's device.
    Device(DeviceView),
}

impl Projection {
    /// Parts that the processor computes, packed as it wants them.
    pub fn host(cpu: &CpuExec, parts: Vec<LinearWeights>) -> Projection {
        let projection = Projection::new(parts);
        let tiles = cpu.pack(&projection.parts);
        Projection { tiles, ..projection }
    }

    /// A gate and what it gates. Where the processor packs such, they give their activated product.
    pub(crate) fn gated(cpu: &CpuExec, parts: [LinearWeights; 2]) -> Projection {
        let tiles = cpu.pack_gated(&parts);
        Projection { tiles, ..Projection::new(parts.into()) }
    }

    /// Whether its product is a gate's and what that gates, activated.
    pub fn is_gated(&self) -> bool {
        self.tiles.iter().flat_map(|tiles| tiles.iter()).any(TileWeights::is_gated)
    }

    /// Parts as they are stored.
    pub(crate) fn new(parts: Vec<LinearWeights>) -> Projection {
        let [first, rest @ ..] = &*parts else { panic!("a projection has a part") };
        assert!(rest.len() < N_PARTS_MAX, "{} parts", parts.len());
        for part in rest {
            assert_eq!(part.input, first.input, "parts share their input");
            assert_eq!(part.matrix.n_cols, first.matrix.n_cols, "parts share their input");
        }
        Projection { parts, device: None, tiles: None }
    }

    /// Bytes of what was packed of it.
    pub(crate) fn n_packed_bytes(&self) -> usize {
        self.tiles.iter().flat_map(|tiles| tiles.iter()).map(TileWeights::n_bytes).sum()
    }

    /// Quantization of the input.
    pub fn input(&self) -> InputScale {
        self.parts[0].input
    }

    /// Outputs over all parts.
    pub fn n_rows(&self) -> usize {
        match &self.device {
            None => self.parts.iter().map(|part| part.matrix.n_rows).sum(),
            Some(device) => device.matrix.n_rows,
        }
    }

    /// Inputs.
    pub fn n_cols(&self) -> usize {
        match &self.device {
            None => self.parts[0].matrix.n_cols,
            Some(device) => device.matrix.n_cols,
        }
    }
}

impl Vector {
    /// To read.
    pub fn as_array(&self) -> Array<'_, f32> {
        match self {
            Vector::Host(values) => Array::Host(values),
            Vector::Device(array) => Array::Device(*array),
        }
    }
}

impl Table {
    /// Entries.
    pub fn n_rows(&self) -> usize {
        match self {
            Table::Host(matrix) => matrix.n_rows,
            Table::Device(view) => view.n_rows,
        }
    }

    /// Width of an entry.
    pub fn n_cols(&self) -> usize {
        match self {
            Table::Host(matrix) => matrix.n_cols,
            Table::Device(view) => view.n_cols,
        }
    }
}
