//! Tiles against vectors, bit for bit: what the processor multiplies is what its manual says.

use std::sync::Arc;

use weights::{Dtype, WeightScale};

use super::super::{Simd, pack_tokens, tile_product, transposed_rows};
use super::{Rounding, TileProduct, TileScratch, TokenLayout, TokenTiles, WeightRows};
use crate::device::{HostView, HostViewMut};
use crate::kernels::testing::{Rng, StoredMatrix, assert_same_bits, levels, store};

#[inline(always)]
pub(in super::super) fn transposed<S: super::Lanes>(
    s: S,
    rows: &[[f32; 16]; 16],
) -> [[f32; 16]; 16] {
    let (mut v, mut columns) = ([s.splat(0.0); 16], *rows);
    for i in 0..16 {
        v[i] = s.load(&rows[i]);
    }
    let v = s.transposed(v);
    for i in 0..16 {
        s.store(v[i], &mut columns[i]);
    }
    columns
}

#[test]
fn rows_become_columns() {
    let rows = std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as f32));
    for simd in levels().filter_map(Simd::new) {
        let columns = transposed_rows(simd, &rows);
        for (i, j) in (0..16).flat_map(|i| (0..16).map(move |j| (i, j))) {
            assert_eq!(columns[j][i], rows[i][j], "{simd:?} {i} {j}");
        }
    }
}

/// Packs and multiplies as threads do, at one level.
fn product(simd: Simd, weights: &StoredMatrix, x: HostView<'_>, rounding: Rounding) -> Vec<f32> {
    let layout = TokenLayout::new(x.n_rows(), x.n_cols());
    let mut memory = vec![f32::NAN; layout.n_floats()];
    let (n_tokens, n_floats, n_cols) = layout.piece();
    for (group_idx, group) in memory.chunks_mut(layout.n_group_floats()).enumerate() {
        for (piece_idx, piece) in group.chunks_mut(n_floats).enumerate() {
            let (t, k) = (group_idx * n_tokens, piece_idx * n_cols);
            let x = x.rows(t..x.n_rows().min(t + n_tokens)).columns(k..x.n_cols().min(k + n_cols));
            assert!(pack_tokens(simd, x, (rounding, layout.group_width()), piece), "bf16 values");
        }
    }
    let n_rows = weights.matrix.n_rows;
    let mut out = vec![f32::NAN; x.n_rows() * n_rows];
    let x_scales = vec![0.75; x.n_rows()];
    let scale = WeightScale::PerRow(Arc::from(Rng::new(4).numbers(n_rows)));
    let product = TileProduct {
        tokens: TokenTiles::new(layout, &memory),
        weights: WeightRows { matrix: &weights.matrix, begin: 0, scale: &scale },
        x_scales: &x_scales,
        out: HostViewMut::new(&mut out, x.n_rows(), n_rows),
    };
    tile_product(simd, product, &mut TileScratch::new());
    out
}

#[test]
fn tiles_give_the_bits_that_vectors_give() {
    let mut rng = Rng::new(31);
    let shapes = [
        (1, 1, 1),
        (16, 32, 1),
        (33, 64, 5),
        (128, 600, 16),
        (40, 97, 17),
        (70, 1030, 32),
        (128, 256, 33),
        (97, 777, 60),
        (15, 320, 500),
        (128, 290, 512),
    ];
    for (dtype, rounding) in [(Dtype::F8E4m3, Rounding::Exact), (Dtype::Bf16, Rounding::Nearest)] {
        for (n, k, t) in shapes {
            let weights = StoredMatrix::new(dtype, k, &rng.numbers(n * k));
            let mut x = rng.numbers(t * k);
            if rounding == Rounding::Exact {
                x.iter_mut().for_each(|x| *x = store(Dtype::F8E4m3, *x * 448.0).1 as f32);
            }
            let x = HostView::new(&x, t, k);
            let outputs: Vec<_> = levels()
                .filter_map(Simd::new)
                .map(|simd| (simd, product(simd, &weights, x, rounding)))
                .collect();
            for (simd, out) in &outputs {
                let what = format!("{dtype:?} {:?} {simd:?}", (n, k, t));
                assert!(out.iter().any(|y| *y != 0.0), "{what}");
                assert_same_bits(out, &outputs[0].1, &what);
            }
        }
    }
}
