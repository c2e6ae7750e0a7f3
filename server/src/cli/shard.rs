//! `lnserve shard`: a checkpoint cut for its ranks, a file each.

use weights::Checkpoint;
use weights::sharded::write_sharded;

use super::CliError;
use super::interrupts::Watch;
use crate::config::{ByteSize, ShardCommand};
use crate::progress::bar;

/// Cuts the checkpoint and says what to do with it.
///
/// # Errors
/// It cannot be cut so, a file cannot be read or written, or Ctrl-C or SIGTERM came: then nothing
/// is left behind.
pub fn run(command: &ShardCommand) -> Result<(), CliError> {
    let ShardCommand { dir, n_ranks, out } = command;
    let checkpoint = Checkpoint::open(dir)?;
    let watch = Watch::begin()?;
    let n_bytes = checkpoint.tensors().map(|tensor| tensor.n_bytes).sum();
    let bar = bar("", n_bytes);
    let cut = write_sharded(&checkpoint, out, *n_ranks, &mut |n_done, _| {
        bar.set_position(n_done);
        watch.go_on()
    });
    bar.finish_and_clear();
    watch.outcome(cut)?;
    println!(
        "cut {} for {n_ranks} ranks into {out}; serve it with `lnserve serve {out} --tp {n_ranks}`",
        ByteSize(n_bytes),
        out = out.display(),
    );
    Ok(())
}
