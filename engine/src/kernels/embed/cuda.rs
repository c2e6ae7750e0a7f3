//! The launch of `embed.cu`.

use crate::device::cuda::{CudaExec, Kernel, LaunchConfig};
use crate::device::{DeviceError, DevicePtr};
use crate::kernels::launching::{CHUNK, count, is_wide, n_rows};

const N_THREADS: usize = 128;
/// Chunks of a thread.
const N_CHUNKS: usize = 2;

/// What to launch, on memory of the executor's device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    /// i32 `[n_tokens]`; `-1 - slot` for what `slot` sampled last.
    pub(super) tokens: DevicePtr,
    /// i32 `[n_slots]`; may be null where no token is negative.
    pub(super) last_tokens: DevicePtr,
    /// bf16 `[n_entries, hidden]`.
    pub(super) table: DevicePtr,
    /// The table's first vocabulary entry.
    pub(super) vocab_begin: usize,
    pub(super) n_entries: usize,
    pub(super) n_tokens: usize,
    pub(super) hidden: usize,
    /// bf16 `[n_tokens, hidden]`.
    pub(super) out: DevicePtr,
}

/// Launches; nothing where there are no tokens.
pub(super) fn launch(exec: &CudaExec, launch: &Launch) -> Result<(), DeviceError> {
    let &Launch { tokens, last_tokens, table, vocab_begin, n_entries, n_tokens, hidden, out } =
        launch;
    if n_tokens == 0 {
        return Ok(());
    }
    let params = [
        tokens.into(),
        last_tokens.into(),
        table.into(),
        out.into(),
        count(vocab_begin).into(),
        count(n_entries).into(),
        count(hidden).into(),
        is_wide(&[hidden], &[table, out]).into(),
    ];
    let kernel = Kernel { family: "embed", name: "embed_bf16" };
    // SAFETY: these are the parameters of `embed.cu`'s kernel, and the caller's arrays have the
    // shapes that `Launch` states.
    unsafe { exec.launch(kernel, config(n_tokens, hidden), &params) }
}

fn config(n_tokens: usize, hidden: usize) -> LaunchConfig {
    let n_blocks = hidden.div_ceil(N_THREADS * N_CHUNKS * CHUNK) as u32;
    LaunchConfig {
        grid: [n_blocks, n_rows(n_tokens), 1],
        block: [N_THREADS as u32, 1, 1],
        shared_bytes: 0,
        cluster: 1,
    }
}

#[cfg(test)]
mod tests;
