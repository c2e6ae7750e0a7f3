//! `lnserve synth`: a checkpoint of random weights.

use weights::synthetic::{SyntheticConfig, write_until};

use super::interrupts::Watch;
use super::table::grouped;
use super::{CliError, model_spec};
use crate::config::{ByteSize, SynthCommand};
use crate::progress::bar;

/// Bytes of a shard where nobody says how many there are to be: as published checkpoints are cut.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes the checkpoint and says what it wrote.
///
/// # Errors
/// The model is unknown, the directory cannot be written, or Ctrl-C or SIGTERM came: then nothing
/// is left behind.
pub fn run(command: &SynthCommand) -> Result<(), CliError> {
    let mut config = SyntheticConfig {
        spec: model_spec(&command.config)?,
        format: command.format,
        n_shards: 1,
        seed: command.seed,
    };
    config.n_shards =
        command.n_shards.unwrap_or_else(|| config.n_bytes().div_ceil(SHARD_BYTES).max(1) as usize);
    let watch = Watch::begin()?;
    let bar = bar("", config.n_bytes());
    let mut progress = |n_done, _| {
        bar.set_position(n_done);
        watch.go_on()
    };
    let written = write_until(&command.out, &config, command.is_sparse, &mut progress);
    bar.finish_and_clear();
    watch.outcome(written)?;
    println!(
        "wrote {}: {} parameters, {} of tensors; look at it with `lnserve inspect {0}`",
        command.out.display(),
        grouped(config.spec.n_parameters()),
        ByteSize(config.n_bytes()),
    );
    Ok(())
}
