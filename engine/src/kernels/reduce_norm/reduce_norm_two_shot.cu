// `reduce_norm.cuh` in two shots: a rank reads what all ranks have of the tokens that it owns,
// finishes their rows and writes them into the memory of every rank. When the kernel ends, all rows
// are there.
//
//   outs        bf16 or e4m3 [n_rows, hidden] in the memory of each rank, in any order: where each
//               rank begins with another, their writes do not all go to one at a time
//   out_scales  f32 [n_rows] in the memory of each rank, likewise
//
// Nobody writes to a rank that may still read what it has: `await` says that the work before its
// call of this kernel has ended. And nobody goes on before `leave_together` says that all have
// written, and have read what this rank may then overwrite.
//
// Bound: of each row that a rank owns n_ranks * 2 * hidden bytes read of partials, 4 * hidden read
// and written of the residual, n_ranks * hidden (e4m3) or twice that (bf16) written, and once
// 4 * hidden of weights. Between the ranks, a row of e4m3 costs (n_ranks - 1) * hidden * 3 bytes in
// all; in one shot it is n_ranks * (n_ranks - 1) * hidden * 2.
//
// sass reduce_norm_two_shot_bf16: LDG.128 12, STG.128 10
// sass reduce_norm_two_shot_e4m3: LDG.128 12, STG.128 2, STG.64 8
// sass reduce_norm_two_shot_e4m3_token: LDG.128 12, STG.128 2, STG.64 8
#include "reduce_norm/reduce_norm.cuh"

// Rows in every rank's memory.
template <typename T> struct Outs {
    static constexpr bool OWNED = true;
    OfRanks<T> ranks;
    i32 n_ranks;

    template <typename Raw> __device__ __forceinline__ void store(i64 at, const Raw& raw) const {
#pragma unroll
        for (int r = 0; r < N_RANKS_MAX; r++) {
            if (r < n_ranks) store_chunk(ranks.of[r] + at, raw, CHUNK, true);
        }
    }
};

struct Scales {
    OfRanks<float> ranks;
    i32 n_ranks;

    __device__ __forceinline__ void store(i32 row, float scale) const {
#pragma unroll
        for (int r = 0; r < N_RANKS_MAX; r++) {
            if (r < n_ranks) ranks.of[r][row] = scale;
        }
    }
};

extern "C" __global__ void __launch_bounds__(N_THREADS)
reduce_norm_two_shot_bf16(PARAMS, const float* __restrict__ weight, float eps,
                          const OfRanks<bf16> outs) {
    norm_bf16(ARGS, weight, eps, Outs<bf16>{outs, exchange.n_ranks});
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
reduce_norm_two_shot_e4m3(PARAMS, const float* __restrict__ weight, float eps,
                          const OfRanks<e4m3> outs, float out_scale) {
    norm_e4m3(ARGS, weight, eps, Outs<e4m3>{outs, exchange.n_ranks}, out_scale);
}

extern "C" __global__ void __launch_bounds__(N_THREADS)
reduce_norm_two_shot_e4m3_token(PARAMS, const float* __restrict__ weight, float eps,
                                const OfRanks<e4m3> outs, const OfRanks<float> out_scales) {
    const i32 n_ranks = exchange.n_ranks;
    norm_e4m3_token(ARGS, weight, eps, Outs<e4m3>{outs, n_ranks}, Scales{out_scales, n_ranks});
}
