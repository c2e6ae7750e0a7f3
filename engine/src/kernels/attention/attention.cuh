// What decode and prefill share: arguments, products on the tensor cores, the running softmax.
//
// Layouts
//   q       bf16 [token][q_head][D], tokens `q_stride` elements apart, rotated; null where decode
//           takes a projection's columns in its place, and writes the cache as well
//   cache   keys and values apart, [page][kv_head][16][D], bf16 or e4m3
//   tables  i32 [slot][entry]: the page that holds positions 16 * entry ..
//   rows    int4 (slot, token_idx, n_tokens, start); slot -1 is padding and does nothing
//   out     bf16 or e4m3 [token][q_head][D], tokens `out_stride` elements apart
//
// Numerics: products of bf16 (e4m3 is widened, which is exact) are summed in f32; softmax is in f32
// and to the base 2; weights are rounded to bf16 before they meet the values, and the sum that
// divides is of the rounded ones.
#pragma once

#include "common.cuh"

using u8 = unsigned char;

constexpr int PAGE_TOKENS = 16;
// Rows of an mma's first operand: query heads of a key/value head, or those of several tokens.
constexpr int MMA_ROWS = 16;

struct Args {
    const bf16* q;
    u8* keys;
    u8* values;
    const int* tables;
    const int4* rows;
    u8* out;
    // Decode only: sums of the parts of a context, [row][kv_head][part], in the mma's own order.
    float4* part_sums;
    // Decode only: (greatest score, sum of weights), [row][kv_head][part][16].
    float2* part_stats;
    // Decode only: parts that have arrived, [row][kv_head]; zero before and after a launch.
    u32* n_arrived;
    u32 q_stride;
    u32 out_stride;
    u32 n_table_entries;
    u32 n_rows;
    u32 n_kv_heads;
    // Query heads of a key/value head, 1 ..= 16.
    u32 group;
    // Positions that a token sees, its own among them.
    u32 window;
    // Whether out is e4m3.
    u32 out_is_f8;
    // Of a dot product, to the base 2: k_scale / sqrt(D) * log2(e).
    float score_factor;
    // Of a weighted mean of stored values: v_scale.
    float value_factor;
    // An e4m3 out holds e4m3(clamp(x / out_scale, ±448)).
    float out_scale;
    u32 unused;
};
static_assert(sizeof(Args) == 120, "as the launcher has it, without gaps");

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 16x8 += 16x16 * 16x8.
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float low_bf16(u32 packed) { return __uint_as_float(packed << 16); }

__device__ __forceinline__ float high_bf16(u32 packed) {
    return __uint_as_float(packed & 0xffff0000);
}

// Two e4m3 in the low half of `pair`, as bf16: exact, NaN stays NaN.
__device__ __forceinline__ u32 widen_f8x2(u32 pair) {
    u32 halves;
    asm("{ .reg .b16 p; cvt.u16.u32 p, %1; cvt.rn.f16x2.e4m3x2 %0, p; }"
        : "=r"(halves) : "r"(pair));
    const float2 x = __half22float2(*reinterpret_cast<const __half2*>(&halves));
    return bf16_pair(x.x, x.y);
}

// Takes BYTES at `from`, or zeroes where `is_there` is false: then nothing is read. A predicate and
// no branch, so that the warp stays together for its next mma.
template <int BYTES>
__device__ __forceinline__ void load(u32* words, const void* from, bool is_there) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "one load");
#pragma unroll
    for (int w = 0; w < BYTES / 4; w++) words[w] = 0;
    if constexpr (BYTES == 16) {
        asm volatile(
            "{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4]; }"
            : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
            : "l"(from), "r"(u32(is_there)));
    } else if constexpr (BYTES == 8) {
        asm volatile(
            "{ .reg .pred p; setp.ne.u32 p, %3, 0; @p ld.global.nc.v2.u32 {%0, %1}, [%2]; }"
            : "+r"(words[0]), "+r"(words[1])
            : "l"(from), "r"(u32(is_there)));
    } else {
        asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.nc.u32 %0, [%1]; }"
                     : "+r"(words[0])
                     : "l"(from), "r"(u32(is_there)));
    }
}

// The same into shared memory, under way until it is awaited. `policy` is the L2 cache's.
template <int BYTES>
__device__ __forceinline__ void copy_async(u8* to, const u8* from, bool is_there, u64 policy) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "one copy");
    const u32 place = __cvta_generic_to_shared(to);
    const u32 n_bytes = is_there ? BYTES : 0;
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;"
                     :
                     : "r"(place), "l"(from), "r"(n_bytes), "l"(policy)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], %2, %3, %4;"
                     :
                     : "r"(place), "l"(from), "n"(BYTES), "r"(n_bytes), "l"(policy)
                     : "memory");
    }
}

// The policy of what is read once.
__device__ __forceinline__ u64 read_once() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// What this thread has asked for since the last of these is a group.
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most N of this thread's groups are under way.
template <int N> __device__ __forceinline__ void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Greatest of the four lanes that share an mma row. NaN is passed over: it comes back as a weight.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}

// What weights refer to: 0 stands in while nothing was seen, so that no infinities are subtracted.
__device__ __forceinline__ float reference(float greatest) {
    return greatest == minus_infinity() ? 0.0f : greatest;
}

// Softmax in progress for the two mma rows of a lane, and its weighted sum of values.
template <int D> struct Running {
    float greatest[2];
    // Of this lane's columns only.
    float sum[2];
    float values[D / 8][4];

    __device__ __forceinline__ void begin() {
        greatest[0] = greatest[1] = minus_infinity();
        sum[0] = sum[1] = 0.0f;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            values[j][0] = values[j][1] = values[j][2] = values[j][3] = 0.0f;
        }
    }

    // Takes N tiles of eight scores (base 2, masked ones -infinity) and leaves their weights as
    // operands of the product with the values.
    template <int N> __device__ __forceinline__ void weigh(float (&s)[N][4], u32 (&w)[N / 2][4]) {
        float scale[2], refer[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float most = greatest[r];
#pragma unroll
            for (int i = 0; i < N; i++) most = fmaxf(most, fmaxf(s[i][2 * r], s[i][2 * r + 1]));
            most = quad_max(most);
            refer[r] = reference(most);
            scale[r] = exp2_approx(greatest[r] - refer[r]);
            greatest[r] = most;
        }
        // A scale of one changes nothing: most tiles have no new greatest.
        if (__any_sync(FULL_WARP, scale[0] != 1.0f || scale[1] != 1.0f)) {
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                values[j][0] *= scale[0], values[j][1] *= scale[0];
                values[j][2] *= scale[1], values[j][3] *= scale[1];
            }
            sum[0] *= scale[0], sum[1] *= scale[1];
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const u32 pair = bf16_pair(exp2_approx(s[i][2 * r] - refer[r]),
                                           exp2_approx(s[i][2 * r + 1] - refer[r]));
                sum[r] += low_bf16(pair) + high_bf16(pair);
                w[i / 2][(i % 2) * 2 + r] = pair;
            }
        }
    }
};

// Two neighbouring outputs.
__device__ __forceinline__ void store_pair(const Args& args, i64 element, float x, float y) {
    x *= args.value_factor, y *= args.value_factor;
    if (args.out_is_f8) {
        const float2 scaled = make_float2(x / args.out_scale, y / args.out_scale);
        *reinterpret_cast<__nv_fp8x2_storage_t*>(args.out + element) =
            __nv_cvt_float2_to_fp8x2(scaled, __NV_SATFINITE, __NV_E4M3);
    } else {
        *reinterpret_cast<u32*>(args.out + 2 * element) = bf16_pair(x, y);
    }
}

// The widths of heads and the bytes of stored numbers that there are kernels for, by the names that
// the launcher calls them.
#define FOR_EACH_SHAPE(KERNEL) \
    KERNEL(d32_bf16, 32, 2)    \
    KERNEL(d64_bf16, 64, 2)    \
    KERNEL(d96_bf16, 96, 2)    \
    KERNEL(d128_bf16, 128, 2)  \
    KERNEL(d32_f8, 32, 1)      \
    KERNEL(d64_f8, 64, 1)      \
    KERNEL(d96_f8, 96, 1)      \
    KERNEL(d128_f8, 128, 1)
