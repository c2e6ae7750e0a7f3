//! What cuBLASLt wants described before it multiplies: the operation, the layouts of its
//! operands, and what it may use.

use std::ptr;

use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as DescAttribute, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cublasLtMatrixLayout_t,
    cublasLtMatrixLayoutAttribute_t as LayoutAttribute, cublasLtReductionScheme_t, cudaDataType_t,
};

use super::{ProductTypes, WORKSPACE_BYTES, check, check_late};
use crate::device::DeviceError;
use crate::device::cuda::DevicePtr;

/// `CUBLAS_OP_T` of `cublasOperation_t`, which belongs to another header.
const TRANSPOSED: i32 = 1;

/// What is computed: the transposition, the factors, how sums are taken.
pub(super) struct Operation(pub(super) cublasLtMatmulDesc_t);

/// A matrix, column by column.
pub(super) struct Layout(pub(super) cublasLtMatrixLayout_t);

/// What an algorithm may use.
pub(super) struct Preference(pub(super) cublasLtMatmulPreference_t);

impl Operation {
    pub(super) fn new(types: ProductTypes) -> Result<Operation, DeviceError> {
        let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        check("cublasLtMatmulDescCreate", None, unsafe {
            sys::cublasLtMatmulDescCreate(&mut raw, compute, cudaDataType_t::CUDA_R_32F)
        })?;
        let operation = Operation(raw);
        operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if types == ProductTypes::F8ToBf16 {
            // Hopper's FP8 units add with about 14 bits. Without "fast" accumulation their sums
            // are added up in f32 every few steps: dear where K is 16,384, and free where the
            // weights' bytes take the time.
            let is_fast = 0i8;
            operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &is_fast)?;
        }
        Ok(operation)
    }

    pub(super) fn set_scales(
        &self,
        of_weights: DevicePtr,
        of_input: DevicePtr,
    ) -> Result<(), DeviceError> {
        self.set(DescAttribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &of_weights.0)?;
        self.set(DescAttribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &of_input.0)
    }

    fn set<T: Copy>(&self, attribute: DescAttribute, value: &T) -> Result<(), DeviceError> {
        let value = ptr::from_ref(value).cast();
        // SAFETY: the library copies as many bytes as it is told, during the call.
        check("cublasLtMatmulDescSetAttribute", None, unsafe {
            sys::cublasLtMatmulDescSetAttribute(self.0, attribute, value, size_of::<T>())
        })
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        check_late(unsafe { sys::cublasLtMatmulDescDestroy(self.0) });
    }
}

impl Layout {
    /// Columns of `n_rows` elements, one after the other.
    pub(super) fn new(
        element: cudaDataType_t,
        n_rows: usize,
        n_columns: usize,
    ) -> Result<Layout, DeviceError> {
        let mut raw = ptr::null_mut();
        let (rows, columns, stride) = (n_rows as u64, n_columns as u64, n_rows as i64);
        // SAFETY: `raw` outlives the call.
        check("cublasLtMatrixLayoutCreate", None, unsafe {
            sys::cublasLtMatrixLayoutCreate(&mut raw, element, rows, columns, stride)
        })?;
        Ok(Layout(raw))
    }

    pub(super) fn set_columns(&self, n_columns: usize) -> Result<(), DeviceError> {
        let n_columns = n_columns as u64;
        let (attribute, value) =
            (LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_COLS, &raw const n_columns);
        // SAFETY: the library copies eight bytes during the call.
        check("cublasLtMatrixLayoutSetAttribute", None, unsafe {
            sys::cublasLtMatrixLayoutSetAttribute(self.0, attribute, value.cast(), 8)
        })
    }

    pub(super) fn columns(&self) -> Result<usize, DeviceError> {
        let (mut n_columns, mut n_written) = (0u64, 0);
        let (attribute, value) = (LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_COLS, &raw mut n_columns);
        // SAFETY: there is room for the eight bytes.
        check("cublasLtMatrixLayoutGetAttribute", None, unsafe {
            let layout = self.0;
            sys::cublasLtMatrixLayoutGetAttribute(
                layout,
                attribute,
                value.cast(),
                8,
                &mut n_written,
            )
        })?;
        Ok(n_columns as usize)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        check_late(unsafe { sys::cublasLtMatrixLayoutDestroy(self.0) });
    }
}

impl Preference {
    pub(super) fn new(may_split: bool) -> Result<Preference, DeviceError> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        check("cublasLtMatmulPreferenceCreate", None, unsafe {
            sys::cublasLtMatmulPreferenceCreate(&mut raw)
        })?;
        let preference = Preference(raw);
        let workspace = WORKSPACE_BYTES as u64;
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace)?;
        // Where K is split, the parts are added in f32, not in the type of the result.
        let scheme = match may_split {
            true => cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32,
            false => cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32,
        };
        let attribute = PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
        preference.set(attribute, scheme)?;
        Ok(preference)
    }

    fn set<T: Copy>(&self, attribute: PreferenceAttribute, value: T) -> Result<(), DeviceError> {
        let bytes = ptr::from_ref(&value).cast();
        // SAFETY: the library copies as many bytes as it is told, during the call.
        check("cublasLtMatmulPreferenceSetAttribute", None, unsafe {
            sys::cublasLtMatmulPreferenceSetAttribute(self.0, attribute, bytes, size_of::<T>())
        })
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        check_late(unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) });
    }
}
