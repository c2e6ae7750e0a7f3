//! `cargo run --release -p gpu-smoke` on a machine with H100s: every test that speaks to a GPU, on
//! the real driver and libraries; then a table of what was measured. Fails where there is no GPU.

use std::process::ExitCode;

use anyhow::Result;
use gpu_smoke::lanes::{self, LANES};
use gpu_smoke::{node, table};

/// Launches that one measurement is the mean of.
const N_LAUNCHES: u32 = 100;

fn main() -> ExitCode {
    match smoke() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gpu-smoke: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything passed.
fn smoke() -> Result<bool> {
    println!("device 0: {}", node::open_real()?);
    let mut passed = true;
    let mut report = Vec::new();
    for lane in LANES {
        println!("\n{}", lane.name);
        let outcome = lanes::run(lane)?;
        let word = if outcome.passed { "passed" } else { "FAILED" };
        report.push(format!("{word} {:>6.1} s  {}", outcome.duration.as_secs_f64(), lane.name));
        passed &= outcome.passed;
    }
    println!();
    for &shape in table::SHAPES {
        println!("{}", table::attention(shape, N_LAUNCHES)?);
    }
    println!("\n{}", report.join("\n"));
    Ok(passed)
}
