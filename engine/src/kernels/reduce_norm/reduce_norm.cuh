// What stands between two sub-blocks: the ranks' partial results are summed, the sum is added to
// the residual stream, and the stream is normalised and rounded for the projection that comes next.
//
//   partials       bf16 [n_tokens, hidden] in the memory of each rank; only the first where one
//                  rank is alone or somebody else has summed already (then exchange.n_ranks is 1)
//   column_scales  f32 [hidden] or null, token_scales f32 [n_tokens] or null: multiply the sum;
//                  the same on all ranks, so that it does not matter that they come after it
//   residual_in    f32 [n_tokens, hidden], or null for zeroes; residual_out may be the same, or
//                  null where the stream ends
//   rows           i32 [n_rows] or null: row i of the output is of token rows[i], none where that
//                  is negative; null means token i
//   weight         f32 [hidden] of the norm
//   out            bf16 or e4m3 [n_rows, hidden]
//   out_scales     f32 [n_rows], where the output is scaled token by token
//
//   sum      = partial of rank 0 + rank 1 + ..., in that order, in f32
//   residual = residual + sum * column_scale * token_scale
//   out      = quantize(residual / sqrt(mean(residual²) + eps) * weight)
//
// In one shot (`reduce_norm.cu`) every rank does this for all rows. In two
// (`reduce_norm_two_shot.cu`) a token has an owner, the rank `token % n_ranks`, which alone has its
// residual and gives the finished row to all. Both compute a row with the same code, so that its
// bits are the same.
//
// Who owns what: a row belongs to a cluster, cut into runs of N_THREADS chunks, a block each and a
// thread a chunk. Clusters stride over the rows. The mean is summed within a thread in order, then
// over the lanes, the warps and the blocks: an order that only `hidden` decides, never the batch.
//
// While the ranks meet, the memory of each has nothing to do. Blocks behind those of the rows use
// that time: they fetch what the next product reads into the L2 cache (`ahead.cuh`), and are gone.
// These blocks meet nobody.
//
// f32 rows are moved by pairs of lanes, so that every access of 16 bytes has its neighbour beside
// it and whole sectors are used: a lane reads half of its own chunk and half of its neighbour's.
#pragma once

#include "ahead.cuh"
#include "common.cuh"

constexpr int N_THREADS = 256;
using Room = ClusterRoom<N_THREADS>;

// Sixteen bytes that nobody reads again here. `volatile` keeps these loads together.
__device__ __forceinline__ uint4 load_once(const bf16* p) {
    uint4 raw;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
                 : "l"(p)
                 : "memory");
    return raw;
}

struct Args {
    OfRanks<const bf16> partials;
    const float* column_scales;
    const float* token_scales;
    const float* residual_in;
    float* residual_out;
    const i32* rows;
    i32 n_rows;
    i32 hidden;
    Exchange exchange;
    Ahead ahead;
};

#define PARAMS                                                                              \
    const OfRanks<const bf16> partials, const float *__restrict__ column_scales,            \
        const float *__restrict__ token_scales, const float *residual_in,                   \
        float *residual_out, const i32 *__restrict__ rows, i32 n_rows, i32 hidden,          \
        const Exchange exchange, const Ahead ahead
#define ARGS                                                                                \
    Args {                                                                                  \
        partials, column_scales, token_scales, residual_in, residual_out, rows, n_rows,     \
            hidden, exchange, ahead                                                         \
    }

// The half of a pair's 16 columns that this lane moves: four columns of each chunk.
__device__ __forceinline__ i32 pair_col(i32 col) {
    return threadIdx.x % 2 ? col - CHUNK + 4 : col;
}

__device__ __forceinline__ float4 swapped(float4 x) {
    return make_float4(
        __shfl_xor_sync(FULL_WARP, x.x, 1), __shfl_xor_sync(FULL_WARP, x.y, 1),
        __shfl_xor_sync(FULL_WARP, x.z, 1), __shfl_xor_sync(FULL_WARP, x.w, 1));
}

// The chunk at `col` of a row of `hidden`; zeroes beyond it. All lanes of a warp call it.
__device__ __forceinline__ F32x8 load_paired(const float* row, i32 col, i32 hidden) {
    const i32 first = pair_col(col);
    float4 a = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float4 b = a;
    if (first < hidden) a = *reinterpret_cast<const float4*>(row + first);
    if (first + CHUNK < hidden) b = *reinterpret_cast<const float4*>(row + first + CHUNK);
    const bool is_odd = threadIdx.x % 2;
    const float4 got = swapped(is_odd ? a : b);
    const float4 low = is_odd ? got : a;
    const float4 high = is_odd ? b : got;
    return {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
}

__device__ __forceinline__ void store_paired(float* row, i32 col, i32 hidden, const F32x8& v) {
    const float4 low = make_float4(v.x[0], v.x[1], v.x[2], v.x[3]);
    const float4 high = make_float4(v.x[4], v.x[5], v.x[6], v.x[7]);
    const bool is_odd = threadIdx.x % 2;
    const float4 got = swapped(is_odd ? low : high);
    const i32 first = pair_col(col);
    const float4 a = is_odd ? got : low;
    const float4 b = is_odd ? high : got;
    if (first < hidden) *reinterpret_cast<float4*>(row + first) = a;
    if (first + CHUNK < hidden) *reinterpret_cast<float4*>(row + first + CHUNK) = b;
}

// The rows that a cluster takes: all of the grid's, or those of the tokens that this rank owns.
template <bool OWNED> struct Walk {
    i32 row;
    i32 stride;

    __device__ __forceinline__ Walk(const Args& args, i32 cluster, i32 n_clusters)
        : row(cluster), stride(n_clusters) {
        // Rows that are picked say only when they are read whose they are.
        if (OWNED && !args.rows) {
            row = cluster * args.exchange.n_ranks + args.exchange.rank;
            stride = n_clusters * args.exchange.n_ranks;
        }
    }

    // The row's token, negative where there is nothing to do.
    __device__ __forceinline__ i32 token(const Args& args) const {
        if (row >= args.n_rows) return -1;
        if (!args.rows) return row;
        const i32 token = args.rows[row];
        if (OWNED && token % args.exchange.n_ranks != args.exchange.rank) return -1;
        return token;
    }
};

// The residual stream of a token's chunk as it was. All lanes of a warp call it.
__device__ __forceinline__ F32x8 residual_of(const Args& args, i32 token, i32 col) {
    if (token < 0 || !args.residual_in) return {};
    return load_paired(args.residual_in + i64(token) * args.hidden, col, args.hidden);
}

// The ranks' sum of a token's chunk. All loads are under way before the first is waited for: most
// of them come from other devices.
__device__ __forceinline__ F32x8 sum_of(const Args& args, i32 token, i32 col) {
    const i64 at = i64(token) * args.hidden + col;
    uint4 raw[N_RANKS_MAX];
#pragma unroll
    for (int r = 0; r < N_RANKS_MAX; r++) {
        // Minus zero, which added to any number leaves that number: ranks that are not there need
        // no branch.
        raw[r] = make_uint4(0x80008000u, 0x80008000u, 0x80008000u, 0x80008000u);
        if (r < args.exchange.n_ranks && col < args.hidden) {
            raw[r] = load_once(args.partials.of[r] + at);
        }
    }
    F32x8 sum = widened(raw[0]);
#pragma unroll
    for (int r = 1; r < N_RANKS_MAX; r++) {
        const F32x8 partial = widened(raw[r]);
#pragma unroll
        for (int i = 0; i < CHUNK; i++) sum.x[i] += partial.x[i];
    }
    return sum;
}

// Calls `finish(row, residual chunk, weights, parity)` for each row of this cluster, after the
// ranks have met, then stores the residual: a barrier between the blocks would wait for it. The
// parity alternates from one row that is finished to the next, for rooms that take turns.
template <bool OWNED, typename Finish>
__device__ __forceinline__ void for_each_row(const Args& args, const float* weight, i32 col,
                                             Finish finish) {
    const u32 n_row_blocks = args.ahead.first_block;
    if (blockIdx.x >= n_row_blocks) {
        fetch_ahead<N_THREADS>(args.ahead, blockIdx.x - n_row_blocks, gridDim.x - n_row_blocks);
        return;
    }
    u32 epoch = 0;
    if (args.exchange.n_ranks > 1) epoch = announce(args.exchange);
    const u32 n_blocks = cluster_size();
    if (n_blocks > 1) cluster_arrive_relaxed();
    // This rank's own numbers are on their way while the ranks meet.
    Walk<OWNED> walk(args, blockIdx.x / n_blocks, n_row_blocks / n_blocks);
    i32 token = walk.token(args);
    F32x8 v = residual_of(args, token, col);
    const F32x8 w = load_paired(weight, col, args.hidden);
    F32x8 column_scales = {};
    if (args.column_scales) column_scales = load_paired(args.column_scales, col, args.hidden);
    if (args.exchange.n_ranks > 1) await(args.exchange, epoch);
    if (n_blocks > 1) cluster_wait();
    for (int parity = 0; walk.row < args.n_rows;) {
        if (token >= 0) {
            F32x8 sum = sum_of(args, token, col);
            if (args.column_scales) {
#pragma unroll
                for (int i = 0; i < CHUNK; i++) sum.x[i] *= column_scales.x[i];
            }
            const float token_scale = args.token_scales ? args.token_scales[token] : 1.0f;
#pragma unroll
            for (int i = 0; i < CHUNK; i++) v.x[i] = __fadd_rn(v.x[i], sum.x[i] * token_scale);
            finish(walk.row, v, w, parity);
            float* out = args.residual_out + i64(token) * args.hidden;
            if (args.residual_out) store_paired(out, col, args.hidden, v);
            parity ^= 1;
        }
        walk.row += walk.stride;
        token = walk.token(args);
        v = residual_of(args, token, col);
    }
    if (OWNED) {
        leave_together(args.exchange, epoch, n_row_blocks);
    } else if (args.exchange.n_ranks > 1) {
        leave(args.exchange, epoch, n_row_blocks);
    }
}

// This thread's column.
__device__ __forceinline__ i32 own_col() {
    return i32(cluster_rank() * N_THREADS + threadIdx.x) * CHUNK;
}

// The norm of a residual chunk, whose weights are `w`.
__device__ __forceinline__ F32x8 normed(F32x8 v, const F32x8& w, i32 hidden, float eps,
                                        Room& room) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < CHUNK; i++) squares += v.x[i] * v.x[i];
    const float mean = cluster_reduce<Sum>(squares, room) / float(hidden);
    const float factor = 1.0f / sqrtf(mean + eps);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) v.x[i] = v.x[i] * factor * w.x[i];
    return v;
}

// What becomes of a row. `Out` and `Scales` are where it goes: the former says whether rows are
// OWNED.
template <typename Out>
__device__ __forceinline__ void norm_bf16(const Args& args, const float* weight, float eps,
                                          const Out& out) {
    __shared__ Room rooms[2];
    const i32 col = own_col(), hidden = args.hidden;
    for_each_row<Out::OWNED>(
        args, weight, col, [&](i32 row, const F32x8& x, const F32x8& w, int parity) {
            const F32x8 v = normed(x, w, hidden, eps, rooms[parity]);
            if (col < hidden) out.store(i64(row) * hidden + col, narrowed(v));
        });
}

template <typename Out>
__device__ __forceinline__ void norm_e4m3(const Args& args, const float* weight, float eps,
                                          const Out& out, float scale) {
    __shared__ Room rooms[2];
    const i32 col = own_col(), hidden = args.hidden;
    for_each_row<Out::OWNED>(
        args, weight, col, [&](i32 row, const F32x8& x, const F32x8& w, int parity) {
            const uint2 codes = quantized(normed(x, w, hidden, eps, rooms[parity]), scale);
            if (col < hidden) out.store(i64(row) * hidden + col, codes);
        });
}

template <typename Out, typename Scales>
__device__ __forceinline__ void norm_e4m3_token(const Args& args, const float* weight, float eps,
                                                const Out& out, const Scales& scales) {
    __shared__ Room rooms[2];
    __shared__ Room max_rooms[2];
    const i32 col = own_col(), hidden = args.hidden;
    for_each_row<Out::OWNED>(
        args, weight, col, [&](i32 row, const F32x8& x, const F32x8& w, int parity) {
            const F32x8 v = normed(x, w, hidden, eps, rooms[parity]);
            const float greatest = cluster_reduce<Max>(greatest_magnitude(v), max_rooms[parity]);
            const float scale = scale_of(greatest);
            if (col < hidden) out.store(i64(row) * hidden + col, quantized(v, scale));
            if (col == 0) scales.store(row, scale);
        });
}
