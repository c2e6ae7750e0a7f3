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

/// Bytes of memory for each byte of a body, at most: an object of one member is a few bytes of
/// JSON, and several hundred in memory.
const N_TAKEN_MAX: u64 = 128;

/// And for what tells of a body whatever its size.
const N_TAKEN_ANYWAY: u64 = 16 << 10;

/// What `work` makes of a body of so many bytes, which at no time takes memory out of proportion to
/// them, not even to give it back at once.
pub(super) fn in_proportion<T>(n_bytes: usize, case: u64, work: impl FnOnce() -> T) -> T {
    let mut made = None;
    let taken = allocation_counter::measure(|| made = Some(work())).bytes_max;
    let n_most = N_TAKEN_ANYWAY + N_TAKEN_MAX * n_bytes as u64;
    assert!(taken <= n_most, "case {case}: {taken} bytes at once for a body of {n_bytes}");
    made.expect("it ran")
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
