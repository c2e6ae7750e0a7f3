//! `cargo run --release -p gpu-smoke` on a machine with H100s: every test that speaks to a GPU, on
//! the real driver and libraries; then what steps and kernels take, measured beside predicted.
//! Fails where there is no GPU.
//!
//! `virtual-node run -- target/release/gpu-smoke --rehearse` goes through the tables' code with a
//! small model where times mean nothing, and says so.

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, ensure};
use benches::cost::{BATCHES, CHUNK, CONTEXTS};
use gpu_smoke::lanes::{self, LANES};
use gpu_smoke::node;
use gpu_smoke::steps::{self, Steps, largest_model};
use gpu_smoke::table::{self, Product, Timing, ULTRA_PRODUCTS};
use weights::ModelSpec;
use weights::presets::preset;

/// On a GPU: enough for the clock, and more than four times what an H100's L2 cache holds.
const TIMING: Timing = Timing { n_launches: 100, n_cold_bytes: 256 << 20 };

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match &arguments[..] {
        [] => smoke(),
        [one] if one == "--rehearse" => rehearse().map(|()| true),
        _ => Err(anyhow!("its only argument is --rehearse, not {arguments:?}")),
    };
    match outcome {
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
    let (n_ranks, name, spec) = largest_model()?;
    println!(
        "\nSteps of {name} with FP8 weights and KV, {n_ranks} devices, weights without meaning"
    );
    let (batches, contexts) = (BATCHES.to_vec(), CONTEXTS.to_vec());
    let steps = Steps { spec, n_ranks, batches, contexts, chunk: CHUNK, n_runs: 11 };
    let attention = [(1, 8192), (1, 32_768), (64, 1024), (64, 8192), (64, 32_768)];
    tables(&steps, TIMING, &ULTRA_PRODUCTS, &attention)?;
    println!("\n{}", report.join("\n"));
    Ok(passed)
}

/// The tables where times mean nothing.
fn rehearse() -> Result<()> {
    node::open_virtual()?;
    println!("REHEARSAL on the virtual node: times mean nothing");
    let steps = Steps {
        spec: small_model()?,
        n_ranks: 8,
        batches: vec![1, 2],
        contexts: vec![16, 40],
        chunk: 20,
        n_runs: 1,
    };
    let products = ULTRA_PRODUCTS.map(|product| Product {
        n_outputs: product.n_outputs / 16,
        n_inputs: product.n_inputs / 16,
        ..product
    });
    tables(&steps, Timing { n_launches: 2, n_cold_bytes: 1 << 20 }, &products, &[(2, 300)])
}

/// A block with both sub-blocks and an empty one, between narrow ends.
fn small_model() -> Result<ModelSpec> {
    let spec = preset("bench-0.6b").context("there is no such preset")?;
    let blocks = [0, 2].map(|idx| spec.blocks[idx].clone()).to_vec();
    Ok(ModelSpec { vocab_size: 1024, blocks, ..spec })
}

/// Prints both: steps, then kernels, attention by sequences and positions, and what fetching ahead
/// is worth.
fn tables(
    steps: &Steps,
    timing: Timing,
    products: &[Product],
    attention: &[(usize, usize)],
) -> Result<()> {
    println!("{}", steps::Line::head());
    let mut n_measured = 0;
    steps.measure(&mut |line| {
        println!("{line}");
        n_measured += usize::from(line.measured.is_some());
    })?;
    ensure!(n_measured > 1, "no step of decoding fits this node");
    println!("\n{}", table::Line::head());
    for &n_tokens in &steps.batches {
        for product in products {
            println!("{}", table::product(product, n_tokens as usize, timing)?);
        }
    }
    for &(n_rows, n_positions) in attention {
        println!("{}", table::attention(n_rows, n_positions, timing)?);
    }
    let o = products.iter().find(|product| product.name == "o").context("no such product")?;
    for &sizes in attention {
        for fetches in [false, true] {
            println!("{}", table::attention_and(o, sizes, fetches, timing)?);
        }
    }
    Ok(())
}
