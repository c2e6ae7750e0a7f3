//! Stored element types: how sixteen of them become lanes.

use std::marker::PhantomData;

use weights::Dtype;

use super::lanes::{Lanes, padded};

/// What the processor fetches at once.
pub(super) const LINE_BYTES: usize = 64;

/// What widened elements must be multiplied by to be the stored values: an exact power of two.
pub(crate) fn widened_factor(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => 1.0,
        Dtype::F8E4m3 => 256.0,
    }
}

/// What a lane holds, and so how two vectors are multiplied.
pub(super) trait Factors {
    /// `sum + x · w`, lane by lane.
    fn mul_add<S: Lanes>(s: S, x: S::V, w: S::V, sum: S::V) -> S::V;
}

/// A number a lane.
pub(super) struct Singles;

/// Two numbers of bf16 a lane.
pub(super) struct Pairs;

impl Factors for Singles {
    #[inline(always)]
    fn mul_add<S: Lanes>(s: S, x: S::V, w: S::V, sum: S::V) -> S::V {
        s.mul_add(x, w, sum)
    }
}

impl Factors for Pairs {
    #[inline(always)]
    fn mul_add<S: Lanes>(s: S, x: S::V, w: S::V, sum: S::V) -> S::V {
        s.mul_add_pairs(x, w, sum)
    }
}

/// What elements are before they are lanes.
pub(super) trait Element {
    /// The elements of a vector: sixteen, or sixteen pairs.
    type Block: Copy + 'static;
    /// What they become.
    type Factors: Factors;

    /// Rows lie in main memory, each read once.
    const IS_FAR: bool;

    /// Two blocks are widened in less time than one and one.
    const COME_IN_TWOS: bool = false;

    /// The elements, times the inverse of [`widened_factor`].
    fn widen<S: Lanes>(s: S, block: &Self::Block) -> S::V;

    /// The same of neighbouring blocks.
    #[inline(always)]
    fn widen_two<S: Lanes>(s: S, blocks: &[Self::Block; 2]) -> [S::V; 2] {
        [Self::widen(s, &blocks[0]), Self::widen(s, &blocks[1])]
    }
}

/// An element type as it lies in a file.
pub(super) trait Stored: Element {
    /// Whole blocks of a row, and the last one with zeroes after it where the row ends within.
    fn blocks(row: &[u8]) -> (&[Self::Block], Option<Self::Block>);
}

/// What was widened before, in memory of ours.
pub(super) struct Widened<F>(PhantomData<F>);

impl<F: Factors> Element for Widened<F> {
    type Block = [f32; 16];
    type Factors = F;

    const IS_FAR: bool = false;

    #[inline(always)]
    fn widen<S: Lanes>(s: S, block: &[f32; 16]) -> S::V {
        s.load(block)
    }
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;
pub(super) struct E4m3;
/// For inputs that are e4m3 values themselves.
pub(super) struct E4m3Pairs;
/// For inputs that were rounded to bf16: what is stored are pairs.
pub(super) struct Bf16Pairs;

macro_rules! element {
    ($name:ident, $n_bytes:literal, $factors:ident, $widen:ident $(, $widen_two:ident)?) => {
        impl Element for $name {
            type Block = [u8; $n_bytes];
            type Factors = $factors;

            const IS_FAR: bool = true;

            #[inline(always)]
            fn widen<S: Lanes>(s: S, block: &[u8; $n_bytes]) -> S::V {
                s.$widen(block)
            }

            $(
                const COME_IN_TWOS: bool = true;

                #[inline(always)]
                fn widen_two<S: Lanes>(s: S, blocks: &[[u8; $n_bytes]; 2]) -> [S::V; 2] {
                    s.$widen_two(blocks)
                }
            )?
        }

        impl Stored for $name {
            #[inline(always)]
            fn blocks(row: &[u8]) -> (&[[u8; $n_bytes]], Option<[u8; $n_bytes]>) {
                let (blocks, tail) = row.as_chunks();
                (blocks, (!tail.is_empty()).then(|| padded(tail)))
            }
        }
    };
}

element!(F32, 64, Singles, widen_f32);
element!(F16, 32, Singles, widen_f16);
element!(Bf16, 32, Singles, widen_bf16);
element!(E4m3, 16, Singles, widen_e4m3);
element!(E4m3Pairs, 32, Pairs, pairs_of_e4m3, two_pairs_of_e4m3);
element!(Bf16Pairs, 64, Pairs, widen_f32);

#[inline(always)]
pub(super) fn prefetch<S: Lanes>(s: S, stored: &[u8]) {
    for line in stored.chunks(LINE_BYTES) {
        s.prefetch(&line[0]);
    }
}

#[inline(always)]
pub(super) fn widen<S: Lanes>(s: S, dtype: Dtype, stored: &[u8], out: &mut [f32]) {
    assert_eq!(stored.len(), out.len() * dtype.n_bytes(), "{} {dtype:?} elements", out.len());
    match dtype {
        Dtype::F32 => widen_row::<S, F32>(s, stored, out),
        Dtype::F16 => widen_row::<S, F16>(s, stored, out),
        Dtype::Bf16 => widen_row::<S, Bf16>(s, stored, out),
        Dtype::F8E4m3 => widen_row::<S, E4m3>(s, stored, out),
    }
}

#[inline(always)]
fn widen_row<S: Lanes, E: Stored>(s: S, stored: &[u8], out: &mut [f32]) {
    let (blocks, last) = E::blocks(stored);
    let (out_blocks, out_last) = out.as_chunks_mut();
    for (block, out) in blocks.iter().zip(out_blocks) {
        s.store(E::widen(s, block), out);
    }
    if let Some(block) = last {
        let mut lanes = [0.0; 16];
        s.store(E::widen(s, &block), &mut lanes);
        out_last.copy_from_slice(&lanes[..out_last.len()]);
    }
}
