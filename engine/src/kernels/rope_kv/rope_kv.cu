// Queries and keys turned by their positions; keys and values written to their pages.
//
// Fused: what `rope.cuh` says of a projection's columns, the rounding of queries to bf16, and of
// keys and values to the cache's element type.
//
//   projected      `rope.cuh`
//   positions      i32 [n_tokens]
//   slots          i32 [n_tokens]: whose page table; negative means that the token is padding:
//                  nothing of it is read or written
//   page_tables    i32 [n_slots, n_pages_per_slot]
//   q              bf16 [n_tokens, n_q_heads * head_dim]
//   keys, values   bf16 or e4m3 [page][kv_head][token of PAGE_TOKENS][head_dim]
//
// Who owns what: a block has a token. Its threads first share out the pairs' angles, then the
// heads' chunks: a thread has a chunk of the lower half and the one opposite.
//
// Bound: 2 bytes read for each column of `wide`, as many written for queries, and the cache's
// element for keys and values.
//
// sass rope_kv_bf16: LDG.128 2, STG.128 2
// sass rope_kv_e4m3: LDG.128 2, STG.64 2
#include "common.cuh"
#include "rope_kv/rope.cuh"

constexpr int N_THREADS_MAX = 256;
constexpr int PAGE_TOKENS = 16;
constexpr int N_PAIRS_MAX = 256;

struct Args {
    Projected projected;
    const i32* positions;
    const i32* slots;
    const i32* page_tables;
    bf16* q;
    i32 n_pages_per_slot;
    i32 n_q_heads;
    i32 n_kv_heads;
    i32 head_dim;
    bool is_wide;
};

#define PARAMS                                                                              \
    const bf16 *__restrict__ wide, const float *__restrict__ column_scales,                 \
        const float *__restrict__ token_scales, const double *__restrict__ frequencies,     \
        const i32 *__restrict__ positions, const i32 *__restrict__ slots,                   \
        const i32 *__restrict__ page_tables, bf16 *__restrict__ q, i32 wide_stride,         \
        i32 n_pages_per_slot, i32 n_q_heads, i32 n_kv_heads, i32 head_dim, i32 is_wide,     \
        float q_factor, float k_factor, float v_factor, float k_scale, float v_scale
#define ARGS                                                                                \
    Args {                                                                                  \
        Projected{wide, column_scales, token_scales, frequencies, wide_stride, q_factor,    \
                  k_factor, v_factor, k_scale, v_scale},                                    \
            positions, slots, page_tables, q, n_pages_per_slot, n_q_heads, n_kv_heads,      \
            head_dim, is_wide != 0                                                          \
    }

template <typename Cached>
__device__ __forceinline__ void rotate_and_write(const Args& args, Cached* keys, Cached* values) {
    __shared__ Angles<N_PAIRS_MAX> angles;
    const Projected& projected = args.projected;
    const i32 token = blockIdx.x;
    const i32 slot = args.slots[token];
    if (slot < 0) return;
    const i32 position = args.positions[token];
    const i32 half = args.head_dim / 2;
    angles.find(projected.frequencies, half, position);
    __syncthreads();

    const i64 table = i64(slot) * args.n_pages_per_slot;
    const i32 page = args.page_tables[table + position / PAGE_TOKENS];
    const i32 n_heads = args.n_q_heads + 2 * args.n_kv_heads;
    const i64 row = i64(token) * projected.stride;
    const float token_scale = projected.token_scales ? projected.token_scales[token] : 1.0f;
    const bool is_wide = args.is_wide;
    const i32 n_chunks = (half + CHUNK - 1) / CHUNK;

    for (i32 i = threadIdx.x; i < n_heads * n_chunks; i += blockDim.x) {
        const i32 head = i / n_chunks;
        const i32 pair = i % n_chunks * CHUNK;
        const i32 n_left = half - pair;
        const i32 kv_head = head - args.n_q_heads;
        const bool is_query = kv_head < 0;
        const bool is_value = kv_head >= args.n_kv_heads;
        const float part = is_query   ? projected.q_factor
                           : is_value ? projected.v_factor
                                      : projected.k_factor;
        const i32 col = head * args.head_dim + pair;
        const float factor = part * token_scale;
        F32x8 low = finished(projected, row, col, factor, n_left, is_wide);
        F32x8 high = finished(projected, row, col + half, factor, n_left, is_wide);
        if (!is_value) angles.turn(low, high, pair, half);
        if (is_query) {
            bf16* place = args.q + i64(token) * args.n_q_heads * args.head_dim + col;
            store_chunk(place, low, n_left, is_wide);
            store_chunk(place + half, high, n_left, is_wide);
        } else {
            const i32 cached_head = is_value ? kv_head - args.n_kv_heads : kv_head;
            const i64 run = i64(page) * args.n_kv_heads + cached_head;
            const i64 at = (run * PAGE_TOKENS + position % PAGE_TOKENS) * args.head_dim + pair;
            Cached* place = (is_value ? values : keys) + at;
            const float scale = is_value ? projected.v_scale : projected.k_scale;
            store_cached(place, low, scale, n_left, is_wide);
            store_cached(place + half, high, scale, n_left, is_wide);
        }
    }
}

extern "C" __global__ void __launch_bounds__(N_THREADS_MAX)
rope_kv_bf16(PARAMS, bf16* __restrict__ keys, bf16* __restrict__ values) {
    rotate_and_write(ARGS, keys, values);
}

extern "C" __global__ void __launch_bounds__(N_THREADS_MAX)
rope_kv_e4m3(PARAMS, e4m3* __restrict__ keys, e4m3* __restrict__ values) {
    rotate_and_write(ARGS, keys, values);
}
