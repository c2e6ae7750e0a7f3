//! What tests against hostile clients share.

use super::tensor::Data;

/// The next of a sequence that looks random (Steele, Lea and Flood 2014, SplitMix64).
pub(super) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// One below `n`.
pub(super) fn below(state: &mut u64, n: usize) -> usize {
    next(state) as usize % n
}

/// Bytes that the values take in memory: what a body may make the server reserve.
pub(super) fn n_reserved(data: &Data) -> usize {
    match data {
        Data::Bytes(values) => {
            let texts: usize = values.iter().map(Vec::capacity).sum();
            texts + values.capacity() * size_of::<Vec<u8>>()
        }
        Data::Bool(values) => values.capacity(),
        Data::Int32(values) => values.capacity() * size_of::<i32>(),
        Data::Int64(values) => values.capacity() * size_of::<i64>(),
        Data::Uint64(values) => values.capacity() * size_of::<u64>(),
        Data::Fp32(values) => values.capacity() * size_of::<f32>(),
    }
}
