//! Kernels' own times on the device that is there: LN-Ultra's largest on one of eight ranks, a line
//! each, beside what is predicted and what their bytes would take at the memory's own speed.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use benches::cost::machine::Machine;
use benches::cost::work::Launch as Work;
use engine::device::{CudaExec, DeviceError};
use engine::kernels::{N_BYTES_AHEAD_MAX, fetched_ahead};

use crate::operations::{Attending, Multiplying};
pub use crate::operations::{Product, ULTRA_PRODUCTS};

/// Of an H100 SXM's memory, from its data sheet.
const MEMORY_BYTES_PER_S: f64 = 3.35e12;

/// How kernels are timed.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Launches that one measurement is the mean of.
    pub n_launches: usize,
    /// Bytes that launches go round, so that none finds its own in the L2 cache: in a step, the
    /// weights of other blocks lie between.
    pub n_cold_bytes: usize,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    what: String,
    /// Of one launch of each of its kernels, on average.
    pub measured: Duration,
    /// What it moves and computes, a kernel each.
    pub work: Vec<Work>,
}

/// One product of weights that are all zeroes, for a number of tokens.
///
/// # Errors
/// What the device has against it.
pub fn product(product: &Product, n_tokens: usize, timing: Timing) -> Result<Line> {
    // Memory is given back with the executor.
    let exec = CudaExec::open(0)?;
    let one = Multiplying::new(&exec, product, n_tokens, timing)?;
    let measured = timing.measure(&exec, |idx| one.submit(&exec, idx))?;
    let what = format!("{} of {n_tokens} tokens", product.name);
    Ok(Line { what, measured, work: vec![one.work()] })
}

/// Attention of one block of LN-Ultra over an FP8 cache: `n_rows` sequences of `n_positions`.
///
/// # Errors
/// What the device has against it.
pub fn attention(n_rows: usize, n_positions: usize, timing: Timing) -> Result<Line> {
    let exec = CudaExec::open(0)?;
    let one = Attending::new(&exec, n_rows, n_positions, timing)?;
    let measured = timing.measure(&exec, |idx| one.submit(&exec, idx, None))?;
    let what = format!("attention, batch {n_rows} x {n_positions}");
    Ok(Line { what, measured, work: vec![one.work()] })
}

/// The same and the product that follows, a part of whose weights attention may fetch ahead: the
/// difference is what that is worth.
///
/// # Errors
/// What the device has against it.
pub fn attention_and(
    product: &Product,
    (n_rows, n_positions): (usize, usize),
    fetches: bool,
    timing: Timing,
) -> Result<Line> {
    let exec = CudaExec::open(0)?;
    exec.set_aside(N_BYTES_AHEAD_MAX)?;
    let attending = Attending::new(&exec, n_rows, n_positions, timing)?;
    let multiplying = Multiplying::new(&exec, product, n_rows, timing)?;
    let measured = timing.measure(&exec, |idx| {
        attending.submit(&exec, idx, fetches.then(|| multiplying.weights(idx)))?;
        multiplying.submit(&exec, idx)
    })?;
    let mut second = multiplying.work();
    if fetches {
        second.ahead_bytes = fetched_ahead(second.resident_bytes as usize, n_rows) as u64;
    }
    let words = if fetches { "fetched" } else { "alone" };
    let what = format!("and {}, {words}, {n_rows} x {n_positions}", product.name);
    Ok(Line { what, measured, work: vec![attending.work(), second] })
}

impl Timing {
    /// How many of `n_bytes` launches take in turn.
    pub(crate) fn n_copies(self, n_bytes: usize) -> usize {
        self.n_cold_bytes.div_ceil(n_bytes).clamp(1, self.n_launches)
    }

    /// The mean of launches from a graph, so that the host's part is not in it.
    fn measure(
        self,
        exec: &CudaExec,
        launch: impl Fn(usize) -> Result<(), DeviceError>,
    ) -> Result<Duration> {
        // The first launch loads the code.
        launch(0)?;
        exec.synchronize()?;
        let stream = exec.stream();
        stream.begin_capture()?;
        let launched: Result<(), DeviceError> = (0..self.n_launches).try_for_each(launch);
        let graph = stream.end_capture();
        launched?;
        let graph = graph?;
        stream.launch(&graph)?;
        exec.synchronize()?;
        let started = Instant::now();
        stream.launch(&graph)?;
        exec.synchronize()?;
        Ok(started.elapsed() / self.n_launches as u32)
    }
}

impl Line {
    /// What is predicted of it.
    pub fn predicted(&self) -> Duration {
        Duration::from_secs_f64(Machine::EXPECTED.seconds(&self.work))
    }

    /// What the bytes alone would take.
    pub fn at_memory_speed(&self) -> Duration {
        Duration::from_secs_f64(self.bytes() as f64 / MEMORY_BYTES_PER_S)
    }

    /// Of all its kernels.
    pub fn bytes(&self) -> u64 {
        self.work.iter().map(|work| work.bytes).sum()
    }

    /// What the columns are.
    pub fn head() -> String {
        let [what, measured, predicted] = ["us of a kernel", "measured", "predicted"];
        format!(
            "{what:<28} {measured:>10} {predicted:>10} {:>15} {:>10}",
            "at memory speed", "bytes"
        )
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |duration: Duration| duration.as_secs_f64() * 1e6;
        write!(
            f,
            "{:<28} {:>10.1} {:>10.1} {:>15.1} {:>10}",
            self.what,
            us(self.measured),
            us(self.predicted()),
            us(self.at_memory_speed()),
            self.bytes()
        )
    }
}
