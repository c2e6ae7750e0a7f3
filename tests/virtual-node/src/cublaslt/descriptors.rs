//! Descriptors of operations, matrices and preferences: which attributes they have, and what those
//! mean once they are read.

pub use super::attributes::Descriptor;
use super::attributes::{Attribute, Attributes, attribute};
use super::element::Element;
use super::status::{Refusal, invalid, unsupported};

/// `cublasLtMatmulDesc_t`: how matrices are multiplied.
#[derive(Debug, Clone, Default)]
pub struct MatmulDesc(Attributes);

pub const COMPUTE_TYPE: u32 = 0;
pub const SCALE_TYPE: u32 = 1;
pub const POINTER_MODE: u32 = 2;
pub const TRANS_A: u32 = 3;
pub const TRANS_B: u32 = 4;
pub const TRANS_C: u32 = 5;
pub const FILL_MODE: u32 = 6;
pub const EPILOGUE: u32 = 7;
pub const BIAS_POINTER: u32 = 8;
pub const A_SCALE_POINTER: u32 = 17;
pub const B_SCALE_POINTER: u32 = 18;
pub const C_SCALE_POINTER: u32 = 19;
pub const D_SCALE_POINTER: u32 = 20;
pub const AMAX_D_POINTER: u32 = 21;
pub const FAST_ACCUM: u32 = 25;
pub const BIAS_DATA_TYPE: u32 = 26;

/// The default of a type-valued attribute that was not set.
const UNSET: u64 = u32::MAX as u64;
const COMPUTE_32F: u64 = 68;
const COMPUTE_32F_PEDANTIC: u64 = 69;
const REAL_32F: u64 = 0;

impl Descriptor for MatmulDesc {
    const NAME: &'static str = "matmul descriptor";
    const ATTRIBUTES: &'static [Attribute] = &[
        attribute(COMPUTE_TYPE, 4),
        attribute(SCALE_TYPE, 4),
        attribute(POINTER_MODE, 4),
        attribute(TRANS_A, 4),
        attribute(TRANS_B, 4),
        attribute(TRANS_C, 4),
        attribute(FILL_MODE, 4),
        attribute(EPILOGUE, 4),
        attribute(BIAS_POINTER, 8),
        attribute(10, 8),
        attribute(11, 8),
        attribute(12, 8),
        attribute(13, 8),
        attribute(14, 8),
        attribute(15, 4),
        attribute(A_SCALE_POINTER, 8),
        attribute(B_SCALE_POINTER, 8),
        attribute(C_SCALE_POINTER, 8),
        attribute(D_SCALE_POINTER, 8),
        attribute(AMAX_D_POINTER, 8),
        attribute(22, 4),
        attribute(23, 8),
        attribute(24, 8),
        attribute(FAST_ACCUM, 1),
        attribute(BIAS_DATA_TYPE, 4),
    ];

    fn attributes(&mut self) -> &mut Attributes {
        &mut self.0
    }

    fn default_of(number: u32) -> u64 {
        match number {
            FILL_MODE => 2,
            EPILOGUE => 1,
            BIAS_DATA_TYPE | 22 => UNSET,
            _ => 0,
        }
    }
}

/// What becomes of a sum before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epilogue {
    pub has_bias: bool,
    pub activation: Option<Activation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    Relu,
    /// In its tanh form.
    Gelu,
}

/// Where alpha and beta are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PointerMode {
    Host,
    Device,
}

/// Device addresses of factors; 0 where a factor is not given and 1 is meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scales {
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub d: u64,
}

/// A matmul descriptor, read.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub transposes_a: bool,
    pub transposes_b: bool,
    pub pointer_mode: PointerMode,
    pub epilogue: Epilogue,
    pub bias: u64,
    /// `None`: as the output's type says.
    pub bias_element: Option<Element>,
    pub scales: Scales,
    pub amax_d: u64,
    pub fast_accumulation: bool,
}

impl MatmulDesc {
    pub fn new(compute_type: u32, scale_type: u32) -> MatmulDesc {
        let mut desc = MatmulDesc::default();
        desc.0.set(COMPUTE_TYPE, compute_type.into());
        desc.0.set(SCALE_TYPE, scale_type.into());
        desc
    }

    /// What it asks for, if any kernel of this double can do it.
    pub fn operation(&self) -> Result<Operation, Refusal> {
        let value = |number| self.0.or(number, MatmulDesc::default_of(number));
        if !matches!(value(COMPUTE_TYPE), COMPUTE_32F | COMPUTE_32F_PEDANTIC) {
            let reason = "the compute type must be CUBLAS_COMPUTE_32F (68)";
            return Err(unsupported(format!("{reason}, it is {}", value(COMPUTE_TYPE))));
        }
        if value(SCALE_TYPE) != REAL_32F {
            let reason = "the scale type must be CUDA_R_32F (0)";
            return Err(unsupported(format!("{reason}, it is {}", value(SCALE_TYPE))));
        }
        let pointer_mode = match value(POINTER_MODE) {
            0 => PointerMode::Host,
            1 => PointerMode::Device,
            mode => return Err(unsupported(format!("pointer mode {mode}"))),
        };
        if value(TRANS_C) != 0 || value(FILL_MODE) != 2 {
            return Err(unsupported("a transposed C, or a triangle"));
        }
        let transposes = |number| match value(number) {
            0 => Ok(false),
            1 => Ok(true),
            2 => Err(unsupported("conjugates of complex matrices")),
            other => Err(invalid(format!("operation {other}"))),
        };
        let bias_element = match value(BIAS_DATA_TYPE) {
            UNSET => None,
            number => Some(element_of(number)?),
        };
        Ok(Operation {
            transposes_a: transposes(TRANS_A)?,
            transposes_b: transposes(TRANS_B)?,
            pointer_mode,
            epilogue: epilogue_of(value(EPILOGUE))?,
            bias: value(BIAS_POINTER),
            bias_element,
            scales: Scales {
                a: value(A_SCALE_POINTER),
                b: value(B_SCALE_POINTER),
                c: value(C_SCALE_POINTER),
                d: value(D_SCALE_POINTER),
            },
            amax_d: value(AMAX_D_POINTER),
            fast_accumulation: value(FAST_ACCUM) != 0,
        })
    }
}

fn epilogue_of(number: u64) -> Result<Epilogue, Refusal> {
    let (has_bias, activation) = match number {
        1 => (false, None),
        2 => (false, Some(Activation::Relu)),
        4 => (true, None),
        6 => (true, Some(Activation::Relu)),
        32 => (false, Some(Activation::Gelu)),
        36 => (true, Some(Activation::Gelu)),
        _ => return Err(unsupported(format!("epilogue {number}"))),
    };
    Ok(Epilogue { has_bias, activation })
}

fn element_of(cuda_type: u64) -> Result<Element, Refusal> {
    match cuda_type {
        0 => Ok(Element::F32),
        2 => Ok(Element::F16),
        14 => Ok(Element::Bf16),
        28 => Ok(Element::E4m3),
        29 => Ok(Element::E5m2),
        other => Err(unsupported(format!("cudaDataType {other}"))),
    }
}

/// `cublasLtMatrixLayout_t`: how a matrix lies in memory.
#[derive(Debug, Clone, Default)]
pub struct MatrixLayout(Attributes);

pub const LAYOUT_TYPE: u32 = 0;
pub const LAYOUT_ORDER: u32 = 1;
pub const LAYOUT_ROWS: u32 = 2;
pub const LAYOUT_COLS: u32 = 3;
pub const LAYOUT_LD: u32 = 4;
pub const LAYOUT_BATCH_COUNT: u32 = 5;
pub const LAYOUT_BATCH_STRIDE: u32 = 6;

impl Descriptor for MatrixLayout {
    const NAME: &'static str = "matrix layout";
    const ATTRIBUTES: &'static [Attribute] = &[
        attribute(LAYOUT_TYPE, 4),
        attribute(LAYOUT_ORDER, 4),
        attribute(LAYOUT_ROWS, 8),
        attribute(LAYOUT_COLS, 8),
        attribute(LAYOUT_LD, 8),
        attribute(LAYOUT_BATCH_COUNT, 4),
        attribute(LAYOUT_BATCH_STRIDE, 8),
        attribute(7, 8),
    ];

    fn attributes(&mut self) -> &mut Attributes {
        &mut self.0
    }

    fn default_of(number: u32) -> u64 {
        u64::from(number == LAYOUT_BATCH_COUNT)
    }
}

/// A matrix layout, read. Rows and columns are as they lie, before any transposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    pub element: Element,
    pub n_rows: usize,
    pub n_cols: usize,
    /// Elements from one column to the next (or from one row to the next, if it lies by rows).
    pub leading: usize,
    pub by_rows: bool,
    pub n_batches: usize,
    /// Elements from one matrix of a batch to the next.
    pub batch_stride: usize,
}

impl MatrixLayout {
    pub fn new(cuda_type: u32, n_rows: u64, n_cols: u64, leading: i64) -> MatrixLayout {
        let mut layout = MatrixLayout::default();
        layout.0.set(LAYOUT_TYPE, cuda_type.into());
        layout.0.set(LAYOUT_ROWS, n_rows);
        layout.0.set(LAYOUT_COLS, n_cols);
        layout.0.set(LAYOUT_LD, leading as u64);
        layout
    }

    /// Where its elements are.
    pub fn layout(&self) -> Result<Layout, Refusal> {
        let value = |number| self.0.or(number, MatrixLayout::default_of(number));
        let size = |number, what: &str| {
            usize::try_from(value(number) as i64)
                .map_err(|_| invalid(format!("a negative {what}: {}", value(number) as i64)))
        };
        let by_rows = match value(LAYOUT_ORDER) {
            0 => false,
            1 => true,
            order => return Err(unsupported(format!("matrix order {order}"))),
        };
        let layout = Layout {
            element: element_of(value(LAYOUT_TYPE))?,
            n_rows: size(LAYOUT_ROWS, "number of rows")?,
            n_cols: size(LAYOUT_COLS, "number of columns")?,
            leading: size(LAYOUT_LD, "leading dimension")?,
            by_rows,
            n_batches: size(LAYOUT_BATCH_COUNT, "batch count")?,
            batch_stride: size(LAYOUT_BATCH_STRIDE, "batch stride")?,
        };
        if layout.leading < layout.n_contiguous() {
            return Err(invalid(format!(
                "the leading dimension {} is less than the {} elements that lie together",
                layout.leading,
                layout.n_contiguous()
            )));
        }
        Ok(layout)
    }
}

impl Layout {
    /// Elements that lie together: a column's, or a row's.
    pub fn n_contiguous(&self) -> usize {
        if self.by_rows { self.n_cols } else { self.n_rows }
    }

    /// Bytes of one matrix from its first element to behind its last.
    pub fn n_bytes(&self) -> usize {
        let n_lines = if self.by_rows { self.n_rows } else { self.n_cols };
        if n_lines == 0 || self.n_contiguous() == 0 {
            return 0;
        }
        ((n_lines - 1) * self.leading + self.n_contiguous()) * self.element.n_bytes()
    }

    /// Elements from one row to the next, and from one column to the next.
    pub fn strides(&self) -> (usize, usize) {
        if self.by_rows { (self.leading, 1) } else { (1, self.leading) }
    }
}

/// `cublasLtMatmulPreference_t`: what a heuristic may choose from.
#[derive(Debug, Clone, Default)]
pub struct Preference(Attributes);

pub const MAX_WORKSPACE_BYTES: u32 = 1;
pub const REDUCTION_SCHEME_MASK: u32 = 3;
pub const MIN_ALIGNMENT_BYTES: [u32; 4] = [5, 6, 7, 8];

impl Descriptor for Preference {
    const NAME: &'static str = "matmul preference";
    const ATTRIBUTES: &'static [Attribute] = &[
        attribute(0, 4),
        attribute(MAX_WORKSPACE_BYTES, 8),
        attribute(REDUCTION_SCHEME_MASK, 4),
        attribute(MIN_ALIGNMENT_BYTES[0], 4),
        attribute(MIN_ALIGNMENT_BYTES[1], 4),
        attribute(MIN_ALIGNMENT_BYTES[2], 4),
        attribute(MIN_ALIGNMENT_BYTES[3], 4),
        attribute(9, 4),
        attribute(12, 8),
    ];

    fn attributes(&mut self) -> &mut Attributes {
        &mut self.0
    }

    fn default_of(number: u32) -> u64 {
        match number {
            REDUCTION_SCHEME_MASK => 7,
            number if MIN_ALIGNMENT_BYTES.contains(&number) => 256,
            12 => u64::MAX,
            _ => 0,
        }
    }
}

impl Preference {
    pub fn workspace_bytes_max(&self) -> u64 {
        self.0.or(MAX_WORKSPACE_BYTES, 0)
    }

    /// Whether several partial sums of one output may be added up afterwards.
    pub fn allows_split_k(&self) -> bool {
        self.0.or(REDUCTION_SCHEME_MASK, 7) != 0
    }

    /// Alignments that the pointers to A, B, C and D will at least have.
    pub fn alignments(&self) -> [u64; 4] {
        MIN_ALIGNMENT_BYTES.map(|number| self.0.or(number, 256))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_has_its_size_and_keeps_its_value() {
        let mut desc = MatmulDesc::new(68, 0);
        desc.set(TRANS_A, &1u32.to_le_bytes()).unwrap();
        desc.set(A_SCALE_POINTER, &0x7000_0000_1000u64.to_le_bytes()).unwrap();
        assert_eq!(desc.get(TRANS_A).unwrap(), 1u32.to_le_bytes());
        let operation = desc.operation().unwrap();
        assert!(operation.transposes_a && !operation.transposes_b);
        assert_eq!(operation.scales.a, 0x7000_0000_1000);

        let refusal = desc.set(A_SCALE_POINTER, &[0; 4]).unwrap_err();
        assert!(refusal.reason.contains("has 8 bytes, not 4"), "{refusal}");
        let refusal = desc.set(99, &[0; 4]).unwrap_err();
        assert!(refusal.reason.contains("no attribute 99"), "{refusal}");
    }

    #[test]
    fn other_arithmetic_is_refused() {
        for (desc, word) in
            [(MatmulDesc::new(64, 0), "compute type"), (MatmulDesc::new(68, 2), "scale type")]
        {
            let refusal = desc.operation().unwrap_err();
            assert!(refusal.reason.contains(word), "{refusal}");
        }
        let mut desc = MatmulDesc::new(68, 0);
        for (number, value, word) in
            [(EPILOGUE, 208u32, "epilogue 208"), (POINTER_MODE, 2, "pointer mode 2")]
        {
            let mut desc = desc.clone();
            desc.set(number, &value.to_le_bytes()).unwrap();
            assert!(desc.operation().unwrap_err().reason.contains(word));
        }
        desc.set(BIAS_DATA_TYPE, &3u32.to_le_bytes()).unwrap();
        assert!(desc.operation().unwrap_err().reason.contains("cudaDataType 3"));
    }

    #[test]
    fn a_layout_knows_its_extent() {
        let mut layout = MatrixLayout::new(14, 5, 3, 8);
        assert_eq!(layout.layout().unwrap().n_bytes(), (2 * 8 + 5) * 2);
        layout.set(LAYOUT_ORDER, &1u32.to_le_bytes()).unwrap();
        assert_eq!(layout.layout().unwrap().n_bytes(), (4 * 8 + 3) * 2);
        let short = MatrixLayout::new(14, 5, 3, 4).layout().unwrap_err();
        assert!(short.reason.contains("leading dimension 4 is less"), "{short}");
        let negative = MatrixLayout::new(14, 5, 3, -8).layout().unwrap_err();
        assert!(negative.reason.contains("negative"), "{negative}");
    }
}
