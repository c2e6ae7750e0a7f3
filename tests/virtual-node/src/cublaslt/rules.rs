//! Which products cuBLASLt 12.6 has kernels for on Hopper, as its documentation and its own log
//! say; everything else is refused as the real library refuses it.
//!
//! FP8 (documentation of `cublasLtMatmul`, "to use FP8 kernels"): A transposed and B not, compute
//! type 32F, scale type 32F, pointers aligned to 16 bytes, and dimensions that keep to 16 bytes as
//! "Tensor Core Usage" lists them: `k`, the leading dimensions, and `m`, of which the real log says
//! "M must be divisible by 16" (`vllm-project/vllm#4691`). `n`, the columns of B and D, is free,
//! which is what PyTorch relies on (pytorch/pytorch#108308). Factors apply to FP8 matrices only,
//! and the largest magnitude is found for FP8 outputs only (pytorch/pytorch#122821).

use super::descriptors::{Layout, Operation};
use super::element::Element;
use super::element::Element::{Bf16, E4m3, E5m2, F16, F32};
use super::status::{Refusal, invalid, unsupported};

/// Bytes that FP8 operands must be aligned to.
pub const F8_ALIGNMENT_BYTES: u64 = 16;
/// Bytes that the workspace must be aligned to.
pub const WORKSPACE_ALIGNMENT_BYTES: u64 = 256;

/// The layouts of the four matrices of `D = alpha op(A) op(B) + beta C`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layouts {
    pub a: Layout,
    pub b: Layout,
    pub c: Layout,
    pub d: Layout,
}

/// A product that there is a kernel for.
#[derive(Debug, Clone, Copy)]
pub struct Problem {
    pub operation: Operation,
    pub layouts: Layouts,
    /// D is `m` by `n`, and each of its elements a sum over `k`.
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub n_batches: usize,
    /// What the bias is made of, if there is one.
    pub bias_element: Element,
}

/// A, B, C, D, and the bias that goes with them.
type Types = (Element, Element, Element, Element, Element);

/// The types that there are kernels for. With FP8 operands A and B may also be E4M3 and E5M2 the
/// other way round, but not both E5M2.
const TYPES: &[Types] = &[
    (F32, F32, F32, F32, F32),
    (F16, F16, F16, F16, F16),
    (F16, F16, F32, F32, F32),
    (Bf16, Bf16, Bf16, Bf16, Bf16),
    (Bf16, Bf16, F32, F32, F32),
    (E4m3, E4m3, Bf16, Bf16, Bf16),
    (E4m3, E4m3, Bf16, E4m3, Bf16),
    (E4m3, E4m3, F16, F16, F16),
    (E4m3, E4m3, F16, E4m3, F16),
    (E4m3, E4m3, F32, F32, Bf16),
    (E4m3, E5m2, Bf16, Bf16, Bf16),
    (E4m3, E5m2, Bf16, E4m3, Bf16),
    (E4m3, E5m2, Bf16, E5m2, Bf16),
    (E4m3, E5m2, F16, F16, F16),
    (E4m3, E5m2, F16, E4m3, F16),
    (E4m3, E5m2, F16, E5m2, F16),
    (E4m3, E5m2, F32, F32, Bf16),
    (E5m2, E4m3, Bf16, Bf16, Bf16),
    (E5m2, E4m3, Bf16, E4m3, Bf16),
    (E5m2, E4m3, Bf16, E5m2, Bf16),
    (E5m2, E4m3, F16, F16, F16),
    (E5m2, E4m3, F16, E4m3, F16),
    (E5m2, E4m3, F16, E5m2, F16),
    (E5m2, E4m3, F32, F32, Bf16),
];

impl Problem {
    /// Holds the descriptors against all rules that need no pointers.
    pub fn new(operation: Operation, layouts: Layouts) -> Result<Problem, Refusal> {
        let (m, n, k) = sizes(&operation, &layouts)?;
        let n_batches = batches(&layouts)?;
        let bias_element = types(&operation, &layouts)?;
        let problem = Problem { operation, layouts, m, n, k, n_batches, bias_element };
        if layouts.a.element.is_f8() {
            problem.check_f8()?;
        }
        problem.check_factors()?;
        Ok(problem)
    }

    fn check_f8(&self) -> Result<(), Refusal> {
        let Layouts { a, b, c, d } = self.layouts;
        if !self.operation.transposes_a || self.operation.transposes_b {
            let reason = "FP8 needs A transposed and B not (the TN format)";
            return Err(unsupported(reason));
        }
        if [a, b, c, d].iter().any(|layout| layout.by_rows) {
            return Err(unsupported("FP8 matrices must lie by columns"));
        }
        let d_bytes = self.m * d.element.n_bytes();
        for (what, value, ok) in [
            ("M", self.m, self.m.is_multiple_of(16) && d_bytes.is_multiple_of(16)),
            ("K", self.k, self.k.is_multiple_of(16)),
            ("the leading dimension of A", a.leading, a.leading.is_multiple_of(16)),
            ("the leading dimension of B", b.leading, b.leading.is_multiple_of(16)),
        ] {
            if !ok {
                return Err(unsupported(format!(
                    "FP8: {what} must be divisible by 16, got {value}"
                )));
            }
        }
        for (what, layout) in [("C", c), ("D", d)] {
            if !(layout.leading * layout.element.n_bytes()).is_multiple_of(16) {
                let leading = layout.leading;
                let reason =
                    format!("FP8: columns of {what} must be 16-byte aligned, got {leading}");
                return Err(unsupported(reason));
            }
        }
        Ok(())
    }

    fn check_factors(&self) -> Result<(), Refusal> {
        let (scales, layouts) = (self.operation.scales, &self.layouts);
        for (what, pointer, element) in [
            ("A", scales.a, layouts.a.element),
            ("B", scales.b, layouts.b.element),
            ("C", scales.c, layouts.c.element),
            ("D", scales.d, layouts.d.element),
            ("D's largest magnitude", self.operation.amax_d, layouts.d.element),
        ] {
            if pointer != 0 && !element.is_f8() {
                let reason =
                    format!("a pointer for {what}, which is {} and not FP8", element.name());
                return Err(unsupported(reason));
            }
        }
        Ok(())
    }

    /// Floating-point operations of all batches.
    pub fn n_flops(&self) -> u64 {
        2 * (self.m * self.n * self.k * self.n_batches) as u64
    }

    /// What its launches are counted under.
    pub fn kernel_name(&self) -> String {
        let Layouts { a, b, d, .. } = self.layouts;
        let operands = if a.element == b.element {
            a.element.name().to_owned()
        } else {
            format!("{}_{}", a.element.name(), b.element.name())
        };
        let Problem { m, n, k, .. } = self;
        let batches =
            if self.n_batches > 1 { format!(" x{}", self.n_batches) } else { String::new() };
        format!("cublasLt {operands}->{} m={m} n={n} k={k}{batches}", d.element.name())
    }
}

fn sizes(operation: &Operation, layouts: &Layouts) -> Result<(usize, usize, usize), Refusal> {
    let turned = |layout: &Layout, transposes: bool| {
        if transposes { (layout.n_cols, layout.n_rows) } else { (layout.n_rows, layout.n_cols) }
    };
    let (m, k) = turned(&layouts.a, operation.transposes_a);
    let (b_k, n) = turned(&layouts.b, operation.transposes_b);
    let Layouts { c, d, .. } = layouts;
    if k != b_k {
        return Err(invalid(format!("op(A) is {m} x {k}, op(B) is {b_k} x {n}")));
    }
    for (what, layout) in [("C", c), ("D", d)] {
        let (n_rows, n_cols) = (layout.n_rows, layout.n_cols);
        if (n_rows, n_cols) != (m, n) {
            let reason = format!("the product is {m} x {n}, but {what} is {n_rows} x {n_cols}");
            return Err(invalid(reason));
        }
    }
    if m == 0 || n == 0 || k == 0 {
        return Err(invalid(format!("an empty product: {m} x {n} over {k}")));
    }
    if c.by_rows != d.by_rows {
        return Err(unsupported("C and D lie in different orders"));
    }
    Ok((m, n, k))
}

fn batches(layouts: &Layouts) -> Result<usize, Refusal> {
    let Layouts { a, b, c, d } = layouts;
    let counts = [a, b, c, d].map(|layout| layout.n_batches);
    if counts.iter().any(|count| *count != counts[0]) || counts[0] == 0 {
        return Err(invalid(format!("batch counts of A, B, C and D: {counts:?}")));
    }
    for (what, layout) in [("A", a), ("B", b), ("C", c), ("D", d)] {
        let is_aligned = (layout.batch_stride * layout.element.n_bytes()).is_multiple_of(16);
        if layout.n_batches > 1 && layout.element.is_f8() && !is_aligned {
            let stride = layout.batch_stride;
            return Err(unsupported(format!("FP8: the batch stride of {what} is {stride}")));
        }
    }
    let d_extent = d.n_bytes() / d.element.n_bytes();
    if d.n_batches > 1 && d.batch_stride < d_extent {
        return Err(invalid("the matrices of a batch of D overlap"));
    }
    Ok(counts[0])
}

/// What the bias is made of.
fn types(operation: &Operation, layouts: &Layouts) -> Result<Element, Refusal> {
    let Layouts { a, b, c, d } = layouts;
    let wanted = (a.element, b.element, c.element, d.element);
    let known = TYPES.iter().find(|(a, b, c, d, _)| (*a, *b, *c, *d) == wanted);
    let Some((.., bias)) = known else {
        let (a, b, c, d) = wanted;
        let [a, b, c, d] = [a, b, c, d].map(Element::name);
        return Err(unsupported(format!("types A {a}, B {b}, C {c}, D {d}")));
    };
    match operation.bias_element {
        Some(asked) if operation.epilogue.has_bias && asked != *bias => {
            let (bias, asked) = (bias.name(), asked.name());
            Err(unsupported(format!("the bias must be {bias} with these types, not {asked}")))
        }
        _ => Ok(*bias),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::descriptors as attribute;
    use super::super::descriptors::{Descriptor, MatmulDesc, MatrixLayout, TRANS_A};
    use super::super::status::Status;
    use super::*;

    const CUDA_E4M3: u32 = 28;
    const CUDA_BF16: u32 = 14;

    /// An FP8 product as the engine asks for it: D's columns are tokens.
    struct Case {
        desc: MatmulDesc,
        a: MatrixLayout,
        b: MatrixLayout,
        c: MatrixLayout,
        d: MatrixLayout,
    }

    impl Case {
        fn f8(m: u64, n: u64, k: u64) -> Case {
            let mut desc = MatmulDesc::new(68, 0);
            desc.set(TRANS_A, &1u32.to_le_bytes()).unwrap();
            Case {
                desc,
                a: MatrixLayout::new(CUDA_E4M3, k, m, k as i64),
                b: MatrixLayout::new(CUDA_E4M3, k, n, k as i64),
                c: MatrixLayout::new(CUDA_BF16, m, n, m as i64),
                d: MatrixLayout::new(CUDA_BF16, m, n, m as i64),
            }
        }

        fn problem(&self) -> Result<Problem, Refusal> {
            let layouts = Layouts {
                a: self.a.layout()?,
                b: self.b.layout()?,
                c: self.c.layout()?,
                d: self.d.layout()?,
            };
            Problem::new(self.desc.operation()?, layouts)
        }

        /// Breaks one rule, and expects the status and a word of the reason.
        fn refused(mut self, status: Status, word: &str, breaks: impl FnOnce(&mut Case)) {
            assert!(self.problem().is_ok(), "it was in order before {word}");
            breaks(&mut self);
            let refusal = self.problem().expect_err(word);
            assert_eq!(refusal.status, status, "{refusal}");
            assert!(refusal.reason.contains(word), "{refusal} says nothing of {word}");
        }

        fn set(&mut self, number: u32, value: u64, n_bytes: usize) {
            self.desc.set(number, &value.to_le_bytes()[..n_bytes]).unwrap();
        }
    }

    pub(in super::super) fn f8_problem(m: usize, n: usize, k: usize) -> Problem {
        Case::f8(m as u64, n as u64, k as u64).problem().expect("a good shape")
    }

    fn layout(cuda_type: u32, n_rows: u64, n_cols: u64) -> MatrixLayout {
        MatrixLayout::new(cuda_type, n_rows, n_cols, n_rows as i64)
    }

    #[test]
    fn real_shapes_are_taken() {
        for (m, k) in [(2304, 16_384), (16_384, 2048), (1344, 16_384), (16_384, 672)] {
            for n in [1, 3, 8, 64, 255] {
                let problem = f8_problem(m, n, k);
                assert_eq!((problem.m, problem.n, problem.k), (m, n, k));
                assert_eq!(problem.n_flops(), 2 * (m * n * k) as u64);
            }
        }
        let name = f8_problem(2304, 8, 16_384).kernel_name();
        assert_eq!(name, "cublasLt e4m3->bf16 m=2304 n=8 k=16384");
    }

    #[test]
    fn f8_dimensions_keep_to_sixteen() {
        let good = || Case::f8(64, 4, 64);
        good().refused(Status::NotSupported, "M must be divisible by 16, got 40", |case| {
            *case = Case::f8(40, 4, 64);
        });
        good().refused(Status::NotSupported, "K must be divisible by 16, got 40", |case| {
            *case = Case::f8(64, 4, 40);
        });
        good().refused(Status::NotSupported, "leading dimension of A", |case| {
            case.a = MatrixLayout::new(CUDA_E4M3, 64, 64, 72);
        });
        good().refused(Status::NotSupported, "leading dimension of B", |case| {
            case.b = MatrixLayout::new(CUDA_E4M3, 64, 4, 72);
        });
        good().refused(Status::NotSupported, "columns of D", |case| {
            case.d = MatrixLayout::new(CUDA_BF16, 64, 4, 68);
        });
    }

    #[test]
    fn f8_is_transposed_and_not() {
        let square = || Case::f8(64, 64, 64);
        square().refused(Status::NotSupported, "TN format", |case| case.set(TRANS_A, 0, 4));
        square().refused(Status::NotSupported, "TN format", |case| {
            case.set(attribute::TRANS_B, 1, 4);
        });
        square().refused(Status::NotSupported, "by columns", |case| {
            for layout in [&mut case.c, &mut case.d] {
                layout.set(attribute::LAYOUT_ORDER, &1u32.to_le_bytes()).unwrap();
            }
        });
    }

    #[test]
    fn sizes_agree() {
        let good = || Case::f8(64, 16, 32);
        good().refused(Status::InvalidValue, "op(B) is 48 x 16", |case| {
            case.b = layout(CUDA_E4M3, 48, 16);
        });
        good().refused(Status::InvalidValue, "C is 64 x 8", |case| {
            case.c = layout(CUDA_BF16, 64, 8);
        });
        good().refused(Status::InvalidValue, "D is 32 x 16", |case| {
            case.d = layout(CUDA_BF16, 32, 16);
        });
        good().refused(Status::InvalidValue, "empty", |case| *case = Case::f8(64, 0, 32));
        good().refused(Status::InvalidValue, "batch counts", |case| {
            case.a.set(attribute::LAYOUT_BATCH_COUNT, &2u32.to_le_bytes()).unwrap();
        });
    }

    #[test]
    fn types_are_on_the_list() {
        let good = || Case::f8(64, 16, 32);
        good().refused(Status::NotSupported, "D f16", |case| case.d = layout(2, 64, 16));
        good().refused(Status::NotSupported, "A e5m2, B e5m2", |case| {
            (case.a, case.b) = (layout(29, 32, 64), layout(29, 32, 16));
        });
        good().refused(Status::NotSupported, "B bf16", |case| case.b = layout(14, 32, 16));
        good().refused(Status::NotSupported, "bias must be bf16", |case| {
            case.set(attribute::EPILOGUE, 4, 4);
            case.set(attribute::BIAS_DATA_TYPE, 0, 4);
        });
    }

    #[test]
    fn factors_belong_to_f8_matrices() {
        let good = || Case::f8(64, 16, 32);
        for number in
            [attribute::C_SCALE_POINTER, attribute::D_SCALE_POINTER, attribute::AMAX_D_POINTER]
        {
            good().refused(Status::NotSupported, "not FP8", |case| case.set(number, 4096, 8));
        }
        let mut case = good();
        case.set(attribute::A_SCALE_POINTER, 4096, 8);
        case.set(attribute::B_SCALE_POINTER, 4096, 8);
        assert!(case.problem().is_ok());
        case.d = layout(CUDA_E4M3, 64, 16);
        case.set(attribute::D_SCALE_POINTER, 4096, 8);
        case.set(attribute::AMAX_D_POINTER, 4096, 8);
        assert!(case.problem().is_ok());
    }
}
