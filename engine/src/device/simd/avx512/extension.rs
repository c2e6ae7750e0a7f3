//! What processors with AVX-512 may have besides, told apart by types.

use super::super::amx::AmxTiles;
use super::super::tiles::{Tiles, VectorTiles};
use super::Avx512;

/// What a processor may have beyond [`is_available`].
pub(in super::super) trait Extension: Copy {
    /// AVX-512 BF16 and VBMI.
    const HAS_BF16: bool;
    /// AMX's tiles of bf16, and GFNI.
    const HAS_TILES: bool;

    /// How tiles are multiplied.
    type Tiles: Tiles;

    /// Lays them out.
    fn tiles(s: Avx512<Self>, n_tokens: usize) -> Self::Tiles;
}

/// Nothing more.
#[derive(Clone, Copy)]
pub(in super::super) struct Plain;

/// AVX-512 BF16 and VBMI.
#[derive(Clone, Copy)]
pub(in super::super) struct WithBf16;

/// Those, tiles of bf16 and GFNI.
#[derive(Clone, Copy)]
pub(in super::super) struct WithAmx;

impl Extension for Plain {
    const HAS_BF16: bool = false;
    const HAS_TILES: bool = false;
    type Tiles = VectorTiles<Avx512<Plain>>;

    #[inline(always)]
    fn tiles(s: Avx512<Plain>, n_tokens: usize) -> VectorTiles<Avx512<Plain>> {
        VectorTiles::new(s, n_tokens)
    }
}

impl Extension for WithBf16 {
    const HAS_BF16: bool = true;
    const HAS_TILES: bool = false;
    type Tiles = VectorTiles<Avx512<WithBf16>>;

    #[inline(always)]
    fn tiles(s: Avx512<WithBf16>, n_tokens: usize) -> VectorTiles<Avx512<WithBf16>> {
        VectorTiles::new(s, n_tokens)
    }
}

impl Extension for WithAmx {
    const HAS_BF16: bool = true;
    const HAS_TILES: bool = true;
    type Tiles = AmxTiles;

    #[inline(always)]
    fn tiles(_s: Avx512<WithAmx>, n_tokens: usize) -> AmxTiles {
        // SAFETY: an `Avx512<WithAmx>` proves the instructions.
        unsafe { AmxTiles::assume(n_tokens) }
    }
}
