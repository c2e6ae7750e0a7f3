//! Products of tiles for attention: a row of tiles from the left against up to four columns.
//!
//! What TDPBF16PS computes is said in [`amx`](super::super::amx). Each loop with all its tiles is
//! one piece of assembly; between two of them only the layout lasts.

use std::arch::asm;

use super::{TILE, TILE_FLOATS};
use crate::device::simd::amx::TileLayout;
use crate::device::simd::{Simd, SimdLevel};

/// Bytes of a row of a tile, and of a tile.
const ROW_BYTES: usize = TILE * size_of::<f32>();
const TILE_BYTES: usize = TILE_FLOATS * size_of::<f32>();

/// Tiles that hold sums or what stands on the left: they may have fewer than sixteen rows.
const N_SHORT_TILES: usize = 5;

/// This thread's tiles, laid out for products, until this is dropped.
pub(super) struct QueryTiles {
    _layout: TileLayout,
}

/// `Σ_term Σ_step left[term][step] · right[column][step]`, for as many columns of tiles as there
/// are in `right`.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// `[n_terms, n_steps]` tiles.
    pub(super) left: &'a [f32],
    pub(super) n_terms: usize,
    pub(super) n_steps: usize,
    /// The first column's first tile, and all that follow.
    pub(super) right: &'a [f32],
    /// Tiles from one column to the next, and from one step to the next.
    pub(super) column_stride: usize,
    pub(super) step_stride: usize,
}

/// Rows of sums, of which every column of tiles has sixteen floats.
pub(super) struct Sums<'a> {
    pub(super) rows: &'a mut [f32],
    /// Floats from one row to the next.
    pub(super) stride: usize,
}

impl QueryTiles {
    /// Tiles for `n_rows` queries at a time, 1 to [`TILE`].
    pub(super) fn new(simd: Simd, n_rows: usize) -> QueryTiles {
        assert_eq!(simd.level(), SimdLevel::Amx, "tiles");
        let n_rows = |tile_idx| if tile_idx < N_SHORT_TILES { n_rows } else { TILE };
        let shapes = std::array::from_fn(|tile_idx| (n_rows(tile_idx), TILE));
        // SAFETY: a `Simd` of this level exists only where the processor has tiles and the process
        // may use them.
        QueryTiles { _layout: unsafe { TileLayout::assume(shapes) } }
    }
}

impl Product<'_> {
    /// Asserts that `n_columns` of tiles are there on the right, all terms on the left, and sixteen
    /// rows of sums.
    fn check(&self, n_columns: usize, sums: &Sums<'_>) {
        let Product { left, n_terms, n_steps, right, column_stride, step_stride } = *self;
        assert!(n_terms > 0 && n_steps > 0, "a product of nothing");
        assert!(left.len() >= n_terms * n_steps * TILE_FLOATS, "{n_terms} times {n_steps} tiles");
        let last = (n_columns - 1) * column_stride + (n_steps - 1) * step_stride;
        assert!(right.len() >= (last + 1) * TILE_FLOATS, "{n_columns} times {n_steps} tiles");
        let n_floats = (TILE - 1) * sums.stride + n_columns * TILE;
        assert!(sums.rows.len() >= n_floats, "{n_floats} sums of {}", sums.rows.len());
    }
}

/// Defines a product of `$n_columns` columns whose sums `$begin` from zero or from what they are.
macro_rules! product {
    ($name:ident, $n_columns:literal, [$($begin:literal),*], [$($step:literal),*],
     [$($end:literal),*]) => {
        #[inline(always)]
        fn $name(&self, product: Product<'_>, sums: Sums<'_>) {
            product.check($n_columns, &sums);
            // SAFETY: whoever made `self` had the instructions, and the layout is this thread's.
            // `check` saw that everything is there that is read and written.
            unsafe {
                asm!(
                    $($begin,)*
                    "2:",
                    "mov {n}, {n_steps}",
                    "mov {next}, {right}",
                    "3:",
                    "tileloadd tmm4, [{left} + {row}]",
                    "mov {column}, {next}",
                    $($step,)*
                    "add {left}, {tile}",
                    "add {next}, {step_stride}",
                    "dec {n}",
                    "jnz 3b",
                    "dec {n_terms}",
                    "jnz 2b",
                    $($end,)*
                    sums = in(reg) sums.rows.as_mut_ptr(),
                    stride = in(reg) sums.stride * size_of::<f32>(),
                    row = in(reg) ROW_BYTES,
                    tile = const TILE_BYTES,
                    left = inout(reg) product.left.as_ptr() => _,
                    right = in(reg) product.right.as_ptr(),
                    next = out(reg) _,
                    column = out(reg) _,
                    column_stride = in(reg) product.column_stride * TILE_BYTES,
                    step_stride = in(reg) product.step_stride * TILE_BYTES,
                    n_steps = in(reg) product.n_steps,
                    n = out(reg) _,
                    n_terms = inout(reg) product.n_terms => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

impl QueryTiles {
    /// The product of `2 * n_pairs` columns, in place of what `sums` holds or added to it.
    #[inline(always)]
    pub(super) fn multiply<const IS_ADDED: bool>(
        &self,
        product: Product<'_>,
        n_pairs: usize,
        sums: Sums<'_>,
    ) {
        let mut pair = 0;
        while pair < n_pairs {
            let product = Product {
                right: &product.right[2 * pair * product.column_stride * TILE_FLOATS..],
                ..product
            };
            let rows = &mut sums.rows[2 * pair * TILE..];
            let sums = Sums { rows, stride: sums.stride };
            match (n_pairs - pair, IS_ADDED) {
                (2.., false) => self.four(product, sums),
                (2.., true) => self.add_four(product, sums),
                (_, false) => self.two(product, sums),
                (_, true) => self.add_two(product, sums),
            }
            pair += 2;
        }
    }

    product!(
        four,
        4,
        ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
        [
            "tileloadd tmm5, [{column} + {row}]",
            "add {column}, {column_stride}",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{column} + {row}]",
            "add {column}, {column_stride}",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tileloadd tmm7, [{column} + {row}]",
            "add {column}, {column_stride}",
            "tdpbf16ps tmm2, tmm4, tmm7",
            "tileloadd tmm5, [{column} + {row}]",
            "tdpbf16ps tmm3, tmm4, tmm5"
        ],
        [
            "tilestored [{sums} + {stride}], tmm0",
            "tilestored [{sums} + {stride} + 64], tmm1",
            "tilestored [{sums} + {stride} + 128], tmm2",
            "tilestored [{sums} + {stride} + 192], tmm3"
        ]
    );

    product!(
        add_four,
        4,
        [
            "tileloadd tmm0, [{sums} + {stride}]",
            "tileloadd tmm1, [{sums} + {stride} + 64]",
            "tileloadd tmm2, [{sums} + {stride} + 128]",
            "tileloadd tmm3, [{sums} + {stride} + 192]"
        ],
        [
            "tileloadd tmm5, [{column} + {row}]",
            "add {column}, {column_stride}",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{column} + {row}]",
            "add {column}, {column_stride}",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tileloadd tmm7, [{column} + {row}]",
            "add {column}, {column_stride}",
            "tdpbf16ps tmm2, tmm4, tmm7",
            "tileloadd tmm5, [{column} + {row}]",
            "tdpbf16ps tmm3, tmm4, tmm5"
        ],
        [
            "tilestored [{sums} + {stride}], tmm0",
            "tilestored [{sums} + {stride} + 64], tmm1",
            "tilestored [{sums} + {stride} + 128], tmm2",
            "tilestored [{sums} + {stride} + 192], tmm3"
        ]
    );

    product!(
        two,
        2,
        ["tilezero tmm0", "tilezero tmm1"],
        [
            "tileloadd tmm5, [{column} + {row}]",
            "add {column}, {column_stride}",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{column} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm6"
        ],
        ["tilestored [{sums} + {stride}], tmm0", "tilestored [{sums} + {stride} + 64], tmm1"]
    );

    product!(
        add_two,
        2,
        ["tileloadd tmm0, [{sums} + {stride}]", "tileloadd tmm1, [{sums} + {stride} + 64]"],
        [
            "tileloadd tmm5, [{column} + {row}]",
            "add {column}, {column_stride}",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{column} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm6"
        ],
        ["tilestored [{sums} + {stride}], tmm0", "tilestored [{sums} + {stride} + 64], tmm1"]
    );
}
