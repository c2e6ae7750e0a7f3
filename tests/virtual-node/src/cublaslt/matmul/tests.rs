//! Products in a device's memory against double precision, and every rule about pointers broken.

use super::super::descriptors::{
    self as attribute, Descriptor, MatmulDesc, MatrixLayout, Preference,
};
use super::super::heuristic::candidates;
use super::super::rules::Layouts;
use super::super::status::Status;
use super::*;

const DEVICE: DeviceIdx = DeviceIdx(0);
const WORKSPACE: Workspace = Workspace { address: 0, n_bytes: 0 };

/// A case, and how its numbers come out in double precision.
struct Case {
    memory: Memory,
    desc: MatmulDesc,
    /// A, B, C, D.
    layouts: [MatrixLayout; 4],
    addresses: [u64; 4],
    alpha: Factor,
    beta: Factor,
}

fn cuda_type(element: Element) -> u32 {
    match element {
        Element::F32 => 0,
        Element::F16 => 2,
        Element::Bf16 => 14,
        Element::E4m3 => 28,
        Element::E5m2 => 29,
    }
}

/// Values around 1 of either sign, from a fixed seed.
struct Random(u64);

impl Random {
    fn value(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

impl Case {
    /// `sizes` are m, n and k; `elements` those of A, B, C and D.
    fn new(sizes: (usize, usize, usize), elements: [Element; 4], transposes: [bool; 2]) -> Case {
        let (m, n, k) = sizes;
        let memory = Memory::new(1, true);
        let mut desc = MatmulDesc::new(68, 0);
        for (number, transpose) in [attribute::TRANS_A, attribute::TRANS_B].iter().zip(transposes) {
            desc.set(*number, &u32::from(transpose).to_le_bytes()).unwrap();
        }
        let turned = |rows: usize, cols: usize, transposes| {
            if transposes { (cols, rows) } else { (rows, cols) }
        };
        let shapes = [turned(m, k, transposes[0]), turned(k, n, transposes[1]), (m, n), (m, n)];
        let mut random = Random(0x5eed + (m * 7 + n * 3 + k) as u64);
        let mut addresses = [0; 4];
        let mut idx = 0;
        let layouts = shapes.map(|(rows, cols)| {
            let element = elements[idx];
            let leading = rows + if element.is_f8() { 16 } else { 8 };
            let n_bytes = (leading * cols * element.n_bytes()) as u64;
            addresses[idx] = memory.allocate(DEVICE, n_bytes).unwrap();
            let bytes = bytes_at(&memory, addresses[idx], n_bytes);
            // D keeps the poison that fresh memory has.
            if idx < 3 {
                for one in bytes.chunks_exact_mut(element.n_bytes()) {
                    element.write(random.value(), one);
                }
            }
            idx += 1;
            MatrixLayout::new(cuda_type(element), rows as u64, cols as u64, leading as i64)
        });
        let (alpha, beta) = (Factor::Value(1.0), Factor::Value(0.0));
        Case { memory, desc, layouts, addresses, alpha, beta }
    }

    fn f8(sizes: (usize, usize, usize)) -> Case {
        let [e4m3, bf16] = [Element::E4m3, Element::Bf16];
        Case::new(sizes, [e4m3, e4m3, bf16, bf16], [true, false])
    }

    fn layout(&self, idx: usize) -> Layout {
        self.layouts[idx].layout().unwrap()
    }

    fn set(&mut self, number: u32, value: u64, n_bytes: usize) {
        self.desc.set(number, &value.to_le_bytes()[..n_bytes]).unwrap();
    }

    /// A value in the device's memory.
    fn put(&self, value: f32) -> u64 {
        let address = self.memory.allocate(DEVICE, 4).unwrap();
        Element::F32.write(value, bytes_at(&self.memory, address, 4));
        address
    }

    fn matmul(&self) -> Result<Matmul, Refusal> {
        let [a, b, c, d] = [0, 1, 2, 3].map(|idx| self.layout(idx));
        let problem = Problem::new(self.desc.operation()?, Layouts { a, b, c, d })?;
        let (alpha, beta) = (self.alpha, self.beta);
        let [a, b, c, d] = self.addresses;
        Ok(Matmul { problem, alpha, beta, a, b, c, d, n_parts: 1 })
    }

    fn check(&self, workspace: Workspace) -> Result<(), Refusal> {
        let matmul = self.matmul()?;
        let algo = candidates(&matmul.problem, &Preference::default(), 1)?[0];
        matmul.check(&algo, workspace)
    }

    fn refused(&self, status: Status, word: &str) {
        let refusal = self.check(WORKSPACE).expect_err(word);
        assert_eq!(refusal.status, status, "{refusal}");
        assert!(refusal.reason.contains(word), "{refusal} says nothing of {word}");
    }

    fn read(&self, idx: usize, row: usize, col: usize) -> f32 {
        let layout = self.layout(idx);
        let (row_stride, col_stride) = layout.strides();
        let offset = (row * row_stride + col * col_stride) * layout.element.n_bytes();
        let bytes = bytes_at(&self.memory, self.addresses[idx] + offset as u64, 4);
        layout.element.read(bytes)
    }

    /// Runs it, and compares with `finish(sum, c, row)` in double precision, before rounding.
    fn agrees(&self, finish: impl Fn(f64, f64, usize) -> f64) {
        self.check(WORKSPACE).unwrap();
        let matmul = self.matmul().unwrap();
        let Problem { m, n, k, operation, .. } = matmul.problem;
        let turned = |transposes: bool, row, col| if transposes { (col, row) } else { (row, col) };
        let mut expected = Vec::new();
        for col in 0..n {
            for row in 0..m {
                let (mut sum, mut size) = (0.0, 0.0);
                for idx in 0..k {
                    let (a_row, a_col) = turned(operation.transposes_a, row, idx);
                    let (b_row, b_col) = turned(operation.transposes_b, idx, col);
                    let (a, b) = (self.read(0, a_row, a_col), self.read(1, b_row, b_col));
                    sum += f64::from(a) * f64::from(b);
                    size += f64::from(a * b).abs();
                }
                let c = f64::from(self.read(2, row, col));
                expected.push((row, col, finish(sum, c, row), size));
            }
        }
        matmul.run(&self.memory, DEVICE, 2).unwrap();
        let rounding = match self.layout(3).element {
            Element::F32 => 1e-6,
            Element::F16 => 1.0 / 2048.0,
            Element::Bf16 => 1.0 / 256.0,
            Element::E4m3 => 1.0 / 16.0,
            Element::E5m2 => 1.0 / 8.0,
        };
        for (row, col, expected, size) in expected {
            let value = f64::from(self.read(3, row, col));
            let bound = rounding * expected.abs() + 1e-5 * size + 2e-3 * rounding;
            let error = (value - expected).abs();
            assert!(error <= bound, "{row}, {col}: {value} for {expected}");
        }
    }
}

fn bytes_at<'a>(memory: &Memory, address: u64, n_bytes: u64) -> &'a mut [u8] {
    let available = memory.find(address).map_or(0, |found| found.start + found.n_bytes - address);
    let n_bytes = n_bytes.min(available);
    let pointer = memory.resolve(DEVICE, address, n_bytes).unwrap();
    // SAFETY: one live allocation holds the range, and a test has one thread.
    unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr(), n_bytes as usize) }
}

#[test]
fn f8_with_odd_numbers_of_tokens() {
    for sizes in [(16, 1, 16), (2304 / 16, 3, 512), (672, 17, 48), (32, 64, 2064)] {
        Case::f8(sizes).agrees(|sum, _, _| sum);
    }
}

#[test]
fn factors_are_read_when_it_runs() {
    let mut case = Case::f8((32, 5, 64));
    let (a, b) = (case.put(f32::NAN), case.put(0.25));
    case.set(attribute::A_SCALE_POINTER, a, 8);
    case.set(attribute::B_SCALE_POINTER, b, 8);
    case.set(attribute::POINTER_MODE, 1, 4);
    (case.alpha, case.beta) = (Factor::At(case.put(2.0)), Factor::At(case.put(-1.0)));
    Element::F32.write(3.0, bytes_at(&case.memory, a, 4));
    case.agrees(|sum, c, _| 2.0 * 3.0 * 0.25 * sum - c);
}

#[test]
fn bf16_lies_any_way() {
    let [bf16, f32] = [Element::Bf16, Element::F32];
    for transposes in [[true, false], [false, false], [false, true], [true, true]] {
        for output in [bf16, f32] {
            let case = Case::new((19, 7, 33), [bf16, bf16, output, output], transposes);
            case.agrees(|sum, _, _| sum);
        }
    }
    let f16 = Element::F16;
    Case::new((19, 7, 33), [f16, f16, f16, f16], [false, false]).agrees(|sum, _, _| sum);
    Case::new((19, 7, 33), [f32, f32, f32, f32], [true, false]).agrees(|sum, _, _| sum);
}

#[test]
fn beta_adds_c_from_elsewhere_or_in_place() {
    let elements = [Element::Bf16, Element::Bf16, Element::F32, Element::F32];
    let mut apart = Case::new((20, 6, 40), elements, [true, false]);
    (apart.alpha, apart.beta) = (Factor::Value(0.5), Factor::Value(2.0));
    apart.agrees(|sum, c, _| 0.5 * sum + 2.0 * c);
    let mut in_place = Case::new((20, 6, 40), elements, [true, false]);
    (in_place.addresses[3], in_place.beta) = (in_place.addresses[2], Factor::Value(1.0));
    in_place.agrees(|sum, c, _| sum + c);
}

#[test]
fn poison_is_not_read_with_beta_zero_and_not_lost_otherwise() {
    let mut case = Case::f8((16, 2, 16));
    case.addresses[2] = case.memory.allocate(DEVICE, 4096).unwrap();
    case.agrees(|sum, _, _| sum);
    case.beta = Factor::Value(1.0);
    case.matmul().unwrap().run(&case.memory, DEVICE, 1).unwrap();
    assert!(case.read(3, 0, 0).is_nan());
}

#[test]
fn epilogues() {
    let elements = [Element::Bf16, Element::Bf16, Element::F32, Element::F32];
    let bias: Vec<f32> = (0..24).map(|row| row as f32 - 11.5).collect();
    for (number, has_bias, activation) in
        [(2u64, false, "relu"), (4, true, ""), (6, true, "relu"), (32, false, "gelu")]
    {
        let mut case = Case::new((24, 5, 16), elements, [true, false]);
        let address = case.memory.allocate(DEVICE, 24 * 4).unwrap();
        for (one, value) in bytes_at(&case.memory, address, 96).chunks_exact_mut(4).zip(&bias) {
            Element::F32.write(*value, one);
        }
        case.set(attribute::EPILOGUE, number, 4);
        case.set(attribute::BIAS_POINTER, address, 8);
        case.agrees(|sum, _, row| {
            let value = sum + if has_bias { f64::from(bias[row]) } else { 0.0 };
            match activation {
                "relu" => value.max(0.0),
                "gelu" => {
                    let inner =
                        (2.0 / std::f64::consts::PI).sqrt() * (value + 0.044_715 * value.powi(3));
                    0.5 * value * (1.0 + inner.tanh())
                }
                _ => value,
            }
        });
    }
}

#[test]
fn f8_results_are_scaled_and_their_largest_is_noted() {
    let [e4m3, bf16] = [Element::E4m3, Element::Bf16];
    let mut case = Case::new((32, 3, 64), [e4m3, e4m3, bf16, e4m3], [true, false]);
    let (scale, amax) = (case.put(8.0), case.put(f32::NAN));
    case.set(attribute::D_SCALE_POINTER, scale, 8);
    case.set(attribute::AMAX_D_POINTER, amax, 8);
    case.agrees(|sum, _, _| 8.0 * sum);
    let largest = Element::F32.read(bytes_at(&case.memory, amax, 4));
    let seen = (0..32).flat_map(|row| (0..3).map(move |col| (row, col)));
    let of_outputs = seen.map(|(row, col)| case.read(3, row, col).abs()).fold(0.0, f32::max);
    assert!((largest * 8.0 - of_outputs).abs() <= of_outputs / 16.0, "{largest} {of_outputs}");
}

#[test]
fn batches_lie_at_their_strides() {
    let elements = [Element::Bf16; 4];
    let mut case = Case::new((8, 24, 16), elements, [true, false]);
    // Three products of eight columns each, which share A.
    for (idx, stride) in [(0, 0), (1, 8 * 24), (2, 8 * 16), (3, 8 * 16)] {
        let layout = &mut case.layouts[idx];
        layout.set(attribute::LAYOUT_BATCH_COUNT, &3u32.to_le_bytes()).unwrap();
        layout.set(attribute::LAYOUT_BATCH_STRIDE, &i64::to_le_bytes(stride)).unwrap();
        if idx > 0 {
            layout.set(attribute::LAYOUT_COLS, &8u64.to_le_bytes()).unwrap();
        }
    }
    let batched = case.matmul().unwrap();
    assert_eq!(batched.problem.n_flops(), 3 * 2 * 8 * 8 * 16);
    batched.run(&case.memory, DEVICE, 1).unwrap();
    let batched: Vec<f32> = (0..24).map(|col| case.read(3, 5, col % 8 + col / 8 * 8)).collect();
    let single = Case::new((8, 24, 16), elements, [true, false]);
    single.agrees(|sum, _, _| sum);
    let single: Vec<f32> = (0..24).map(|col| single.read(3, 5, col)).collect();
    assert_eq!(batched, single);
}

#[test]
fn wrong_pointers_are_refused() {
    let mut case = Case::f8((16, 2, 16));
    case.check(WORKSPACE).unwrap();
    case.addresses[1] += 8;
    case.refused(Status::NotSupported, "B at");
    let mut case = Case::f8((16, 2, 16));
    case.addresses[3] = 0;
    case.refused(Status::InvalidValue, "D is null");
    let mut case = Case::f8((16, 2, 16));
    case.addresses[3] = case.addresses[0];
    case.refused(Status::InvalidValue, "D lies over A");
    let mut case = Case::f8((16, 2, 16));
    (case.addresses[3], case.beta) = (case.addresses[2] + 16, Factor::Value(1.0));
    case.refused(Status::InvalidValue, "D lies over C");
    let mut case = Case::f8((16, 2, 16));
    case.set(attribute::EPILOGUE, 4, 4);
    case.refused(Status::InvalidValue, "bias");
    let mut case = Case::f8((16, 2, 16));
    case.addresses[2] = 0;
    case.check(WORKSPACE).unwrap();
    case.beta = Factor::Value(1.0);
    case.refused(Status::InvalidValue, "C is null");
}

#[test]
fn workspace_is_large_enough_and_aligned() {
    let case = Case::f8((2304, 2, 16));
    let matmul = case.matmul().unwrap();
    let mut preference = Preference::default();
    preference.set(attribute::MAX_WORKSPACE_BYTES, &(1u64 << 20).to_le_bytes()).unwrap();
    let algos = candidates(&matmul.problem, &preference, 16).unwrap();
    let algo = algos.iter().find(|algo| algo.n_splits == 2).unwrap();
    let n_bytes = algo.workspace_bytes(&matmul.problem);
    assert_eq!(n_bytes, 2 * 2304 * 2 * 4);
    assert!(matmul.check(algo, Workspace { address: 4096, n_bytes }).is_ok());
    for (address, n_bytes, word) in
        [(4096, n_bytes - 1, "needs"), (0, n_bytes, "needs"), (4096 + 128, n_bytes, "256 bytes")]
    {
        let refusal = matmul.check(algo, Workspace { address, n_bytes }).unwrap_err();
        assert_eq!(refusal.status, Status::InvalidValue);
        assert!(refusal.reason.contains(word), "{refusal}");
    }
}

#[test]
fn what_the_device_cannot_reach_is_a_fault() {
    let mut case = Case::f8((16, 2, 16));
    case.matmul().unwrap().check_memory(&case.memory, DEVICE).unwrap();
    let one_too_far = case.memory.allocate(DEVICE, 16 * 16).unwrap() + 16;
    case.addresses[0] = one_too_far;
    let matmul = case.matmul().unwrap();
    assert!(matches!(matmul.check_memory(&case.memory, DEVICE), Err(Fault::OutOfBounds { .. })));
    assert!(matches!(matmul.run(&case.memory, DEVICE, 1), Err(Fault::OutOfBounds { .. })));
}

#[test]
fn it_counts_every_matrix_once() {
    let mut case = Case::f8((32, 4, 64));
    let counters = case.matmul().unwrap().counters();
    assert_eq!((counters.bytes_read, counters.bytes_written), (32 * 64 + 4 * 64, 32 * 4 * 2));
    assert_eq!(counters.flops, Flops { tensor_f8: 2 * 32 * 4 * 64, ..Flops::default() });
    case.beta = Factor::Value(1.0);
    let with_c = case.matmul().unwrap().counters();
    assert_eq!(with_c.bytes_read, counters.bytes_read + 32 * 4 * 2);
}
