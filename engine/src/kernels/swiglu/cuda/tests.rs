//! `swiglu.cu` against float64. Its bound: a value loses at most [`N_ROUNDINGS`] roundings before
//! the one to its element type: four factors, the exponential's two, sum, quotient and product.

use half::bf16;

use super::{Launch, Output, config, launch};
use crate::device::cuda::testing::TestDevice;
use crate::device::{Deferred, DevicePtr, WeightFactors};
use crate::kernels::testing::device::{Rounding, assert_rounded, bf16s, sampled};
use crate::kernels::testing::traffic::assert_frugal;
use crate::kernels::testing::{ROUNDING, Rng, e4m3_value};

const N_ROUNDINGS: f64 = 12.0;

/// One call's sizes and factors.
struct Case {
    n_tokens: usize,
    width: usize,
    in_stride: usize,
    out_stride: usize,
    factors: Factors,
}

/// Where the scales that the projection left over are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Factors {
    None,
    PerPart,
    PerRow,
}

/// Inputs, by value.
struct Inputs {
    gate_up: Vec<bf16>,
    columns: Vec<f32>,
    tokens: Vec<f32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Bf16,
    Magnitudes,
    Static,
}

const KINDS: [Kind; 3] = [Kind::Bf16, Kind::Magnitudes, Kind::Static];
const PARTS: [f32; 3] = [0.37, 1.83, 0.0];
const STATIC_SCALE: f32 = 0.013;

impl Case {
    fn new(n_tokens: usize, width: usize, factors: Factors) -> Case {
        Case { n_tokens, width, in_stride: 2 * width, out_stride: width, factors }
    }

    fn inputs(&self, rng: &mut Rng) -> Inputs {
        let mut gate_up = bf16s(rng, self.n_tokens * self.in_stride, 12.0);
        // What lies beyond the width is nobody's: it must not be looked at.
        for row in gate_up.chunks_exact_mut(self.in_stride) {
            row[2 * self.width..].fill(bf16::NAN);
        }
        let scale = |_| 0.5 + rng.number().abs();
        let columns = (0..2 * self.width).map(scale).collect();
        let scale = |_| 0.5 + rng.number().abs();
        let tokens = (0..self.n_tokens).map(scale).collect();
        Inputs { gate_up, columns, tokens }
    }

    fn scales(&self, device: &TestDevice, inputs: &Inputs) -> Deferred {
        match self.factors {
            Factors::None => Deferred::Nothing,
            Factors::PerPart => {
                Deferred::Scales { weights: WeightFactors::PerPart(PARTS), tokens: None }
            }
            Factors::PerRow => Deferred::Scales {
                weights: WeightFactors::PerRow(device.upload(&inputs.columns)),
                tokens: Some(device.upload(&inputs.tokens)),
            },
        }
    }

    /// Exact activation of an element.
    fn expected(&self, inputs: &Inputs, token: usize, col: usize) -> f64 {
        if col >= self.width {
            return 0.0;
        }
        let half = |half: usize| {
            let col = half * self.width + col;
            let x = inputs.gate_up[token * self.in_stride + col].to_f64();
            match self.factors {
                Factors::None => x,
                Factors::PerPart => x * f64::from(PARTS[half]),
                Factors::PerRow => {
                    x * f64::from(inputs.columns[col]) * f64::from(inputs.tokens[token])
                }
            }
        };
        let gate = half(0);
        gate / (1.0 + (-gate).exp()) * half(1)
    }

    /// Values of the output, then what was written beside it.
    fn run(&self, device: &TestDevice, inputs: &Inputs, kind: Kind) -> (Vec<f64>, Vec<f32>) {
        let n_out = self.n_tokens * self.out_stride;
        let beside: DevicePtr = device.poisoned::<f32>(self.n_tokens);
        let is_bf16 = matches!(kind, Kind::Bf16 | Kind::Magnitudes);
        let out =
            if is_bf16 { device.poisoned::<bf16>(n_out) } else { device.poisoned::<u8>(n_out) };
        let output = match kind {
            Kind::Bf16 => Output::Bf16,
            Kind::Magnitudes => Output::Bf16AndMagnitudes(beside),
            Kind::Static => Output::E4m3(STATIC_SCALE),
        };
        let args = Launch {
            gate_up: device.upload(&inputs.gate_up),
            in_stride: self.in_stride,
            scales: self.scales(device, inputs),
            n_tokens: self.n_tokens,
            width: self.width,
            out,
            out_stride: self.out_stride,
            output,
        };
        launch(&device.exec, &args).expect("it is launched");
        let beside: Vec<f32> = device.download(beside, self.n_tokens);
        if is_bf16 {
            let values = device.download::<bf16>(out, n_out);
            return (values.into_iter().map(bf16::to_f64).collect(), beside);
        }
        let codes = device.download::<u8>(out, n_out);
        let value = |code: &u8| e4m3_value(*code) * f64::from(STATIC_SCALE);
        (codes.iter().map(value).collect(), beside)
    }

    fn check(&self, device: &TestDevice, inputs: &Inputs, kind: Kind) {
        let (values, beside) = self.run(device, inputs, kind);
        for token in sampled(self.n_tokens) {
            let what = format!("{kind:?} {:?} [{token}, {}]", self.factors, self.width);
            let expected: Vec<f64> =
                (0..self.out_stride).map(|col| self.expected(inputs, token, col)).collect();
            let greatest = expected.iter().fold(0.0, |greatest: f64, x| greatest.max(x.abs()));
            let loss = N_ROUNDINGS * ROUNDING;
            let rounding = match kind {
                Kind::Bf16 => Rounding::Bf16,
                Kind::Magnitudes => {
                    let got = f64::from(beside[token]);
                    let expected = (greatest, greatest * loss);
                    assert_rounded(got, Rounding::Bf16, expected, &format!("{what} magnitude"));
                    Rounding::Bf16
                }
                Kind::Static => Rounding::E4m3 { scale: f64::from(STATIC_SCALE) },
            };
            for (col, &value) in expected.iter().enumerate() {
                // The quotient by the scale is one more.
                let expected = (value, value.abs() * (loss + ROUNDING));
                let got = values[token * self.out_stride + col];
                assert_rounded(got, rounding, expected, &format!("{what} column {col}"));
            }
        }
    }
}

#[test]
fn ultras_widths_are_within_the_bound() {
    let device = TestDevice::open(0);
    let mut rng = Rng::new(101);
    // 53,248 and 425,984 over eight ranks, and the narrowest FFN, whose width is no multiple of 64.
    for (n_tokens, width) in [(1, 53_248), (5, 6_656), (256, 672)] {
        for factors in [Factors::PerPart, Factors::PerRow] {
            let case = Case::new(n_tokens, width, factors);
            let inputs = case.inputs(&mut rng);
            KINDS.into_iter().for_each(|kind| case.check(&device, &inputs, kind));
        }
    }
}

#[test]
fn narrow_and_padded_rows_are_as_good() {
    let device = TestDevice::open(0);
    let mut rng = Rng::new(102);
    for width in [1, 7, 28, 56, 1023] {
        let mut case = Case::new(3, width, Factors::PerRow);
        case.check(&device, &case.inputs(&mut rng), Kind::Bf16);
        (case.in_stride, case.out_stride) = (2 * width + 3, (width + 1).next_multiple_of(16));
        let inputs = case.inputs(&mut rng);
        KINDS.into_iter().for_each(|kind| case.check(&device, &inputs, kind));
    }
    let mut case = Case::new(3, 1000, Factors::PerPart);
    (case.in_stride, case.out_stride) = (2016, 1024);
    let inputs = case.inputs(&mut rng);
    KINDS.into_iter().for_each(|kind| case.check(&device, &inputs, kind));
}

#[test]
fn extremes_stay_numbers_and_nan_stays_nan() {
    let device = TestDevice::open(0);
    let numbers = [200.0, -200.0, f32::NAN, 1.0, -0.0, 1e30, 8.0, 0.5];
    let ups = [2.0, 3.0, 4.0, f32::NAN, 5.0, 1e30, 1.0, 1.0];
    let gate_up = numbers.iter().chain(&ups).map(|&x| bf16::from_f32(x)).collect();
    let inputs = Inputs { gate_up, columns: Vec::new(), tokens: Vec::new() };
    let case = Case::new(1, 8, Factors::None);
    let (values, _) = case.run(&device, &inputs, Kind::Static);
    let most = 448.0 * f64::from(STATIC_SCALE);
    assert_eq!(values[0], most, "clamped");
    assert!(values[1].abs() < 1e-36 && values[4] == 0.0, "{values:?}");
    assert!(values[2].is_nan() && values[3].is_nan(), "{values:?}");
    assert_eq!(values[5], most, "an infinity is clamped as well");
    // NaN is passed over by a magnitude.
    let gate_up = vec![bf16::NAN; 8].into_iter().chain(vec![bf16::ZERO; 8]).collect();
    let inputs = Inputs { gate_up, columns: Vec::new(), tokens: Vec::new() };
    let (values, magnitudes) = case.run(&device, &inputs, Kind::Magnitudes);
    assert_eq!(magnitudes, [0.0]);
    assert!(values.iter().all(|value| value.is_nan()), "{values:?}");
}

#[test]
fn a_token_alone_has_the_same_bits() {
    let device = TestDevice::open(0);
    let mut rng = Rng::new(103);
    let case = Case::new(19, 4000, Factors::PerRow);
    let inputs = case.inputs(&mut rng);
    for kind in KINDS {
        let (batch, beside) = case.run(&device, &inputs, kind);
        for token in sampled(19) {
            let alone = Case::new(1, 4000, Factors::PerRow);
            let row = token * case.in_stride..(token + 1) * case.in_stride;
            let inputs = Inputs {
                gate_up: inputs.gate_up[row].to_vec(),
                columns: inputs.columns.clone(),
                tokens: vec![inputs.tokens[token]],
            };
            let (values, of_alone) = alone.run(&device, &inputs, kind);
            assert_eq!(values, batch[token * 4000..(token + 1) * 4000], "{kind:?} token {token}");
            assert_eq!(of_alone[0].to_bits(), beside[token].to_bits(), "{kind:?} token {token}");
        }
    }
}

#[test]
fn hardly_more_is_moved_than_must_be() {
    // Ultra's widest FFN, and one of the usual.
    for (n_tokens, width) in [(1, 53_248), (3, 6656)] {
        let case = Case::new(n_tokens, width, Factors::PerPart);
        let inputs = case.inputs(&mut Rng::new(104));
        let n = n_tokens * width;
        // Two bf16 read and one written, or one code.
        for (kind, kernel, fewest_bytes) in [
            (Kind::Bf16, "swiglu_bf16", 6 * n),
            (Kind::Magnitudes, "swiglu_bf16_magnitudes", 6 * n),
            (Kind::Static, "swiglu_e4m3", 5 * n),
        ] {
            assert_frugal(kernel, fewest_bytes, |device| drop(case.run(device, &inputs, kind)));
        }
    }
}

#[test]
fn a_launch_covers_every_column() {
    for n_cols in [1, 8, 672, 1024, 1025, 53_248] {
        let tiled = config(3, n_cols, Output::Bf16);
        assert_eq!(tiled.grid[1], 3);
        assert!((tiled.grid[0] as usize - 1) * 1024 < n_cols, "{tiled:?}");
        assert!(tiled.grid[0] as usize * 1024 >= n_cols, "{tiled:?}");
        let by_row = config(3, n_cols, Output::Bf16AndMagnitudes(DevicePtr::NULL));
        assert_eq!(by_row.grid[0], by_row.cluster, "a cluster has a row");
        assert!(by_row.cluster.is_power_of_two() && by_row.cluster <= 8);
    }
}
