//! `lnserve shard`: a checkpoint cut for its ranks, a file each.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use weights::Checkpoint;
use weights::sharded::write_sharded;

use super::interrupts::Interrupts;
use super::{CliError, io_error};
use crate::config::{ByteSize, ShardCommand};

/// Cuts the checkpoint and says what to do with it.
///
/// # Errors
/// It cannot be cut so, a file cannot be read or written, or Ctrl-C or SIGTERM came: then nothing
/// is left behind.
pub fn run(command: &ShardCommand) -> Result<(), CliError> {
    let ShardCommand { dir, n_ranks, out } = command;
    let checkpoint = Checkpoint::open(dir)?;
    let is_interrupted = hear_interrupts()?;
    // Hidden by itself where standard error is not a terminal.
    let look = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let look = ProgressStyle::with_template(look).expect("the template is valid");
    let n_bytes = checkpoint.tensors().map(|tensor| tensor.n_bytes).sum();
    let bar = ProgressBar::new(n_bytes).with_style(look);
    let cut = write_sharded(&checkpoint, out, *n_ranks, &mut |n_done, _| {
        bar.set_position(n_done);
        match is_interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    bar.finish_and_clear();
    cut?;
    println!(
        "cut {} for {n_ranks} ranks into {out}; serve it with `lnserve serve {out} --tp {n_ranks}`",
        ByteSize(n_bytes),
        out = out.display(),
    );
    Ok(())
}

/// Set when Ctrl-C or SIGTERM comes, which do not end the program any more.
fn hear_interrupts() -> Result<Arc<AtomicBool>, CliError> {
    let is_interrupted = Arc::new(AtomicBool::new(false));
    let failed = |source| io_error("cannot hear Ctrl-C")(source);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let mut interrupts = {
        let _inside = runtime.enter();
        Interrupts::new().map_err(failed)?
    };
    let heard = Arc::clone(&is_interrupted);
    // It ends with the program.
    std::thread::spawn(move || {
        runtime.block_on(interrupts.next());
        heard.store(true, Ordering::Relaxed);
    });
    Ok(is_interrupted)
}
