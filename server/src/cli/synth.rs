//! `lnserve synth`: a checkpoint of random weights.

use indicatif::{ProgressBar, ProgressStyle};
use weights::synthetic::{SyntheticConfig, write_synthetic};

use super::table::grouped;
use super::{CliError, model_spec};
use crate::config::{ByteSize, SynthCommand};

/// Writes the checkpoint and says what it wrote.
///
/// # Errors
/// The model is unknown, or the directory cannot be written.
pub fn run(command: &SynthCommand) -> Result<(), CliError> {
    let config = SyntheticConfig {
        spec: model_spec(&command.config)?,
        format: command.format,
        n_shards: command.n_shards,
        seed: command.seed,
    };
    // Hidden by itself where standard error is not a terminal.
    let bar = ProgressBar::new(config.n_bytes()).with_style(
        ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {eta} left")
            .expect("the template is valid"),
    );
    let written = write_synthetic(&command.out, &config, &mut |n_bytes, n_total| {
        bar.set_length(n_total);
        bar.set_position(n_bytes);
    });
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
