//! Sampling on the GPU: the state of every slot in its memory, one block a row.
//!
//! Against the host's sampler, given the same logits: greedy tokens are the same, penalties, bias
//! and bans included, and so are the sets that top-k keeps. Weights are f32 exponentials (within
//! 3 units in the last place of the host's f64) in units of 2^-40 of the greatest: a share that
//! top-p or a draw compares differs by less than 2^-20 of itself, so a token differs only where the
//! draw, or the nucleus' border, falls that close to the next one. `logprob` is within 2^-18.

use scheduler::TokenId;

use crate::device::DeviceError;
use crate::device::cuda::{CudaExec, DevicePtr, Kernel, LaunchConfig, Param, Plain, bytes_of};
use crate::request::SamplingParams;

const N_THREADS: u32 = 1024;
/// Tokens that a block takes at once.
pub const TILE_TOKENS: usize = 4096;
/// Tiles that the kernel has room for.
pub const N_TILES_MAX: usize = 256;

/// One sequence's parameters and progress, as the kernel reads and writes them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceSlot {
    seed: u64,
    top_p: u64,
    n_generated: u32,
    n_tokens_min: u32,
    top_k: u32,
    temperature: f32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    n_biases: u32,
    uses_facts: u32,
    wants_logprob: u32,
    unused: u32,
}

/// One entry of a slot's `logit_bias`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceBias {
    /// The token.
    pub token: i32,
    /// Added to its logit.
    pub bias: f32,
}

/// What became of a row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeviceAnswer {
    /// The token; a valid one in any case.
    pub token: i32,
    /// 1 if a logit was NaN or infinite.
    pub is_broken: u32,
    /// Under the model's own logits, if the slot wants it; else 0.
    pub logprob: f32,
    unused: u32,
}

// SAFETY: two numbers of eight bytes, then twelve of four.
unsafe impl Plain for DeviceSlot {}
// SAFETY: two numbers of four bytes.
unsafe impl Plain for DeviceBias {}
// SAFETY: four numbers of four bytes.
unsafe impl Plain for DeviceAnswer {}

impl DeviceSlot {
    /// Of a sequence that has generated `n_generated` tokens before it takes the slot.
    pub fn new(params: &SamplingParams, n_generated: usize, wants_logprob: bool) -> DeviceSlot {
        // Exact: a top-p has 24 bits, and less than 2^-39 of the weights is less than one unit.
        let top_p = (f64::from(params.top_p) * 2f64.powi(63)) as u64;
        DeviceSlot {
            seed: params.seed,
            top_p,
            n_generated: count(n_generated),
            n_tokens_min: count(params.n_tokens_min),
            top_k: u32::try_from(params.top_k).unwrap_or(u32::MAX),
            temperature: params.temperature,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            n_biases: count(biases(params).len()),
            uses_facts: uses_facts(params).into(),
            wants_logprob: wants_logprob.into(),
            unused: 0,
        }
    }
}

/// Whether a sequence with these parameters needs [`enter`] when it takes a slot. Facts of other
/// slots are never read.
pub fn uses_facts(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0
        || params.presence_penalty != 0.0
        || params.frequency_penalty != 0.0
        || !params.logit_bias.is_empty()
        || params.n_tokens_min > 0
}

/// A slot's entries of [`State::biases`]: ascending, each token once.
pub fn biases(params: &SamplingParams) -> Vec<DeviceBias> {
    let mut sorted = params.logit_bias.clone();
    sorted.sort_by_key(|&(token, _)| token);
    let mut biases: Vec<DeviceBias> = Vec::with_capacity(sorted.len());
    for (TokenId(token), bias) in sorted {
        let token = token as i32;
        match biases.last_mut() {
            Some(last) if last.token == token => last.bias += bias,
            _ => biases.push(DeviceBias { token, bias }),
        }
    }
    biases
}

/// What a rank keeps of every slot.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// `[n_slots]` of [`DeviceSlot`].
    pub slots: DevicePtr,
    /// u32 `[n_slots][n_vocab]`.
    pub facts: DevicePtr,
    /// `[n_slots][n_biases_max]` of [`DeviceBias`].
    pub biases: DevicePtr,
    /// Entries of each slot.
    pub n_biases_max: usize,
    /// i32 `[n_slots]`: what each slot drew last.
    pub last_tokens: DevicePtr,
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
}

/// Rows to sample from.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// The slots' state.
    pub state: State,
    /// f32: token `rank * n_local + i` of row `r` lies at
    /// `rank * rank_stride + r * row_stride + i`.
    pub logits: DevicePtr,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one rank's tokens to the next's.
    pub rank_stride: usize,
    /// Ranks that hold a part of the vocabulary.
    pub n_ranks: usize,
    /// Tokens of a rank's part. The last may reach beyond the vocabulary.
    pub n_local: usize,
    /// i32 `[n_rows]`: each row's slot; -1 is padding. No slot has two rows.
    pub rows: DevicePtr,
    /// Rows, padding among them.
    pub n_rows: usize,
    /// `[n_rows]` of [`DeviceAnswer`]; those of padding are not written.
    pub answers: DevicePtr,
}

/// A sequence that takes a slot and whose parameters are such that [`uses_facts`].
#[derive(Clone, Copy, Debug)]
pub struct Enter {
    /// The slots' state; the slot's biases are there already.
    pub state: State,
    /// The slot.
    pub slot_idx: usize,
    /// i32 `[n_prompt + n_generated]`: the prompt, then what it generated before.
    pub tokens: DevicePtr,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Tokens generated before.
    pub n_generated: usize,
    /// i32 `[n_stops]`.
    pub stops: DevicePtr,
    /// Stop tokens.
    pub n_stops: usize,
    /// Biases.
    pub n_biases: usize,
}

/// `Args` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct DeviceArgs {
    logits: u64,
    slots: u64,
    facts: u64,
    biases: u64,
    rows: u64,
    last_tokens: u64,
    answers: u64,
    row_stride: u64,
    rank_stride: u64,
    n_ranks: u32,
    n_local: u32,
    n_vocab: u32,
    n_biases_max: u32,
}

// SAFETY: nine numbers of eight bytes, then four of four.
unsafe impl Plain for DeviceArgs {}

/// Draws a token for every row: into its answer, and where the next step finds it.
///
/// # Errors
/// What the driver has against the launch.
///
/// Every pointer must be as its field says, on this device, for as long as the launch (or the graph
/// that records it) may run; rows' slots are below the number of slots.
pub fn sample(exec: &CudaExec, launch: &Launch) -> Result<(), DeviceError> {
    launch.check();
    let state = &launch.state;
    let args = DeviceArgs {
        logits: launch.logits.0,
        slots: state.slots.0,
        facts: state.facts.0,
        biases: state.biases.0,
        rows: launch.rows.0,
        last_tokens: state.last_tokens.0,
        answers: launch.answers.0,
        row_stride: launch.row_stride as u64,
        rank_stride: launch.rank_stride as u64,
        n_ranks: count(launch.n_ranks),
        n_local: count(launch.n_local),
        n_vocab: count(state.n_vocab),
        n_biases_max: count(state.n_biases_max),
    };
    if launch.n_rows == 0 {
        return Ok(());
    }
    let kernel = Kernel { family: "sample", name: "sample" };
    // SAFETY: the kernel's one parameter is this struct, by value. What it points to is as the
    // caller says; the host never touches it.
    unsafe { exec.launch(kernel, config(launch.n_rows), &[Param::Bytes(bytes_of(&[args]))]) }
}

/// Writes a slot's facts anew.
///
/// # Errors
/// What the driver has against the launch.
///
/// What [`sample`] asks of pointers holds here too; every token is below the vocabulary's size.
pub fn enter(exec: &CudaExec, enter: &Enter) -> Result<(), DeviceError> {
    let Enter { state, slot_idx, .. } = *enter;
    let facts = state.facts.elements::<u32>(slot_idx * state.n_vocab);
    let biases = state.biases.offset(slot_idx * state.n_biases_max * size_of::<DeviceBias>());
    let params = [
        facts.into(),
        count(state.n_vocab).into(),
        enter.tokens.into(),
        count(enter.n_prompt).into(),
        count(enter.n_generated).into(),
        enter.stops.into(),
        count(enter.n_stops).into(),
        biases.into(),
        count(enter.n_biases).into(),
    ];
    let kernel = Kernel { family: "sample", name: "sample_enter" };
    // SAFETY: the parameters are those of `sample_enter`; the rest is as above.
    unsafe { exec.launch(kernel, config(1), &params) }
}

fn config(n_rows: usize) -> LaunchConfig {
    LaunchConfig {
        grid: [count(n_rows), 1, 1],
        block: [N_THREADS, 1, 1],
        shared_bytes: 0,
        cluster: 1,
    }
}

impl Launch {
    fn check(&self) {
        let n_vocab = self.state.n_vocab;
        assert!(n_vocab > 0 && self.n_ranks * self.n_local >= n_vocab, "{self:?}");
        assert!(self.row_stride >= self.n_local, "{self:?}");
        let n_tiles = self.n_ranks * self.n_local.div_ceil(TILE_TOKENS);
        assert!(n_tiles <= N_TILES_MAX, "{n_tiles} tiles of a vocabulary: {self:?}");
        assert!(self.logits.is_aligned(4), "{self:?}");
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).expect("sizes of a launch are in 32 bits")
}

#[cfg(test)]
mod tests;
