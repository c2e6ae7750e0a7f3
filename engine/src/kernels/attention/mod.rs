//! Causal attention of a step's queries over their sequences' pages.

mod cpu;
pub mod cuda;

use scheduler::PageId;
use weights::{AttentionSpec, InputScale};

use super::rope_kv::DeviceTables;
use crate::device::{
    ArrayMut, Deferred, DeviceError, DevicePtr, DeviceView, Exec, Gpu, KvRegion, View, ViewMut,
};

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
    /// What attends.
    pub queries: Queries<'a>,
    /// Which tokens belong to which sequence: in order, every token once.
    pub rows: Rows<'a>,
    /// This rank's heads, and the window.
    pub share: &'a AttentionSpec,
    /// Factor of keys in an FP8 cache.
    pub k_scale: f32,
    /// Factor of values in an FP8 cache.
    pub v_scale: f32,
    /// This block's pages; those of the step's own tokens are written already, or here.
    pub cache: &'a mut KvRegion,
    /// The next projection's weights on a device: a part of them may be fetched into its cache.
    pub next: Option<DeviceView>,
    /// How the next projection's input is quantized; not per token, which needs other heads.
    pub input: InputScale,
    /// `[T, n_q_heads * head_dim]`
    pub out: ViewMut<'a>,
    /// `[T]`: what `out` must be multiplied by to be the attended values.
    pub out_scales: ArrayMut<'a, f32>,
}

/// Where queries come from.
pub enum Queries<'a> {
    /// `[T, n_q_heads * head_dim]`, rotated; keys and values are in the cache.
    Rotated(View<'a>),
    /// As they were projected, on a device: attention rotates them and writes the cache itself,
    /// of rows that [allow it](Rows::rotates).
    Projected {
        /// `[T, (n_q_heads + 2 * n_kv_heads) * head_dim]`: queries, keys, values.
        qkv: View<'a>,
        /// Factors that `qkv` still lacks.
        scales: Deferred,
    },
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
    /// f64 `[head_dim / 2]`: what turns each pair.
    pub frequencies: DevicePtr,
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

impl Rows<'_> {
    /// Whether attention rotates these rows' queries and keys itself: rows that are all of one
    /// token, whose kernel needs no other's keys first.
    pub fn rotates(&self) -> bool {
        match self {
            Rows::Host(_) => false,
            Rows::Device(rows) => rows.prefill_lengths.is_empty(),
        }
    }
}

impl Queries<'_> {
    fn n_tokens(&self) -> usize {
        match self {
            Queries::Rotated(q) => q.n_rows(),
            Queries::Projected { qkv, .. } => qkv.n_rows(),
        }
    }

    fn launch(&self, frequencies: DevicePtr) -> cuda::Queries {
        match self {
            Queries::Rotated(q) => {
                let q = q.device();
                cuda::Queries::Rotated { q: q.first, stride: q.stride }
            }
            Queries::Projected { qkv, scales } => {
                let (wide, scales) = (qkv.device(), *scales);
                cuda::Queries::Projected {
                    wide: wide.first,
                    stride: wide.stride,
                    scales,
                    frequencies,
                }
            }
        }
    }
}

impl Args<'_> {
    fn launch(self, gpu: &Gpu) -> Result<(), DeviceError> {
        let Rows::Device(rows) = self.rows else { panic!("rows for a kernel of the host") };
        let (out, pages) = (self.out.device(), self.cache.device());
        let decode = cuda::Launch {
            share: self.share,
            queries: self.queries.launch(rows.frequencies),
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
        if n_prefill == 0 {
            return cuda::decode(&gpu.exec, &decode, rows.workspace, rows.n_context, self.next);
        }
        let prefill = cuda::Launch { rows: rows.prefill, n_rows: n_prefill, ..decode.clone() };
        let n_tiles = cuda::n_tiles(self.share, rows.prefill_lengths.iter().copied());
        cuda::decode(&gpu.exec, &decode, rows.workspace, rows.n_context, None)?;
        cuda::prefill(&gpu.exec, &prefill, n_tiles)
    }

    fn check(&self) {
        let AttentionSpec { n_q_heads, n_kv_heads, head_dim, window } = *self.share;
        assert!(n_q_heads > 0 && n_q_heads.is_multiple_of(n_kv_heads), "{:?}", self.share);
        assert_ne!(window, Some(0), "a token sees itself");
        let shape = (self.out.n_rows(), self.out.n_cols());
        assert_eq!(shape, (self.queries.n_tokens(), n_q_heads * head_dim), "out has every head");
        match &self.queries {
            Queries::Rotated(q) => assert_eq!(q.n_cols(), shape.1, "q has every head"),
            Queries::Projected { qkv, .. } => {
                assert!(self.rows.rotates(), "queries of these rows are rotated before");
                let n_cols = shape.1 + 2 * n_kv_heads * head_dim;
                assert_eq!(qkv.n_cols(), n_cols, "queries, keys and values");
            }
        }
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
        let (n_tokens, cache) = (self.out.n_rows(), self.cache.shape());
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
