// The input of a projection that is cut by columns, rounded to e4m3 with a scale per token: the
// scale is of the whole row, of which this rank holds `width` columns.
//
//   x           bf16 [n_tokens, in_stride], of which width columns
//   magnitudes  f32 [n_tokens]: greatest magnitude of a row, in this rank's columns or in all
//   out         e4m3 [n_tokens, out_stride]: x / scale in width columns, then zeroes
//   scales      f32 [n_tokens]: greatest magnitude / 448, or 1
//
// `magnitudes_bf16` finds them for this rank. Then either somebody else takes the maximum over the
// ranks and `quantize_known` follows, or `quantize_exchanged` does both: it reads the magnitudes of
// all ranks from their memory, as common.cuh's Exchange says. A maximum has no order, so both give
// the same bits. `quantize_static` is for a scale that a checkpoint has fixed.
//
// Who owns what: a block of `magnitudes_bf16` has a token. The others cut each row into tiles of
// N_THREADS chunks, one chunk a thread: block (i, t) has tile i of token t, except in
// `quantize_exchanged`, whose blocks must all be resident: each has a run of neighbouring tiles, so
// that it asks the other ranks for few tokens' magnitudes, and one warp of it asks for each once.
//
// Bound: 2 * width bytes read a token, and width written where codes are.
//
// sass magnitudes_bf16: LDG.128 4
// sass quantize_static: LDG.128 1, STG.64 1
// sass quantize_known: LDG.128 1, STG.64 1
// sass quantize_exchanged: LDG.128 1, STG.64 1
#include "common.cuh"

constexpr int N_THREADS = 128;
constexpr int N_THREADS_ROW = 256;
// Loads that a thread has under way.
constexpr int N_IN_FLIGHT = 4;

extern "C" __global__ void __launch_bounds__(N_THREADS_ROW)
magnitudes_bf16(const bf16* __restrict__ x, float* __restrict__ magnitudes, i32 width,
                i32 in_stride, i32 is_wide) {
    __shared__ float room[N_THREADS_ROW / 32];
    const bf16* row = x + i64(blockIdx.x) * in_stride;
    constexpr i32 STEP = N_THREADS_ROW * CHUNK;
    float greatest = 0.0f;
    for (i32 first = threadIdx.x * CHUNK; first < width; first += N_IN_FLIGHT * STEP) {
        uint4 chunks[N_IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < N_IN_FLIGHT; i++) {
            const i32 col = first + i * STEP;
            chunks[i] = make_uint4(0, 0, 0, 0);
            if (col < width) chunks[i] = load_chunk(row + col, width - col, is_wide);
        }
#pragma unroll
        for (int i = 0; i < N_IN_FLIGHT; i++) {
            greatest = fmaxf(greatest, greatest_magnitude(widened(chunks[i])));
        }
    }
    greatest = block_reduce<Max, N_THREADS_ROW>(greatest, room);
    if (threadIdx.x == 0) magnitudes[blockIdx.x] = greatest;
}

struct Rows {
    const bf16* x;
    e4m3* out;
    i32 width;
    i32 in_stride;
    i32 out_stride;
    bool is_wide;
};

#define PARAMS                                                                             \
    const bf16 *__restrict__ x, e4m3 *__restrict__ out, i32 width, i32 in_stride,          \
        i32 out_stride, i32 is_wide
#define ROWS \
    Rows { x, out, width, in_stride, out_stride, is_wide != 0 }

// The first column of this thread in tile `tile`.
__device__ __forceinline__ i32 col_of(i32 tile) { return (tile * N_THREADS + threadIdx.x) * CHUNK; }

__device__ __forceinline__ void quantize_chunk(const Rows& rows, i32 token, i32 col, float scale) {
    if (col >= rows.out_stride) return;
    F32x8 v = {};
    const i32 n_left = rows.width - col;
    if (n_left > 0) {
        v = widened(load_chunk(rows.x + i64(token) * rows.in_stride + col, n_left, rows.is_wide));
    }
    e4m3* place = rows.out + i64(token) * rows.out_stride + col;
    store_chunk(place, quantized(v, scale), rows.out_stride - col, rows.is_wide);
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
quantize_static(PARAMS, float scale) {
    quantize_chunk(ROWS, blockIdx.y, col_of(blockIdx.x), scale);
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
quantize_known(PARAMS, const float* __restrict__ magnitudes, float* __restrict__ scales) {
    const i32 token = blockIdx.y;
    const float scale = scale_of(magnitudes[token]);
    quantize_chunk(ROWS, token, col_of(blockIdx.x), scale);
    if (blockIdx.x == 0 && threadIdx.x == 0) scales[token] = scale;
}

// The scale of a token's whole row, in the first warp.
__device__ __forceinline__ float scale_over_ranks(const OfRanks<const float>& magnitudes,
                                                  i32 n_ranks, i32 token) {
    float of_ranks[N_RANKS_MAX];
#pragma unroll
    for (int r = 0; r < N_RANKS_MAX; r++) {
        const bool is_wanted = threadIdx.x < 32 && r < n_ranks;
        of_ranks[r] = is_wanted ? magnitudes.of[r][token] : 0.0f;
    }
    float greatest = 0.0f;
#pragma unroll
    for (int r = 0; r < N_RANKS_MAX; r++) greatest = fmaxf(greatest, of_ranks[r]);
    return scale_of(greatest);
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
quantize_exchanged(PARAMS, const OfRanks<const float> magnitudes, float* __restrict__ scales,
                   i32 n_tokens, const Exchange exchange) {
    __shared__ float scale_of_token;
    const u32 epoch = announce(exchange);
    await(exchange, epoch);
    const i32 n_tiles = (out_stride + N_THREADS * CHUNK - 1) / (N_THREADS * CHUNK);
    const i64 n = i64(n_tokens) * n_tiles;
    const i64 end = n * (blockIdx.x + 1) / gridDim.x;
    i64 i = n * blockIdx.x / gridDim.x;
    i32 token = i32(i / n_tiles);
    i32 tile = i32(i % n_tiles);
    bool is_new = true;
    for (; i < end; i++) {
        if (is_new) {
            // Nobody looks at the last token's any more.
            __syncthreads();
            const float scale = scale_over_ranks(magnitudes, exchange.n_ranks, token);
            if (threadIdx.x == 0) scale_of_token = scale;
            __syncthreads();
        }
        quantize_chunk(ROWS, token, col_of(tile), scale_of_token);
        if (tile == 0 && threadIdx.x == 0) scales[token] = scale_of_token;
        is_new = ++tile == n_tiles;
        if (is_new) tile = 0, token++;
    }
    leave(exchange, epoch, gridDim.x);
}
