//! `quantize.cu`: there is one quotient in f32 and one rounding, so every code is known exactly.

use half::bf16;

use super::{Launch, Rows, Scale, config, launch, launch_magnitudes};
use crate::device::DevicePtr;
use crate::device::cuda::testing::TestDevice;
use crate::kernels::launching::{Exchange, N_RANKS_MAX};
use crate::kernels::testing::device::bf16s;
use crate::kernels::testing::ranks::{TestRank, alone_as, on_ranks};
use crate::kernels::testing::traffic::assert_frugal;
use crate::kernels::testing::{Rng, e4m3_nearest};

/// Codes of `[n_tokens, out_stride]`, NaN's sign left out.
fn expected(x: &[bf16], rows: &Rows, out_stride: usize, scale: impl Fn(usize) -> f32) -> Vec<u8> {
    let code = |i: usize| {
        let (token, col) = (i / out_stride, i % out_stride);
        if col >= rows.width {
            return 0;
        }
        let x = x[token * rows.in_stride + col].to_f32();
        let code = e4m3_nearest(f64::from(x / scale(token)));
        if code & 127 == 127 { 127 } else { code }
    };
    (0..rows.n_tokens * out_stride).map(code).collect()
}

fn inputs(rng: &mut Rng, rows: &Rows) -> Vec<bf16> {
    let mut x = bf16s(rng, rows.n_tokens * rows.in_stride, 3.0);
    for row in x.chunks_exact_mut(rows.in_stride) {
        row[rows.width..].fill(bf16::NAN);
    }
    // A row of zeroes, and one with what is no number.
    x[..rows.width].fill(bf16::ZERO);
    let last = (rows.n_tokens - 1) * rows.in_stride;
    x[last] = bf16::NAN;
    x
}

fn magnitudes(x: &[bf16], rows: &Rows) -> Vec<f32> {
    let row =
        |row: &[bf16]| row[..rows.width].iter().fold(0.0, |m: f32, x| m.max(x.to_f32().abs()));
    x.chunks_exact(rows.in_stride).map(row).collect()
}

fn scale_of(magnitude: f32) -> f32 {
    if magnitude > 0.0 { magnitude / 448.0 } else { 1.0 }
}

const SHAPES: [(usize, usize, usize, usize); 6] = [
    // Tokens, width, strides: Ultra's attention output on a rank first.
    (256, 2048, 2048, 2048),
    (3, 6656, 6656, 6656),
    (2, 672, 680, 688),
    (3, 28, 28, 32),
    (2, 17, 19, 48),
    (1, 1, 1, 1),
];

#[test]
fn magnitudes_are_exact() {
    let device = TestDevice::open(0);
    let mut rng = Rng::new(121);
    for (n_tokens, width, in_stride, _) in SHAPES {
        let mut rows = Rows { x: DevicePtr::NULL, in_stride, n_tokens, width };
        let x = inputs(&mut rng, &rows);
        rows.x = device.upload(&x);
        let out = device.poisoned::<f32>(n_tokens);
        launch_magnitudes(&device.exec, &rows, out).expect("it is launched");
        assert_eq!(device.download::<f32>(out, n_tokens), magnitudes(&x, &rows), "{rows:?}");
    }
}

#[test]
fn codes_are_exact() {
    let device = TestDevice::open(0);
    let mut rng = Rng::new(122);
    for (n_tokens, width, in_stride, out_stride) in SHAPES {
        let mut rows = Rows { x: DevicePtr::NULL, in_stride, n_tokens, width };
        let x = inputs(&mut rng, &rows);
        rows.x = device.upload(&x);
        let run = |scale: Scale| {
            let out = device.poisoned::<u8>(n_tokens * out_stride);
            launch(&device.exec, &Launch { rows, out, out_stride, scale }).expect("it is launched");
            let codes = device.download::<u8>(out, n_tokens * out_stride);
            codes.into_iter().map(|code| if code & 127 == 127 { 127 } else { code }).collect()
        };
        let got: Vec<u8> = run(Scale::Static(0.0041));
        assert!(got == expected(&x, &rows, out_stride, |_| 0.0041), "static {rows:?}");
        // Greater than what this rank has: another's columns decide.
        let known: Vec<f32> = magnitudes(&x, &rows).iter().map(|m| m * 1.7).collect();
        let scales = device.poisoned::<f32>(n_tokens);
        let got: Vec<u8> = run(Scale::Known { magnitudes: device.upload(&known), scales });
        let scale = |token: usize| scale_of(known[token]);
        assert!(got == expected(&x, &rows, out_stride, scale), "known {rows:?}");
        let expected_scales: Vec<f32> = (0..n_tokens).map(scale).collect();
        assert_eq!(device.download::<f32>(scales, n_tokens), expected_scales, "{rows:?}");
    }
}

/// Three exchanges with other numbers each.
fn exchange(rank: &TestRank<'_>, n_tokens: usize) {
    let (device, width) = (&rank.device, 672);
    let exchange = rank.exchange();
    // Two arrays that take turns.
    let magnitudes_of = rank.share(device.poisoned::<f32>(2 * n_tokens));
    for round in 0..3 {
        let turn = |ptr: DevicePtr| ptr.elements::<f32>(round % 2 * n_tokens);
        let numbers = |rank: usize| {
            let mut rng = Rng::new(123 + (8 * round + rank) as u64);
            bf16s(&mut rng, n_tokens * width, 1.0 + rank as f32)
        };
        let xs: Vec<Vec<bf16>> = (0..rank.n_ranks).map(numbers).collect();
        let x = &xs[rank.rank];
        let rows = Rows { x: device.upload(x), in_stride: width, n_tokens, width };
        launch_magnitudes(&device.exec, &rows, turn(magnitudes_of[rank.rank])).expect("a launch");
        let out = device.poisoned::<u8>(n_tokens * width);
        let scales = device.poisoned::<f32>(n_tokens);
        let scale = Scale::Exchanged { magnitudes: magnitudes_of.map(turn), scales, exchange };
        let args = Launch { rows, out, out_stride: width, scale };
        launch(&device.exec, &args).expect("it is launched");
        let each: Vec<Vec<f32>> = xs.iter().map(|x| magnitudes(x, &rows)).collect();
        let scale = |token: usize| scale_of(each.iter().fold(0.0, |m, each| m.max(each[token])));
        let what = format!("rank {} of {}, round {round}", rank.rank, rank.n_ranks);
        let got = device.download::<u8>(out, n_tokens * width);
        assert!(got == expected(x, &rows, width, scale), "{what}");
        let expected_scales: Vec<f32> = (0..n_tokens).map(scale).collect();
        assert_eq!(device.download::<f32>(scales, n_tokens), expected_scales, "{what}");
    }
}

#[test]
fn ranks_agree_on_the_greatest() {
    on_ranks(2, |rank| exchange(rank, 1));
    on_ranks(8, |rank| exchange(rank, 5));
}

#[test]
fn hardly_more_is_moved_than_must_be() {
    // A full step of decoding: where fewer tokens meet, waiting for the others is what counts.
    let (n_tokens, width) = (256, 6656);
    let x = bf16s(&mut Rng::new(124), n_tokens * width, 1.0);
    let rows =
        |device: &TestDevice| Rows { x: device.upload(&x), in_stride: width, n_tokens, width };
    assert_frugal("magnitudes_bf16", 2 * n_tokens * width, |device| {
        let magnitudes = device.poisoned::<f32>(n_tokens);
        launch_magnitudes(&device.exec, &rows(device), magnitudes).expect("it is launched");
    });
    let quantize = |device: &TestDevice, scale: Scale| {
        let out = device.poisoned::<u8>(n_tokens * width);
        let args = Launch { rows: rows(device), out, out_stride: width, scale };
        launch(&device.exec, &args).expect("it is launched");
    };
    let fewest_bytes = 3 * n_tokens * width;
    assert_frugal("quantize_static", fewest_bytes, |device| quantize(device, Scale::Static(0.1)));
    assert_frugal("quantize_known", fewest_bytes, |device| {
        let scales = device.poisoned::<f32>(n_tokens);
        let magnitudes = device.upload(&vec![1.0f32; n_tokens]);
        quantize(device, Scale::Known { magnitudes, scales });
    });
    // Every rank's magnitudes are read, and the scales written.
    let fewest_bytes = fewest_bytes + n_tokens * (8 + 1) * size_of::<f32>();
    assert_frugal("quantize_exchanged", fewest_bytes, |device| {
        let magnitudes = [(); N_RANKS_MAX].map(|()| device.upload(&vec![1.0f32; n_tokens]));
        let scales = device.poisoned::<f32>(n_tokens);
        let exchange = alone_as(device, N_RANKS_MAX);
        quantize(device, Scale::Exchanged { magnitudes, scales, exchange });
    });
}

#[test]
fn where_ranks_meet_all_blocks_are_resident() {
    let exchanged = Scale::Exchanged {
        magnitudes: [DevicePtr::NULL; N_RANKS_MAX],
        scales: DevicePtr::NULL,
        exchange: Exchange::ALONE,
    };
    assert_eq!(config(132, 1, 2048, exchanged).grid, [2, 1, 1]);
    assert_eq!(config(132, 8192, 53_248, exchanged).grid, [264, 1, 1]);
    assert_eq!(config(132, 8192, 53_248, Scale::Static(1.0)).grid, [52, 8192, 1]);
}
