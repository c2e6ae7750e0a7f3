// Weights that the next product reads, fetched into the L2 cache by a kernel that leaves the memory
// with time to spare. It is a hint, of which no result depends.
#pragma once

#include "common.cuh"

// Pieces that lie evenly in the weights, so that whatever order a product takes them in, it finds
// the same share of each part.
struct Ahead {
    const e4m3* weights;
    u32 n_pieces;
    // From the begin of a piece to that of the next.
    u32 stride_bytes;
    u32 piece_bytes;
    // In the grid's last dimension: the blocks before it have the kernel's own work. All of the
    // grid where nothing is fetched.
    u32 first_block;
};

// Every thread of the `n_blocks` blocks that fetch calls it; `block` is the caller's place among
// them. A piece a thread, and neighbours to different blocks: every multiprocessor asks for some.
template <u32 N_THREADS>
__device__ __forceinline__ void fetch_ahead(const Ahead& ahead, u32 block, u32 n_blocks) {
    // What is fetched is evicted last, within what `CudaExec::set_aside` has put aside for it: what
    // a product streams past it would otherwise push it out before the product is there.
    u64 policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    for (u32 piece = threadIdx.x * n_blocks + block; piece < ahead.n_pieces;
         piece += n_blocks * N_THREADS) {
        const e4m3* first = ahead.weights + u64(piece) * ahead.stride_bytes;
        asm volatile("cp.async.bulk.prefetch.L2.global.L2::cache_hint [%0], %1, %2;" ::"l"(first),
                     "r"(ahead.piece_bytes), "l"(policy)
                     : "memory");
    }
}
