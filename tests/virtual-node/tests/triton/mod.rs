//! Kernels from the Triton compiler (see `generate.py`), held against float64.
//!
//! Inputs come from a seeded generator, outputs start as NaN, and each kernel's bound stands
//! beside it. `KERNELS` is the one table of what runs how.

mod matrices;
mod reference;
mod rows;

use serde::Deserialize;

use crate::gpu::{Arg, Gpu, Size};

/// What `generate.py` says of a kernel.
#[derive(Deserialize)]
struct Entry {
    name: String,
    function: String,
    n_warps: u32,
    shared_bytes: u32,
    global_scratch_bytes: usize,
}

#[derive(Deserialize)]
struct Manifest {
    kernels: Vec<Entry>,
}

/// How a kernel is run and judged.
struct Kernel {
    name: &'static str,
    ptx: &'static str,
    check: fn(&Bench),
}

macro_rules! kernels {
    ($($name:literal => $check:expr;)+) => {
        &[$(Kernel { name: $name, ptx: include_str!(concat!($name, ".ptx")), check: $check }),+]
    };
}

const KERNELS: &[Kernel] = kernels! {
    "matmul_bf16_64x64x64_w4" => |bench| matrices::BF16.check(bench, [128, 128, 256], [64, 64]);
    "matmul_bf16_128x128x64_w8" => |bench| matrices::BF16.check(bench, [128, 256, 192], [128, 128]);
    "matmul_bf16_16x32x64_w2" => |bench| matrices::BF16.check(bench, [20, 50, 100], [16, 32]);
    "matmul_f16_64x256x32_w4" => |bench| matrices::F16.check(bench, [64, 256, 96], [64, 256]);
    "matmul_fp8_64x128x128_w4" => |bench| matrices::E4M3.check(bench, [64, 256, 384], [64, 128]);
    "matmul_fp8_16x64x64_w4" => |bench| matrices::MIXED.check(bench, [16, 128, 128], [16, 64]);
    "matmul_tf32_split_k" => |bench| matrices::TF32.check(bench, [64, 128, 128], [64, 64]);
    "matmul_int8_64x64x64_w4" => |bench| matrices::INT8.check(bench, [64, 128, 192], [64, 64]);
    "matmul_descriptor_64x64x64" => |bench| {
        matrices::DESCRIPTOR.check(bench, [128, 128, 320], [64, 64]);
    };
    "matmul_host_descriptor" => |bench| matrices::host_descriptor(bench);
    "attention_f16_64x64x64_w4" => |bench| matrices::attention(bench);
    "rms_norm" => |bench| rows::rms_norm(bench);
    "layer_norm" => |bench| rows::layer_norm(bench);
    "softmax" => |bench| rows::softmax(bench);
    "sort" => |bench| rows::sort(bench);
    "scan" => |bench| rows::scan(bench);
    "histogram" => |bench| rows::histogram(bench);
    "to_fp8" => |bench| rows::to_fp8(bench);
    "top_and_gather" => |bench| rows::top_and_gather(bench);
};

/// A kernel on a device, ready to be launched.
struct Bench {
    gpu: Gpu,
    entry: Entry,
    ptx: &'static str,
}

impl Bench {
    fn launch(&self, grid: (u32, u32, u32), args: &[Arg]) {
        let module = self.gpu.load(self.ptx);
        let n_blocks = (grid.0 * grid.1 * grid.2) as usize;
        let scratch =
            self.gpu.upload(&vec![0; (self.entry.global_scratch_bytes * n_blocks).max(16)]);
        let mut args = args.to_vec();
        // Scratch of the kernel, and of a profiler that is not there.
        args.extend([Arg::Pointer(scratch), Arg::Pointer(scratch)]);
        let n_threads = self.entry.n_warps * 32;
        let size = Size { grid, n_threads, shared_bytes: self.entry.shared_bytes };
        self.gpu.run(&module, &self.entry.function, size, &mut args);
    }
}

fn manifest() -> Manifest {
    serde_json::from_str(include_str!("kernels.json")).expect("what generate.py wrote")
}

/// Runs the kernels whose names start so.
fn check_all(prefix: &str) {
    let mut n_checked = 0;
    for kernel in KERNELS.iter().filter(|kernel| kernel.name.starts_with(prefix)) {
        let entries = manifest().kernels.into_iter();
        let entry = { entries }.find(|entry| entry.name == kernel.name).expect("in the manifest");
        (kernel.check)(&Bench { gpu: Gpu::open(), entry, ptx: kernel.ptx });
        n_checked += 1;
    }
    assert!(n_checked > 0, "no kernel is called {prefix}…");
}

#[test]
fn every_kernel_of_the_manifest_is_checked() {
    let mut generated: Vec<String> = manifest().kernels.into_iter().map(|k| k.name).collect();
    let mut checked: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
    generated.sort();
    checked.sort();
    assert_eq!(generated, checked);
}

macro_rules! tests {
    ($($test:ident: $prefix:literal,)+) => {
        $(#[test]
        fn $test() {
            check_all($prefix);
        })+
    };
}

tests! {
    matmul_bf16: "matmul_bf16",
    matmul_f16: "matmul_f16",
    matmul_fp8: "matmul_fp8",
    matmul_tf32: "matmul_tf32",
    matmul_int8: "matmul_int8",
    matmul_descriptor: "matmul_descriptor",
    matmul_host_descriptor: "matmul_host_descriptor",
    attention: "attention",
    rms_norm: "rms_norm",
    layer_norm: "layer_norm",
    softmax: "softmax",
    sort: "sort",
    scan: "scan",
    histogram: "histogram",
    to_fp8: "to_fp8",
    top_and_gather: "top_and_gather",
}
