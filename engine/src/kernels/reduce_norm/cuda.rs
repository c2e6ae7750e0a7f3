//! The launches of `reduce_norm.cu` and `reduce_norm_two_shot.cu`.

use crate::device::cuda::{CudaExec, Kernel, LaunchConfig};
use crate::device::{Deferred, DeviceError, DevicePtr, WeightFactors};
use crate::kernels::ahead::Ahead;
use crate::kernels::launching::{
    CHUNK, Exchange, Factors, N_RANKS_MAX, Params, by_value, cluster_of, count, of_ranks,
};

const N_THREADS: usize = 256;

/// Greatest width of the residual stream: eight blocks of a cluster, a chunk a thread.
pub const HIDDEN_MAX: usize = 8 * N_THREADS * CHUNK;

/// Blocks of a multiprocessor that surely run at once, of the three that registers allow: clusters
/// are placed within groups of multiprocessors and leave some unused.
const N_BLOCKS_RESIDENT: usize = 2;

/// What to launch, on memory of the executor's device unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    /// bf16 `[n_tokens, hidden]` in each rank's memory; the first alone where nobody is met.
    pub(super) partials: [DevicePtr; N_RANKS_MAX],
    /// How the ranks meet; [`Exchange::ALONE`] where the sum is made already.
    pub(super) exchange: Exchange,
    /// Where rows go that their owners finish; none where every rank finishes all.
    pub(super) two_shot: Option<TwoShot>,
    /// Factors that the sum still lacks.
    pub(super) scales: Deferred,
    /// f32 `[n_tokens, hidden]`; null for zeroes. In two shots of the tokens that the rank owns.
    pub(super) residual_in: DevicePtr,
    /// The same memory, or null where nobody reads the stream again.
    pub(super) residual_out: DevicePtr,
    /// i32 `[n_rows]`: tokens whose rows are wanted, negative for none; null for all, in order.
    pub(super) rows: DevicePtr,
    pub(super) n_rows: usize,
    pub(super) hidden: usize,
    pub(super) norm: Norm,
    /// What is fetched into the cache while the ranks meet.
    pub(super) ahead: Option<Ahead>,
}

/// Where every rank has a norm's `out` and the scales of its rows, by rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct TwoShot {
    pub(super) outs: [DevicePtr; N_RANKS_MAX],
    pub(super) scales: [DevicePtr; N_RANKS_MAX],
}

/// The norm and what becomes of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    /// f32 `[hidden]`.
    pub(super) weight: DevicePtr,
    pub(super) eps: f32,
    /// `[n_rows, hidden]`.
    pub(super) out: DevicePtr,
    pub(super) output: Output,
}

/// What the output is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Output {
    /// bf16.
    Bf16,
    /// e4m3 of one scale.
    E4m3(f32),
    /// e4m3, with the scales of the rows into this f32 `[n_rows]`.
    E4m3PerToken(DevicePtr),
}

/// Launches; where ranks meet, also without rows, because the others wait.
pub(super) fn launch(exec: &CudaExec, launch: &Launch) -> Result<(), DeviceError> {
    let &Launch { exchange, n_rows, hidden, .. } = launch;
    assert!(hidden.is_multiple_of(CHUNK) && hidden <= HIDDEN_MAX, "a stream of {hidden}");
    if n_rows == 0 && exchange.n_ranks == 1 {
        return Ok(());
    }
    let factors = sum_factors(launch.scales);
    let (partials, exchange_words) = (of_ranks(launch.partials), exchange.words());
    let mut config = config(exec.info().n_multiprocessors, launch);
    let ahead_words = Ahead::words(launch.ahead, config.grid[0]);
    if launch.ahead.is_some() {
        config.grid[0] += Ahead::N_BLOCKS;
    }
    let everywhere = launch.two_shot.map(|two_shot| {
        assert!(exchange.n_ranks > 1, "rows have owners where ranks meet");
        [two_shot.outs, two_shot.scales].map(|places| of_ranks(from_own(places, exchange)))
    });
    let mut params = Params::new(&[
        by_value(&partials),
        factors.columns.into(),
        factors.tokens.into(),
        launch.residual_in.into(),
        launch.residual_out.into(),
        launch.rows.into(),
        count(n_rows).into(),
        count(hidden).into(),
        by_value(&exchange_words),
        by_value(&ahead_words),
    ]);
    let Norm { weight, eps, out, output } = launch.norm;
    params.extend(&[weight.into(), eps.into()]);
    params.extend(&[everywhere.as_ref().map_or(out.into(), |[outs, _]| by_value(outs))]);
    match output {
        Output::Bf16 => {}
        Output::E4m3(scale) => params.extend(&[scale.into()]),
        Output::E4m3PerToken(scales) => {
            params.extend(&[everywhere.as_ref().map_or(scales.into(), |[_, all]| by_value(all))]);
        }
    }
    // SAFETY: these are the parameters of the kernels of `reduce_norm.cuh`, and the caller's arrays
    // have the shapes that `Launch` states.
    unsafe { exec.launch(kernel(launch), config, params.as_slice()) }
}

fn kernel(launch: &Launch) -> Kernel {
    let name = match (launch.two_shot.is_some(), launch.norm.output) {
        (false, Output::Bf16) => "reduce_norm_bf16",
        (false, Output::E4m3(_)) => "reduce_norm_e4m3",
        (false, Output::E4m3PerToken(_)) => "reduce_norm_e4m3_token",
        (true, Output::Bf16) => "reduce_norm_two_shot_bf16",
        (true, Output::E4m3(_)) => "reduce_norm_two_shot_e4m3",
        (true, Output::E4m3PerToken(_)) => "reduce_norm_two_shot_e4m3_token",
    };
    let family = if launch.two_shot.is_some() { "reduce_norm_two_shot" } else { "reduce_norm" };
    Kernel { family, name }
}

/// A rank writes to itself first, then to the one after it: at no time do all write to the same.
fn from_own(of_ranks: [DevicePtr; N_RANKS_MAX], exchange: Exchange) -> [DevicePtr; N_RANKS_MAX] {
    let mut turned = of_ranks;
    turned[..exchange.n_ranks].rotate_left(exchange.rank);
    turned
}

/// A partial result is one product's: static scales are in it already, and rows have their own.
fn sum_factors(scales: Deferred) -> Factors {
    if let Deferred::Scales { weights: WeightFactors::PerPart(parts), .. } = scales {
        panic!("factors {parts:?} belong into the product");
    }
    scales.into()
}

/// A row a cluster, whose size the width alone decides: it is part of the order of summation.
/// Where ranks meet, all blocks must be resident, and clusters take several rows.
fn config(n_multiprocessors: usize, launch: &Launch) -> LaunchConfig {
    let cluster = cluster_of(launch.hidden, N_THREADS * CHUNK);
    let n_rows = match launch.two_shot {
        None => launch.n_rows,
        Some(_) => launch.n_rows.div_ceil(launch.exchange.n_ranks),
    };
    let n_clusters = match launch.exchange.n_ranks {
        1 => n_rows,
        _ => n_rows.clamp(1, n_multiprocessors * N_BLOCKS_RESIDENT / cluster as usize),
    };
    LaunchConfig {
        grid: [cluster * n_clusters as u32, 1, 1],
        block: [N_THREADS as u32, 1, 1],
        shared_bytes: 0,
        cluster,
    }
}

#[cfg(test)]
mod tests;
