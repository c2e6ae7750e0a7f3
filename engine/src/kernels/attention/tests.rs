//! Against a float64 softmax over what the cache holds, and bit against bit however a prompt is
//! cut, placed or batched. Every key and value that a token must not see is NaN.

use half::bf16;
use scheduler::PageId;
use weights::{AttentionSpec, InputScale};

use super::{Args, AttentionRow, Queries, Rows, attention};
use crate::KvDtype;
use crate::device::{
    ArrayMut, Exec, KvLocation, KvPlace, KvRegion, Scaled, Simd, SimdLevel, View, ViewMut,
};
use crate::kernels::testing::{
    ROUNDING, Rng, assert_close, assert_same_bits, at_levels, e4m3_nearest, e4m3_value, levels,
    on_exec,
};

const K_SCALE: f32 = 0.0113;
const V_SCALE: f32 = 0.0029;

/// One sequence: its queries, keys and values at positions 0.. .
struct Sequence {
    /// `[n, n_q_heads * head_dim]`
    q: Vec<f32>,
    /// `[n, n_kv_heads * head_dim]`
    k: Vec<f32>,
    /// `[n, n_kv_heads * head_dim]`
    v: Vec<f32>,
}

/// What the cache gives back of a sequence.
struct Cached {
    k: Vec<f64>,
    v: Vec<f64>,
}

struct Case {
    share: AttentionSpec,
    dtype: KvDtype,
    /// Whether queries and weights may be rounded to bf16.
    rounds: bool,
    sequences: Vec<Sequence>,
}

/// The tokens `start..start + n_tokens` of a sequence.
#[derive(Clone, Copy, Debug)]
struct Span {
    sequence_idx: usize,
    start: usize,
    n_tokens: usize,
}

impl Case {
    fn new(rng: &mut Rng, share: AttentionSpec, dtype: KvDtype, lengths: &[usize]) -> Case {
        let (q_width, kv_width) =
            (share.n_q_heads * share.head_dim, share.n_kv_heads * share.head_dim);
        let mut sequence = |&n: &usize| {
            let q = rng.numbers(n * q_width).iter().map(|x| x * 4.0).collect();
            Sequence { q, k: rng.numbers(n * kv_width), v: rng.numbers(n * kv_width) }
        };
        let sequences = lengths.iter().map(&mut sequence).collect();
        Case { share, dtype, rounds: false, sequences }
    }

    fn window(&self) -> usize {
        self.share.window.unwrap_or(usize::MAX)
    }

    /// Attends for `spans` as one step. Pages of `page_tokens` are dealt out in an order of
    /// `seed`'s; what lies before a span's window or after its end is poison.
    fn run(&self, exec: &mut Exec, spans: &[Span], page_tokens: usize, seed: u64) -> Vec<f32> {
        let AttentionSpec { n_q_heads, n_kv_heads, head_dim, .. } = self.share;
        let n_pages_of = |span: &Span| (span.start + span.n_tokens).div_ceil(page_tokens);
        let n_pages: usize = spans.iter().map(n_pages_of).sum();
        let mut order: Vec<u32> = (1..=n_pages as u32).collect();
        let mut rng = Rng::new(seed);
        (1..n_pages).for_each(|i| order.swap(i, rng.below(i + 1)));
        let mut cache = KvRegion::new(self.dtype, n_pages + 1, page_tokens, n_kv_heads, head_dim);
        let poison = vec![f32::NAN; head_dim];
        let mut tables = Vec::new();
        for page in 0..=n_pages as u32 {
            for offset in 0..page_tokens as u32 {
                let at = KvLocation { page: PageId(page), offset };
                (0..n_kv_heads).for_each(|head| write(&mut cache, head, at, &poison, &poison));
            }
        }
        for span in spans {
            let pages = order.split_off(order.len() - n_pages_of(span));
            let mut pages: Vec<_> = pages.into_iter().map(PageId).collect();
            let first = (span.start + 1).saturating_sub(self.window());
            let sequence = &self.sequences[span.sequence_idx];
            for position in first..span.start + span.n_tokens {
                let page = pages[position / page_tokens];
                let at = KvLocation { page, offset: (position % page_tokens) as u32 };
                for head in 0..n_kv_heads {
                    let range = (position * n_kv_heads + head) * head_dim..;
                    let (key, value) = (&sequence.k[range.clone()], &sequence.v[range]);
                    write(&mut cache, head, at, &key[..head_dim], &value[..head_dim]);
                }
            }
            // Pages wholly before the window are given back: the table may say anything.
            pages[..first / page_tokens].fill(PageId(u32::MAX));
            tables.push(pages);
        }
        let width = n_q_heads * head_dim;
        let (mut q, mut rows, mut token_idx) = (Vec::new(), Vec::new(), 0);
        for (&Span { sequence_idx, start, n_tokens }, pages) in spans.iter().zip(&tables) {
            q.extend(&self.sequences[sequence_idx].q[start * width..(start + n_tokens) * width]);
            rows.push(AttentionRow { token_idx, n_tokens, start, pages });
            token_idx += n_tokens;
        }
        let mut out = vec![f32::NAN; q.len()];
        let args = Args {
            queries: Queries::Rotated(View::new(&q, token_idx, width)),
            rows: Rows::Host(&rows),
            share: &self.share,
            k_scale: K_SCALE,
            v_scale: V_SCALE,
            cache: &mut cache,
            next: None,
            input: InputScale::None,
            out: ViewMut::new(&mut out, token_idx, width),
            out_scales: ArrayMut::Host(&mut vec![f32::NAN; token_idx]),
        };
        if let Exec::Cpu(cpu) = exec {
            cpu.round_inputs(self.rounds);
        }
        attention(exec, args).expect("it runs");
        out
    }

    /// All tokens of every sequence, each sequence one span.
    fn whole(&self) -> Vec<Span> {
        let width = self.share.n_q_heads * self.share.head_dim;
        let sequences = self.sequences.iter().enumerate();
        let span = |(sequence_idx, s): (usize, &Sequence)| Span {
            sequence_idx,
            start: 0,
            n_tokens: s.q.len() / width,
        };
        sequences.map(span).collect()
    }

    /// Exact outputs, each with its bound.
    fn expected(&self, spans: &[Span]) -> Vec<(f64, f64)> {
        let AttentionSpec { n_q_heads, n_kv_heads, head_dim, .. } = self.share;
        let group = n_q_heads / n_kv_heads;
        let cached = |x: &[f32], scale| x.iter().map(|&x| self.cached(x, scale)).collect();
        let mut expected = Vec::new();
        for span in spans {
            let Sequence { q, k, v } = &self.sequences[span.sequence_idx];
            let kv = Cached { k: cached(k, K_SCALE), v: cached(v, V_SCALE) };
            for position in span.start..span.start + span.n_tokens {
                let first = (position + 1).saturating_sub(self.window());
                for head in 0..n_q_heads {
                    let q = &q[(position * n_q_heads + head) * head_dim..][..head_dim];
                    let begin = |j: usize| (j * n_kv_heads + head / group) * head_dim;
                    let begins: Vec<usize> = (first..position + 1).map(begin).collect();
                    expected.extend(expected_head(q, &begins, &kv, self.rounds));
                }
            }
        }
        expected
    }

    /// What the cache gives back for `x`.
    fn cached(&self, x: f32, scale: f32) -> f64 {
        match self.dtype {
            KvDtype::F32 => f64::from(x),
            KvDtype::Bf16 => bf16::from_f32(x).to_f64(),
            KvDtype::Fp8 => e4m3_value(e4m3_nearest(f64::from(x / scale))) * f64::from(scale),
        }
    }
}

/// One query over the keys and values that begin at `begins`.
fn expected_head(q: &[f32], begins: &[usize], kv: &Cached, rounds: bool) -> Vec<(f64, f64)> {
    let head_dim = q.len();
    let root = (head_dim as f64).sqrt();
    let (mut scores, mut magnitude) = (Vec::new(), 0.0f64);
    for &begin in begins {
        let terms = q.iter().zip(&kv.k[begin..]).map(|(&q, k)| f64::from(q) * k / root);
        magnitude = magnitude.max(terms.clone().map(f64::abs).sum());
        scores.push(terms.sum::<f64>());
    }
    let error = super::score_roundings(head_dim, rounds) * magnitude * ROUNDING;
    let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - greatest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let output = |d: usize| {
        let values = begins.iter().map(|&begin| kv.v[begin + d]);
        let magnitude = values.clone().map(f64::abs).fold(0.0, f64::max);
        let y = values.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / sum;
        (y, (2.0 * error + super::sum_roundings(begins.len(), rounds) * ROUNDING) * magnitude)
    };
    (0..head_dim).map(output).collect()
}

fn write(cache: &mut KvRegion, kv_head: usize, at: KvLocation, key: &[f32], value: &[f32]) {
    let simd = Simd::new(SimdLevel::Portable).expect("always there");
    let (key, value) = (Scaled { x: key, scale: K_SCALE }, Scaled { x: value, scale: V_SCALE });
    cache.write(simd, KvPlace { kv_head, at }, key, value);
}

fn shares() -> Vec<AttentionSpec> {
    let sizes =
        [(1, 1, 16), (3, 3, 8), (4, 2, 20), (6, 2, 64), (8, 1, 33), (16, 1, 128), (40, 1, 4)];
    let windows = [None, Some(1), Some(7), Some(40)];
    let share = |((n_q_heads, n_kv_heads, head_dim), window)| AttentionSpec {
        n_q_heads,
        n_kv_heads,
        head_dim,
        window,
    };
    let all = sizes.into_iter().flat_map(|s| windows.into_iter().map(move |w| (s, w)));
    all.map(share).collect()
}

/// Tiles sum in an order of their own.
fn everywhere(
    what: &str,
    run: impl Fn(&mut Exec) -> Vec<f32> + Sync,
) -> Vec<(SimdLevel, Vec<f32>)> {
    at_levels(what, SimdLevel::Avx512Bf16, run)
}

const DTYPES: [KvDtype; 3] = [KvDtype::F32, KvDtype::Bf16, KvDtype::Fp8];

#[test]
fn outputs_are_within_the_bound() {
    let mut rng = Rng::new(14);
    for (case_idx, share) in shares().into_iter().enumerate() {
        let dtype = DTYPES[case_idx % 3];
        let case = Case::new(&mut rng, share.clone(), dtype, &[1, 70, 33]);
        let what = format!("{share:?} {dtype:?}");
        let spans = case.whole();
        let expected = case.expected(&spans);
        for (level, out) in everywhere(&what, |exec| case.run(exec, &spans, 16, 1)) {
            assert_close(&out, &expected, &format!("{what}, {level:?}"));
        }
    }
}

#[test]
fn cutting_placing_and_batching_change_no_bit() {
    let mut rng = Rng::new(15);
    for (case_idx, share) in shares().into_iter().enumerate() {
        let dtype = DTYPES[(case_idx + 1) % 3];
        let case = Case::new(&mut rng, share.clone(), dtype, &[67, 40]);
        let width = share.n_q_heads * share.head_dim;
        for level in levels() {
            let what = format!("{share:?} {dtype:?} {level:?}");
            let whole = on_exec(2, level, |exec| case.run(exec, &case.whole(), 16, 1));
            // Other pages, of other sizes.
            for (page_tokens, seed) in [(16, 2), (4, 3), (48, 4), (1, 5)] {
                let placed =
                    on_exec(1, level, |exec| case.run(exec, &case.whole(), page_tokens, seed));
                assert_same_bits(&placed, &whole, &format!("{what}, pages of {page_tokens}"));
            }
            // Each token as the step that decodes it, and in the company of the other sequence.
            on_exec(1, level, |exec| {
                for start in 0..67 {
                    let alone = Span { sequence_idx: 0, start, n_tokens: 1 };
                    let other = Span { sequence_idx: 1, start: start / 2, n_tokens: 3 };
                    for (spans, first) in [(vec![alone], 0), (vec![other, alone, other], 3)] {
                        let out = case.run(exec, &spans, 16, 6);
                        let out = &out[first * width..(first + 1) * width];
                        assert_same_bits(out, &whole[start * width..(start + 1) * width], &what);
                    }
                }
                // Chunks of a prompt.
                for n_chunk in [5, 16, 33, 50] {
                    for start in (0..67).step_by(n_chunk) {
                        let n_tokens = n_chunk.min(67 - start);
                        let span = Span { sequence_idx: 0, start, n_tokens };
                        let out = case.run(exec, &[span], 16, 7);
                        let expected = &whole[start * width..(start + n_tokens) * width];
                        assert_same_bits(&out, expected, &format!("{what}, chunks of {n_chunk}"));
                    }
                }
            });
        }
    }
}

#[test]
fn long_contexts_stay_within_the_bound() {
    let mut rng = Rng::new(16);
    for dtype in DTYPES {
        let share = AttentionSpec { n_q_heads: 8, n_kv_heads: 2, head_dim: 64, window: None };
        let case = Case::new(&mut rng, share, dtype, &[3000]);
        let spans = [Span { sequence_idx: 0, start: 2990, n_tokens: 10 }];
        let expected = case.expected(&spans);
        for (level, out) in everywhere("3000", |exec| case.run(exec, &spans, 16, 8)) {
            assert_close(&out, &expected, &format!("{dtype:?} {level:?}"));
        }
    }
}

#[test]
fn rounded_inputs_stay_within_their_bound() {
    let mut rng = Rng::new(19);
    for (case_idx, share) in shares().into_iter().enumerate() {
        let dtype = DTYPES[case_idx % 3];
        let case = Case { rounds: true, ..Case::new(&mut rng, share, dtype, &[1, 170, 33]) };
        let what = format!("{:?} {dtype:?}, rounded", case.share);
        let spans = case.whole();
        let expected = case.expected(&spans);
        for (level, out) in everywhere(&what, |exec| case.run(exec, &spans, 16, 1)) {
            assert_close(&out, &expected, &format!("{what}, {level:?}"));
        }
    }
}

/// Many chunks of positions, more queries than one tile takes, windows that end within a chunk.
#[test]
fn cutting_a_long_prompt_changes_no_bit() {
    const N: usize = 700;
    let mut rng = Rng::new(20);
    for (n_q_heads, n_kv_heads, head_dim, window, dtype, rounds) in [
        (4, 1, 64, None, KvDtype::Bf16, false),
        (4, 1, 64, Some(150), KvDtype::Fp8, true),
        (3, 1, 40, Some(33), KvDtype::Bf16, true),
        (2, 2, 160, None, KvDtype::Fp8, false),
        (8, 1, 32, None, KvDtype::F32, false),
    ] {
        let share = AttentionSpec { n_q_heads, n_kv_heads, head_dim, window };
        let case = Case { rounds, ..Case::new(&mut rng, share, dtype, &[N, 300]) };
        let width = case.share.n_q_heads * case.share.head_dim;
        for level in levels() {
            let what = format!("{:?} {dtype:?} {level:?}", case.share);
            on_exec(2, level, |exec| {
                let whole = case.run(exec, &case.whole(), 16, 11);
                for (start, n_tokens) in
                    [(0, 1), (0, 129), (31, 2), (100, 300), (127, 1), (128, 1), (383, 99), (699, 1)]
                {
                    let span = Span { sequence_idx: 0, start, n_tokens };
                    let other = Span { sequence_idx: 1, start: 5, n_tokens: 21 };
                    for (spans, first, page_tokens) in
                        [(vec![span], 0, 48), (vec![other, span], 21, 16)]
                    {
                        let out = case.run(exec, &spans, page_tokens, 12);
                        let out = &out[first * width..(first + n_tokens) * width];
                        let expected = &whole[start * width..(start + n_tokens) * width];
                        assert_same_bits(out, expected, &format!("{what}, {span:?}"));
                    }
                }
            });
        }
    }
}

#[test]
fn great_scores_neither_overflow_nor_vanish() {
    let share = AttentionSpec { n_q_heads: 1, n_kv_heads: 1, head_dim: 16, window: None };
    let mut case = Case::new(&mut Rng::new(17), share, KvDtype::F32, &[80]);
    // Scores climb to thousands and fall again: every chunk has a new greatest, then none has.
    for (position, key) in case.sequences[0].k.chunks_exact_mut(16).enumerate() {
        key.fill(40.0 * (position as f32).min(70.0 - position as f32));
    }
    case.sequences[0].q.fill(1.0);
    let spans = case.whole();
    for (level, out) in everywhere("great scores", |exec| case.run(exec, &spans, 16, 9)) {
        assert_close(&out, &case.expected(&spans), &format!("{level:?}"));
    }
}

#[test]
fn nan_reaches_those_that_see_it_and_no_other() {
    let everything = DTYPES.into_iter().flat_map(|dtype| {
        [(dtype, 16, false), (dtype, 64, true), (dtype, 64, false), (dtype, 16, true)]
    });
    for (dtype, head_dim, is_key) in everything {
        let share = AttentionSpec { n_q_heads: 4, n_kv_heads: 2, head_dim, window: Some(10) };
        let mut case = Case::new(&mut Rng::new(18), share, dtype, &[50]);
        // Position 20, first key/value head.
        let bad = &mut case.sequences[0];
        (if is_key { &mut bad.k } else { &mut bad.v })[20 * 2 * head_dim + 5] = f32::NAN;
        for (level, out) in everywhere("NaN", |exec| case.run(exec, &case.whole(), 16, 10)) {
            for (i, y) in out.iter().enumerate() {
                let (position, i) = (i / (4 * head_dim), i % (4 * head_dim));
                let (head, d) = (i / head_dim, i % head_dim);
                let sees = (20..30).contains(&position) && head < 2 && (is_key || d == 5);
                let what = format!("{dtype:?} {head_dim} {level:?} {position} {head} {d}");
                assert_eq!(y.is_nan(), sees, "{what}");
            }
        }
    }
}
