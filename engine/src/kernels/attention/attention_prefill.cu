// Paged causal attention of rows with any number of query tokens, against what the cache holds: the
// prefix of earlier steps and the step's own tokens, which rope_kv has written before.
//
// A block has a tile of one row: as many tokens as 128 mma rows hold with all query heads of one
// key/value head. It walks the keys that the tile sees in tiles of 64 that begin at position 0,
// widened to bf16 in shared memory; the next is on its way from memory meanwhile. A tile in which a
// token sees nothing changes no bit of it, so a token yields the same in whatever chunk it comes.
//
// Bound: the tensor cores, by mma.sync.
//
// A value that is NaN or infinite reaches the other tokens of its row that share its tile, not only
// those that see it: their weight for it is zero, and zero times NaN is NaN.
//
// sass attention_prefill_d128_f8: LDG.128 4, HMMA.16816.F32.BF16 128
// sass attention_prefill_d128_f8: LDSM.16.M88.4 32, LDSM.16.MT88.4 32
// sass attention_prefill_d128_bf16: LDG.128 8, HMMA.16816.F32.BF16 128
// sass attention_prefill_d128_bf16: LDSM.16.M88.4 32, LDSM.16.MT88.4 32
#include "attention/attention.cuh"

constexpr int PREFILL_WARPS = 8;
// Keys of a tile.
constexpr int TILE_KEYS = 64;

// Keys and values of a tile, widened to bf16. Rows are padded so that the eight rows that ldmatrix
// reads together lie in different banks.
template <int D> struct PrefillShared {
    bf16 keys[TILE_KEYS][D + 8];
    bf16 values[TILE_KEYS][D + 8];
    int row_idx;
    int tile_idx;
};

// A thread's share of a tile on its way from the cache to shared memory.
template <int D, int BYTES> struct Staged {
    static constexpr int VECTORS = D * BYTES / 16;
    static constexpr int N = (TILE_KEYS * VECTORS + 32 * PREFILL_WARPS - 1) / (32 * PREFILL_WARPS);
    static constexpr int DIMS = 16 / BYTES;
    u32 keys[N][4];
    u32 values[N][4];

    static __device__ __forceinline__ int vector_idx(int n) {
        return n * 32 * PREFILL_WARPS + threadIdx.x;
    }

    // Positions outside [begin, end) are not read; they count as zeroes.
    __device__ __forceinline__ void load_tile(const Args& args, const int* table, int first,
                                              int begin, int end) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int idx = vector_idx(n);
            const int position = first + idx / VECTORS;
            const bool is_seen =
                idx < TILE_KEYS * VECTORS && begin <= position && position < end;
            u32 page;
            load<4>(&page, table + position / PAGE_TOKENS, is_seen);
            const i64 token =
                (i64(page) * args.n_kv_heads + blockIdx.y) * PAGE_TOKENS + position % PAGE_TOKENS;
            const i64 offset = token * D * BYTES + idx % VECTORS * 16;
            load<16>(keys[n], args.keys + offset, is_seen);
            load<16>(values[n], args.values + offset, is_seen);
        }
    }

    static __device__ __forceinline__ void put(bf16* to, const u32 (&x)[4]) {
        uint4* out = reinterpret_cast<uint4*>(to);
        if constexpr (BYTES == 2) {
            out[0] = make_uint4(x[0], x[1], x[2], x[3]);
        } else {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 a = x[2 * half], b = x[2 * half + 1];
                out[half] = make_uint4(widen_f8x2(a), widen_f8x2(a >> 16), widen_f8x2(b),
                                       widen_f8x2(b >> 16));
            }
        }
    }

    __device__ __forceinline__ void put_tile(PrefillShared<D>& shared) const {
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int idx = vector_idx(n);
            if (idx >= TILE_KEYS * VECTORS) continue;
            put(&shared.keys[idx / VECTORS][idx % VECTORS * DIMS], keys[n]);
            put(&shared.values[idx / VECTORS][idx % VECTORS * DIMS], values[n]);
        }
    }
};

__device__ __forceinline__ void load_matrices(u32 (&x)[4], const void* row) {
    const u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address) : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&x)[4], const void* row) {
    const u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address) : "memory");
}

// Tokens of a warp: their heads fill its mma rows.
__device__ __forceinline__ int warp_tokens(const Args& args) { return MMA_ROWS / args.group; }

// Finds the row and its tile that this block works on. Later tiles see more: they come first.
template <int D> __device__ __forceinline__ void find_tile(const Args& args, PrefillShared<D>& at) {
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x, tile_tokens = PREFILL_WARPS * warp_tokens(args);
        int wanted = gridDim.x - 1 - blockIdx.x;
        int row_idx = -1;
        for (int first = 0; first < (int)args.n_rows && row_idx < 0; first += 32) {
            int n_tiles = 0;
            if (first + lane < (int)args.n_rows) {
                const int4 row = __ldg(args.rows + first + lane);
                if (row.x >= 0) n_tiles = (row.z + tile_tokens - 1) / tile_tokens;
            }
            int n_up_to = n_tiles;
#pragma unroll
            for (int step = 1; step < 32; step *= 2) {
                const int before = __shfl_up_sync(FULL_WARP, n_up_to, step);
                if (lane >= step) n_up_to += before;
            }
            const u32 beyond = __ballot_sync(FULL_WARP, wanted < n_up_to);
            if (beyond != 0) {
                const int found = __ffs(beyond) - 1;
                row_idx = first + found;
                wanted -= __shfl_sync(FULL_WARP, n_up_to - n_tiles, found);
            } else {
                wanted -= __shfl_sync(FULL_WARP, n_up_to, 31);
            }
        }
        if (lane == 0) at.row_idx = row_idx, at.tile_idx = wanted;
    }
    __syncthreads();
}

// The mma rows of a warp: token `r / group`, head `r % group` of row r.
template <int D> struct Queries {
    // Of this lane's two mma rows: the token's place in the step's row, or -1, and the head.
    int token[2], head[2];
    u32 q[D / 16][4];

    __device__ __forceinline__ void load_tile(const Args& args, const int4& row, int first) {
        const int quad = threadIdx.x % 4, eighth = threadIdx.x % 32 / 4;
        const int group = args.group, n_tokens = warp_tokens(args);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int place = (eighth + 8 * r) / group;
            const int idx = first + threadIdx.x / 32 * n_tokens + place;
            token[r] = place < n_tokens && idx < row.z ? idx : -1;
            head[r] = blockIdx.y * group + (eighth + 8 * r) % group;
            const bf16* from =
                args.q + i64(row.y + idx) * args.q_stride + head[r] * D + 2 * quad;
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                load<4>(&q[k][r], from + 16 * k, token[r] >= 0);
                load<4>(&q[k][2 + r], from + 16 * k + 8, token[r] >= 0);
            }
        }
    }
};

// One warp against one tile in shared memory.
template <int D>
__device__ __forceinline__ void attend_tile(const Args& args, const PrefillShared<D>& shared,
                                            const Queries<D>& queries, const int (&seen_begin)[2],
                                            const int (&seen_end)[2], Running<D>& running) {
    const int lane = threadIdx.x % 32, quad = lane % 4, matrix = lane / 8;
    float scores[TILE_KEYS / 8][4];
#pragma unroll
    for (int pair = 0; pair < TILE_KEYS / 16; pair++) {
        float(&even)[4] = scores[2 * pair];
        float(&odd)[4] = scores[2 * pair + 1];
#pragma unroll
        for (int c = 0; c < 4; c++) even[c] = odd[c] = 0.0f;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            u32 x[4];
            load_matrices(x, &shared.keys[16 * pair + matrix / 2 * 8 + lane % 8]
                                         [16 * k + matrix % 2 * 8]);
            mma(even, queries.q[k], x[0], x[1]);
            mma(odd, queries.q[k], x[2], x[3]);
        }
    }
#pragma unroll
    for (int i = 0; i < TILE_KEYS / 8; i++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int key = 8 * i + 2 * quad + c % 2;
            const bool is_seen = seen_begin[c / 2] <= key && key < seen_end[c / 2];
            scores[i][c] = is_seen ? scores[i][c] * args.score_factor : minus_infinity();
        }
    }
    u32 weights[TILE_KEYS / 16][4];
    running.template weigh<TILE_KEYS / 8>(scores, weights);
#pragma unroll
    for (int k = 0; k < TILE_KEYS / 16; k++) {
#pragma unroll
        for (int pair = 0; pair < D / 16; pair++) {
            u32 x[4];
            load_matrices_transposed(x, &shared.values[16 * k + matrix % 2 * 8 + lane % 8]
                                                      [16 * pair + matrix / 2 * 8]);
            mma(running.values[2 * pair], weights[k], x[0], x[1]);
            mma(running.values[2 * pair + 1], weights[k], x[2], x[3]);
        }
    }
}

// Grid: (tiles of all rows, kv heads).
template <int D, int BYTES> __device__ __forceinline__ void prefill(const Args& args) {
    __shared__ PrefillShared<D> shared;
    find_tile<D>(args, shared);
    if (shared.row_idx < 0) return;
    const int4 row = __ldg(args.rows + shared.row_idx);
    const int tile_tokens = PREFILL_WARPS * warp_tokens(args);
    const int first = shared.tile_idx * tile_tokens;
    const int n_tokens = min(tile_tokens, row.z - first);
    const int* table = args.tables + i64(row.x) * args.n_table_entries;
    // Of the block's tokens together.
    const int end = row.w + first + n_tokens;
    const u32 first_end = row.w + first + 1;
    const int begin = args.window < first_end ? first_end - args.window : 0;

    Queries<D> queries;
    queries.load_tile(args, row, first);
    // Of this lane's two tokens; empty where there is none.
    int own_begin[2], own_end[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const u32 seen = queries.token[r] < 0 ? 0 : row.w + queries.token[r] + 1;
        own_end[r] = seen;
        own_begin[r] = args.window < seen ? seen - args.window : 0;
    }
    Running<D> running;
    running.begin();
    Staged<D, BYTES> staged;
    int at = begin / TILE_KEYS * TILE_KEYS;
    staged.load_tile(args, table, at, begin, end);
    while (at < end) {
        staged.put_tile(shared);
        __syncthreads();
        const int next = at + TILE_KEYS;
        if (next < end) staged.load_tile(args, table, next, begin, end);
        const int seen_begin[2] = {own_begin[0] - at, own_begin[1] - at};
        const int seen_end[2] = {own_end[0] - at, own_end[1] - at};
        const bool sees = (seen_begin[0] < TILE_KEYS && seen_end[0] > 0) ||
                          (seen_begin[1] < TILE_KEYS && seen_end[1] > 0);
        if (__any_sync(FULL_WARP, sees)) {
            attend_tile<D>(args, shared, queries, seen_begin, seen_end, running);
        }
        __syncthreads();
        at = next;
    }
    const int quad = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float sum = quad_sum(running.sum[r]);
        if (queries.token[r] < 0) continue;
        const i64 element =
            i64(row.y + queries.token[r]) * args.out_stride + queries.head[r] * D + 2 * quad;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            store_pair(args, element + 8 * j, running.values[j][2 * r] / sum,
                       running.values[j][2 * r + 1] / sum);
        }
    }
}

#define PREFILL(NAME, D, BYTES)                                                       \
    extern "C" __global__ void __launch_bounds__(32 * PREFILL_WARPS, 1)               \
        attention_prefill_##NAME(const __grid_constant__ Args args) {                 \
        prefill<D, BYTES>(args);                                                      \
    }

FOR_EACH_SHAPE(PREFILL)
