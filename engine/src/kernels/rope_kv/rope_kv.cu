// Queries and keys turned by their positions; keys and values written to their pages.
//
// Fused: the scales that the q|k|v projection left over, the rotation of halves (pair i is elements
// i and i + head_dim / 2), the rounding of queries to bf16, and of keys and values to the cache's
// element type.
//
//   wide           bf16 [n_tokens, wide_stride], of which (n_q_heads + 2 * n_kv_heads) * head_dim
//                  columns: queries, keys, values
//   q_factor, k_factor, v_factor   multiply the three parts
//   column_scales  f32 [columns of wide] or null, token_scales f32 [n_tokens] or null: further
//                  factors, of the weights' rows and of the input's rows
//   frequencies    f64 [head_dim / 2]: pair i turns by position * frequencies[i]
//   positions      i32 [n_tokens]
//   slots          i32 [n_tokens]: whose page table; negative means that the token is padding:
//                  nothing of it is read or written
//   page_tables    i32 [n_slots, n_pages_per_slot]
//   q              bf16 [n_tokens, n_q_heads * head_dim]
//   keys, values   bf16 or e4m3 [page][kv_head][token of PAGE_TOKENS][head_dim]; an e4m3 cache
//                  holds key / k_scale and value / v_scale
//
// Who owns what: a block has a token. Its threads first share out the pairs' angles, then the
// heads' chunks: a thread has a chunk of the lower half and the one opposite.
//
// Angles are float64 until sine and cosine themselves, as on the processor: at position 100,000 a
// float32 angle would be off in its third decimal. 64 pairs a token cost less than the loads.
//
// Bound: 2 bytes read for each column of `wide`, as many written for queries, and the cache's
// element for keys and values.
//
// sass rope_kv_bf16: LDG.128 2, STG.128 2
// sass rope_kv_e4m3: LDG.128 2, STG.64 2
#include "common.cuh"

constexpr int N_THREADS_MAX = 256;
constexpr int PAGE_TOKENS = 16;
constexpr int N_PAIRS_MAX = 256;

struct Args {
    const bf16* wide;
    const float* column_scales;
    const float* token_scales;
    const double* frequencies;
    const i32* positions;
    const i32* slots;
    const i32* page_tables;
    bf16* q;
    i32 wide_stride;
    i32 n_pages_per_slot;
    i32 n_q_heads;
    i32 n_kv_heads;
    i32 head_dim;
    bool is_wide;
    float q_factor;
    float k_factor;
    float v_factor;
    float k_scale;
    float v_scale;
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
        wide, column_scales, token_scales, frequencies, positions, slots, page_tables, q,   \
            wide_stride, n_pages_per_slot, n_q_heads, n_kv_heads, head_dim, is_wide != 0,   \
            q_factor, k_factor, v_factor, k_scale, v_scale                                  \
    }

struct Angles {
    float cos[N_PAIRS_MAX];
    float sin[N_PAIRS_MAX];
};

// Cosine and sine of an angle below 2^31 * pi / 2: a quarter turn is taken off as often as it
// fits, with pi / 2 in two parts; what is left, at most pi / 4, goes through the polynomials of
// fdlibm. The error is below 2^-52, so that rounding to f32 decides nearly alone.
__device__ __forceinline__ float2 cos_sin(double angle) {
    const i32 n_quarters = __double2int_rn(angle * 0.63661977236758134308);
    double x = fma(-double(n_quarters), 1.57079632679489655800, angle);
    x = fma(-double(n_quarters), 6.12323399573676603587e-17, x);
    const double z = x * x;
    double s = fma(z, 1.58969099521155010221e-10, -2.50507602534068634195e-08);
    s = fma(z, s, 2.75573137070700676789e-06);
    s = fma(z, s, -1.98412698298579493134e-04);
    s = fma(z, s, 8.33333333332248946124e-03);
    s = fma(z, s, -1.66666666666666324348e-01);
    s = fma(z * x, s, x);
    double c = fma(z, -1.13596475577881948265e-11, 2.08757232129817482790e-09);
    c = fma(z, c, -2.75573143513906633035e-07);
    c = fma(z, c, 2.48015872894767294178e-05);
    c = fma(z, c, -1.38888888888741095749e-03);
    c = fma(z, c, 4.16666666666666019037e-02);
    c = fma(z * z, c, fma(z, -0.5, 1.0));
    const float of_cos = float(n_quarters & 1 ? s : c);
    const float of_sin = float(n_quarters & 1 ? c : s);
    return make_float2((n_quarters + 1) & 2 ? -of_cos : of_cos, n_quarters & 2 ? -of_sin : of_sin);
}

// The chunk at `col` of a token's row, with every scale that was left over.
__device__ __forceinline__ F32x8 finished(const Args& args, i64 row, i32 col, float factor,
                                          i32 n_left, bool is_wide) {
    F32x8 v = widened(load_chunk(args.wide + row + col, n_left, is_wide));
    if (args.column_scales) {
        const F32x8 scales = load_chunk(args.column_scales + col, n_left, is_wide);
#pragma unroll
        for (int i = 0; i < CHUNK; i++) v.x[i] *= scales.x[i];
    }
#pragma unroll
    for (int i = 0; i < CHUNK; i++) v.x[i] *= factor;
    return v;
}

__device__ __forceinline__ void store_cached(bf16* p, const F32x8& v, float, i32 n, bool is_wide) {
    store_chunk(p, v, n, is_wide);
}

__device__ __forceinline__ void store_cached(e4m3* p, const F32x8& v, float scale, i32 n,
                                             bool is_wide) {
    store_chunk(p, quantized(v, scale), n, is_wide);
}

template <typename Cached>
__device__ __forceinline__ void rotate_and_write(const Args& args, Cached* keys, Cached* values) {
    __shared__ Angles angles;
    const i32 token = blockIdx.x;
    const i32 slot = args.slots[token];
    if (slot < 0) return;
    const i32 position = args.positions[token];
    const i32 half = args.head_dim / 2;
    for (i32 i = threadIdx.x; i < half; i += blockDim.x) {
        const float2 turn = cos_sin(double(position) * args.frequencies[i]);
        angles.cos[i] = turn.x;
        angles.sin[i] = turn.y;
    }
    __syncthreads();

    const i64 table = i64(slot) * args.n_pages_per_slot;
    const i32 page = args.page_tables[table + position / PAGE_TOKENS];
    const i32 n_heads = args.n_q_heads + 2 * args.n_kv_heads;
    const i64 row = i64(token) * args.wide_stride;
    const float token_scale = args.token_scales ? args.token_scales[token] : 1.0f;
    const bool is_wide = args.is_wide;
    const i32 n_chunks = (half + CHUNK - 1) / CHUNK;

    for (i32 i = threadIdx.x; i < n_heads * n_chunks; i += blockDim.x) {
        const i32 head = i / n_chunks;
        const i32 pair = i % n_chunks * CHUNK;
        const i32 n_left = half - pair;
        const i32 kv_head = head - args.n_q_heads;
        const bool is_query = kv_head < 0;
        const bool is_value = kv_head >= args.n_kv_heads;
        const float part = is_query ? args.q_factor : is_value ? args.v_factor : args.k_factor;
        const i32 col = head * args.head_dim + pair;
        const float factor = part * token_scale;
        F32x8 low = finished(args, row, col, factor, n_left, is_wide);
        F32x8 high = finished(args, row, col + half, factor, n_left, is_wide);
        if (!is_value) {
#pragma unroll
            for (int j = 0; j < CHUNK; j++) {
                // Beyond a narrow head's pairs: what is computed there is not stored.
                const i32 at = min(pair + j, half - 1);
                const float cos = angles.cos[at];
                const float sin = angles.sin[at];
                const float a = low.x[j];
                const float b = high.x[j];
                low.x[j] = a * cos - b * sin;
                high.x[j] = b * cos + a * sin;
            }
        }
        if (is_query) {
            bf16* place = args.q + i64(token) * args.n_q_heads * args.head_dim + col;
            store_chunk(place, low, n_left, is_wide);
            store_chunk(place + half, high, n_left, is_wide);
        } else {
            const i32 cached_head = is_value ? kv_head - args.n_kv_heads : kv_head;
            const i64 run = i64(page) * args.n_kv_heads + cached_head;
            const i64 at = (run * PAGE_TOKENS + position % PAGE_TOKENS) * args.head_dim + pair;
            Cached* place = (is_value ? values : keys) + at;
            const float scale = is_value ? args.v_scale : args.k_scale;
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
