// `reduce_norm.cuh` in one shot: every rank reads all partial results and finishes all rows. Also
// for a rank alone, and where somebody else has summed.
//
// Bound: n_ranks * 2 * hidden bytes read of partials, 4 * hidden read and written of the residual,
// hidden (e4m3) or 2 * hidden (bf16) written a row, and once 4 * hidden of weights.
//
// sass reduce_norm_bf16: LDG.128 12, STG.128 3
// sass reduce_norm_e4m3: LDG.128 12, STG.128 2, STG.64 1
// sass reduce_norm_e4m3_token: LDG.128 12, STG.128 2, STG.64 1
#include "reduce_norm/reduce_norm.cuh"

// Rows in this rank's memory.
template <typename T> struct Out {
    static constexpr bool OWNED = false;
    T* rows;

    template <typename Raw> __device__ __forceinline__ void store(i64 at, const Raw& raw) const {
        store_chunk(rows + at, raw, CHUNK, true);
    }
};

struct Scales {
    float* rows;

    __device__ __forceinline__ void store(i32 row, float scale) const { rows[row] = scale; }
};

extern "C" __global__ void __launch_bounds__(N_THREADS)
reduce_norm_bf16(PARAMS, const float* __restrict__ weight, float eps, bf16* __restrict__ out) {
    norm_bf16(ARGS, weight, eps, Out<bf16>{out});
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
reduce_norm_e4m3(PARAMS, const float* __restrict__ weight, float eps, e4m3* __restrict__ out,
                 float out_scale) {
    norm_e4m3(ARGS, weight, eps, Out<e4m3>{out}, out_scale);
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
reduce_norm_e4m3_token(PARAMS, const float* __restrict__ weight, float eps,
                       e4m3* __restrict__ out, float* __restrict__ out_scales) {
    norm_e4m3_token(ARGS, weight, eps, Out<e4m3>{out}, Scales{out_scales});
}
