//! Decode that rotates and writes the cache itself yields what `rope_kv.cu` and decode yield in
//! turn, to the last bit of outputs and cache.

use super::*;
use crate::device::{Deferred, DeviceView, Element, WeightFactors};
use crate::kernels::rope_kv::cuda as rope_kv;
use crate::kernels::testing::traffic::prefetched_bytes;

const PARTS: [f32; 3] = [0.21, 0.77, 0.43];

/// A batch whose tokens are still as they were projected.
struct Step<'a> {
    case: &'a Case,
    rows: &'a [(usize, usize, usize)],
    wide: Vec<bf16>,
    stride: usize,
    /// Of columns and of tokens; parts have scales of their own where there are none.
    scales: Option<[Vec<f32>; 2]>,
}

/// What is in a device's memory afterwards.
#[derive(PartialEq)]
struct Outcome {
    out: Vec<u64>,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl<'a> Step<'a> {
    fn new(
        case: &'a Case,
        rows: &'a [(usize, usize, usize)],
        gap: usize,
        is_per_row: bool,
    ) -> Step<'a> {
        let mut rng = Rng::new(77);
        let AttentionSpec { n_q_heads, n_kv_heads, head_dim, .. } = case.share;
        let stride = (n_q_heads + 2 * n_kv_heads) * head_dim + gap;
        let wide = (0..rows.len() * stride).map(|_| bf16::from_f32(rng.number() * 8.0)).collect();
        let mut scales =
            |n: usize| (0..n).map(|_| 0.5 + rng.number().abs() / 2.0).collect::<Vec<f32>>();
        let scales = is_per_row.then(|| [scales(stride), scales(rows.len())]);
        Step { case, rows, wide, stride, scales }
    }

    fn scales(&self, device: &TestDevice) -> Deferred {
        match &self.scales {
            None => Deferred::Scales { weights: WeightFactors::PerPart(PARTS), tokens: None },
            Some([columns, tokens]) => Deferred::Scales {
                weights: WeightFactors::PerRow(device.upload(columns)),
                tokens: Some(device.upload(tokens)),
            },
        }
    }

    /// Queries, keys and values as a kernel that does all takes them.
    fn projected(&self, device: &TestDevice) -> Queries {
        let n_pairs = self.case.share.head_dim / 2;
        let frequencies: Vec<f64> = (0..n_pairs).map(|pair| 0.87f64.powi(pair as i32)).collect();
        Queries::Projected {
            wide: device.upload(&self.wide),
            stride: self.stride,
            scales: self.scales(device),
            frequencies: device.upload(&frequencies),
        }
    }

    /// By a kernel for each, or by one that does all.
    fn run(&self, device: &TestDevice, is_apart: bool) -> Outcome {
        let AttentionSpec { n_q_heads, n_kv_heads, head_dim, .. } = self.case.share;
        let batch = Batch { rows: self.rows, n_padding: 2, seed: 21, n_context: 3000 };
        let mut uploaded = Uploaded::new(device, self.case, &batch);
        uploaded.launch.queries = self.projected(device);
        if let (true, Queries::Projected { wide, stride, scales, frequencies }) =
            (is_apart, uploaded.launch.queries)
        {
            let n_tokens = self.rows.len();
            let positions: Vec<i32> = self.rows.iter().map(|row| row.1 as i32).collect();
            let slots: Vec<i32> = (0..n_tokens as i32).collect();
            let q = device.poisoned::<bf16>(n_tokens * self.case.q_width());
            let element = match self.case.dtype {
                KvDtype::Fp8 => rope_kv::Cached::E4m3 { k_scale: K_SCALE, v_scale: V_SCALE },
                KvDtype::Bf16 | KvDtype::F32 => rope_kv::Cached::Bf16,
            };
            let launch = rope_kv::Launch {
                wide,
                wide_stride: stride,
                scales,
                n_tokens,
                frequencies,
                positions: device.upload(&positions),
                slots: device.upload(&slots),
                heads: rope_kv::Heads { n_q_heads, n_kv_heads, head_dim },
                q,
                cache: rope_kv::Cache {
                    keys: uploaded.launch.keys,
                    values: uploaded.launch.values,
                    element,
                    page_tables: uploaded.launch.tables,
                    n_pages_per_slot: uploaded.launch.n_table_entries,
                },
            };
            rope_kv::launch(&device.exec, &launch).expect("it is launched");
            uploaded.launch.queries = Queries::Rotated { q, stride: self.case.q_width() };
        }
        let out = bits(&uploaded.decode());
        let n_bytes = Pages::new(self.case, &batch).keys.len();
        let cache = |first| device.download::<u8>(first, n_bytes);
        Outcome { out, keys: cache(uploaded.launch.keys), values: cache(uploaded.launch.values) }
    }
}

#[test]
fn one_kernel_yields_the_bits_of_two() {
    let device = TestDevice::open(0);
    for (seed, share) in [ULTRA].iter().chain(&shares()).enumerate() {
        for dtype in DTYPES {
            // Own positions begin and end a page, a part, and stand alone in either.
            let spans = spans(&[1, 16, 17, 256, 257, 700, 2049], 1);
            let case = Case::new(seed as u64, share, dtype, &spans);
            let case = if seed % 2 == 0 { case } else { case.with_out_scale(OUT_SCALE) };
            let rows = case.last_tokens();
            let step = Step::new(&case, &rows, 8 * (seed % 3), seed % 2 == 0);
            let [apart, together] = [true, false].map(|is_apart| step.run(&device, is_apart));
            let what = format!("{share:?} {dtype:?}");
            assert!(
                apart.keys == together.keys && apart.values == together.values,
                "{what}: cache"
            );
            assert_eq!(apart.out, together.out, "{what}: outputs");
            let before =
                Pages::new(&case, &Batch { rows: &rows, n_padding: 2, seed: 21, n_context: 3000 });
            assert!(before.keys != together.keys && before.values != together.values, "{what}");
        }
    }
}

#[test]
fn hardly_more_is_moved_than_must_be() {
    const KERNEL: &str = "attention_decode_d128_f8";
    let n_positions = 8192;
    let case = Case::new(41, &ULTRA, KvDtype::Fp8, &spans(&[n_positions], 1));
    let rows = case.last_tokens();
    let step = Step::new(&case, &rows, 0, false);
    let batch = Batch { rows: &rows, n_padding: 0, seed: 42, n_context: n_positions };
    // Keys, values, their pages, columns and what turns them, outputs.
    let fewest_bytes = n_positions * 2 * 128
        + n_positions / PAGE_TOKENS * size_of::<i32>()
        + (step.stride + case.q_width()) * size_of::<bf16>()
        + 64 * size_of::<f64>();
    assert_frugal(KERNEL, fewest_bytes, |device| {
        let mut uploaded = Uploaded::new(device, &case, &batch);
        uploaded.launch.queries = step.projected(device);
        uploaded.decode_once(uploaded.workspace());
    });
}

#[test]
fn what_the_next_product_reads_is_fetched_beside_any_rows() {
    const KERNEL: &str = "attention_decode_d128_f8";
    let n_bytes = 3 << 20;
    for n_rows in [1, 40] {
        let lengths: Vec<usize> = (0..n_rows).map(|row| 40 + 300 * row % 3000).collect();
        let case = Case::new(31, &ULTRA, KvDtype::Fp8, &spans(&lengths, 1));
        let rows = case.last_tokens();
        let batch = Batch { rows: &rows, n_padding: 0, seed: 32, n_context: 3000 };
        let fetched = prefetched_bytes(KERNEL, |device| {
            let uploaded = Uploaded::new(device, &case, &batch);
            let first = device.upload(&vec![0u8; n_bytes]);
            let (n_rows, n_cols) = (n_bytes / 2048, 2048);
            let element = Element::F8;
            let next = DeviceView { first, element, n_rows, n_cols, stride: n_cols };
            let Uploaded { launch, n_context, .. } = &uploaded;
            decode(&device.exec, launch, uploaded.workspace(), *n_context, Some(next))
                .expect("it launches");
            assert_rows(&case, &rows, &uploaded.output(), (1, 1));
        });
        assert_eq!(fetched, n_bytes as u64, "{n_rows} rows");
    }
}
