//! The launch of `swiglu.cu`.

use crate::device::cuda::{CudaExec, Kernel, LaunchConfig};
use crate::device::{Deferred, DeviceError, DevicePtr};
use crate::kernels::launching::{CHUNK, Factors, Params, cluster_of, count, is_wide, n_rows};

/// Threads of a block that has a tile of a row.
const N_THREADS: usize = 128;
/// Threads of a block whose cluster has a row.
const N_THREADS_ROW: usize = 256;

/// What to launch, on memory of the executor's device. Strides are in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    /// bf16 `[n_tokens, in_stride]`, of which `2 * width` columns: gate, then up.
    pub(super) gate_up: DevicePtr,
    pub(super) in_stride: usize,
    /// Factors that `gate_up` still lacks.
    pub(super) scales: Deferred,
    pub(super) n_tokens: usize,
    pub(super) width: usize,
    /// `[n_tokens, out_stride]`; what lies beyond `width` becomes zero.
    pub(super) out: DevicePtr,
    pub(super) out_stride: usize,
    pub(super) output: Output,
}

/// What the output is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Output {
    /// bf16.
    Bf16,
    /// bf16, and into this f32 `[n_tokens]` the rows' greatest magnitudes.
    Bf16AndMagnitudes(DevicePtr),
    /// e4m3 of one scale.
    E4m3(f32),
}

/// Launches; nothing where there are no tokens.
pub(super) fn launch(exec: &CudaExec, launch: &Launch) -> Result<(), DeviceError> {
    let &Launch { gate_up, in_stride, scales, n_tokens, width, out, out_stride, output } = launch;
    assert!(2 * width <= in_stride && width <= out_stride, "{launch:?}");
    if n_tokens == 0 {
        return Ok(());
    }
    let factors = Factors::from(scales);
    let is_wide = is_wide(&[width, in_stride, out_stride], &[gate_up, out, factors.columns]);
    let [gate_factor, up_factor, _] = factors.parts;
    let mut params = Params::new(&[
        gate_up.into(),
        factors.columns.into(),
        factors.tokens.into(),
        count(width).into(),
        count(in_stride).into(),
        count(out_stride).into(),
        is_wide.into(),
        gate_factor.into(),
        up_factor.into(),
        out.into(),
    ]);
    let name = match output {
        Output::Bf16 => "swiglu_bf16",
        Output::Bf16AndMagnitudes(magnitudes) => {
            params.extend(&[magnitudes.into()]);
            "swiglu_bf16_magnitudes"
        }
        Output::E4m3(scale) => {
            params.extend(&[scale.into()]);
            "swiglu_e4m3"
        }
    };
    let config = config(n_tokens, out_stride, output);
    // SAFETY: these are the parameters of `swiglu.cu`'s kernels, and the caller's matrices have
    // the shapes that `Launch` states.
    unsafe { exec.launch(Kernel { family: "swiglu", name }, config, params.as_slice()) }
}

/// A tile a block, or a row a cluster where its maximum is wanted.
fn config(n_tokens: usize, n_cols: usize, output: Output) -> LaunchConfig {
    let (n_threads, n_blocks, cluster) = match output {
        Output::Bf16 | Output::E4m3(_) => (N_THREADS, n_cols.div_ceil(N_THREADS * CHUNK) as u32, 1),
        Output::Bf16AndMagnitudes(_) => {
            let cluster = cluster_of(n_cols, N_THREADS_ROW * CHUNK);
            (N_THREADS_ROW, cluster, cluster)
        }
    };
    LaunchConfig {
        grid: [n_blocks, n_rows(n_tokens), 1],
        block: [n_threads as u32, 1, 1],
        shared_bytes: 0,
        cluster,
    }
}

#[cfg(test)]
mod tests;
