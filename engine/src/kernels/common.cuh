// What the families share: numbers as memory holds them, reductions in a fixed order, clusters.
//
// A chunk is eight neighbouring columns of a row: 16 bytes of bf16, 32 of f32, 8 of e4m3. Chunks
// are moved whole where rows allow it and element by element where they do not, so that no width is
// refused. Everything here is device code; nothing knows a model.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

using bf16 = __nv_bfloat16;
// An e4m3 code.
using e4m3 = __nv_fp8_storage_t;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

static_assert(sizeof(i64) == 8 && sizeof(void*) == 8, "tensors have more than 2^32 elements");

constexpr int CHUNK = 8;
constexpr u32 FULL_WARP = 0xffffffffu;
// Greatest finite e4m3.
constexpr float E4M3_MAX = 448.0f;

struct F32x8 {
    float x[CHUNK];
};

// ---- chunks ------------------------------------------------------------------------------------

// The eight values of 16 bytes of bf16, lowest address first: bf16 is the upper half of an f32.
__device__ __forceinline__ F32x8 widened(uint4 raw) {
    const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
    F32x8 values;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        values.x[2 * i] = __uint_as_float(words[i] << 16);
        values.x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
    return values;
}

// Two values rounded to nearest even, the first in the lower half.
__device__ __forceinline__ u32 bf16_pair(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const u32*>(&pair);
}

__device__ __forceinline__ uint4 narrowed(const F32x8& v) {
    return make_uint4(bf16_pair(v.x[0], v.x[1]), bf16_pair(v.x[2], v.x[3]),
                      bf16_pair(v.x[4], v.x[5]), bf16_pair(v.x[6], v.x[7]));
}

// Columns at `p`, of which `n_left` are the row's; what is missing reads as zero. `is_wide`: the
// host has seen that every row begins and ends at a multiple of a chunk, in columns and in address.
__device__ __forceinline__ uint4 load_chunk(const bf16* p, i32 n_left, bool is_wide) {
    if (is_wide) return *reinterpret_cast<const uint4*>(p);
    u32 words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        if (i < n_left) words[i / 2] |= u32(__bfloat16_as_ushort(p[i])) << (16 * (i % 2));
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ F32x8 load_chunk(const float* p, i32 n_left, bool is_wide) {
    F32x8 v;
    if (is_wide) {
        const float4 low = reinterpret_cast<const float4*>(p)[0];
        const float4 high = reinterpret_cast<const float4*>(p)[1];
        v = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    } else {
#pragma unroll
        for (int i = 0; i < CHUNK; i++) v.x[i] = i < n_left ? p[i] : 0.0f;
    }
    return v;
}

__device__ __forceinline__ void store_chunk(bf16* p, uint4 raw, i32 n_left, bool is_wide) {
    if (is_wide) {
        *reinterpret_cast<uint4*>(p) = raw;
        return;
    }
    const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        if (i < n_left) p[i] = __ushort_as_bfloat16((unsigned short)(words[i / 2] >> 16 * (i % 2)));
    }
}

__device__ __forceinline__ void store_chunk(bf16* p, const F32x8& v, i32 n_left, bool is_wide) {
    store_chunk(p, narrowed(v), n_left, is_wide);
}

// `e4m3(clamp(v / scale, ±448))`, ties to even, NaN stays NaN.
__device__ __forceinline__ uint2 quantized(const F32x8& v, float scale) {
    u32 words[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float* x = v.x + 4 * i;
        const float2 low = make_float2(x[0] / scale, x[1] / scale);
        const float2 high = make_float2(x[2] / scale, x[3] / scale);
        words[i] = u32(__nv_cvt_float2_to_fp8x2(low, __NV_SATFINITE, __NV_E4M3)) |
                   u32(__nv_cvt_float2_to_fp8x2(high, __NV_SATFINITE, __NV_E4M3)) << 16;
    }
    return make_uint2(words[0], words[1]);
}

__device__ __forceinline__ void store_chunk(e4m3* p, uint2 codes, i32 n_left, bool is_wide) {
    if (is_wide) {
        *reinterpret_cast<uint2*>(p) = codes;
        return;
    }
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        if (i < n_left) p[i] = e4m3((i < 4 ? codes.x : codes.y) >> 8 * (i % 4));
    }
}

// What maps the greatest magnitude of a row onto the greatest e4m3. A row of zeroes, or one so
// small that its scale is not a number above zero, has the scale 1.
__device__ __forceinline__ float scale_of(float magnitude) {
    const float scale = magnitude / E4M3_MAX;
    return scale > 0.0f ? scale : 1.0f;
}

__device__ __forceinline__ float greatest_magnitude(const F32x8& v) {
    float greatest = 0.0f;
    // fmaxf gives the other operand for a NaN.
#pragma unroll
    for (int i = 0; i < CHUNK; i++) greatest = fmaxf(greatest, fabsf(v.x[i]));
    return greatest;
}

// ---- reductions over a warp and a block -----------------------------------------------------

struct Sum {
    static __device__ __forceinline__ float of(float a, float b) { return a + b; }
};
struct Max {
    static __device__ __forceinline__ float of(float a, float b) { return fmaxf(a, b); }
};

// A butterfly: all lanes get the same bits, because both operations commute.
template <typename Operation, int N_LANES = 32>
__device__ __forceinline__ float warp_reduce(float x) {
#pragma unroll
    for (int distance = N_LANES / 2; distance > 0; distance /= 2) {
        x = Operation::of(x, __shfl_xor_sync(FULL_WARP, x, distance));
    }
    return x;
}

// Over a block's N_THREADS threads, of which each gets the same bits; `room` has N_THREADS / 32
// floats. The order depends on N_THREADS alone. `room` may be used again after a barrier.
template <typename Operation, int N_THREADS>
__device__ __forceinline__ float block_reduce(float x, float* room) {
    static_assert(N_THREADS % 32 == 0 && N_THREADS <= 1024, "whole warps");
    x = warp_reduce<Operation>(x);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    float result = room[0];
#pragma unroll
    for (int i = 1; i < N_THREADS / 32; i++) result = Operation::of(result, room[i]);
    return result;
}

// ---- clusters: blocks that share a row ----------------------------------------------------------

__device__ __forceinline__ u32 cluster_size() {
    u32 n;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
    return n;
}

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Every thread of the cluster says that it runs; nothing is ordered by it.
__device__ __forceinline__ void cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

// Every thread of the cluster arrives, then waits; what was written before the one is seen after
// the other, shared memory of other blocks included. It waits for global stores as well: what need
// not be seen by the others is better written later.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Writes where block `rank` of the cluster has what this block has at `own`.
__device__ __forceinline__ void store_in_cluster(float* own, u32 rank, float value) {
    asm volatile(
        "{\n\t"
        ".reg .b32 place;\n\t"
        "mapa.shared::cluster.u32 place, %0, %1;\n\t"
        "st.shared::cluster.f32 [place], %2;\n\t"
        "}" ::"r"(u32(__cvta_generic_to_shared(own))),
        "r"(rank), "f"(value)
        : "memory");
}

constexpr int CLUSTER_MAX = 8;

// What `cluster_reduce` needs of a block with N_THREADS threads.
template <int N_THREADS>
struct ClusterRoom {
    float of_warps[N_THREADS / 32];
    float of_blocks[CLUSTER_MAX];
};

// Over all threads of a cluster, of which each gets the same bits: over the block, then over the
// blocks in their order. Every block of the cluster must be known to run: a relaxed arrival at
// the kernel's begin and a `cluster_wait` before the first of these. A room may be used again when
// another room has been used in between; nothing is left under way, so that a block may exit.
template <typename Operation, int N_THREADS>
__device__ __forceinline__ float cluster_reduce(float x, ClusterRoom<N_THREADS>& room) {
    const float of_block = block_reduce<Operation, N_THREADS>(x, room.of_warps);
    const u32 n_blocks = cluster_size();
    if (n_blocks == 1) return of_block;
    if (threadIdx.x < n_blocks) {
        store_in_cluster(&room.of_blocks[cluster_rank()], threadIdx.x, of_block);
    }
    cluster_arrive();
    cluster_wait();
    float result = room.of_blocks[0];
    for (u32 i = 1; i < n_blocks; i++) result = Operation::of(result, room.of_blocks[i]);
    return result;
}

// ---- exchanges: ranks that read each other's memory ---------------------------------------------

constexpr int N_RANKS_MAX = 8;

// An address in each rank's memory.
template <typename T>
struct OfRanks {
    T* of[N_RANKS_MAX];
};

// How the ranks of a node meet inside a kernel.
//
// Every rank has N_RANKS_MAX flags, the r-th written by rank r alone, and a state of its own: the
// number of exchanges so far (the epoch), then how many blocks have left the present one. Both live
// on the device, so that the same launch can be replayed from a graph: nothing of it counts.
//
// Where ranks only read, one barrier a call is enough, at its begin. `announce` publishes what this
// rank's earlier kernels have written, `await` returns when every rank has published; then all may
// read all. Nothing tells a rank when the others have finished reading. So what they read may only
// be written again by work that comes after a *later* exchange on the same stream: to announce that
// one, each rank must have ended this call. Therefore two buffers that take turns suffice, and where
// exchanges of two kinds alternate, one of each kind.
//
// Where ranks also write to each other, after `await`, the call ends with a second exchange,
// `leave_together`: what was written is there when the kernel ends, and all reading has ended, too.
//
// What a rank's exchanges took is summed behind the two counts, for whoever reads it between two
// kernels: nanoseconds from the begin of each to its end, and those of them in which it waited for
// others. A begin is taken off the sum and an end put on it, by additions that nobody waits for: so
// nothing is kept from the one to the other, and it does not matter which block notes which.
//
// All blocks of the grid must fit on the device at once: block 0 is the one that publishes, and
// others wait for it, whatever the order they start in.
struct Exchange {
    OfRanks<u32> flags;
    // Those of this rank. Picking them out of `flags` would be an array in local memory.
    u32* own_flags;
    // The two counts, then two u64: what exchanges took, and what of it they waited.
    u32* state;
    i32 n_ranks;
    i32 rank;
};

// The device's clock. Its steps are coarse, up to a microsecond, but as exchanges begin and end
// anywhere between two of them, sums of many come out right.
__device__ __forceinline__ u64 now_ns() {
    u64 ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns)::"memory");
    return ns;
}

__device__ __forceinline__ void note_taken(const Exchange& exchange, u64 ns) {
    atomicAdd(reinterpret_cast<u64*>(exchange.state) + 1, ns);
}

__device__ __forceinline__ void note_waited(const Exchange& exchange, u64 ns) {
    atomicAdd(reinterpret_cast<u64*>(exchange.state) + 2, ns);
}

// Predicated rather than branched around: the compiler would join the branches of several flags
// into one that looks its address up, from an array in local memory.
__device__ __forceinline__ void publish_if(bool condition, u32* flag, u32 epoch) {
    asm volatile(
        "{\n\t"
        ".reg .pred wanted;\n\t"
        "setp.ne.u32 wanted, %0, 0;\n\t"
        "@wanted st.relaxed.sys.global.u32 [%1], %2;\n\t"
        "}" ::"r"(u32(condition)),
        "l"(flag), "r"(epoch)
        : "memory");
}

__device__ __forceinline__ u32 published(const u32* flag) {
    u32 epoch;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(epoch) : "l"(flag) : "memory");
    return epoch;
}

// Every thread of one block calls it: tells all ranks that this one has come to exchange `epoch`.
__device__ __forceinline__ void publish(const Exchange& exchange, u32 epoch) {
    if (threadIdx.x >= N_RANKS_MAX) return;
    // One fence for all flags: with the stores after it, it is a release of all that this rank's
    // earlier kernels, and what came before a barrier of this block, have written.
    asm volatile("fence.acq_rel.sys;" ::: "memory");
#pragma unroll
    for (int r = 0; r < N_RANKS_MAX; r++) {
        const bool is_mine = threadIdx.x == r && r < exchange.n_ranks;
        publish_if(is_mine, exchange.flags.of[r] + exchange.rank, epoch);
    }
}

// Every thread of the grid calls it, as early as it can: the others wait for it. Gives back the
// exchange's epoch, for `await` and for the one that leaves.
__device__ __forceinline__ u32 announce(const Exchange& exchange) {
    const u32 epoch = *reinterpret_cast<volatile u32*>(exchange.state) + 1;
    if (blockIdx.x == 0) {
        publish(exchange, epoch);
        // After that, for nobody waits for it.
        if (threadIdx.x == 0) {
            const u64 began_ns = now_ns();
            note_taken(exchange, -began_ns);
            note_waited(exchange, -began_ns);
        }
    }
    return epoch;
}

// Every thread of a block calls it. When it returns, every rank has announced the exchange.
__device__ __forceinline__ void await_ranks(const Exchange& exchange, u32 epoch) {
    if (threadIdx.x < exchange.n_ranks) {
        // The difference is right even when the count has wrapped around.
        while (i32(published(exchange.own_flags + threadIdx.x) - epoch) < 0) {}
    }
    __syncthreads();
}

// The same, by every thread of the grid.
__device__ __forceinline__ void await(const Exchange& exchange, u32 epoch) {
    await_ranks(exchange, epoch);
    if (blockIdx.x == 0 && threadIdx.x == 0) note_waited(exchange, now_ns());
}

// Every thread of the first `n_blocks` blocks, which are those that exchange, calls it at any time
// after `await`: the last block to leave counts the exchange, when no block can still be asking for
// its number.
__device__ __forceinline__ void leave(const Exchange& exchange, u32 epoch, u32 n_blocks) {
    if (threadIdx.x != 0) return;
    __threadfence();
    if (atomicAdd(exchange.state + 1, 1) == n_blocks - 1) {
        exchange.state[1] = 0;
        exchange.state[0] = epoch;
        note_taken(exchange, now_ns());
    }
}

// Every thread of those blocks calls it, when it has read and written all that it will of other
// ranks: the last block to come publishes that, and stays until every rank has. What the ranks have written
// to each other is then seen by the kernels that follow.
__device__ __forceinline__ void leave_together(const Exchange& exchange, u32 epoch,
                                               u32 n_blocks) {
    __shared__ bool is_last;
    __syncthreads();
    if (threadIdx.x == 0) {
        // Around the count, so that the last block releases what all blocks have written.
        __threadfence_system();
        is_last = atomicAdd(exchange.state + 1, 1) == n_blocks - 1;
        __threadfence_system();
    }
    __syncthreads();
    if (!is_last) return;
    const u64 began_ns = now_ns();
    publish(exchange, epoch + 1);
    await_ranks(exchange, epoch + 1);
    if (threadIdx.x == 0) {
        const u64 ended_ns = now_ns();
        note_waited(exchange, ended_ns - began_ns);
        note_taken(exchange, ended_ns);
        exchange.state[1] = 0;
        exchange.state[0] = epoch + 1;
    }
}
