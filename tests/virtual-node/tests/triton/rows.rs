//! Norms, softmax, sort, scans, histograms and conversions.

use super::Bench;
use super::reference::{Random, assert_near, decode, nearest, poison, rounding};
use crate::gpu::Arg;
use crate::isa::formats::Format;

fn of_i32(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn i32_of(bytes: &[u8]) -> Vec<i32> {
    bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

pub(super) fn rms_norm(bench: &Bench) {
    let (n_rows, n_cols, eps) = (5, 1000, 1e-5);
    let mut random = Random(1);
    let x = random.values(Format::Bf16, n_rows * n_cols);
    let w = random.values(Format::Bf16, n_cols);
    let gpu = &bench.gpu;
    let y = gpu.upload(&poison(2 * n_rows * n_cols));
    let inputs = [&x, &w].map(|values| Arg::Pointer(gpu.upload(&values.bytes)));
    let rest = [Arg::Pointer(y), Arg::I32(n_cols as i32), Arg::F32(eps as f32)];
    bench.launch((n_rows as u32, 1, 1), &[&inputs[..], &rest].concat());
    let mut expected = Vec::new();
    for row in x.values.chunks(n_cols) {
        let squares: f64 = row.iter().map(|x| x * x).sum();
        let scale = 1.0 / (squares / n_cols as f64 + eps).sqrt();
        for (x, w) in row.iter().zip(&w.values) {
            let value = x * scale * w;
            expected.push((value, rounding(Format::Bf16, value) + 1e-6));
        }
    }
    assert_near("rms_norm", &decode(Format::Bf16, &gpu.download(y)), &expected);
}

pub(super) fn layer_norm(bench: &Bench) {
    let (n_rows, n_cols, eps) = (3, 700, 1e-5);
    let mut random = Random(2);
    let x = random.values(Format::F32, n_rows * n_cols);
    let w = random.values(Format::F32, n_cols);
    let b = random.values(Format::F32, n_cols);
    let gpu = &bench.gpu;
    let y = gpu.upload(&poison(4 * n_rows * n_cols));
    let mean = gpu.upload(&poison(4 * n_rows));
    let inputs = [&x, &w, &b].map(|values| Arg::Pointer(gpu.upload(&values.bytes)));
    let rest = [Arg::Pointer(y), Arg::Pointer(mean), Arg::I32(n_cols as i32), Arg::F32(eps as f32)];
    bench.launch((n_rows as u32, 1, 1), &[&inputs[..], &rest].concat());
    let (mut expected, mut means) = (Vec::new(), Vec::new());
    for row in x.values.chunks(n_cols) {
        let middle = row.iter().sum::<f64>() / n_cols as f64;
        let squares: f64 = row.iter().map(|x| (x - middle) * (x - middle)).sum();
        let scale = 1.0 / (squares / n_cols as f64 + eps).sqrt();
        means.push((middle, 1e-6));
        let values = row.iter().zip(&w.values).zip(&b.values);
        expected.extend(values.map(|((x, w), b)| ((x - middle) * scale * w + b, 1e-5)));
    }
    assert_near("layer_norm", &decode(Format::F32, &gpu.download(y)), &expected);
    assert_near("layer_norm's mean", &decode(Format::F32, &gpu.download(mean)), &means);
}

pub(super) fn softmax(bench: &Bench) {
    let (n_rows, n_cols) = (4, 777);
    let x = Random(3).values(Format::F32, n_rows * n_cols);
    let gpu = &bench.gpu;
    let y = gpu.upload(&poison(4 * n_rows * n_cols));
    let args = [Arg::Pointer(gpu.upload(&x.bytes)), Arg::Pointer(y), Arg::I32(n_cols as i32)];
    bench.launch((n_rows as u32, 1, 1), &args);
    let mut expected = Vec::new();
    for row in x.values.chunks(n_cols) {
        let total: f64 = row.iter().map(|x| x.exp()).sum();
        expected.extend(row.iter().map(|x| (x.exp() / total, 1e-6 * x.exp() / total)));
    }
    assert_near("softmax", &decode(Format::F32, &gpu.download(y)), &expected);
}

pub(super) fn sort(bench: &Bench) {
    let mut random = Random(4);
    let x: Vec<i32> = (0..512).map(|_| random.next() as i32 % 1000).collect();
    let gpu = &bench.gpu;
    let y = gpu.upload(&poison(4 * x.len()));
    bench.launch((2, 1, 1), &[Arg::Pointer(gpu.upload(&of_i32(&x))), Arg::Pointer(y)]);
    let mut expected = x;
    expected.chunks_mut(256).for_each(<[i32]>::sort);
    assert_eq!(i32_of(&gpu.download(y)), expected);
}

pub(super) fn scan(bench: &Bench) {
    let mut random = Random(5);
    let x: Vec<i32> = (0..1024).map(|_| random.next() as i32).collect();
    let gpu = &bench.gpu;
    let [sums, products] = [0; 2].map(|_| gpu.upload(&poison(4 * x.len())));
    let args = [gpu.upload(&of_i32(&x)), sums, products].map(Arg::Pointer);
    bench.launch((2, 1, 1), &args);
    let (mut running, mut backwards) = (Vec::new(), Vec::new());
    for block in x.chunks(512) {
        let add = |sum: &mut i32, x: &i32| {
            *sum = sum.wrapping_add(*x);
            Some(*sum)
        };
        let multiply = |product: &mut i32, x: &i32| {
            *product = product.wrapping_mul(x | 1);
            Some(*product)
        };
        running.extend(block.iter().scan(0, add));
        let mut products: Vec<i32> = block.iter().rev().scan(1, multiply).collect();
        products.reverse();
        backwards.extend(products);
    }
    assert_eq!(i32_of(&gpu.download(sums)), running);
    assert_eq!(i32_of(&gpu.download(products)), backwards);
}

pub(super) fn histogram(bench: &Bench) {
    let mut random = Random(6);
    let x: Vec<i32> = (0..1500).map(|_| (random.next() % 64) as i32).collect();
    let gpu = &bench.gpu;
    let counts = gpu.upload(&of_i32(&[0; 64]));
    let greatest = gpu.upload(&of_i32(&[-1]));
    let x_at = gpu.upload(&of_i32(&x));
    let args = [[x_at, counts, greatest].map(Arg::Pointer).to_vec(), vec![Arg::I32(1500)]].concat();
    bench.launch((3, 1, 1), &args);
    let mut expected = vec![0; 64];
    x.iter().for_each(|value| expected[*value as usize] += 1);
    assert_eq!(i32_of(&gpu.download(counts)), expected);
    assert_eq!(i32_of(&gpu.download(greatest)), [*x.iter().max().expect("not empty")]);
}

/// Values of all sizes, ties and beyond both ranges among them, are rounded to the nearest.
pub(super) fn to_fp8(bench: &Bench) {
    let mut random = Random(7);
    let ties = [0.0, -0.0, 1.0625, 1.1875, 17.0, 19.0, 448.0, 463.9, 464.0, 480.0, 1e6, 6e4, 7e4];
    let tiny = [2f64.powi(-9), 2f64.powi(-10), 1.5 * 2f64.powi(-9), 2f64.powi(-17), 2f64.powi(-16)];
    let mut x: Vec<f32> = ties.iter().chain(&tiny).map(|x| *x as f32).collect();
    while x.len() < 1000 {
        let size = 2f64.powi((random.next() % 30) as i32 - 18);
        x.push((random.unit() * size) as f32);
    }
    let n = x.len();
    let gpu = &bench.gpu;
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let outputs = [n, n, 2 * n].map(|n_bytes| gpu.upload(&poison(n_bytes)));
    let mut args = vec![Arg::Pointer(gpu.upload(&bytes))];
    args.extend(outputs.map(Arg::Pointer));
    args.push(Arg::I32(n as i32));
    bench.launch((2, 1, 1), &args);
    let [e4m3, e5m2, back] = outputs.map(|output| gpu.download(output));
    let back = decode(Format::F16, &back);
    for (i, x) in x.iter().enumerate() {
        let expected = nearest(Format::E4m3, f64::from(*x));
        assert_eq!(u32::from(e4m3[i]), expected, "e4m3 of {x}");
        assert_eq!(u32::from(e5m2[i]), nearest(Format::E5m2, f64::from(*x)), "e5m2 of {x}");
        assert_eq!(back[i], Format::E4m3.decode(expected), "back from {x}");
    }
}

pub(super) fn top_and_gather(bench: &Bench) {
    let (n_rows, n_cols) = (6, 200);
    let x = Random(8).values(Format::F32, n_rows * n_cols);
    let table: Vec<i64> = (0..256).map(|i| i * i + (i << 40)).collect();
    let table_bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    let gpu = &bench.gpu;
    let (best, picked) = (gpu.upload(&poison(4 * n_rows)), gpu.upload(&poison(8 * n_rows)));
    let buffers = [gpu.upload(&x.bytes), gpu.upload(&table_bytes), best, picked];
    let args = [buffers.map(Arg::Pointer).to_vec(), vec![Arg::I32(n_cols as i32)]].concat();
    bench.launch((n_rows as u32, 1, 1), &args);
    let greatest = |row: &[f64]| {
        (0..row.len()).max_by(|i, j| row[*i].total_cmp(&row[*j])).expect("not empty") as i32
    };
    let expected: Vec<i32> = x.values.chunks(n_cols).map(greatest).collect();
    assert_eq!(i32_of(&gpu.download(best)), expected);
    let entries = gpu.download(picked);
    for (row, bytes) in entries.chunks(8).enumerate() {
        let entry = i64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        assert_eq!(entry, table[expected[row] as usize], "row {row}");
    }
}
