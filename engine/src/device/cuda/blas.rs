//! Matrix products of cuBLASLt, described once at boot and submitted without asking it again.
//!
//! cudarc's own wrapper knows no FP8, no scale pointers and no memory of what it chose: it makes
//! the descriptions and asks for an algorithm at every call.
//!
//! cuBLASLt thinks in columns. A row-major `[rows, columns]` matrix is to it a column-major
//! `columns × rows` one, so `out[T, N] = x[T, K] · W[N, K]ᵀ` reads `outᵀ = Wᵀᵀ · xᵀ`: its A is the
//! weights, transposed, its B is the tokens as they lie, and *its* dimensions are m = N, n = T and
//! k = K. That is the "TN" form, the only one that has FP8 kernels on Hopper.

mod description;

use std::ffi::c_void;
use std::ptr;

use cudarc::cublaslt::sys::{
    self, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulHeuristicResult_t, cublasStatus_t,
    cudaDataType_t,
};

use super::memory::DevicePtr;
use super::stream::Stream;
use crate::device::DeviceError;

use description::{Layout, Operation, Preference};

/// What cuBLASLt may use for partial sums: NVIDIA's recommendation for Hopper.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// Types of a product's operands and of what it yields. Sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProductTypes {
    /// e4m3 × e4m3, written as bf16.
    F8ToBf16,
    /// bf16 × bf16, written as bf16.
    Bf16ToBf16,
    /// bf16 × bf16, written as f32.
    Bf16ToF32,
}

/// A product's shape, up to the number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductShape {
    /// N: rows of the weights.
    pub n_outputs: usize,
    /// K: columns of the weights.
    pub n_inputs: usize,
    /// Of operands and result.
    pub types: ProductTypes,
    /// Whether the sum is multiplied by two factors that lie on the device.
    pub is_scaled: bool,
}

/// What a product reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// `[T, K]`
    pub x: DevicePtr,
    /// `[N, K]`
    pub weights: DevicePtr,
    /// `[T, N]`
    pub out: DevicePtr,
    /// One f32 each, where the shape is scaled: the weights' factor and the input's.
    pub scales: Option<(DevicePtr, DevicePtr)>,
}

/// The library, opened on one device.
pub(super) struct Blas {
    handle: cublasLtHandle_t,
    workspace: DevicePtr,
}

/// A product with everything chosen but its addresses and the number of tokens.
pub struct Product {
    shape: ProductShape,
    operation: Operation,
    weights: Layout,
    /// Its columns are the tokens; set at each call.
    x: Layout,
    out: Layout,
    algorithm: cublasLtMatmulAlgo_t,
    /// What the algorithm needs for partial sums.
    workspace_bytes: usize,
}

/// How a product's algorithm is come by.
#[derive(Clone, Copy)]
pub enum Pick {
    /// What the library thinks is fastest.
    Fastest,
    /// The same, of those that take a sum in one piece.
    FastestUnsplit,
    /// This one, which may need more workspace than there is: see [`Product::fits`].
    Given(Algorithm),
}

/// An algorithm that was chosen for one product and may serve another of the same shape.
#[derive(Clone, Copy, PartialEq)]
pub struct Algorithm(cublasLtMatmulAlgo_t);

impl Blas {
    /// `workspace` holds [`WORKSPACE_BYTES`]. Products on different streams may not share it.
    pub(super) fn open(workspace: DevicePtr) -> Result<Blas, DeviceError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the library is there, which opening the device has seen.
        check("cublasLtCreate", None, unsafe { sys::cublasLtCreate(&mut handle) })?;
        Ok(Blas { handle, workspace })
    }

    /// Describes a product of up to `n_tokens` tokens, and how it is computed.
    pub(super) fn plan(
        &self,
        shape: ProductShape,
        n_tokens: usize,
        pick: Pick,
    ) -> Result<Product, DeviceError> {
        let ProductShape { n_outputs, n_inputs, types, is_scaled } = shape;
        let (operand, result) = types.of_operands_and_result();
        let mut product = Product {
            shape,
            operation: Operation::new(types)?,
            weights: Layout::new(operand, n_inputs, n_outputs)?,
            x: Layout::new(operand, n_inputs, n_tokens)?,
            out: Layout::new(result, n_outputs, n_tokens)?,
            algorithm: cublasLtMatmulAlgo_t { data: [0; 8] },
            workspace_bytes: 0,
        };
        if is_scaled {
            // Whether there are factors decides which algorithms there are; where they lie does
            // not, as long as they are aligned.
            product.operation.set_scales(self.workspace, self.workspace)?;
        }
        let found = match pick {
            Pick::Fastest => self.chosen(&product, true)?,
            Pick::FastestUnsplit => self.chosen(&product, false)?,
            Pick::Given(Algorithm(algorithm)) => self.checked(&product, algorithm)?,
        };
        product.algorithm = found.algo;
        product.workspace_bytes = found.workspaceSize;
        Ok(product)
    }

    /// Submits a product of `n_tokens` tokens.
    pub(super) fn submit(
        &self,
        stream: &Stream,
        product: &Product,
        operands: Operands,
        n_tokens: usize,
    ) -> Result<(), DeviceError> {
        let Operands { x, weights, out, scales } = operands;
        assert_eq!(scales.is_some(), product.shape.is_scaled, "{:?}", product.shape);
        if let Some((of_weights, of_input)) = scales {
            product.operation.set_scales(of_weights, of_input)?;
        }
        product.x.set_columns(n_tokens)?;
        product.out.set_columns(n_tokens)?;
        let (one, zero) = (1.0f32, 0.0f32);
        let out_layout = product.out.0;
        // SAFETY: the descriptions are ours and of one shape; the factors are read during the
        // call; device addresses are the device's to check. `out` serves as C, which a factor of
        // zero leaves unread.
        let status = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                product.operation.0,
                ptr::from_ref(&one).cast(),
                address(weights),
                product.weights.0,
                address(x),
                product.x.0,
                ptr::from_ref(&zero).cast(),
                address(out),
                out_layout,
                address(out).cast_mut(),
                out_layout,
                &product.algorithm,
                address(self.workspace).cast_mut(),
                WORKSPACE_BYTES,
                stream.raw().cast(),
            )
        };
        check("cublasLtMatmul", Some((product.shape, n_tokens)), status)
    }

    /// What the library thinks is fastest.
    fn chosen(
        &self,
        product: &Product,
        may_split: bool,
    ) -> Result<cublasLtMatmulHeuristicResult_t, DeviceError> {
        let preference = Preference::new(may_split)?;
        let mut found = no_result();
        let mut n_found = 0;
        let Product { operation, weights, x, out, .. } = product;
        // SAFETY: the descriptions are ours; there is room for the one result that is asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                operation.0,
                weights.0,
                x.0,
                out.0,
                out.0,
                preference.0,
                1,
                &mut found,
                &mut n_found,
            )
        };
        let subject = Some((product.shape, x.columns()?));
        check("cublasLtMatmulAlgoGetHeuristic", subject, status)?;
        check("cublasLtMatmulAlgoGetHeuristic", subject, found.state)?;
        assert_eq!(n_found, 1, "a success has a result");
        Ok(found)
    }

    /// `algorithm`, if it computes this product.
    fn checked(
        &self,
        product: &Product,
        algorithm: cublasLtMatmulAlgo_t,
    ) -> Result<cublasLtMatmulHeuristicResult_t, DeviceError> {
        let mut found = no_result();
        let Product { operation, weights, x, out, .. } = product;
        // SAFETY: the descriptions are ours; `found` outlives the call.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                self.handle,
                operation.0,
                weights.0,
                x.0,
                out.0,
                out.0,
                &algorithm,
                &mut found,
            )
        };
        check("cublasLtMatmulAlgoCheck", Some((product.shape, x.columns()?)), status)?;
        found.algo = algorithm;
        Ok(found)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, and nothing is submitted with it any more.
        check_late(unsafe { sys::cublasLtDestroy(self.handle) });
    }
}

impl Product {
    /// What it computes.
    pub fn shape(&self) -> ProductShape {
        self.shape
    }

    /// How.
    pub fn algorithm(&self) -> Algorithm {
        Algorithm(self.algorithm)
    }

    /// Whether there is room for its partial sums, with as many tokens as it was planned for.
    pub fn fits(&self) -> bool {
        self.workspace_bytes <= WORKSPACE_BYTES
    }
}

impl ProductTypes {
    fn of_operands_and_result(self) -> (cudaDataType_t, cudaDataType_t) {
        use cudaDataType_t::{CUDA_R_8F_E4M3, CUDA_R_16BF, CUDA_R_32F};
        match self {
            ProductTypes::F8ToBf16 => (CUDA_R_8F_E4M3, CUDA_R_16BF),
            ProductTypes::Bf16ToBf16 => (CUDA_R_16BF, CUDA_R_16BF),
            ProductTypes::Bf16ToF32 => (CUDA_R_16BF, CUDA_R_32F),
        }
    }
}

fn no_result() -> cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulHeuristicResult_t {
        algo: cublasLtMatmulAlgo_t { data: [0; 8] },
        workspaceSize: 0,
        state: cublasStatus_t::CUBLAS_STATUS_SUCCESS,
        wavesCount: 0.0,
        reserved: [0; 4],
    }
}

fn address(ptr: DevicePtr) -> *const c_void {
    ptr.0 as *const c_void
}

fn check(
    call: &'static str,
    subject: Option<(ProductShape, usize)>,
    status: cublasStatus_t,
) -> Result<(), DeviceError> {
    if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    let subject = subject.map_or_else(String::new, |(shape, n_tokens)| {
        let ProductShape { n_outputs, n_inputs, types, .. } = shape;
        format!(" for {n_tokens} tokens × {n_inputs} inputs × {n_outputs} outputs, {types:?}")
    });
    Err(DeviceError::Blas { call, subject, code: status as u32, name: format!("{status:?}") })
}

fn check_late(status: cublasStatus_t) {
    if let Err(error) = check("cuBLASLt", None, status) {
        tracing::warn!(%error, "while a description is given back");
    }
}
