//! Rotation against float64; what the cache holds against the element types' definitions.

use half::bf16;
use scheduler::PageId;
use weights::{AttentionSpec, RopeScaling, RopeSpec};

use super::{Args, Places, rope_kv};
use crate::KvDtype;
use crate::device::{Deferred, Exec, KvLocation, KvRegion, RopeAngles, RopeFrequencies, ViewMut};
use crate::kernels::testing::{
    ROUNDING, Rng, assert_close, e4m3_nearest, e4m3_value, everywhere, levels, on_exec,
};

const K_SCALE: f32 = 0.021;
const V_SCALE: f32 = 0.0037;
const PAGE_TOKENS: usize = 4;

struct Case {
    share: AttentionSpec,
    angles: RopeAngles,
    positions: Vec<u32>,
    locations: Vec<KvLocation>,
    qkv: Vec<f32>,
    dtype: KvDtype,
}

impl Case {
    fn new(rng: &mut Rng, (n_q_heads, n_kv_heads, head_dim): (usize, usize, usize)) -> Case {
        let n_tokens = 9;
        let share = AttentionSpec { n_q_heads, n_kv_heads, head_dim, window: None };
        let rope = RopeSpec { theta: 10_000.0, scaling: RopeScaling::None };
        let positions: Vec<u32> = (0..n_tokens).map(|i| i * 1009).collect();
        let mut angles = RopeAngles::new(n_tokens as usize, head_dim);
        angles.fill(&RopeFrequencies::new(&rope, head_dim), &positions);
        // Every token elsewhere, pages out of order.
        let location = |i: u32| KvLocation { page: PageId(6 - i % 3), offset: i / 3 };
        let locations = (0..n_tokens).map(location).collect();
        let qkv = rng.numbers(n_tokens as usize * (n_q_heads + 2 * n_kv_heads) * head_dim);
        Case { share, angles, positions, locations, qkv, dtype: KvDtype::F32 }
    }

    fn n_cols(&self) -> usize {
        (self.share.n_q_heads + 2 * self.share.n_kv_heads) * self.share.head_dim
    }

    /// Gives back the rotated matrix and the cache.
    fn run(&self, exec: &mut Exec) -> (Vec<f32>, KvRegion) {
        let AttentionSpec { n_kv_heads, head_dim, .. } = self.share;
        let mut cache = KvRegion::new(self.dtype, 8, PAGE_TOKENS, n_kv_heads, head_dim);
        let mut qkv = self.qkv.clone();
        let args = Args {
            qkv: ViewMut::new(&mut qkv, self.positions.len(), self.n_cols()),
            q: None,
            scales: Deferred::Nothing,
            places: Places::Host { angles: &self.angles, locations: &self.locations },
            share: &self.share,
            k_scale: K_SCALE,
            v_scale: V_SCALE,
            cache: &mut cache,
        };
        rope_kv(exec, args).expect("it runs");
        (qkv, cache)
    }

    fn expected(&self) -> Vec<(f64, f64)> {
        let AttentionSpec { n_q_heads, n_kv_heads, head_dim, .. } = self.share;
        let half = head_dim / 2;
        let element = |i: usize, &x: &f32| {
            let (col, position) = (i % self.n_cols(), self.positions[i / self.n_cols()]);
            let (head, d) = (col / head_dim, col % head_dim);
            if head >= n_q_heads + n_kv_heads {
                return (f64::from(x), 0.0);
            }
            let (is_low, pair) = (d < half, d % half);
            let other = f64::from(self.qkv[if is_low { i + half } else { i - half }]);
            let frequency = 10_000f64.powf(-2.0 * pair as f64 / head_dim as f64);
            let (sin, cos) = (f64::from(position) * frequency).sin_cos();
            let turned = f64::from(x) * cos + other * if is_low { -sin } else { sin };
            (turned, 3.0 * ROUNDING * (f64::from(x).abs() + other.abs()))
        };
        self.qkv.iter().enumerate().map(|(i, x)| element(i, x)).collect()
    }
}

/// What the region should hold for `x`, as bytes.
fn stored(dtype: KvDtype, x: f32, scale: f32) -> Vec<u8> {
    match dtype {
        KvDtype::F32 => x.to_ne_bytes().to_vec(),
        KvDtype::Bf16 => bf16::from_f32(x).to_ne_bytes().to_vec(),
        KvDtype::Fp8 => vec![e4m3_nearest(f64::from(x / scale))],
    }
}

#[test]
fn heads_are_turned_and_values_are_not() {
    let mut rng = Rng::new(12);
    for heads in [(1, 1, 2), (4, 2, 20), (6, 3, 64), (16, 1, 128)] {
        let case = Case::new(&mut rng, heads);
        let what = format!("{heads:?}");
        for (level, out) in everywhere(&what, |exec| case.run(exec).0) {
            assert_close(&out, &case.expected(), &format!("{what}, {level:?}"));
        }
    }
}

#[test]
fn the_cache_holds_rotated_keys_and_values() {
    let mut rng = Rng::new(13);
    for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Fp8] {
        for (n_q_heads, n_kv_heads, head_dim) in [(2, 1, 16), (4, 2, 20), (6, 3, 64)] {
            let mut case = Case::new(&mut rng, (n_q_heads, n_kv_heads, head_dim));
            case.dtype = dtype;
            // Far beyond what e4m3 holds at this scale, and a NaN.
            let value_idx = case.n_cols() - head_dim;
            (case.qkv[value_idx], case.qkv[value_idx + 1]) = (-1e9, f32::NAN);
            for level in levels() {
                let (qkv, cache) = on_exec(1, level, |exec| case.run(exec));
                let mut n_written = 0;
                for (t, at) in case.locations.iter().enumerate() {
                    let row = &qkv[t * case.n_cols()..(t + 1) * case.n_cols()];
                    for kv_head in 0..n_kv_heads {
                        let key = &row[(n_q_heads + kv_head) * head_dim..][..head_dim];
                        let value =
                            &row[(n_q_heads + n_kv_heads + kv_head) * head_dim..][..head_dim];
                        let bytes_of = |x: &[f32], scale| -> Vec<u8> {
                            x.iter().flat_map(|&x| stored(dtype, x, scale)).collect()
                        };
                        let (key, value) = (bytes_of(key, K_SCALE), bytes_of(value, V_SCALE));
                        let offset = at.offset as usize;
                        assert_eq!(cache.keys(kv_head, at.page, offset)[..key.len()], key);
                        assert_eq!(cache.values(kv_head, at.page, offset)[..value.len()], value);
                        n_written += 1;
                    }
                }
                assert_eq!(n_written, 9 * n_kv_heads);
                // Pages that no location names stay as they were.
                for kv_head in 0..n_kv_heads {
                    assert!(cache.keys(kv_head, PageId(0), 0).iter().all(|byte| *byte == 0));
                    assert!(cache.values(kv_head, PageId(7), 0).iter().all(|byte| *byte == 0));
                }
                if dtype == KvDtype::Fp8 {
                    let values = cache.values(n_kv_heads - 1, case.locations[0].page, 0);
                    assert_eq!(e4m3_value(values[0]), -448.0, "{level:?}: clamped");
                    assert!(e4m3_value(values[1]).is_nan(), "{level:?}: NaN is kept");
                }
            }
        }
    }
}

#[test]
fn a_region_counts_its_bytes() {
    assert_eq!(KvRegion::new(KvDtype::Bf16, 3, 16, 2, 64).n_bytes(), 3 * 16 * 2 * 64 * 2 * 2);
    assert_eq!(KvRegion::new(KvDtype::Fp8, 0, 16, 2, 64).n_bytes(), 0);
}
