//! Products on a device against sums in f64.

use half::bf16;

use super::*;
use crate::device::DevicePtr;
use crate::device::cuda::Plain;
use crate::device::cuda::testing::TestDevice;
use crate::kernels::testing::{Rng, assert_close, e4m3_value};

/// Numbers of tokens: one, odd ones, a power of two and its neighbours.
const TOKENS: [usize; 5] = [1, 3, 16, 17, 33];

/// Widths of Ultra's ranks that are no multiple of 64 or 128, and the demo's.
const WIDTHS: [usize; 5] = [32, 672, 1344, 2016, 4000];

/// Half a unit in the last of bf16's eight places.
const BF16_ROUNDING: f64 = 1.0 / 256.0;

fn shape(n_outputs: usize, n_inputs: usize, types: ProductTypes) -> ProductShape {
    ProductShape { n_outputs, n_inputs, types, is_scaled: false }
}

/// A random matrix as a device has it, and its values.
struct Operand {
    bytes: Vec<u8>,
    values: Vec<f64>,
}

impl Operand {
    fn e4m3(rng: &mut Rng, n: usize) -> Operand {
        // No NaN, and magnitudes as a quantizer leaves them.
        let bytes: Vec<u8> = (0..n).map(|_| (rng.below(256) as u8) & 0xBF).collect();
        let values = bytes.iter().map(|&code| e4m3_value(code)).collect();
        Operand { bytes, values }
    }

    fn bf16(rng: &mut Rng, n: usize) -> Operand {
        let numbers: Vec<bf16> = rng.numbers(n).iter().map(|&x| bf16::from_f32(x)).collect();
        let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        Operand { bytes, values: numbers.iter().map(|x| x.to_f64()).collect() }
    }
}

/// The exact product and how far a result may be from it: f32 additions in any order, then one
/// rounding to the type of the result.
fn exact(x: &Operand, weights: &Operand, sizes: [usize; 3], rounding: f64) -> Vec<(f64, f64)> {
    let [n_tokens, n_outputs, n_inputs] = sizes;
    let row = |operand: &'_ Operand, idx: usize| -> Vec<f64> {
        operand.values[idx * n_inputs..(idx + 1) * n_inputs].to_vec()
    };
    let mut expected = Vec::with_capacity(n_tokens * n_outputs);
    for t in 0..n_tokens {
        let tokens = row(x, t);
        for n in 0..n_outputs {
            let (mut sum, mut size) = (0.0, 0.0f64);
            for (a, b) in tokens.iter().zip(row(weights, n)) {
                sum += a * b;
                size += (a * b).abs();
            }
            let of_additions = n_inputs as f64 * 2f64.powi(-24) * size;
            expected.push((sum, of_additions + rounding * (sum.abs() + of_additions)));
        }
    }
    expected
}

/// Runs one product and gives back what it wrote, and that it wrote nothing else.
fn run<T: Plain + Default + PartialEq>(
    device: &TestDevice,
    gemm: &Gemm,
    operands: Operands,
    n_tokens: usize,
) -> Vec<T> {
    let n = n_tokens * gemm.shape().n_outputs;
    gemm.run(&device.exec, operands, n_tokens).expect("it is submitted");
    let mut out = device.download::<T>(operands.out, n + 16);
    let beyond = out.split_off(n);
    let poison = device.download::<T>(device.poisoned::<T>(16), 16);
    let as_bytes = |values: &[T]| crate::device::cuda::bytes_of(values).to_vec();
    assert_eq!(as_bytes(&beyond), as_bytes(&poison), "nothing is written behind the result");
    out
}

fn planned(
    device: &TestDevice,
    shape: ProductShape,
    n_tokens_max: usize,
    choice: Choice,
) -> Rc<Gemm> {
    Gemms::new(n_tokens_max, choice).plan(&device.exec, shape).expect("it is planned")
}

fn operands(device: &TestDevice, x: &Operand, weights: &Operand, out: DevicePtr) -> Operands {
    let (x, weights) = (device.upload(&x.bytes), device.upload(&weights.bytes));
    Operands { x, weights, out, scales: None }
}

#[test]
fn fp8_products_are_right_for_every_width_and_number_of_tokens() {
    let mut rng = Rng::new(11);
    let device = TestDevice::open(0);
    for width in WIDTHS {
        // The wide side once as inputs, once as outputs.
        for (n_outputs, n_inputs) in [(48, width), (width, 80)] {
            let shape = shape(n_outputs, n_inputs, ProductTypes::F8ToBf16);
            let gemm = planned(&device, shape, 33, Choice::PerBucket);
            let weights = Operand::e4m3(&mut rng, n_outputs * n_inputs);
            for n_tokens in TOKENS {
                let x = Operand::e4m3(&mut rng, n_tokens * n_inputs);
                let out = device.poisoned::<bf16>(n_tokens * n_outputs + 16);
                let operands = operands(&device, &x, &weights, out);
                let got = run::<bf16>(&device, &gemm, operands, n_tokens);
                let got: Vec<f32> = got.iter().map(|x| x.to_f32()).collect();
                let sizes = [n_tokens, n_outputs, n_inputs];
                let expected = exact(&x, &weights, sizes, BF16_ROUNDING);
                assert_close(&got, &expected, &format!("{shape:?}, {n_tokens} tokens"));
            }
        }
    }
}

#[test]
fn bf16_products_are_right_in_both_types_of_result() {
    let mut rng = Rng::new(12);
    let device = TestDevice::open(0);
    // Widths that FP8 would not take.
    for (n_outputs, n_inputs, n_tokens) in [(67, 20, 3), (64, 128, 16), (16, 1000, 1)] {
        let x = Operand::bf16(&mut rng, n_tokens * n_inputs);
        let weights = Operand::bf16(&mut rng, n_outputs * n_inputs);
        let sizes = [n_tokens, n_outputs, n_inputs];
        for types in [ProductTypes::Bf16ToBf16, ProductTypes::Bf16ToF32] {
            let shape = shape(n_outputs, n_inputs, types);
            let gemm = planned(&device, shape, 16, Choice::Fixed);
            let n = n_tokens * n_outputs + 16;
            let (got, rounding): (Vec<f32>, f64) = match types {
                ProductTypes::Bf16ToF32 => {
                    let out = device.poisoned::<f32>(n);
                    let operands = operands(&device, &x, &weights, out);
                    (run(&device, &gemm, operands, n_tokens), 0.0)
                }
                _ => {
                    let out = device.poisoned::<bf16>(n);
                    let operands = operands(&device, &x, &weights, out);
                    let got = run::<bf16>(&device, &gemm, operands, n_tokens);
                    (got.iter().map(|x| x.to_f32()).collect(), BF16_ROUNDING)
                }
            };
            let expected = exact(&x, &weights, sizes, rounding);
            assert_close(&got, &expected, &format!("{shape:?}, {n_tokens} tokens"));
        }
    }
}

#[test]
fn factors_on_the_device_multiply_the_sum() {
    let mut rng = Rng::new(13);
    let device = TestDevice::open(0);
    let shape = ProductShape { is_scaled: true, ..shape(32, 64, ProductTypes::F8ToBf16) };
    let gemm = planned(&device, shape, 4, Choice::PerBucket);
    let (x, weights) = (Operand::e4m3(&mut rng, 4 * 64), Operand::e4m3(&mut rng, 32 * 64));
    // Two layers of one shape share a plan, not their factors.
    for factors in [[0.5f32, 0.25], [3.0, 0.125]] {
        let out = device.poisoned::<bf16>(4 * 32 + 16);
        let scales = Some((device.upload(&factors[..1]), device.upload(&factors[1..])));
        let operands = Operands { scales, ..operands(&device, &x, &weights, out) };
        let got: Vec<f32> =
            run::<bf16>(&device, &gemm, operands, 4).iter().map(|x| x.to_f32()).collect();
        let factor = f64::from(factors[0]) * f64::from(factors[1]);
        let expected: Vec<(f64, f64)> = exact(&x, &weights, [4, 32, 64], BF16_ROUNDING)
            .iter()
            .map(|(sum, bound)| (sum * factor, bound * factor))
            .collect();
        assert_close(&got, &expected, &format!("factors {factors:?}"));
    }
}

#[test]
fn a_row_is_the_same_in_every_batch() {
    let mut rng = Rng::new(14);
    let device = TestDevice::open(0);
    let (n_outputs, n_inputs, n_tokens) = (64, 672, 33);
    let shape = shape(n_outputs, n_inputs, ProductTypes::F8ToBf16);
    let gemm = planned(&device, shape, n_tokens, Choice::Fixed);
    let weights = Operand::e4m3(&mut rng, n_outputs * n_inputs);
    let x = Operand::e4m3(&mut rng, n_tokens * n_inputs);
    let out = device.poisoned::<bf16>(n_tokens * n_outputs + 16);
    let all = operands(&device, &x, &weights, out);
    let together = run::<bf16>(&device, &gemm, all, n_tokens);
    for t in [0, 7, 32] {
        let out = device.poisoned::<bf16>(n_outputs + 16);
        let operands = Operands { x: all.x.offset(t * n_inputs), out, ..all };
        let alone = run::<bf16>(&device, &gemm, operands, 1);
        assert_eq!(alone, together[t * n_outputs..(t + 1) * n_outputs], "token {t}");
    }
}

#[test]
fn a_fixed_algorithm_is_one_for_all_and_has_room() {
    let device = TestDevice::open(0);
    // Narrow ones are split, wide ones of many tokens would take too much room for that.
    for (n_outputs, n_inputs) in [(64, 672), (2304, 16_384), (16_384, 672)] {
        let shape = shape(n_outputs, n_inputs, ProductTypes::F8ToBf16);
        let algorithms = |choice| {
            let gemm = planned(&device, shape, 2048, choice);
            assert!(gemm.products.iter().all(Product::fits), "{shape:?}, {choice:?}");
            gemm.products.iter().map(Product::algorithm).collect::<Vec<_>>()
        };
        let fixed = algorithms(Choice::Fixed);
        assert!(fixed.iter().all(|one| *one == fixed[0]), "{shape:?}");
        let per_bucket = algorithms(Choice::PerBucket);
        assert!(per_bucket.iter().any(|one| *one != per_bucket[0]), "{shape:?}: one fits all");
    }
}

#[test]
fn a_product_is_recorded_and_replayed() {
    let mut rng = Rng::new(15);
    let device = TestDevice::open(0);
    let shape = shape(32, 64, ProductTypes::F8ToBf16);
    let gemm = planned(&device, shape, 8, Choice::PerBucket);
    let weights = Operand::e4m3(&mut rng, 32 * 64);
    let out = device.poisoned::<bf16>(8 * 32);
    let first = operands(&device, &Operand::e4m3(&mut rng, 8 * 64), &weights, out);
    let stream = device.exec.stream();
    stream.begin_capture().expect("it begins");
    gemm.run(&device.exec, first, 8).expect("it is recorded");
    let graph = stream.end_capture().expect("it ends");
    // The plan serves another product in between: what was recorded stays.
    gemm.run(&device.exec, Operands { out: device.poisoned::<bf16>(32), ..first }, 1)
        .expect("it is submitted");
    for _ in 0..2 {
        let x = Operand::e4m3(&mut rng, 8 * 64);
        device.exec.upload(first.x, &x.bytes).expect("it is copied");
        stream.launch(&graph).expect("it is submitted");
        let got: Vec<f32> =
            device.download::<bf16>(out, 8 * 32).iter().map(|x| x.to_f32()).collect();
        assert_close(&got, &exact(&x, &weights, [8, 32, 64], BF16_ROUNDING), "replayed");
    }
}

#[test]
fn a_bucket_serves_every_number_of_tokens() {
    assert_eq!(buckets(1).collect::<Vec<_>>(), [1]);
    assert_eq!(buckets(8).collect::<Vec<_>>(), [1, 2, 4, 8]);
    assert_eq!(buckets(9).collect::<Vec<_>>(), [1, 2, 4, 8, 16]);
    let sizes: Vec<usize> = buckets(8192).collect();
    for n_tokens in 1..=8192 {
        let size = sizes[bucket_idx(n_tokens)];
        assert!(n_tokens <= size && size < 2 * n_tokens, "{n_tokens} in {size}");
    }
}

#[test]
fn fp8_takes_every_width_of_ultra_as_it_is() {
    let f8 = ProductTypes::F8ToBf16;
    for width in [672, 1344, 2016, 4000, 4672, 6656, 37_632, 53_248] {
        check_rows(shape(2 * width, 16_384, f8)).expect("gate and up");
        check_rows(shape(16_384, width, f8)).expect("down");
    }
    check_rows(shape(2304, 16_384, f8)).expect("queries, keys and values");
    for (n_outputs, n_inputs) in [(16, 24), (24, 16), (8, 16)] {
        let error = check_rows(shape(n_outputs, n_inputs, f8)).expect_err("no multiple of 16");
        assert!(matches!(error, DeviceError::RowsNotAligned { multiple: 16, .. }), "{error}");
        check_rows(shape(n_outputs, n_inputs, ProductTypes::Bf16ToF32)).expect("any width");
    }
}
