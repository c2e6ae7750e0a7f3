//! What this machine gives, measured in the same run as what is held against it.

use std::hint::black_box;

use engine::device::Simd;

use crate::{Report, median_seconds};

/// More than any cache holds.
const N_READ_BYTES: usize = 256 << 20;

/// Rounds of multiply-adds that are timed: milliseconds.
const N_ROUNDS: usize = 1_000_000;

/// Odd, so that medians are measurements.
const N_RUNS: usize = 9;

/// Rates that no kernel exceeds.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Threads that were measured together.
    pub n_threads: usize,
    /// A plain parallel read of more than the caches hold.
    pub bytes_per_second: f64,
    /// Operations (two to a multiply-add) of f32 out of registers.
    pub f32_per_second: f64,
    /// The same of pairs of bf16, where the processor has such an instruction, or else of what
    /// stands for it.
    pub bf16_per_second: f64,
}

impl Machine {
    /// Measures with as many threads as there are cores.
    ///
    /// # Errors
    /// The number of cores is unknown.
    pub fn measure() -> anyhow::Result<Machine> {
        let n_threads = std::thread::available_parallelism()?.get();
        let simd = Simd::detect();
        let bytes = vec![1u8; N_READ_BYTES];
        let read = median_seconds(N_RUNS, || {
            black_box(plain_read(&bytes, n_threads));
        });
        Ok(Machine {
            n_threads,
            bytes_per_second: bytes.len() as f64 / read,
            f32_per_second: peak(n_threads, &|| simd.spin(N_ROUNDS)),
            bf16_per_second: peak(n_threads, &|| simd.spin_pairs(N_ROUNDS)),
        })
    }

    /// Prints it.
    pub fn report(&self, report: &Report) {
        report.note(&format!("{} threads, {:?}", self.n_threads, Simd::detect().level()));
        report.row("machine: plain read", self.bytes_per_second / 1e9, "GB/s");
        report.row("machine: multiply-adds, f32", self.f32_per_second / 1e9, "GFLOP/s");
        report.row("machine: multiply-adds, bf16", self.bf16_per_second / 1e9, "GFLOP/s");
    }

    /// The least time in which `work` can be done, reading and computing side by side.
    pub fn floor_seconds(&self, work: Work) -> f64 {
        let computing =
            work.f32_operations / self.f32_per_second + work.bf16_operations / self.bf16_per_second;
        computing.max(work.bytes / self.bytes_per_second)
    }
}

/// What must be read and computed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Read from main memory.
    pub bytes: f64,
    /// Two to a multiply-add of f32.
    pub f32_operations: f64,
    /// Two to a multiply-add of e4m3 values, which are bf16 as well.
    pub bf16_operations: f64,
}

/// Sums all bytes as words, each thread its own run of them.
pub fn plain_read(bytes: &[u8], n_threads: usize) -> u64 {
    let sum = |bytes: &[u8]| {
        let mut sums = [0u64; 32];
        for words in bytes.as_chunks::<256>().0 {
            for (sum, word) in sums.iter_mut().zip(words.as_chunks().0) {
                *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
        sums.into_iter().fold(0, u64::wrapping_add)
    };
    let (own, others) = bytes.split_at(bytes.len() / n_threads);
    std::thread::scope(|scope| {
        let runs = others.chunks(own.len().max(1));
        let threads: Vec<_> = runs.map(|run| scope.spawn(move || sum(run))).collect();
        let own = sum(own);
        let others = threads.into_iter().map(|thread| thread.join().expect("it only adds"));
        others.fold(own, u64::wrapping_add)
    })
}

/// Operations a second of all threads; `spin` says how many multiply-adds it did.
fn peak(n_threads: usize, spin: &(dyn Fn() -> usize + Sync)) -> f64 {
    let mut n_multiply_adds = 0;
    let seconds = median_seconds(N_RUNS, || {
        std::thread::scope(|scope| {
            (1..n_threads).for_each(|_| {
                scope.spawn(spin);
            });
            n_multiply_adds = spin();
        });
    });
    (2 * n_threads * n_multiply_adds) as f64 / seconds
}
