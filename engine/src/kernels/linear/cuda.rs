//! Projections on a GPU: products of cuBLASLt, planned at boot for every number of tokens.
//!
//! ```text
//! out[t][n] = Σ_k x[t][k] · w[n][k]   ( · weight_scale · input_scale )
//! ```
//!
//! Where factors are left out the consumer applies them: the parts of a fused projection have one
//! each, and the rows and tokens of FP8-dynamic have one each. Both are exact, because a factor
//! may be pulled out of a sum.
//!
//! **Tails.** FP8 kernels want K and N to be multiples of 16 bytes of their operands: every row of
//! weights and of tokens, and every row of the result, must begin at a multiple of 16 bytes. They
//! want nothing of the number of tokens (PyTorch dropped that check for `_scaled_mm` in #108308).
//! All widths of Llama-Nemotron Ultra at eight ranks (672, 1,344, 2,016, 4,000, 4,672, …) are
//! multiples of 32, so nothing is padded; tiles that stick out are the library's.
//!
//! **Tokens.** What is fastest depends on the number of tokens, so an algorithm is chosen for each
//! power of two, and a step uses that of the next one up with its own number of tokens.

use std::collections::HashMap;
use std::rc::Rc;

use crate::device::DeviceError;
use crate::device::cuda::{
    Algorithm, CudaExec, Operands, Pick, Product, ProductShape, ProductTypes,
};

/// What every row of an FP8 product begins at a multiple of.
const ROW_BYTES: usize = 16;

/// What a fixed algorithm is chosen for: a busy step of decoding.
const N_TOKENS_TYPICAL: usize = 64;

/// Whether a token's result may depend, in its last bits, on how many tokens there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Choice {
    /// The fastest algorithm for each number of tokens.
    PerBucket,
    /// One algorithm for all: the sums of a row are the same in every batch.
    Fixed,
}

/// A projection's products, for every number of tokens up to the planned one.
pub struct Gemm {
    shape: ProductShape,
    /// For 1, 2, 4, … tokens.
    products: Vec<Product>,
}

/// The planned projections of a model: those of one shape share their plans.
pub struct Gemms {
    n_tokens_max: usize,
    choice: Choice,
    planned: HashMap<ProductShape, Rc<Gemm>>,
}

impl Gemms {
    /// For steps of up to `n_tokens_max` tokens.
    pub fn new(n_tokens_max: usize, choice: Choice) -> Gemms {
        Gemms { n_tokens_max, choice, planned: HashMap::new() }
    }

    /// The plans for `shape`, made now if they are the first of their kind.
    ///
    /// # Errors
    /// [`DeviceError::RowsNotAligned`] for widths that FP8 kernels do not take; what cuBLASLt has
    /// against the shape.
    pub fn plan(&mut self, exec: &CudaExec, shape: ProductShape) -> Result<Rc<Gemm>, DeviceError> {
        if let Some(gemm) = self.planned.get(&shape) {
            return Ok(Rc::clone(gemm));
        }
        let gemm = Rc::new(Gemm::new(exec, shape, self.n_tokens_max, self.choice)?);
        self.planned.insert(shape, Rc::clone(&gemm));
        Ok(gemm)
    }
}

impl Gemm {
    fn new(
        exec: &CudaExec,
        shape: ProductShape,
        n_tokens_max: usize,
        choice: Choice,
    ) -> Result<Gemm, DeviceError> {
        check_rows(shape)?;
        let pick = match choice {
            Choice::PerBucket => Pick::Fastest,
            Choice::Fixed => Pick::Given(fixed(exec, shape, n_tokens_max)?),
        };
        let products: Result<_, DeviceError> =
            buckets(n_tokens_max).map(|n| exec.plan_product(shape, n, pick)).collect();
        let products = products?;
        Ok(Gemm { shape, products })
    }

    /// What it computes.
    pub fn shape(&self) -> ProductShape {
        self.shape
    }

    /// Submits the product of `n_tokens` tokens.
    ///
    /// # Errors
    /// What cuBLASLt says.
    ///
    /// # Panics
    /// With more tokens than were planned for.
    pub fn run(
        &self,
        exec: &CudaExec,
        operands: Operands,
        n_tokens: usize,
    ) -> Result<(), DeviceError> {
        let bucket_idx = bucket_idx(n_tokens);
        let n_buckets = self.products.len();
        assert!(bucket_idx < n_buckets, "{n_tokens} tokens, planned for 2^{}", n_buckets - 1);
        exec.submit_product(&self.products[bucket_idx], operands, n_tokens)
    }
}

/// One algorithm for all numbers of tokens. Where it splits its sums, and most tokens need more
/// room for the parts than there is, another that does not.
fn fixed(
    exec: &CudaExec,
    shape: ProductShape,
    n_tokens_max: usize,
) -> Result<Algorithm, DeviceError> {
    let n_tokens = N_TOKENS_TYPICAL.min(n_tokens_max);
    let fastest = exec.plan_product(shape, n_tokens, Pick::Fastest)?.algorithm();
    let largest = buckets(n_tokens_max).last().expect("one at least");
    if exec.plan_product(shape, largest, Pick::Given(fastest))?.fits() {
        return Ok(fastest);
    }
    Ok(exec.plan_product(shape, n_tokens, Pick::FastestUnsplit)?.algorithm())
}

/// Numbers of tokens that algorithms are chosen for: powers of two, the last no less than
/// `n_tokens_max`.
fn buckets(n_tokens_max: usize) -> impl Iterator<Item = usize> {
    (0..=bucket_idx(n_tokens_max)).map(|bucket_idx| 1 << bucket_idx)
}

/// Which of the buckets serves `n_tokens`.
fn bucket_idx(n_tokens: usize) -> usize {
    assert!(n_tokens > 0, "a product of no tokens");
    n_tokens.next_power_of_two().ilog2() as usize
}

/// See the tails above.
fn check_rows(shape: ProductShape) -> Result<(), DeviceError> {
    let ProductShape { n_outputs, n_inputs, types, .. } = shape;
    let is_aligned = match types {
        // The library asks the same of N as of K, although N's elements have two bytes.
        ProductTypes::F8ToBf16 => {
            n_inputs.is_multiple_of(ROW_BYTES) && n_outputs.is_multiple_of(ROW_BYTES)
        }
        // It has slower kernels for rows at any address.
        ProductTypes::Bf16ToBf16 | ProductTypes::Bf16ToF32 => true,
    };
    match is_aligned {
        true => Ok(()),
        false => Err(DeviceError::RowsNotAligned { n_outputs, n_inputs, multiple: ROW_BYTES }),
    }
}

#[cfg(test)]
mod tests;
