// What becomes of a projection's columns before attention: the scales that the product left over,
// then, of queries and keys, the rotation of halves (pair i is elements i and i + head_dim / 2).
// Shared by `rope_kv.cu`, and by the decoding kernels of `attention.cu`, which do it themselves.
//
//   wide           bf16 [n_tokens, stride], of which (n_q_heads + 2 * n_kv_heads) * head_dim
//                  columns: queries, keys, values
//   q_factor, k_factor, v_factor   multiply the three parts
//   column_scales  f32 [columns of wide] or null, token_scales f32 [n_tokens] or null: further
//                  factors, of the weights' rows and of the input's rows
//   frequencies    f64 [head_dim / 2]: pair i turns by position * frequencies[i]
//   k_scale, v_scale   an e4m3 cache holds key / k_scale and value / v_scale
//
// Angles are float64 until sine and cosine themselves, as on the processor: at position 100,000 a
// float32 angle would be off in its third decimal. 64 pairs a token cost less than the loads.
#pragma once

#include "common.cuh"

struct Projected {
    const bf16* wide;
    const float* column_scales;
    const float* token_scales;
    const double* frequencies;
    i32 stride;
    float q_factor;
    float k_factor;
    float v_factor;
    float k_scale;
    float v_scale;
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

// By how much a token's pairs turn.
template <i32 N_PAIRS_MAX> struct Angles {
    float cos[N_PAIRS_MAX];
    float sin[N_PAIRS_MAX];

    // All threads of a block share the pairs out; a barrier must follow.
    __device__ __forceinline__ void find(const double* frequencies, i32 n_pairs, i32 position) {
        for (i32 i = threadIdx.x; i < n_pairs; i += blockDim.x) {
            const float2 turn = cos_sin(double(position) * frequencies[i]);
            cos[i] = turn.x;
            sin[i] = turn.y;
        }
    }

    // Turns the chunk of pairs that begins at `pair`. The products are rounded as they are told to
    // be, so that whoever turns gets the same bits.
    __device__ __forceinline__ void turn(F32x8& low, F32x8& high, i32 pair, i32 n_pairs) const {
#pragma unroll
        for (int j = 0; j < CHUNK; j++) {
            // Beyond a narrow head's pairs: what is computed there is not stored.
            const i32 at = min(pair + j, n_pairs - 1);
            const float a = low.x[j];
            const float b = high.x[j];
            low.x[j] = __fmaf_rn(a, cos[at], -__fmul_rn(b, sin[at]));
            high.x[j] = __fmaf_rn(b, cos[at], __fmul_rn(a, sin[at]));
        }
    }
};

// The chunk at `col` of the row that begins at `row`, with every scale that was left over.
__device__ __forceinline__ F32x8 finished(const Projected& projected, i64 row, i32 col,
                                          float factor, i32 n_left, bool is_wide) {
    F32x8 v = widened(load_chunk(projected.wide + row + col, n_left, is_wide));
    if (projected.column_scales) {
        const F32x8 scales = load_chunk(projected.column_scales + col, n_left, is_wide);
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
