//! The launches' arithmetic.

use weights::AttentionSpec;

use super::*;

/// LN-Ultra's heads on one of eight ranks.
const ULTRA: AttentionSpec =
    AttentionSpec { n_q_heads: 16, n_kv_heads: 1, head_dim: 128, window: None };

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
    let config = decode_config(&ULTRA, 64, 131_072);
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
