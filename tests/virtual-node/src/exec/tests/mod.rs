//! Instructions against values worked out here from the PTX ISA's text, control flow, and one
//! test for each kind of fault.

mod control;
mod faults;
mod floats;
mod integers;
mod lanes;
mod memory;

use std::sync::Arc;

use crate::exec::checks::Checks;
use crate::exec::{KernelFault, Launch, STALL_MAX};
use crate::memory::{DeviceIdx, Memory};
use crate::ptx;
use crate::report::KernelCounters;

/// Device memory of a test, given back at its end.
pub(super) struct Buffer {
    pub(super) address: u64,
    n_bytes: usize,
}

const DEVICE: DeviceIdx = DeviceIdx(0);

impl Buffer {
    pub(super) fn new(bytes: &[u8]) -> Buffer {
        let address = Memory::global().allocate(DEVICE, bytes.len() as u64).unwrap();
        let buffer = Buffer { address, n_bytes: bytes.len() };
        let at = Memory::global().resolve(DEVICE, address, bytes.len() as u64).unwrap();
        // SAFETY: the allocation is of that size, and nobody else knows it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.as_ptr(), bytes.len()) };
        buffer
    }

    pub(super) fn of_words(words: &[u32]) -> Buffer {
        Buffer::new(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>())
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let at = Memory::global().resolve(DEVICE, self.address, self.n_bytes as u64).unwrap();
        // SAFETY: the allocation is of that size, and no kernel runs on it now.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), self.n_bytes) }.to_vec()
    }

    pub(super) fn words(&self) -> Vec<u32> {
        let bytes = self.bytes();
        bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        Memory::global().free(self.address).unwrap();
    }
}

/// How a test launches its kernel.
pub(super) struct Shape {
    pub(super) grid: u32,
    pub(super) block: u32,
    pub(super) cluster: u32,
    pub(super) dynamic_shared_bytes: usize,
    pub(super) n_workers: usize,
}

impl Shape {
    /// One block.
    pub(super) fn threads(block: u32) -> Shape {
        Shape { grid: 1, block, cluster: 1, dynamic_shared_bytes: 0, n_workers: 1 }
    }
}

/// Runs the kernel `test` of a module with 64-bit parameters.
pub(super) fn launch(
    text: &str,
    shape: &Shape,
    params: &[u64],
) -> Result<KernelCounters, KernelFault> {
    let module = ptx::load(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    Launch {
        kernel: module.kernel("test").expect("the module has a kernel `test`").clone(),
        grid: [shape.grid, 1, 1],
        block: [shape.block, 1, 1],
        cluster: [shape.cluster, 1, 1],
        dynamic_shared_bytes: shape.dynamic_shared_bytes,
        params: params.iter().flat_map(|param| param.to_le_bytes()).collect(),
        device: DEVICE,
        memory: Memory::global(),
        globals: Arc::new([]),
        checks: Checks::default(),
        n_workers: shape.n_workers,
        stall_max: STALL_MAX,
    }
    .run()
}

/// A module with a kernel `test` of this body, which may use parameters `p0` to `p3` and plenty
/// of registers.
pub(super) fn kernel(body: &str) -> String {
    format!(
        ".version 8.5\n.target sm_90a\n.address_size 64\n\
         .extern .shared .align 16 .b8 dynamic[];\n\
         .visible .entry test(.param .u64 p0, .param .u64 p1, .param .u64 p2, .param .u64 p3)\n{{\n\
         .reg .pred %p<16>;\n.reg .b16 %h<32>;\n.reg .b32 %r<64>;\n.reg .b64 %rd<32>;\n\
         .reg .f32 %f<32>;\n.reg .f64 %fd<16>;\n{body}\nret;\n}}\n"
    )
}

/// Runs a body with `params`, the rest 0.
pub(super) fn run(
    body: &str,
    shape: &Shape,
    params: &[u64],
) -> Result<KernelCounters, KernelFault> {
    let mut all = [0; 4];
    all[..params.len()].copy_from_slice(params);
    launch(&kernel(body), shape, &all)
}

/// Runs instructions once for each of the inputs, which they find in `%a`, `%b`, `%c` and `%e`
/// with a suffix of 16, 32 or 64 for the width, and gives what they leave in `out`: `%d16`, `%d32`,
/// `%d64` or the predicate `%q`.
pub(super) fn evaluate(instructions: &str, out: &str, inputs: &[[u64; 4]]) -> Vec<u64> {
    let flat: Vec<u8> = inputs.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let source = Buffer::new(&flat);
    let target = Buffer::new(&vec![0; inputs.len() * 8]);
    let mut body = String::from(
        ".reg .b16 %a16, %b16, %c16, %e16, %d16;\n.reg .b32 %a32, %b32, %c32, %e32, %d32, %i;\n\
         .reg .b64 %a64, %b64, %c64, %e64, %d64, %from, %to, %o;\n.reg .pred %q, %s, %w;\n\
         mov.u32 %i, %tid.x;\nld.param.u64 %from, [p0];\nld.param.u64 %to, [p1];\n\
         mad.wide.u32 %from, %i, 32, %from;\nmad.wide.u32 %to, %i, 8, %to;\n",
    );
    for (idx, name) in ["a", "b", "c", "e"].into_iter().enumerate() {
        body += &format!("ld.global.u64 %{name}64, [%from+{}];\n", idx * 8);
        body += &format!("cvt.u32.u64 %{name}32, %{name}64;\ncvt.u16.u64 %{name}16, %{name}64;\n");
    }
    body += instructions;
    body += &match out {
        "%d16" => "\ncvt.u64.u16 %o, %d16;\n".to_owned(),
        "%d32" => "\ncvt.u64.u32 %o, %d32;\n".to_owned(),
        "%q" => "\nselp.u64 %o, 1, 0, %q;\n".to_owned(),
        _ => "\nmov.u64 %o, %d64;\n".to_owned(),
    };
    body += "st.global.u64 [%to], %o;\n";
    let mut results = Vec::new();
    let params = [source.address, target.address];
    assert!(inputs.len() <= 1024, "one block");
    run(&body, &Shape::threads(inputs.len() as u32), &params).unwrap_or_else(|f| panic!("{f}"));
    for value in target.bytes().chunks(8) {
        results.push(u64::from_le_bytes(value.try_into().unwrap()));
    }
    results
}

/// Checks an instruction of up to four inputs against a function, on chosen values in all
/// combinations and on random ones.
pub(super) fn check(
    instruction: &str,
    out: &str,
    inputs: &[[u64; 4]],
    expected: impl Fn([u64; 4]) -> u64,
) {
    for inputs in inputs.chunks(1024) {
        let found = evaluate(instruction, out, inputs);
        for (input, found) in inputs.iter().zip(found) {
            let expected = expected(*input);
            assert_eq!(
                found, expected,
                "{instruction} of {input:#x?} is {found:#x}, not {expected:#x}"
            );
        }
    }
}

/// Numbers from a fixed seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// All pairs of the values, some random numbers behind them.
pub(super) fn pairs(values: &[u64]) -> Vec<[u64; 4]> {
    let mut random = Random::new();
    let mut all = Vec::new();
    for a in values {
        for b in values {
            all.push([*a, *b, random.next(), random.next()]);
        }
    }
    for _ in 0..256 {
        all.push(std::array::from_fn(|_| random.next()));
    }
    all
}
