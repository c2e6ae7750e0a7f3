//! What this machine gives, measured in the same run as what is held against it.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use engine::device::Simd;
use memmap2::MmapMut;

use crate::{Report, median};

/// More than any cache holds: there are processors whose last one has 480 MiB.
const N_READ_BYTES: usize = 1 << 30;

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

/// Measures a [`Machine`] again and again, between what is held against it: its speed changes.
pub struct Meter {
    simd: Simd,
    n_threads: usize,
    /// What is read: in large pages, where the system has such, which are read faster.
    bytes: MmapMut,
}

impl Meter {
    /// For as many threads as there are cores.
    ///
    /// # Errors
    /// The number of cores is unknown, or there is no memory.
    pub fn new() -> anyhow::Result<Meter> {
        let n_threads = std::thread::available_parallelism()?.get();
        let mut bytes = MmapMut::map_anon(N_READ_BYTES)?;
        #[cfg(target_os = "linux")]
        bytes.advise(memmap2::Advice::HugePage)?;
        bytes.fill(1);
        Ok(Meter { simd: Simd::detect(), n_threads, bytes })
    }

    /// What the machine gives now: it takes tens of milliseconds.
    pub fn read(&self) -> Machine {
        let n_threads = self.n_threads;
        let rate = |spin: &(dyn Fn() -> usize + Sync)| {
            let n_multiply_adds = AtomicUsize::new(0);
            let seconds = seconds_of_all(n_threads, &|_| {
                n_multiply_adds.fetch_add(spin(), Ordering::Relaxed);
            });
            2.0 * n_multiply_adds.into_inner() as f64 / seconds
        };
        Machine {
            n_threads,
            bytes_per_second: self.bytes.len() as f64
                / read_seconds(self.simd, &self.bytes, n_threads),
            f32_per_second: rate(&|| self.simd.spin(N_ROUNDS)),
            bf16_per_second: rate(&|| self.simd.spin_pairs(N_ROUNDS)),
        }
    }
}

impl Machine {
    /// Medians of several readings.
    ///
    /// # Errors
    /// The number of cores is unknown.
    pub fn measure() -> anyhow::Result<Machine> {
        let meter = Meter::new()?;
        let readings: Vec<Machine> = (0..N_RUNS).map(|_| meter.read()).collect();
        Ok(Machine::median(&readings))
    }

    /// Rate by rate.
    pub fn median(readings: &[Machine]) -> Machine {
        let of = |rate: fn(&Machine) -> f64| median(readings.iter().map(rate).collect());
        Machine {
            n_threads: readings[0].n_threads,
            bytes_per_second: of(|machine| machine.bytes_per_second),
            f32_per_second: of(|machine| machine.f32_per_second),
            bf16_per_second: of(|machine| machine.bf16_per_second),
        }
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

/// Seconds in which all threads, each its own run of them, read all bytes with the processor's
/// widest instructions.
pub fn read_seconds(simd: Simd, bytes: &[u8], n_threads: usize) -> f64 {
    let n_run = bytes.len().div_ceil(n_threads).next_multiple_of(256);
    seconds_of_all(n_threads, &|thread_idx| {
        let run = &bytes[bytes.len().min(thread_idx * n_run)..];
        black_box(simd.read(&run[..n_run.min(run.len())]));
    })
}

/// Seconds from when all threads are there until the last is through.
fn seconds_of_all(n_threads: usize, work: &(dyn Fn(usize) + Sync)) -> f64 {
    let barrier = Barrier::new(n_threads);
    let timed = |thread_idx: usize| {
        barrier.wait();
        let began = Instant::now();
        work(thread_idx);
        (began, Instant::now())
    };
    let times: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let timed = &timed;
        let others: Vec<_> =
            (1..n_threads).map(|thread_idx| scope.spawn(move || timed(thread_idx))).collect();
        let own = timed(0);
        let others = others.into_iter().map(|thread| thread.join().expect("it only computes"));
        others.chain([own]).collect()
    });
    let began = times.iter().map(|(began, _)| *began).min();
    let ended = times.iter().map(|(_, ended)| *ended).max();
    began.zip(ended).map_or(0.0, |(began, ended)| (ended - began).as_secs_f64())
}
