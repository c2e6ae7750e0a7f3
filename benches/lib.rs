//! What the benches share: one report format, and where synthetic checkpoints live.

pub mod cost;
pub mod machine;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use weights::Checkpoint;
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_synthetic};

/// Prints measurements: a table for people, or with `--json` one object a line.
pub struct Report {
    bench: &'static str,
    is_json: bool,
}

impl Report {
    /// Reads `--json` from the command line.
    pub fn new(bench: &'static str) -> Report {
        Report { bench, is_json: std::env::args().any(|argument| argument == "--json") }
    }

    /// Whether it is for machines.
    pub fn is_json(&self) -> bool {
        self.is_json
    }

    /// One measurement.
    pub fn row(&self, case: &str, value: f64, unit: &str) {
        if self.is_json {
            let bench = self.bench;
            println!(
                "{{\"bench\": \"{bench}\", \"case\": \"{case}\", \"value\": {value}, \
                 \"unit\": \"{unit}\"}}"
            );
        } else {
            println!("{:44} {value:>14.3} {unit}", case);
        }
    }

    /// Something for people only.
    pub fn note(&self, text: &str) {
        if !self.is_json {
            println!("{text}");
        }
    }
}

/// A synthetic checkpoint of a preset, written once and kept beside the build.
///
/// # Errors
/// Whatever writing or opening it says.
pub fn synthetic(name: &str, format: SyntheticFormat) -> anyhow::Result<Arc<Checkpoint>> {
    let spec = preset(name).ok_or_else(|| anyhow::anyhow!("there is no preset {name}"))?;
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../target/synthetic")
        .join(format!("{name}-{format:?}"));
    if !dir.join("complete").exists() {
        if dir.exists() {
            // Half written, by a run that was stopped.
            std::fs::remove_dir_all(&dir)?;
        }
        let config = SyntheticConfig { spec, format, n_shards: 2, seed: 1 };
        write_synthetic(&dir, &config, &mut |_, _| {})?;
        std::fs::write(dir.join("complete"), [])?;
    }
    Ok(Arc::new(Checkpoint::open(&dir)?))
}

/// Seconds of the median of `n` runs.
pub fn median_seconds(n: usize, mut run: impl FnMut()) -> f64 {
    median((0..n).map(|_| seconds(&mut run)).collect())
}

/// Seconds of one run.
pub fn seconds(run: impl FnOnce()) -> f64 {
    let began = Instant::now();
    run();
    began.elapsed().as_secs_f64()
}

/// The middle one of an odd number of values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
