// The input of a projection that is cut by columns, rounded to e4m3 with a scale per token: the
// scale is of the whole row, of which this rank holds `width` columns.
//
//   x           bf16 [n_tokens, width]
//   magnitudes  f32 [n_tokens]: greatest magnitude of a row, in this rank's columns or in all
//   out         e4m3 [n_tokens, width]: x / scale
//   scales      f32 [n_tokens]: greatest magnitude / 448, or 1
//
// `magnitudes_bf16` finds them for this rank. Then either somebody else takes the maximum over the
// ranks and `quantize_known` follows, or `quantize_exchanged` does both: it reads the magnitudes of
// all ranks from their memory, as common.cuh's Exchange says. A maximum has no order, so both give
// the same bits. `quantize_static` is for a scale that a checkpoint has fixed.
//
// Who owns what: a block of `magnitudes_bf16` has a token. The others cut each row into tiles of
// N_THREADS chunks, one chunk a thread: block (i, t) has tile i of token t, except in
// `quantize_exchanged`, whose blocks must all be resident and stride over the tiles of all rows.
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
magnitudes_bf16(const bf16* __restrict__ x, float* __restrict__ magnitudes, i32 width) {
    __shared__ float room[N_THREADS_ROW / 32];
    const bf16* row = x + i64(blockIdx.x) * width;
    const bool is_wide = width % CHUNK == 0;
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

__device__ __forceinline__ void quantize_chunk(const bf16* x, e4m3* out, i32 token, i32 col,
                                               i32 width, float scale) {
    if (col >= width) return;
    const bool is_wide = width % CHUNK == 0;
    const i64 at = i64(token) * width + col;
    const F32x8 v = widened(load_chunk(x + at, width - col, is_wide));
    store_chunk(out + at, quantized(v, scale), width - col, is_wide);
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
quantize_static(const bf16* __restrict__ x, e4m3* __restrict__ out, i32 width, float scale) {
    const i32 col = (blockIdx.x * N_THREADS + threadIdx.x) * CHUNK;
    quantize_chunk(x, out, blockIdx.y, col, width, scale);
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
quantize_known(const bf16* __restrict__ x, const float* __restrict__ magnitudes,
               e4m3* __restrict__ out, float* __restrict__ scales, i32 width) {
    const i32 token = blockIdx.y;
    const float scale = scale_of(magnitudes[token]);
    const i32 col = (blockIdx.x * N_THREADS + threadIdx.x) * CHUNK;
    quantize_chunk(x, out, token, col, width, scale);
    if (blockIdx.x == 0 && threadIdx.x == 0) scales[token] = scale;
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
quantize_exchanged(const bf16* __restrict__ x, const OfRanks<const float> magnitudes,
                   e4m3* __restrict__ out, float* __restrict__ scales, i32 n_tokens, i32 width,
                   const Exchange exchange) {
    const u32 epoch = enter(exchange);
    constexpr i32 TILE = N_THREADS * CHUNK;
    const i32 n_tiles = (width + TILE - 1) / TILE;
    for (i64 i = blockIdx.x; i < i64(n_tokens) * n_tiles; i += gridDim.x) {
        const i32 token = i32(i / n_tiles);
        const i32 tile = i32(i % n_tiles);
        float of_ranks[N_RANKS_MAX];
#pragma unroll
        for (int r = 0; r < N_RANKS_MAX; r++) {
            of_ranks[r] = r < exchange.n_ranks ? magnitudes.of[r][token] : 0.0f;
        }
        float greatest = 0.0f;
#pragma unroll
        for (int r = 0; r < N_RANKS_MAX; r++) greatest = fmaxf(greatest, of_ranks[r]);
        const float scale = scale_of(greatest);
        quantize_chunk(x, out, token, tile * TILE + threadIdx.x * CHUNK, width, scale);
        if (tile == 0 && threadIdx.x == 0) scales[token] = scale;
    }
    leave(exchange, epoch);
}
