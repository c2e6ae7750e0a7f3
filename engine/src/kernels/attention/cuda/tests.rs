//! Against a float64 softmax over what the cache holds, on the device. Every key and value that a
//! row must not see is NaN, as is every output before the kernel runs.

mod bounds;
mod projected;

use half::bf16;
use weights::AttentionSpec;

use super::*;
use crate::device::cuda::testing::TestDevice;
use crate::kernels::testing::device::{Rounding, assert_rounded};
use crate::kernels::testing::traffic::assert_frugal;
use crate::kernels::testing::{ROUNDING, Rng, e4m3_nearest, e4m3_value};

const K_SCALE: f32 = 0.0113;
const V_SCALE: f32 = 0.0029;
const OUT_SCALE: f32 = 0.0031;
/// Elements between two tokens' outputs that no kernel may touch.
const OUT_GAP: usize = 8;
/// Additions on the way of one value into a sum, at most: a part's, then those of warps and parts.
/// Prefill adds sixteen at once, and no more than so many times here.
const N_ADDED_MAX: usize = 2048 + 4 + 64;

/// LN-Ultra's heads on one of eight ranks.
const ULTRA: AttentionSpec =
    AttentionSpec { n_q_heads: 16, n_kv_heads: 1, head_dim: 128, window: None };

/// A sequence's numbers as the device holds them, and what they are worth.
struct Sequence {
    /// bf16 `[n_tokens][q_width]`: of the last tokens only.
    q: Vec<bf16>,
    keys: Stored,
    values: Stored,
    n_positions: usize,
}

/// `[n_positions][n_kv_heads * head_dim]`
struct Stored {
    bytes: Vec<u8>,
    values: Vec<f64>,
}

impl Stored {
    fn new(dtype: KvDtype, scale: f32, numbers: impl Iterator<Item = f32>) -> Stored {
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for x in numbers {
            match dtype {
                KvDtype::Fp8 => {
                    // As many of the codes as numbers of this size reach.
                    let code = e4m3_nearest(f64::from(x / scale));
                    bytes.push(code);
                    values.push(e4m3_value(code) * f64::from(scale));
                }
                KvDtype::Bf16 => {
                    bytes.extend(bf16::from_f32(x).to_ne_bytes());
                    values.push(bf16::from_f32(x).to_f64());
                }
                KvDtype::F32 => panic!("no device has such a cache"),
            }
        }
        Stored { bytes, values }
    }
}

/// The last `n_tokens` of a sequence of `n_positions`.
#[derive(Clone, Copy, Debug)]
struct Span {
    n_positions: usize,
    n_tokens: usize,
}

struct Case {
    share: AttentionSpec,
    dtype: KvDtype,
    out_scale: Option<f32>,
    sequences: Vec<Sequence>,
}

/// Which of a case's sequences make a batch, and how.
struct Batch<'a> {
    /// Sequence, and its tokens in this step: `(sequence_idx, start, n_tokens)`.
    rows: &'a [(usize, usize, usize)],
    /// Rows of padding after the others.
    n_padding: usize,
    /// Order of the pages.
    seed: u64,
    n_context: usize,
}

impl Case {
    fn new(seed: u64, share: &AttentionSpec, dtype: KvDtype, spans: &[Span]) -> Case {
        let mut rng = Rng::new(seed);
        let kv_width = share.n_kv_heads * share.head_dim;
        let q_width = share.n_q_heads * share.head_dim;
        let mut sequence = |span: &Span| {
            let n = span.n_positions * kv_width;
            // Scores spread over several units: some tokens matter and others do not.
            let q = (0..span.n_tokens * q_width).map(|_| bf16::from_f32(rng.number() * 8.0));
            Sequence {
                q: q.collect(),
                keys: Stored::new(dtype, K_SCALE, rng.numbers(n).into_iter()),
                values: Stored::new(dtype, V_SCALE, rng.numbers(n).into_iter()),
                n_positions: span.n_positions,
            }
        };
        let sequences = spans.iter().map(&mut sequence).collect();
        Case { share: share.clone(), dtype, out_scale: None, sequences }
    }

    /// One where every position weighs the same and its value is 1 in one dimension and 0 in the
    /// others, neighbours in different ones: each output is a count.
    fn counting(share: &AttentionSpec, dtype: KvDtype, spans: &[Span]) -> Case {
        let mut case = Case::new(20, share, dtype, spans);
        let one = if dtype == KvDtype::Fp8 { V_SCALE } else { 1.0 };
        let AttentionSpec { n_kv_heads, head_dim, .. } = *share;
        for sequence in &mut case.sequences {
            let n = sequence.n_positions * n_kv_heads * head_dim;
            let value = |i: usize| {
                let (position, kv_head) = (i / head_dim / n_kv_heads, i / head_dim % n_kv_heads);
                if i % head_dim == counted_dim(share, position, kv_head) { one } else { 0.0 }
            };
            sequence.keys = Stored::new(dtype, K_SCALE, std::iter::repeat_n(0.0, n));
            sequence.values = Stored::new(dtype, V_SCALE, (0..n).map(value));
        }
        case
    }

    fn with_out_scale(mut self, out_scale: f32) -> Case {
        self.out_scale = Some(out_scale);
        self
    }

    fn q_width(&self) -> usize {
        self.share.n_q_heads * self.share.head_dim
    }

    /// First position that a token at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.share.window.unwrap_or(usize::MAX))
    }

    /// The queries of a row.
    fn queries(&self, (sequence_idx, start, n_tokens): (usize, usize, usize)) -> &[bf16] {
        let sequence = &self.sequences[sequence_idx];
        let width = self.q_width();
        let n_before = sequence.n_positions - sequence.q.len() / width;
        &sequence.q[(start - n_before) * width..][..n_tokens * width]
    }

    /// One decode row for the last position of every sequence.
    fn last_tokens(&self) -> Vec<(usize, usize, usize)> {
        let sequences = self.sequences.iter().enumerate();
        sequences.map(|(idx, sequence)| (idx, sequence.n_positions - 1, 1)).collect()
    }
}

/// A batch in a device's memory.
struct Uploaded<'a> {
    case: &'a Case,
    device: &'a TestDevice,
    launch: Launch<'a>,
    n_tokens: usize,
    n_tokens_of_rows: Vec<usize>,
    n_context: usize,
}

/// Pages of a batch, in host memory.
struct Pages {
    keys: Vec<u8>,
    values: Vec<u8>,
    tables: Vec<i32>,
    n_table_entries: usize,
}

impl Pages {
    fn new(case: &Case, batch: &Batch<'_>) -> Pages {
        let AttentionSpec { n_kv_heads, head_dim, .. } = case.share;
        let n_pages_of = |&(_, start, n_tokens): &(usize, usize, usize)| {
            (start + n_tokens).div_ceil(PAGE_TOKENS)
        };
        let n_pages: usize = batch.rows.iter().map(n_pages_of).sum();
        let mut order: Vec<usize> = (1..=n_pages).collect();
        let mut rng = Rng::new(batch.seed);
        (1..n_pages).for_each(|i| order.swap(i, rng.below(i + 1)));
        let head_bytes = head_dim * case.dtype.n_bytes();
        let n_bytes = (n_pages + 1) * n_kv_heads * PAGE_TOKENS * head_bytes;
        let n_table_entries = batch.n_context.div_ceil(PAGE_TOKENS);
        let mut pages = Pages {
            // NaN in either type.
            keys: vec![0xFF; n_bytes],
            values: vec![0xFF; n_bytes],
            // What no row sees may be anything: no such page exists.
            tables: vec![i32::MAX; batch.rows.len() * n_table_entries],
            n_table_entries,
        };
        for (slot, row) in batch.rows.iter().enumerate() {
            let own = order.split_off(order.len() - n_pages_of(row));
            let &(sequence_idx, start, n_tokens) = row;
            let sequence = &case.sequences[sequence_idx];
            for position in case.first_seen(start)..start + n_tokens {
                let page = own[position / PAGE_TOKENS];
                pages.tables[slot * n_table_entries + position / PAGE_TOKENS] = page as i32;
                for head in 0..n_kv_heads {
                    let to = (page * n_kv_heads + head) * PAGE_TOKENS + position % PAGE_TOKENS;
                    let from = (position * n_kv_heads + head) * head_bytes;
                    let (to, from) = (to * head_bytes, from..from + head_bytes);
                    let key = &sequence.keys.bytes[from.clone()];
                    pages.keys[to..to + head_bytes].copy_from_slice(key);
                    let value = &sequence.values.bytes[from];
                    pages.values[to..to + head_bytes].copy_from_slice(value);
                }
            }
        }
        pages
    }
}

impl<'a> Uploaded<'a> {
    fn new(device: &'a TestDevice, case: &'a Case, batch: &Batch<'_>) -> Uploaded<'a> {
        let pages = Pages::new(case, batch);
        let (mut q, mut rows, mut n_tokens) = (Vec::new(), Vec::new(), 0);
        for (slot, &row) in batch.rows.iter().enumerate() {
            q.extend_from_slice(case.queries(row));
            rows.push(DeviceRow {
                slot: slot as i32,
                token_idx: n_tokens as i32,
                n_tokens: row.2 as i32,
                start: row.1 as i32,
            });
            n_tokens += row.2;
        }
        let padding = DeviceRow { slot: -1, token_idx: i32::MAX, n_tokens: 1, start: i32::MAX };
        rows.extend(std::iter::repeat_n(padding, batch.n_padding));
        let width = case.q_width();
        let out_bytes = if case.out_scale.is_some() { 1 } else { 2 };
        let launch = Launch {
            share: &case.share,
            queries: Queries::Rotated { q: device.upload(&q), stride: width },
            keys: device.upload(&pages.keys),
            values: device.upload(&pages.values),
            kv_dtype: case.dtype,
            k_scale: K_SCALE,
            v_scale: V_SCALE,
            tables: device.upload(&pages.tables),
            n_table_entries: pages.n_table_entries,
            rows: device.upload(&rows),
            n_rows: rows.len(),
            out: device.poisoned::<u8>(n_tokens * (width + OUT_GAP) * out_bytes),
            out_stride: width + OUT_GAP,
            out_scale: case.out_scale,
        };
        let n_tokens_of_rows = batch.rows.iter().map(|row| row.2).collect();
        Uploaded { case, device, launch, n_tokens, n_tokens_of_rows, n_context: batch.n_context }
    }

    fn workspace(&self) -> Workspace {
        let size = WorkspaceSize::new(&self.case.share, self.launch.n_rows, self.n_context);
        let n_arrived = vec![0u8; size.n_arrived_bytes];
        Workspace {
            sums: self.device.poisoned::<u8>(size.n_sums_bytes),
            stats: self.device.poisoned::<u8>(size.n_stats_bytes),
            n_arrived: self.device.upload(&n_arrived),
        }
    }

    fn decode(&self) -> Vec<f64> {
        let workspace = self.workspace();
        // Twice: the second launch finds the workspace as the first left it.
        self.decode_once(workspace);
        self.decode_once(workspace);
        self.output()
    }

    fn decode_once(&self, workspace: Workspace) {
        decode(&self.device.exec, &self.launch, workspace, self.n_context, None)
            .expect("it launches");
    }

    fn prefill(&self) -> Vec<f64> {
        let n_tiles = n_tiles(&self.case.share, self.n_tokens_of_rows.iter().copied());
        prefill(&self.device.exec, &self.launch, n_tiles).expect("it launches");
        self.output()
    }

    /// `[n_tokens][q_width]`
    fn output(&self) -> Vec<f64> {
        let (width, stride) = (self.case.q_width(), self.launch.out_stride);
        let mut out = Vec::with_capacity(self.n_tokens * width);
        let mut take = |is_gap: bool, bits_are_poison: bool, value: f64| match is_gap {
            true => assert!(bits_are_poison, "the gap between outputs was written"),
            false => out.push(value),
        };
        if let Some(scale) = self.case.out_scale {
            let codes: Vec<u8> = self.device.download(self.launch.out, self.n_tokens * stride);
            for (i, &code) in codes.iter().enumerate() {
                let value = e4m3_value(code) * f64::from(scale);
                take(i % stride >= width, code == 0xFF, value);
            }
        } else {
            let stored: Vec<bf16> = self.device.download(self.launch.out, self.n_tokens * stride);
            for (i, x) in stored.iter().enumerate() {
                take(i % stride >= width, x.to_bits() == 0xFFFF, x.to_f64());
            }
        }
        out
    }
}

/// The dimension in which [`Case::counting`] counts a position.
fn counted_dim(share: &AttentionSpec, position: usize, kv_head: usize) -> usize {
    (position + 5 * kv_head) % share.head_dim
}

/// What one query head of one token should yield, `[head_dim]`, and what each may lose before it is
/// rounded to the output's type.
fn expected_head(
    case: &Case,
    row: (usize, usize, usize),
    at: usize,
    head: usize,
) -> Vec<(f64, f64)> {
    let AttentionSpec { n_q_heads, n_kv_heads, head_dim, .. } = case.share;
    let sequence = &case.sequences[row.0];
    let q = &case.queries(row)[at * case.q_width() + head * head_dim..][..head_dim];
    let q: Vec<f64> = q.iter().map(|x| x.to_f64()).collect();
    let kv_head = head / (n_q_heads / n_kv_heads);
    let position = row.1 + at;
    let seen = case.first_seen(position)..position + 1;
    let begin = |position: usize| (position * n_kv_heads + kv_head) * head_dim;
    let root = (head_dim as f64).sqrt();
    let (mut weights, mut magnitude) = (Vec::with_capacity(seen.len()), 0.0f64);
    for j in seen.clone() {
        let key = &sequence.keys.values[begin(j)..][..head_dim];
        let (mut score, mut sum) = (0.0, 0.0);
        for (q, k) in q.iter().zip(key) {
            score += q * k;
            sum += (q * k).abs();
        }
        weights.push(score / root);
        magnitude = magnitude.max(sum / root);
    }
    let greatest = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    weights.iter_mut().for_each(|weight| *weight = (*weight - greatest).exp());
    let total: f64 = weights.iter().sum();
    // Means over the positions, as they weigh.
    let mean = |of: &dyn Fn(f64, usize) -> f64| -> Vec<f64> {
        let mut sums = vec![0.0; head_dim];
        for (weight, j) in weights.iter().zip(seen.clone()) {
            let value = &sequence.values.values[begin(j)..][..head_dim];
            for (d, (sum, v)) in sums.iter_mut().zip(value).enumerate() {
                *sum += weight * of(*v, d);
            }
        }
        sums.iter().map(|sum| sum / total).collect()
    };
    let exact = mean(&|v, _| v);
    let (distances, sizes) = (mean(&|v, d| (v - exact[d]).abs()), mean(&|v, _| v.abs()));
    let error = (head_dim as f64 / 8.0 + 12.0) * ROUNDING * magnitude;
    let off = error.exp() * (1.0 + 0.5f64.powi(9)) - 1.0;
    let n_added = seen.len().min(N_ADDED_MAX) as f64;
    let loss = |d: usize| off / (1.0 - off) * distances[d] + (n_added + 4.0) * ROUNDING * sizes[d];
    exact.iter().enumerate().map(|(d, &y)| (y, loss(d))).collect()
}

/// Compares `n_heads` heads of every `step`-th token of every row.
fn assert_rows(case: &Case, rows: &[(usize, usize, usize)], out: &[f64], sample: (usize, usize)) {
    let (step, n_heads) = sample;
    let rounding = match case.out_scale {
        Some(scale) => Rounding::E4m3 { scale: f64::from(scale) },
        None => Rounding::Bf16,
    };
    let mut first = 0;
    for &row in rows {
        for at in (0..row.2).step_by(step) {
            // Other heads at each token.
            for head in (at..at + n_heads).map(|head| head % case.share.n_q_heads) {
                let begin = (first + at) * case.q_width() + head * case.share.head_dim;
                let what = format!(
                    "{:?} {:?}: row {row:?}, token {at}, head {head}",
                    case.share, case.dtype
                );
                for (&got, expected) in out[begin..].iter().zip(expected_head(case, row, at, head))
                {
                    assert_rounded(got, rounding, expected, &what);
                }
            }
        }
        first += row.2;
    }
    assert!(out.iter().all(|x| !x.is_nan()), "something was not written");
    assert_eq!(out.len(), first * case.q_width());
}

/// Compares every number of [`Case::counting`] with its count.
fn assert_counts(case: &Case, rows: &[(usize, usize, usize)], out: &[f64]) {
    let AttentionSpec { n_q_heads, n_kv_heads, head_dim, .. } = case.share;
    let one = if case.dtype == KvDtype::Fp8 { f64::from(V_SCALE) } else { 1.0 };
    let positions = rows.iter().flat_map(|&(_, start, n_tokens)| start..start + n_tokens);
    let mut outputs = out.chunks_exact(head_dim);
    for position in positions {
        let seen = case.first_seen(position)..position + 1;
        for head in 0..n_q_heads {
            let kv_head = head / (n_q_heads / n_kv_heads);
            let mut counts = vec![0.0; head_dim];
            seen.clone().for_each(|j| counts[counted_dim(&case.share, j, kv_head)] += 1.0);
            let what = format!("{:?} {:?}: {seen:?}, head {head}", case.share, case.dtype);
            let got = outputs.next().expect("an output for every head");
            for (&got, count) in got.iter().zip(counts) {
                let value = count / seen.len() as f64 * one;
                // Counts are exact: a quotient and a factor are not.
                assert_rounded(got, Rounding::Bf16, (value, 2.0 * ROUNDING * value), &what);
            }
        }
    }
    assert!(outputs.next().is_none(), "no other outputs");
}

fn bits(x: &[f64]) -> Vec<u64> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn spans(lengths: &[usize], n_tokens: usize) -> Vec<Span> {
    let span = |&n: &usize| Span { n_positions: n, n_tokens: n_tokens.min(n) };
    lengths.iter().map(span).collect()
}

/// Heads, widths, windows beside LN-Ultra's: the demo's, those that fill no mma, every width.
fn shares() -> Vec<AttentionSpec> {
    let sizes = [
        (4, 2, 32),
        (8, 1, 32),
        (1, 1, 32),
        (6, 2, 64),
        (16, 1, 64),
        (5, 1, 96),
        (3, 3, 128),
        (24, 2, 128),
    ];
    let windows = [None, Some(1), Some(40), Some(300)];
    let share = |(i, (n_q_heads, n_kv_heads, head_dim)): (usize, (usize, usize, usize))| {
        AttentionSpec { n_q_heads, n_kv_heads, head_dim, window: windows[i % windows.len()] }
    };
    sizes.into_iter().enumerate().map(share).collect()
}

const DTYPES: [KvDtype; 2] = [KvDtype::Bf16, KvDtype::Fp8];
