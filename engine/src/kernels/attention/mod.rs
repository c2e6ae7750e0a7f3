//! Causal attention of a step's queries over their sequences' pages.

mod cpu;
pub mod cuda;

use scheduler::PageId;
use weights::{AttentionSpec, InputScale};

use super::rope_kv::DeviceTables;
use crate::device::{ArrayMut, DeviceError, DevicePtr, Exec, Gpu, KvRegion, View, ViewMut};

/// `out[t][h] = Σ_j softmax_j(q[t][h] · k[j] / sqrt(head_dim)) · v[j]` over the positions j that
/// the token sees: its own and those before it, as far back as the window goes. Query head h reads
/// key/value head `h / (n_q_heads / n_kv_heads)`.
///
/// An output is within `(2 e + n / 16 + 40 roundings) · max|v|` of the exact one over what the
/// cache holds, where n is how many positions it sees and e, the error of a score, is under
/// `head_dim / 16 + 12` roundings of `max_j Σ_d |q[d] · k[j][d]| / sqrt(head_dim)`.
///
/// A processor that multiplies tiles of bf16 sums otherwise: e is under `head_dim / 32 + 28`. And
/// it takes `CpuExec::rounds_inputs` to mean queries and weights as well, as a device does: then e
/// has 2^15 roundings more, and an output as many of `max|v|`.
pub struct Args<'a> {
    /// `[T, n_q_heads * head_dim]`, rotated.
    pub q: View<'a>,
    /// Which tokens belong to which sequence: in order, every token once.
    pub rows: Rows<'a>,
    /// This rank's heads, and the window.
    pub share: &'a AttentionSpec,
    /// Factor of keys in an FP8 cache.
    pub k_scale: f32,
    /// Factor of values in an FP8 cache.
    pub v_scale: f32,
    /// This block's pages; those of the step's own tokens are written already.
    pub cache: &'a KvRegion,
    /// How the next projection's input is quantized; not per token, which needs other heads.
    pub input: InputScale,
    /// `[T, n_q_heads * head_dim]`
    pub out: ViewMut<'a>,
    /// `[T]`: what `out` must be multiplied by to be the attended values.
    pub out_scales: ArrayMut<'a, f32>,
}

/// The step's rows, as far as attention needs to know them.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// With their pages.
    Host(&'a [AttentionRow<'a>]),
    /// On a device.
    Device(DeviceRows<'a>),
}

/// A step's rows on a device: those of one token and all others have kernels of their own.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRows<'a> {
    /// `[n_decode]` of [`cuda::DeviceRow`].
    pub decode: DevicePtr,
    /// Rows of one token, padding among them.
    pub n_decode: usize,
    /// `[n]` of [`cuda::DeviceRow`].
    pub prefill: DevicePtr,
    /// `[n]`: tokens of each.
    pub prefill_lengths: &'a [usize],
    /// Of the block's cache group.
    pub tables: DeviceTables,
    /// Positions that a sequence may have.
    pub n_context: usize,
    /// What decode adds its parts up in.
    pub workspace: cuda::Workspace,
}

/// One sequence's share of the tokens.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRow<'a> {
    /// First of its tokens in the step.
    pub token_idx: usize,
    /// How many.
    pub n_tokens: usize,
    /// Position of the first in its sequence.
    pub start: usize,
    /// `pages[i]` holds positions `i * page_tokens ..`. Pages that lie before every token's window
    /// may belong to others by now: they are not read.
    pub pages: &'a [PageId],
}

/// Attends for every token and query head.
pub fn attention(exec: &mut Exec, args: Args<'_>) -> Result<(), DeviceError> {
    args.check();
    match exec {
        Exec::Cpu(cpu) => {
            cpu::attention(cpu, args);
            Ok(())
        }
        Exec::Cuda(gpu) => args.launch(gpu),
    }
}

impl Args<'_> {
    fn launch(self, gpu: &Gpu) -> Result<(), DeviceError> {
        let Rows::Device(rows) = self.rows else { panic!("rows for a kernel of the host") };
        let (q, out, pages) = (self.q.device(), self.out.device(), self.cache.device());
        let decode = cuda::Launch {
            share: self.share,
            q: q.first,
            q_stride: q.stride,
            keys: pages.keys,
            values: pages.values,
            kv_dtype: self.cache.shape().dtype,
            k_scale: self.k_scale,
            v_scale: self.v_scale,
            tables: rows.tables.first,
            n_table_entries: rows.tables.n_entries,
            rows: rows.decode,
            n_rows: rows.n_decode,
            out: out.first,
            out_stride: out.stride,
            out_scale: match self.input {
                InputScale::Static(scale) => Some(scale),
                InputScale::None | InputScale::PerToken => None,
            },
        };
        let n_prefill = rows.prefill_lengths.len();
        let prefill = cuda::Launch { rows: rows.prefill, n_rows: n_prefill, ..decode.clone() };
        let n_tiles = cuda::n_tiles(self.share, rows.prefill_lengths.iter().copied());
        cuda::decode(&gpu.exec, &decode, rows.workspace, rows.n_context)?;
        cuda::prefill(&gpu.exec, &prefill, n_tiles)
    }

    fn check(&self) {
        let AttentionSpec { n_q_heads, n_kv_heads, head_dim, window } = *self.share;
        assert!(n_q_heads > 0 && n_q_heads.is_multiple_of(n_kv_heads), "{:?}", self.share);
        assert_ne!(window, Some(0), "a token sees itself");
        let shape = (self.q.n_rows(), self.q.n_cols());
        assert_eq!(shape, (self.out.n_rows(), self.out.n_cols()), "q and out are of one shape");
        assert_eq!(shape.1, n_q_heads * head_dim, "q has every head");
        let cache = self.cache.shape();
        assert_eq!((cache.n_kv_heads, cache.head_dim), (n_kv_heads, head_dim), "the cache's heads");
        assert_ne!(self.input, InputScale::PerToken, "a token's scale needs all ranks' heads");
        assert_eq!(self.out_scales.len(), shape.0, "out_scales is [T]");
        match self.rows {
            Rows::Host(rows) => self.check_rows(rows),
            Rows::Device(_) => {}
        }
    }

    fn check_rows(&self, rows: &[AttentionRow<'_>]) {
        let (n_tokens, cache) = (self.q.n_rows(), self.cache.shape());
        let mut token_idx = 0;
        for row in rows {
            assert_eq!(row.token_idx, token_idx, "rows cover the tokens in order");
            token_idx += row.n_tokens;
            let n_positions = row.start + row.n_tokens;
            let n_pages = row.pages.len();
            assert!(n_positions <= n_pages * cache.page_tokens, "{n_positions} in {n_pages} pages");
        }
        assert_eq!(token_idx, n_tokens, "rows cover the tokens");
    }
}

/// Of the bound of [`Args`], for tests, which ask no less of tiles than of others.
#[cfg(test)]
fn score_roundings(head_dim: usize, rounds: bool) -> f64 {
    head_dim as f64 / 16.0 + 12.0 + of_inputs(rounds)
}

/// Of the bound of [`Args`], for tests.
#[cfg(test)]
fn sum_roundings(n_positions: usize, rounds: bool) -> f64 {
    n_positions as f64 / 16.0 + 40.0 + of_inputs(rounds)
}

/// Of f32 in one rounding to bf16.
#[cfg(test)]
fn of_inputs(rounds: bool) -> f64 {
    if rounds { 32_768.0 } else { 0.0 }
}

#[cfg(test)]
mod tests;
