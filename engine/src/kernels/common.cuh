// What the families share: numbers as memory holds them, reductions in a fixed order, clusters.
//
// A chunk is eight neighbouring columns of a row: 16 bytes of bf16, 32 of f32, 8 of e4m3. Chunks
// are moved whole where rows are multiples of eight and element by element where they are not, so
// that no width is refused. Everything here is device code; nothing knows a model.
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

// Columns at `p`, of which `n_left` are the row's. `is_wide`: rows are multiples of a chunk, so
// that the whole chunk is there and its address divides by 16. What is missing reads as zero.
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

__device__ __forceinline__ void store_chunk(bf16* p, const F32x8& v, i32 n_left, bool is_wide) {
    const uint4 raw = narrowed(v);
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

// Every thread of the cluster arrives, then waits; what was written before the one is seen after
// the other, shared memory of other blocks included.
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
