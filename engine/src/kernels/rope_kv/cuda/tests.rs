//! `rope_kv.cu` against float64. Its bound: a turned element loses at most `N_ROUNDINGS` roundings
//! of the magnitudes of its pair before the one to its element type: three factors, the cosine or
//! sine, product and sum.

use half::bf16;

use super::{Cache, Cached, Heads, Launch, config, launch};
use crate::device::cuda::testing::TestDevice;
use crate::device::{Deferred, DevicePtr, WeightFactors};
use crate::kernels::testing::device::{Rounding, assert_rounded, bf16s};
use crate::kernels::testing::traffic::assert_frugal;
use crate::kernels::testing::{ROUNDING, Rng, e4m3_value};

const N_ROUNDINGS: f64 = 8.0;
const PAGE_TOKENS: usize = 16;
const N_PAGES_PER_SLOT: usize = 8200;
const K_SCALE: f32 = 0.021;
const V_SCALE: f32 = 0.0037;
const PARTS: [f32; 3] = [0.91, 1.27, 0.33];

struct Case {
    heads: Heads,
    wide_stride: usize,
    element: Cached,
    is_per_row: bool,
    positions: Vec<i32>,
    slots: Vec<i32>,
    /// Of each token, where it is no padding.
    pages: Vec<usize>,
    n_pages: usize,
    wide: Vec<bf16>,
    columns: Vec<f32>,
    tokens: Vec<f32>,
}

/// Values of queries, keys and values.
struct Outcome {
    q: Vec<f64>,
    keys: Vec<f64>,
    values: Vec<f64>,
}

impl Case {
    fn new(rng: &mut Rng, heads: Heads, positions: &[i32]) -> Case {
        let n_tokens = positions.len();
        let Heads { n_q_heads, n_kv_heads, head_dim } = heads;
        let n_cols = (n_q_heads + 2 * n_kv_heads) * head_dim;
        Case {
            heads,
            wide_stride: n_cols,
            element: Cached::E4m3 { k_scale: K_SCALE, v_scale: V_SCALE },
            is_per_row: false,
            positions: positions.to_vec(),
            // Every fifth is padding; pages run backwards.
            slots: (0..n_tokens).map(|t| if t % 5 == 3 { -1 } else { t as i32 % 3 }).collect(),
            pages: (0..n_tokens).map(|t| n_tokens - t).collect(),
            n_pages: n_tokens + 2,
            wide: bf16s(rng, n_tokens * n_cols, 4.0),
            columns: (0..n_cols).map(|_| 0.5 + rng.number().abs()).collect(),
            tokens: (0..n_tokens).map(|_| 0.5 + rng.number().abs()).collect(),
        }
    }

    /// Rows with poison after the last value.
    fn with_gap(mut self, gap: usize) -> Case {
        let rows = self.wide.chunks_exact(self.wide_stride);
        self.wide = rows.flat_map(|row| [row, &vec![bf16::NAN; gap]].concat()).collect();
        self.wide_stride += gap;
        self
    }

    fn frequency(&self, pair: usize) -> f64 {
        500_000f64.powf(-2.0 * pair as f64 / self.heads.head_dim as f64)
    }

    fn scales(&self, device: &TestDevice) -> Deferred {
        match self.is_per_row {
            false => Deferred::Scales { weights: WeightFactors::PerPart(PARTS), tokens: None },
            true => Deferred::Scales {
                weights: WeightFactors::PerRow(device.upload(&self.columns)),
                tokens: Some(device.upload(&self.tokens)),
            },
        }
    }

    fn run(&self, device: &TestDevice) -> Outcome {
        let Heads { n_q_heads, n_kv_heads, head_dim } = self.heads;
        let n_tokens = self.positions.len();
        // Entries that no token names lead out of the cache.
        let mut tables = vec![i32::MAX / 2; 3 * N_PAGES_PER_SLOT];
        for (t, &slot) in self.slots.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
            let entry = self.positions[t] as usize / PAGE_TOKENS;
            tables[slot as usize * N_PAGES_PER_SLOT + entry] = self.pages[t] as i32;
        }
        let frequencies: Vec<f64> = (0..head_dim / 2).map(|pair| self.frequency(pair)).collect();
        let (n_q, n_kv) = (n_tokens * n_q_heads * head_dim, self.n_cached());
        let is_e4m3 = self.element != Cached::Bf16;
        let n_bytes = n_kv * if is_e4m3 { 1 } else { 2 };
        let q = device.poisoned::<bf16>(n_q);
        let (keys, values) = (device.poisoned::<u8>(n_bytes), device.poisoned::<u8>(n_bytes));
        let cache = Cache {
            keys,
            values,
            element: self.element,
            page_tables: device.upload(&tables),
            n_pages_per_slot: N_PAGES_PER_SLOT,
        };
        let args = Launch {
            wide: device.upload(&self.wide),
            wide_stride: self.wide_stride,
            scales: self.scales(device),
            n_tokens,
            frequencies: device.upload(&frequencies),
            positions: device.upload(&self.positions),
            slots: device.upload(&self.slots),
            heads: self.heads,
            q,
            cache,
        };
        assert_eq!(n_kv_heads * head_dim * PAGE_TOKENS * self.n_pages, n_kv);
        launch(&device.exec, &args).expect("it is launched");
        let cached = |ptr: DevicePtr| -> Vec<f64> {
            match is_e4m3 {
                true => device.download::<u8>(ptr, n_kv).into_iter().map(e4m3_value).collect(),
                false => device.download::<bf16>(ptr, n_kv).iter().map(|x| x.to_f64()).collect(),
            }
        };
        let q = device.download::<bf16>(q, n_q).iter().map(|x| x.to_f64()).collect();
        Outcome { q, keys: cached(keys), values: cached(values) }
    }

    fn n_cached(&self) -> usize {
        self.n_pages * self.heads.n_kv_heads * PAGE_TOKENS * self.heads.head_dim
    }

    /// Exact value of a column of a token, and what it may lose.
    fn expected(&self, token: usize, head: usize, d: usize) -> (f64, f64) {
        let Heads { n_q_heads, n_kv_heads, head_dim } = self.heads;
        let part = if head < n_q_heads { 0 } else { 1 + (head - n_q_heads) / n_kv_heads };
        let finished = |d: usize| {
            let col = head * head_dim + d;
            let x = self.wide[token * self.wide_stride + col].to_f64();
            match self.is_per_row {
                false => x * f64::from(PARTS[part]),
                true => x * f64::from(self.columns[col]) * f64::from(self.tokens[token]),
            }
        };
        let half = head_dim / 2;
        let x = finished(d);
        if part == 2 {
            return (x, 2.0 * ROUNDING * x.abs());
        }
        let other = finished((d + half) % head_dim);
        let angle = f64::from(self.positions[token]) * self.frequency(d % half);
        let (sin, cos) = angle.sin_cos();
        let turned = x * cos + other * if d < half { -sin } else { sin };
        (turned, N_ROUNDINGS * ROUNDING * (x.abs() + other.abs()))
    }

    fn check(&self, device: &TestDevice) {
        let Heads { n_q_heads, n_kv_heads, head_dim } = self.heads;
        let Outcome { q, keys, values } = self.run(device);
        let mut n_written = 0;
        for (token, &slot) in self.slots.iter().enumerate() {
            let offset = self.positions[token] as usize % PAGE_TOKENS;
            for head in 0..n_q_heads + 2 * n_kv_heads {
                let kv_head = head.wrapping_sub(n_q_heads) % n_kv_heads;
                let run = self.pages[token] * n_kv_heads + kv_head;
                for d in 0..head_dim {
                    let what = format!("{:?} token {token} head {head} [{d}]", self.heads);
                    let in_q = (token * n_q_heads + head) * head_dim + d;
                    if slot < 0 {
                        let is_untouched = head >= n_q_heads || q[in_q].is_nan();
                        assert!(is_untouched, "{what}: padding is written");
                        continue;
                    }
                    let at = (run * PAGE_TOKENS + offset) * head_dim + d;
                    let (got, scale) = match head {
                        _ if head < n_q_heads => (q[in_q], None),
                        _ if head < n_q_heads + n_kv_heads => (keys[at], Some(K_SCALE)),
                        _ => (values[at], Some(V_SCALE)),
                    };
                    n_written += usize::from(scale.is_some());
                    let (expected, loss) = self.expected(token, head, d);
                    match scale.filter(|_| self.element != Cached::Bf16) {
                        None => assert_rounded(got, Rounding::Bf16, (expected, loss), &what),
                        Some(scale) => {
                            let scale = f64::from(scale);
                            let expected = (expected, loss + ROUNDING * expected.abs());
                            let rounding = Rounding::E4m3 { scale };
                            assert_rounded(got * scale, rounding, expected, &what);
                        }
                    }
                }
            }
        }
        let n_untouched = keys.iter().chain(&values).filter(|x| x.is_nan()).count();
        assert_eq!(n_untouched, 2 * self.n_cached() - n_written, "nothing else is written");
    }
}

const ULTRA: Heads = Heads { n_q_heads: 16, n_kv_heads: 1, head_dim: 128 };

#[test]
fn ultras_heads_turn_at_near_and_far_positions() {
    let device = TestDevice::open(0);
    let mut rng = Rng::new(131);
    let positions = [0, 1, 15, 16, 8191, 100_003, 131_071, 65_536, 131_056];
    let mut case = Case::new(&mut rng, ULTRA, &positions);
    case.check(&device);
    case.is_per_row = true;
    case.element = Cached::Bf16;
    case.check(&device);
    let positions: Vec<i32> = (0..256).map(|t| t * 509).collect();
    Case::new(&mut rng, ULTRA, &positions).check(&device);
}

#[test]
fn other_heads_and_padded_rows_are_as_good() {
    let device = TestDevice::open(0);
    let mut rng = Rng::new(132);
    for (n_q_heads, n_kv_heads, head_dim) in
        [(1, 1, 32), (4, 2, 32), (6, 3, 64), (3, 1, 20), (1, 1, 2), (2, 2, 8), (1, 1, 512)]
    {
        let heads = Heads { n_q_heads, n_kv_heads, head_dim };
        for element in [Cached::Bf16, Cached::E4m3 { k_scale: K_SCALE, v_scale: V_SCALE }] {
            let mut case = Case::new(&mut rng, heads, &[5, 0, 1023, 77, 131_000, 4]);
            (case.element, case.is_per_row) = (element, n_kv_heads == 1);
            case.check(&device);
            case.with_gap(5).check(&device);
        }
    }
}

#[test]
fn what_is_beyond_e4m3_is_clamped_and_nan_is_kept() {
    let device = TestDevice::open(0);
    let mut case = Case::new(&mut Rng::new(133), ULTRA, &[0]);
    let values = 17 * 128;
    (case.wide[values], case.wide[values + 1]) = (bf16::from_f32(-1e9), bf16::NAN);
    let written = case.run(&device).values;
    let at = case.pages[0] * PAGE_TOKENS * 128;
    assert_eq!(written[at], -448.0);
    assert!(written[at + 1].is_nan() && !written[at + 2].is_nan());
}

#[test]
fn hardly_more_is_moved_than_must_be() {
    let mut case = Case::new(&mut Rng::new(134), ULTRA, &[3, 4, 5]);
    // All columns and the frequencies read, queries written, keys and values as codes.
    let fewest_bytes = 3 * (2 * 2304 + 8 * 64 + 2 * 2048 + 256);
    assert_frugal("rope_kv_e4m3", fewest_bytes, |device| drop(case.run(device)));
    case.element = Cached::Bf16;
    let fewest_bytes = fewest_bytes + 3 * 256;
    assert_frugal("rope_kv_bf16", fewest_bytes, |device| drop(case.run(device)));
}

#[test]
fn a_launch_has_a_thread_for_every_pair_of_chunks() {
    assert_eq!(config(7, ULTRA).block, [160, 1, 1]);
    assert_eq!(config(7, ULTRA).grid, [7, 1, 1]);
    assert_eq!(config(1, Heads { n_q_heads: 64, ..ULTRA }).block, [256, 1, 1]);
}
