//! The launches of `quantize.cu`.

use crate::device::cuda::{CudaExec, Kernel, LaunchConfig, Param};
use crate::device::{DeviceError, DevicePtr};
use crate::kernels::launching::{
    CHUNK, Exchange, N_RANKS_MAX, Params, by_value, count, is_wide, n_rows, of_ranks,
};

/// Threads of a block that has a tile of a row.
const N_THREADS: usize = 128;
/// Threads of a block that has a row.
const N_THREADS_ROW: u32 = 256;

/// Rows to read, on memory of the executor's device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// bf16 `[n_tokens, in_stride]`, of which `width` columns.
    pub(super) x: DevicePtr,
    pub(super) in_stride: usize,
    pub(super) n_tokens: usize,
    pub(super) width: usize,
}

/// What to launch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    pub(super) rows: Rows,
    /// e4m3 `[n_tokens, out_stride]`; what lies beyond `width` becomes zero.
    pub(super) out: DevicePtr,
    pub(super) out_stride: usize,
    pub(super) scale: Scale,
}

/// Where the scales come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scale {
    /// The checkpoint.
    Static(f32),
    /// The rows' magnitudes.
    Known {
        /// f32 `[n_tokens]`.
        magnitudes: DevicePtr,
        /// f32 `[n_tokens]`, written.
        scales: DevicePtr,
    },
    /// The rows' magnitudes in every rank's columns.
    Exchanged {
        /// f32 `[n_tokens]` in each rank's memory.
        magnitudes: [DevicePtr; N_RANKS_MAX],
        /// f32 `[n_tokens]`, written.
        scales: DevicePtr,
        /// How the ranks meet.
        exchange: Exchange,
    },
}

/// Finds the greatest magnitude of each row, into f32 `[n_tokens]`.
pub(super) fn launch_magnitudes(
    exec: &CudaExec,
    rows: &Rows,
    magnitudes: DevicePtr,
) -> Result<(), DeviceError> {
    let &Rows { x, in_stride, n_tokens, width } = rows;
    assert!(width <= in_stride, "{rows:?}");
    if n_tokens == 0 {
        return Ok(());
    }
    let params = [
        x.into(),
        magnitudes.into(),
        count(width).into(),
        count(in_stride).into(),
        is_wide(&[width, in_stride], &[x]).into(),
    ];
    let config = LaunchConfig {
        grid: [n_tokens as u32, 1, 1],
        block: [N_THREADS_ROW, 1, 1],
        shared_bytes: 0,
        cluster: 1,
    };
    let kernel = Kernel { family: "quantize", name: "magnitudes_bf16" };
    // SAFETY: these are the parameters of that kernel, and the caller's arrays have the shapes
    // that are stated.
    unsafe { exec.launch(kernel, config, &params) }
}

/// Quantizes every row.
pub(super) fn launch(exec: &CudaExec, launch: &Launch) -> Result<(), DeviceError> {
    let &Launch { rows: Rows { x, in_stride, n_tokens, width }, out, out_stride, scale } = launch;
    assert!(width <= in_stride && width <= out_stride, "{launch:?}");
    if n_tokens == 0 {
        return Ok(());
    }
    let rows = Params::new(&[
        x.into(),
        out.into(),
        count(width).into(),
        count(in_stride).into(),
        count(out_stride).into(),
        is_wide(&[width, in_stride, out_stride], &[x, out]).into(),
    ]);
    let config = config(exec.info().n_multiprocessors, n_tokens, out_stride, scale);
    let submit = |name, last: &[Param<'_>]| {
        let mut params = Params::new(rows.as_slice());
        params.extend(last);
        // SAFETY: these are the parameters of the kernels of `quantize.cu`, and the caller's
        // arrays have the shapes that `Launch` states.
        unsafe { exec.launch(Kernel { family: "quantize", name }, config, params.as_slice()) }
    };
    match scale {
        Scale::Static(scale) => submit("quantize_static", &[scale.into()]),
        Scale::Known { magnitudes, scales } => {
            submit("quantize_known", &[magnitudes.into(), scales.into()])
        }
        Scale::Exchanged { magnitudes, scales, exchange } => {
            let (magnitudes, exchange) = (of_ranks(magnitudes), exchange.words());
            let last =
                [by_value(&magnitudes), scales.into(), count(n_tokens).into(), by_value(&exchange)];
            submit("quantize_exchanged", &last)
        }
    }
}

/// A tile a block; where ranks meet, as many blocks as surely run at once.
fn config(n_multiprocessors: usize, n_tokens: usize, n_cols: usize, scale: Scale) -> LaunchConfig {
    let n_tiles = n_cols.div_ceil(N_THREADS * CHUNK);
    let grid = match scale {
        Scale::Static(_) | Scale::Known { .. } => [n_tiles as u32, n_rows(n_tokens), 1],
        Scale::Exchanged { .. } => [(n_tiles * n_tokens).min(2 * n_multiprocessors) as u32, 1, 1],
    };
    LaunchConfig { grid, block: [N_THREADS as u32, 1, 1], shared_bytes: 0, cluster: 1 }
}

#[cfg(test)]
mod tests;
