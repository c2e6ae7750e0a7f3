// The gated activation of an FFN: out = quantize(silu(gate) * up), silu(x) = x / (1 + exp(-x)).
//
// Fused: the scales that the gate/up projection left over, the activation, the product, and the
// rounding that the down projection asks for.
//
//   gate_up        bf16 [n_tokens, in_stride], of which 2 * width columns: gate, then up
//   gate_factor, up_factor   multiply the halves: input scale times weight scale, or 1
//   column_scales  f32 [2 * width] or null: further factors, of the weights' rows
//   token_scales   f32 [n_tokens] or null: further factors, of the input's rows
//   out            bf16 or e4m3 [n_tokens, out_stride]: width columns, then zeroes
//   magnitudes     f32 [n_tokens], written by the kernel that is named for them: a row's greatest in
//                  this rank's columns
//
// Who owns what: block (i, t) of the plain kernels has columns [i, i + 1) * N_THREADS * 8 of token
// t, a thread one chunk of each half. Where magnitudes are wanted a token has a cluster, whose blocks
// stride over its columns; its maximum does not depend on their number.
//
// Bound: 4 * width bytes read and 2 * width (bf16) or width (e4m3) written a token.
//
// sass swiglu_bf16: LDG.128 2, STG.128 1
// sass swiglu_e4m3: LDG.128 2, STG.64 1
// sass swiglu_bf16_magnitudes: LDG.128 2, STG.128 1
#include "common.cuh"

constexpr int N_THREADS = 128;
constexpr int N_THREADS_ROW = 256;

struct Args {
    const bf16* gate_up;
    const float* column_scales;
    const float* token_scales;
    i32 width;
    i32 in_stride;
    i32 out_stride;
    bool is_wide;
    float gate_factor;
    float up_factor;
};

// What every kernel starts with, and the same as one value.
#define PARAMS                                                                           \
    const bf16 *__restrict__ gate_up, const float *__restrict__ column_scales,           \
        const float *__restrict__ token_scales, i32 width, i32 in_stride, i32 out_stride, \
        i32 is_wide, float gate_factor, float up_factor
#define ARGS                                                                             \
    Args {                                                                               \
        gate_up, column_scales, token_scales, width, in_stride, out_stride, is_wide != 0, \
            gate_factor, up_factor                                                       \
    }

// Activations of columns [col, col + 8) of `token`; zeroes beyond the width.
__device__ __forceinline__ F32x8 activated(const Args& args, i32 token, i32 col) {
    const i32 n_left = args.width - col;
    const bool is_wide = args.is_wide;
    if (n_left <= 0) return {};
    const bf16* row = args.gate_up + i64(token) * args.in_stride;
    const uint4 gate_raw = load_chunk(row + col, n_left, is_wide);
    const uint4 up_raw = load_chunk(row + args.width + col, n_left, is_wide);
    const float token_scale = args.token_scales ? args.token_scales[token] : 1.0f;
    const float gate_factor = args.gate_factor * token_scale;
    const float up_factor = args.up_factor * token_scale;
    F32x8 gate = widened(gate_raw);
    F32x8 up = widened(up_raw);
    if (args.column_scales) {
        const float* scales = args.column_scales + col;
        const F32x8 of_gate = load_chunk(scales, n_left, is_wide);
        const F32x8 of_up = load_chunk(scales + args.width, n_left, is_wide);
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            gate.x[i] *= of_gate.x[i];
            up.x[i] *= of_up.x[i];
        }
    }
    F32x8 out;
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        const float x = gate.x[i] * gate_factor;
        out.x[i] = x / (1.0f + expf(-x)) * (up.x[i] * up_factor);
    }
    return out;
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
swiglu_bf16(PARAMS, bf16* __restrict__ out) {
    const i32 col = (blockIdx.x * N_THREADS + threadIdx.x) * CHUNK;
    if (col >= out_stride) return;
    const F32x8 v = activated(ARGS, blockIdx.y, col);
    bf16* place = out + i64(blockIdx.y) * out_stride + col;
    store_chunk(place, v, out_stride - col, is_wide);
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
swiglu_e4m3(PARAMS, e4m3* __restrict__ out, float out_scale) {
    const i32 col = (blockIdx.x * N_THREADS + threadIdx.x) * CHUNK;
    if (col >= out_stride) return;
    const uint2 codes = quantized(activated(ARGS, blockIdx.y, col), out_scale);
    e4m3* place = out + i64(blockIdx.y) * out_stride + col;
    store_chunk(place, codes, out_stride - col, is_wide);
}

// The greatest of every thread's value in the cluster. Called once in a kernel.
__device__ __forceinline__ float cluster_max(float x) {
    __shared__ ClusterRoom<N_THREADS_ROW> room;
    return cluster_reduce<Max>(x, room);
}

extern "C" __global__ void __launch_bounds__(N_THREADS_ROW)
swiglu_bf16_magnitudes(PARAMS, bf16* __restrict__ out, float* __restrict__ magnitudes) {
    cluster_arrive_relaxed();
    const i32 token = blockIdx.y;
    const i32 step = gridDim.x * N_THREADS_ROW * CHUNK;
    float greatest = 0.0f;
    for (i32 col = (blockIdx.x * N_THREADS_ROW + threadIdx.x) * CHUNK; col < out_stride;
         col += step) {
        // The maximum is of what is stored, so that the quantization to come cannot exceed it.
        const uint4 rounded = narrowed(activated(ARGS, token, col));
        const F32x8 v = widened(rounded);
        bf16* place = out + i64(token) * out_stride + col;
        store_chunk(place, v, out_stride - col, is_wide);
        greatest = fmaxf(greatest, greatest_magnitude(v));
    }
    cluster_wait();
    greatest = cluster_max(greatest);
    if (blockIdx.x == 0 && threadIdx.x == 0) magnitudes[token] = greatest;
}
