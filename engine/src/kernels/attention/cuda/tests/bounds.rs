//! What attention on a device must yield, case by case. The cases and what is expected of them are
//! the parent's.

use super::*;

#[test]
fn decode_is_within_the_bound_at_every_edge_of_a_context() {
    let device = TestDevice::open(0);
    let lengths = [1, 2, 15, 16, 17, 255, 256, 257, 511, 512, 513, 2048, 2049, 4096, 4097];
    for (seed, dtype) in DTYPES.into_iter().enumerate() {
        let case = Case::new(seed as u64, &ULTRA, dtype, &spans(&lengths, 1));
        let rows = case.last_tokens();
        let batch = Batch { rows: &rows, n_padding: 1, seed: 3, n_context: 4100 };
        let out = Uploaded::new(&device, &case, &batch).decode();
        assert_rows(&case, &rows, &out, (1, 3));
    }
}

#[test]
fn decode_reaches_back_over_the_longest_context() {
    let device = TestDevice::open(0);
    for (dtype, n_positions) in [(KvDtype::Fp8, 131_072), (KvDtype::Bf16, 65_537)] {
        let case = Case::new(7, &ULTRA, dtype, &spans(&[n_positions], 1));
        let rows = case.last_tokens();
        let batch = Batch { rows: &rows, n_padding: 0, seed: 4, n_context: 131_072 };
        let out = Uploaded::new(&device, &case, &batch).decode();
        assert_rows(&case, &rows, &out, (1, 2));
    }
}

#[test]
fn decode_serves_every_shape_of_heads_and_windows() {
    let device = TestDevice::open(0);
    for (seed, share) in shares().iter().enumerate() {
        for dtype in DTYPES {
            let case = Case::new(seed as u64, share, dtype, &spans(&[33, 700, 2300], 1));
            let case = if seed % 2 == 0 { case } else { case.with_out_scale(OUT_SCALE) };
            let rows = case.last_tokens();
            let batch = Batch { rows: &rows, n_padding: 0, seed: 5, n_context: 4096 };
            let out = Uploaded::new(&device, &case, &batch).decode();
            assert_rows(&case, &rows, &out, (1, share.n_q_heads));
        }
    }
}

#[test]
fn every_position_counts_once() {
    let device = TestDevice::open(0);
    let windowed = AttentionSpec { window: Some(1000), ..ULTRA };
    for share in [ULTRA, windowed].into_iter().chain(shares()) {
        for dtype in DTYPES {
            let case = Case::counting(&share, dtype, &spans(&[1, 16, 257, 2049, 4097], 40));
            let rows = case.last_tokens();
            let batch = Batch { rows: &rows, n_padding: 0, seed: 15, n_context: 4100 };
            let out = Uploaded::new(&device, &case, &batch).decode();
            assert_counts(&case, &rows, &out);
            let rows = [(2, 230, 27), (3, 2009, 40)];
            let batch = Batch { rows: &rows, n_padding: 0, seed: 16, n_context: 4100 };
            let out = Uploaded::new(&device, &case, &batch).prefill();
            assert_counts(&case, &rows, &out);
        }
    }
}

#[test]
fn a_decoding_row_is_the_same_in_any_company() {
    let device = TestDevice::open(0);
    let lengths: Vec<usize> = (0..256).map(|i| 1 + i * 7 % 300 + i / 250 * 2500).collect();
    let case = Case::new(8, &ULTRA, KvDtype::Fp8, &spans(&lengths, 1)).with_out_scale(OUT_SCALE);
    let all = case.last_tokens();
    let batch = Batch { rows: &all, n_padding: 0, seed: 6, n_context: 3000 };
    let together = Uploaded::new(&device, &case, &batch).decode();
    let width = case.q_width();
    for idx in [0, 17, 249, 255] {
        // Alone, among padding, in other pages, under a longer context.
        let rows = [all[idx]];
        let batch = Batch { rows: &rows, n_padding: 3, seed: 7, n_context: 9000 };
        let alone = Uploaded::new(&device, &case, &batch).decode();
        assert_eq!(bits(&alone), bits(&together[idx * width..][..width]), "row {idx}");
    }
    assert_rows(&case, &all[250..], &together[250 * width..], (1, 1));
}

#[test]
fn prefill_is_within_the_bound_with_and_without_a_prefix() {
    let device = TestDevice::open(0);
    for dtype in DTYPES {
        let case = Case::new(9, &ULTRA, dtype, &spans(&[1, 130, 600, 4100], 30));
        let case = if dtype == KvDtype::Fp8 { case.with_out_scale(OUT_SCALE) } else { case };
        let rows = [(0, 0, 1), (1, 100, 30), (2, 571, 20), (3, 4070, 30)];
        let batch = Batch { rows: &rows, n_padding: 1, seed: 8, n_context: 5000 };
        let out = Uploaded::new(&device, &case, &batch).prefill();
        assert_rows(&case, &rows, &out, (3, 2));
    }
}

#[test]
fn prefill_serves_every_shape_of_heads_and_windows() {
    let device = TestDevice::open(0);
    for (seed, share) in shares().iter().enumerate() {
        for dtype in DTYPES {
            let case = Case::new(seed as u64, share, dtype, &spans(&[150, 90], 150));
            let rows = [(0, 0, 150), (1, 60, 30)];
            let batch = Batch { rows: &rows, n_padding: 0, seed: 9, n_context: 160 };
            let out = Uploaded::new(&device, &case, &batch).prefill();
            assert_rows(&case, &rows, &out, (7, 2));
        }
    }
}

#[test]
fn chunks_of_a_prompt_yield_what_the_whole_yields() {
    let device = TestDevice::open(0);
    let windowed = AttentionSpec { window: Some(50), ..ULTRA };
    let demo = AttentionSpec { n_q_heads: 4, n_kv_heads: 2, head_dim: 32, window: None };
    for share in [ULTRA, windowed, demo] {
        for dtype in DTYPES {
            let case = Case::new(10, &share, dtype, &spans(&[141], 141));
            let width = case.q_width();
            let batch = Batch { rows: &[(0, 0, 141)], n_padding: 0, seed: 10, n_context: 200 };
            let whole = Uploaded::new(&device, &case, &batch).prefill();
            for n_chunk in [1, 23, 64, 100] {
                for start in (0..141).step_by(n_chunk).skip(if n_chunk == 1 { 120 } else { 0 }) {
                    let n_tokens = n_chunk.min(141 - start);
                    let rows = [(0, start, n_tokens)];
                    let batch = Batch { rows: &rows, n_padding: 0, seed: 11, n_context: 300 };
                    let chunk = Uploaded::new(&device, &case, &batch).prefill();
                    let expected = &whole[start * width..][..n_tokens * width];
                    assert_eq!(bits(&chunk), bits(expected), "{share:?} {start} + {n_chunk}");
                }
            }
        }
    }
}

#[test]
fn great_scores_neither_overflow_nor_vanish() {
    let device = TestDevice::open(0);
    let share = AttentionSpec { n_q_heads: 2, n_kv_heads: 1, head_dim: 64, window: None };
    let mut case = Case::new(11, &share, KvDtype::Bf16, &spans(&[700], 40));
    let sequence = &mut case.sequences[0];
    // Scores climb to thousands and fall again.
    for position in 0..700 {
        let key = bf16::from_f32(8.0 * (position as f32).min(600.0 - position as f32));
        for d in position * 64..(position + 1) * 64 {
            sequence.keys.values[d] = key.to_f64();
            sequence.keys.bytes[2 * d..2 * d + 2].copy_from_slice(&key.to_ne_bytes());
        }
    }
    sequence.q.fill(bf16::ONE);
    for is_decode in [true, false] {
        let rows = if is_decode { [(0, 699, 1)] } else { [(0, 660, 40)] };
        let batch = Batch { rows: &rows, n_padding: 0, seed: 12, n_context: 700 };
        let uploaded = Uploaded::new(&device, &case, &batch);
        let out = if is_decode { uploaded.decode() } else { uploaded.prefill() };
        assert_rows(&case, &rows, &out, (1, 2));
    }
}

#[test]
fn hardly_more_is_moved_than_must_be() {
    for (dtype, kernel) in
        [(KvDtype::Fp8, "attention_decode_d128_f8"), (KvDtype::Bf16, "attention_decode_d128_bf16")]
    {
        let n_positions = 8192;
        let case = Case::new(12, &ULTRA, dtype, &spans(&[n_positions], 1));
        let rows = case.last_tokens();
        let batch = Batch { rows: &rows, n_padding: 0, seed: 13, n_context: n_positions };
        // Keys, values, their pages, queries and outputs; sums of parts are beyond what must be.
        let fewest_bytes = n_positions * 2 * 128 * dtype.n_bytes()
            + n_positions / PAGE_TOKENS * size_of::<i32>()
            + 2 * case.q_width() * size_of::<bf16>();
        assert_frugal(kernel, fewest_bytes, |device| {
            let uploaded = Uploaded::new(device, &case, &batch);
            uploaded.decode_once(uploaded.workspace());
        });
    }
}

#[test]
fn parts_grow_with_the_context_and_never_exceed_the_grid() {
    for window in [None, Some(1), Some(100), Some(2048), Some(5000), Some(70_000)] {
        for n_context in [1, 16, 257, 2048, 2049, 4096, 5000, 65_536, 65_537, 131_072] {
            let n_max = n_parts_max(n_context, window);
            for end in (1..=n_context).step_by(37).chain([n_context]) {
                let begin = end.saturating_sub(window.unwrap_or(usize::MAX));
                let n_tokens = part_tokens(end - begin);
                let n_parts = (end - 1) / n_tokens - begin / n_tokens + 1;
                assert!(n_parts <= n_max, "{n_parts} of {n_max}: {window:?} {begin}..{end}");
            }
        }
    }
    assert_eq!([1, 2048, 8192, 131_072].map(|n| n_parts_max(n, None)), [1, 8, 8, 64]);
}

#[test]
fn a_launch_covers_its_rows() {
    let config = decode_config(&ULTRA, KvDtype::Fp8, 64, 131_072);
    assert_eq!((config.grid, config.block), ([64, 1, 64], [128, 1, 1]));
    // Sixteen heads fill a warp: eight tokens a block.
    assert_eq!(n_tiles(&ULTRA, [1, 8, 9, 0].into_iter()), 1 + 1 + 2);
    let demo = AttentionSpec { n_q_heads: 4, n_kv_heads: 2, head_dim: 32, window: None };
    assert_eq!(n_tiles(&demo, [64, 65].into_iter()), 1 + 2);
    let size = WorkspaceSize::new(&ULTRA, 64, 131_072);
    assert_eq!(size.n_sums_bytes, 64 * 64 * 16 * 128 * 4);
    assert!(!supports(&AttentionSpec { n_q_heads: 17, ..ULTRA }, KvDtype::Fp8));
    assert!(!supports(&AttentionSpec { head_dim: 48, ..ULTRA }, KvDtype::Fp8));
    assert!(!supports(&ULTRA, KvDtype::F32));
}
