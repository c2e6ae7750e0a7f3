//! The tensor and copy instructions against the tables of the PTX ISA.
//!
//! The programs (`*.ptx`) and what is expected of them know nothing of the virtual node: they run
//! on whichever GPU the process finds, a real one included. Expected values come from the ISA's
//! fragment tables and layouts as they are printed, written down here once more.

mod copies;
pub(crate) mod formats;
mod matrices;
mod multiply;
mod tensors;
mod warpgroup;

use crate::gpu::{Arg, Gpu, Size};

/// Runs a kernel of one block on input bytes; output starts as `output` and comes back.
fn run(ptx: &str, kernel: &str, n_threads: u32, input: &[u8], output: &[u8]) -> Vec<u8> {
    run_with((ptx, kernel), n_threads, input, output, |_| Vec::new())
}

/// The same with more arguments, which may point at memory that they upload.
fn run_with(
    (ptx, kernel): (&str, &str),
    n_threads: u32,
    input: &[u8],
    output: &[u8],
    more: impl FnOnce(&Gpu) -> Vec<Arg>,
) -> Vec<u8> {
    let gpu = Gpu::open();
    let module = gpu.load(ptx);
    let (input, output) = (gpu.upload(input), gpu.upload(output));
    let mut args = vec![Arg::Pointer(input), Arg::Pointer(output)];
    args.extend(more(&gpu));
    let size = Size { grid: (1, 1, 1), n_threads, shared_bytes: 0 };
    gpu.run(&module, kernel, size, &mut args);
    gpu.download(output)
}

/// Small integers that differ from place to place: −4 to 4, which every format holds.
fn small(seed: usize, row: usize, col: usize) -> f64 {
    let mixed = (seed * 31 + row * 17 + col * 7 + row * col * 3) % 9;
    mixed as f64 - 4.0
}

fn bytes_of_words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words_of_bytes(bytes: &[u8]) -> Vec<u32> {
    let word = |four: &[u8]| u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    bytes.chunks_exact(4).map(word).collect()
}
