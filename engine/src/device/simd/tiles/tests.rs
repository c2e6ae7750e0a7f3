//! Tiles against vectors, bit for bit: what the processor multiplies is what its manual says.

use std::sync::Arc;

use weights::{Dtype, WeightScale};

use super::super::{Simd, pack_tokens, quantize_e4m3, silu_times, tile_product};
use super::{
    Rounding, Stored, TileProduct, TileRows, TileScratch, TileWeights, TokenLayout, TokenTiles,
    pack_pair,
};
use crate::device::{HostView, HostViewMut};
use crate::kernels::testing::{Rng, StoredMatrix, assert_same_bits, levels, store};

/// Packs and multiplies as threads do, at one level.
fn product(
    simd: Simd,
    (stored, scales): (Stored<'_>, [&WeightScale; 2]),
    (x, rounding): (HostView<'_>, Rounding),
    out_scale: Option<f32>,
) -> Vec<f32> {
    let layout = TokenLayout::new(x.n_rows(), x.n_cols());
    let mut memory = vec![f32::NAN; layout.n_floats()];
    let (n_tokens, n_cols) = TokenLayout::PIECE;
    for (panel_idx, panel) in memory.chunks_mut(layout.shape().1).enumerate() {
        for (group_idx, piece) in panel.chunks_mut(layout.n_piece_floats()).enumerate() {
            let (t, k) = (group_idx * n_tokens, panel_idx * n_cols);
            let x = x.rows(t..x.n_rows().min(t + n_tokens)).columns(k..x.n_cols().min(k + n_cols));
            assert!(pack_tokens(simd, x, (rounding, layout.group_width()), piece), "bf16 values");
        }
    }
    let mut packed = TileWeights::room_for(stored);
    let mut pairs = packed.pairs_mut();
    for pair_idx in 0..pairs.n_rows() {
        pack_pair(stored, pair_idx, pairs.row_mut(pair_idx));
    }
    let n_rows = packed.n_outputs();
    let mut out = vec![f32::NAN; x.n_rows() * n_rows];
    let x_scales = vec![0.75; x.n_rows()];
    let product = TileProduct {
        x,
        tokens: TokenTiles::new(layout, &memory),
        weights: TileRows { weights: &packed, begin: 0, scales },
        x_scales: &x_scales,
        out_scale,
        out: HostViewMut::new(&mut out, x.n_rows(), n_rows),
    };
    tile_product(simd, product, &mut TileScratch::new());
    out
}

fn scale(n_rows: usize, seed: u64) -> WeightScale {
    WeightScale::PerRow(Arc::from(Rng::new(seed).numbers(n_rows)))
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
                .map(|simd| {
                    let scale = scale(n, 4);
                    let weights = (Stored::Plain(&weights.matrix), [&scale; 2]);
                    (simd, product(simd, weights, (x, rounding), None))
                })
                .collect();
            for (simd, out) in &outputs {
                let what = format!("{dtype:?} {:?} {simd:?}", (n, k, t));
                assert!(out.iter().any(|y| *y != 0.0), "{what}");
                assert_same_bits(out, &outputs[0].1, &what);
            }
        }
    }
}

#[test]
fn a_gate_and_what_it_gates_give_what_two_products_and_an_activation_give() {
    let mut rng = Rng::new(32);
    for (n, k, t) in [(1, 1, 1), (16, 70, 2), (40, 97, 3), (33, 290, 33), (128, 256, 70)] {
        for (dtype, rounding) in
            [(Dtype::F8E4m3, Rounding::Exact), (Dtype::Bf16, Rounding::Nearest)]
        {
            let [gate, up] =
                [0, 1].map(|_| StoredMatrix::new(dtype, k, &rng.numbers(n * k)).matrix);
            let scales = [scale(n, 5), scale(n, 6)];
            let mut x = rng.numbers(t * k);
            x.iter_mut().for_each(|x| *x = store(Dtype::F8E4m3, *x * 448.0).1 as f32);
            let x = HostView::new(&x, t, k);
            for simd in levels().filter_map(Simd::new) {
                let alone = |matrix, scale| {
                    product(simd, (Stored::Plain(matrix), [scale; 2]), (x, rounding), None)
                };
                let mut expected = vec![f32::NAN; t * n];
                let (gates, ups) = (alone(&gate, &scales[0]), alone(&up, &scales[1]));
                silu_times(simd, &gates, &ups, &mut expected);
                let stored = Stored::Gated([&gate, &up]);
                let gated = |out_scale| {
                    product(simd, (stored, scales.each_ref()), (x, rounding), out_scale)
                };
                let what = format!("{dtype:?} {:?} {simd:?}", (n, k, t));
                assert!(expected.iter().any(|y| *y != 0.0), "{what}");
                assert_same_bits(&gated(None), &expected, &what);
                quantize_e4m3(simd, &mut expected, 0.3);
                assert_same_bits(&gated(Some(0.3)), &expected, &format!("{what}, quantized"));
            }
        }
    }
}
