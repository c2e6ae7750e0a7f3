//! `lnserve synth`: a checkpoint of random weights.

use indicatif::{ProgressBar, ProgressStyle};
use weights::synthetic::{SyntheticConfig, write_sparse, write_synthetic};

use super::table::grouped;
use super::{CliError, model_spec};
use crate::config::{ByteSize, SynthCommand};

/// Bytes of a shard where nobody says how many there are to be: as published checkpoints are cut.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes the checkpoint and says what it wrote.
///
/// # Errors
/// The model is unknown, or the directory cannot be written.
pub fn run(command: &SynthCommand) -> Result<(), CliError> {
    let mut config = SyntheticConfig {
        spec: model_spec(&command.config)?,
        format: command.format,
        n_shards: 1,
        seed: command.seed,
    };
    config.n_shards =
        command.n_shards.unwrap_or_else(|| config.n_bytes().div_ceil(SHARD_BYTES).max(1) as usize);
    // Hidden by itself where standard error is not a terminal.
    let bar = ProgressBar::new(config.n_bytes()).with_style(
        ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {eta} left")
            .expect("the template is valid"),
    );
    let mut progress = |n_bytes, n_total| {
        bar.set_length(n_total);
        bar.set_position(n_bytes);
    };
    let written = match command.is_sparse {
        true => write_sparse(&command.out, &config, &mut progress),
        false => write_synthetic(&command.out, &config, &mut progress),
    };
    bar.finish_and_clear();
    written?;
    println!(
        "wrote {}: {} parameters, {} of tensors; look at it with `lnserve inspect {0}`",
        command.out.display(),
        grouped(config.spec.n_parameters()),
        ByteSize(config.n_bytes()),
    );
    Ok(())
}
