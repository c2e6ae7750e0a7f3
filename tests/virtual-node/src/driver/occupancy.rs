//! How many blocks of a kernel one multiprocessor of an H100 holds.

use super::device::{
    N_BLOCK_THREADS_MAX, N_SM_BLOCKS_MAX, N_SM_REGISTERS, N_SM_THREADS_MAX, N_SMS,
    SHARED_RESERVED_BYTES, SM_SHARED_BYTES,
};

/// Threads of a warp.
const N_WARP_THREADS: u32 = 32;
/// Parts of a multiprocessor, each with its share of registers and warps.
const N_PARTITIONS: u32 = 4;
/// A warp's registers are given out in units of this many.
const REGISTER_UNIT: u32 = 256;
/// A block's shared memory is given out in units of this many bytes.
const SHARED_UNIT_BYTES: u32 = 128;

/// What one block takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    pub(super) n_threads: u32,
    /// Registers per thread.
    pub(super) n_registers: u32,
    /// Static and dynamic shared memory.
    pub(super) shared_bytes: u32,
}

/// Blocks that one multiprocessor holds at a time; 0 where one does not fit.
pub(super) fn n_blocks_per_sm(demand: Demand) -> u32 {
    if demand.n_threads == 0 || demand.n_threads > N_BLOCK_THREADS_MAX {
        return 0;
    }
    let n_warps = demand.n_threads.div_ceil(N_WARP_THREADS);
    let by_warps = N_SM_THREADS_MAX / N_WARP_THREADS / n_warps;
    let by_registers = n_warps_by_registers(demand.n_registers) / n_warps;
    let shared = demand.shared_bytes.next_multiple_of(SHARED_UNIT_BYTES) + SHARED_RESERVED_BYTES;
    let by_shared = SM_SHARED_BYTES / shared;
    by_warps.min(by_registers).min(by_shared).min(N_SM_BLOCKS_MAX)
}

/// Blocks that the whole device holds at a time.
pub(super) fn n_blocks_per_device(demand: Demand) -> u64 {
    u64::from(n_blocks_per_sm(demand)) * u64::from(N_SMS)
}

/// Threads that a block may have with so many registers per thread.
pub(super) fn n_threads_max(n_registers: u32) -> u32 {
    (n_warps_by_registers(n_registers) * N_WARP_THREADS).min(N_BLOCK_THREADS_MAX)
}

fn n_warps_by_registers(n_registers: u32) -> u32 {
    let per_warp = (n_registers.max(1) * N_WARP_THREADS).next_multiple_of(REGISTER_UNIT);
    N_SM_REGISTERS / N_PARTITIONS / per_warp * N_PARTITIONS
}

/// The smallest block that fills a multiprocessor as far as can be: blocks that fill the device,
/// and threads of each. `shared_bytes` tells what a block of so many threads takes.
pub(super) fn best_block(
    n_registers: u32,
    n_threads_max: u32,
    shared_bytes: impl Fn(u32) -> u32,
) -> (u32, u32) {
    let mut best = (0, 0, 0);
    let n_warps_max = n_threads_max / N_WARP_THREADS;
    for n_threads in (1..=n_warps_max).rev().map(|n_warps| n_warps * N_WARP_THREADS) {
        let shared_bytes = shared_bytes(n_threads);
        let n_blocks = n_blocks_per_sm(Demand { n_threads, n_registers, shared_bytes });
        if n_blocks * n_threads > best.0 {
            best = (n_blocks * n_threads, n_blocks, n_threads);
        }
    }
    (best.1 * N_SMS, best.2)
}

/// The most dynamic shared memory with which so many blocks fit, in bytes.
pub(super) fn shared_bytes_for(n_blocks: u32, static_bytes: u32) -> u32 {
    let per_block = SM_SHARED_BYTES / n_blocks.max(1) / SHARED_UNIT_BYTES * SHARED_UNIT_BYTES;
    per_block.saturating_sub(SHARED_RESERVED_BYTES + static_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n_blocks(n_threads: u32, n_registers: u32, shared_bytes: u32) -> u32 {
        n_blocks_per_sm(Demand { n_threads, n_registers, shared_bytes })
    }

    /// Cases of NVIDIA's occupancy calculator for compute capability 9.0.
    #[test]
    fn blocks_per_multiprocessor() {
        for (n_threads, n_registers, shared_bytes, expected) in [
            (256, 32, 0, 8),
            (1024, 32, 0, 2),
            (1024, 64, 0, 1),
            (1024, 65, 0, 0),
            (128, 168, 0, 3),
            (384, 168, 0, 1),
            (32, 16, 0, 32),
            (128, 32, 227 << 10, 1),
            (128, 32, (227 << 10) + 128, 0),
            (128, 32, 100 << 10, 2),
            (128, 32, 48 << 10, 4),
            (1025, 16, 0, 0),
            (256, 255, 0, 1),
            (257, 255, 0, 0),
        ] {
            let found = n_blocks(n_threads, n_registers, shared_bytes);
            assert_eq!(found, expected, "{n_threads} {n_registers} {shared_bytes}");
        }
    }

    #[test]
    fn the_best_block_fills_the_multiprocessor() {
        assert_eq!(best_block(32, 1024, |_| 0), (2 * N_SMS, 1024));
        let (n_blocks, n_threads) = best_block(255, 256, |_| 0);
        assert_eq!((n_blocks, n_threads), (N_SMS, 256));
    }

    #[test]
    fn shared_memory_for_blocks_is_exact() {
        for wanted in 1..=32 {
            let shared_bytes = shared_bytes_for(wanted, 0);
            assert!(n_blocks(32, 16, shared_bytes) >= wanted, "{wanted}");
        }
    }
}
