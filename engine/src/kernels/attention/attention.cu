// Paged attention of rows with one query token each.
//
// A context is cut into parts at absolute positions; a block has one part of one row for the query
// heads of one key/value head. Its warps share the part's pages out by page number, each keeps a
// softmax of its own, and the block adds them up in the warps' order. The last block of a row and
// head to arrive adds up the parts, in the parts' order. So what a row yields depends on its own
// context and window, never on the batch, its padding, or which block came last.
//
// Bound: the bytes of the cache, each read once. A warp's lanes take vectors of up to 16 bytes
// straight into the registers of the next mma, keys while values are in use and the reverse: no
// shared memory until the end. Sums of parts cost 16 KiB each way for each part of 1,024 tokens of
// 16 heads, 6 % of an e4m3 cache of head_dim 128, and stay in the L2.
//
// sass attention_decode_d128_f8: LDG.128 8, HMMA.16816.F32.BF16 32
// sass attention_decode_d128_bf16: LDG.128 16, HMMA.16816.F32.BF16 32
#include "ahead.cuh"
#include "attention/attention.cuh"
#include "rope_kv/rope.cuh"

constexpr int DECODE_WARPS = 4;

// Tokens of a part of a context in which `n_seen` positions are seen, as a power of two. Parts are
// short while a context is, so that one sequence alone keeps many processors busy, and long later,
// so that the sums that parts hand over stay a few per cent of what they read. Parts of 2048 are
// the longest: each of four warps then has 32 pages, one a lane.
__device__ __forceinline__ u32 part_shift(u32 n_seen) {
    return n_seen <= 2048 ? 8 : n_seen <= 4096 ? 9 : n_seen <= 65536 ? 10 : 11;
}

// What a cache holds whose numbers have so many bytes.
template <int BYTES> struct Cached;
template <> struct Cached<1> { using Type = e4m3; };
template <> struct Cached<2> { using Type = bf16; };

// Where a lane's keys and values of a page lie. An mma sums over dimensions (keys) or yields them
// (values) in any order, so each lane takes neighbours: vectors instead of scattered pairs.
template <int D, int BYTES> struct Lanes {
    // Dimensions in one load of keys: four lanes share a token.
    static constexpr int K_DIMS = BYTES == 2 || D % 64 != 0 ? 8 : 16;
    // Dimensions in one load of values: eight lanes share a token.
    static constexpr int V_DIMS = BYTES == 2 ? (D % 64 == 0 ? 8 : 4)
                                : D % 128 == 0 ? 16 : D % 64 == 0 ? 8 : 4;
    static constexpr int K_WORDS = D / 4 * BYTES / 4;
    static constexpr int V_WORDS = D / 8 * BYTES / 4;
    static_assert(D % (4 * K_DIMS) == 0 && D % (8 * V_DIMS) == 0, "whole loads");

    // Dimension of a lane's n-th key element; `quad` is the lane's place among its four.
    static __device__ __forceinline__ int key_dim(int n, int quad) {
        return n / K_DIMS * 4 * K_DIMS + quad * K_DIMS + n % K_DIMS;
    }

    // Dimension of the n-th value element in column `col` of its mma.
    static __device__ __forceinline__ int value_dim(int n, int col) {
        return n / V_DIMS * 8 * V_DIMS + col * V_DIMS + n % V_DIMS;
    }
};

// One warp's page: the raw bits of the keys and values that its lanes need.
template <int D, int BYTES> struct Page {
    using L = Lanes<D, BYTES>;
    u32 keys[2][L::K_WORDS];
    u32 values[4][L::V_WORDS];

    // Tokens before `begin` and from `end` on are not read; they count as zeroes.
    __device__ __forceinline__ void load_keys(const u8* head, int begin, int end, u64 policy) {
        const int quad = threadIdx.x % 4, eighth = threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int token = 8 * i + eighth;
            const bool is_seen = begin <= token && token < end;
#pragma unroll
            for (int n = 0; n < D / 4; n += L::K_DIMS) {
                const u8* from = head + (token * D + L::key_dim(n, quad)) * BYTES;
                load<L::K_DIMS * BYTES>(&keys[i][n * BYTES / 4], from, is_seen, policy);
            }
        }
    }

    __device__ __forceinline__ void load_values(const u8* head, int begin, int end, u64 policy) {
        const int quad = threadIdx.x % 4, eighth = threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int token = 2 * quad + (i & 1) + (i & 2) * 4;
            const bool is_seen = begin <= token && token < end;
#pragma unroll
            for (int n = 0; n < D / 8; n += L::V_DIMS) {
                const u8* from = head + (token * D + L::value_dim(n, eighth)) * BYTES;
                load<L::V_DIMS * BYTES>(&values[i][n * BYTES / 4], from, is_seen, policy);
            }
        }
    }

    // scores[i] = queries * keys of tokens 8 * i ..
    __device__ __forceinline__ void score(const u32 (&q)[D / 16][4], float (&scores)[2][4]) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            scores[i][0] = scores[i][1] = scores[i][2] = scores[i][3] = 0.0f;
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                if constexpr (BYTES == 2) {
                    mma(scores[i], q[k], keys[i][2 * k], keys[i][2 * k + 1]);
                } else {
                    const u32 four = keys[i][k];
                    mma(scores[i], q[k], widen_f8x2(four), widen_f8x2(four >> 16));
                }
            }
        }
    }

    // Two dimensions, 2 * pair and the next, of this lane's values of token `i`.
    __device__ __forceinline__ u32 value_pair(int i, int pair) const {
        if constexpr (BYTES == 2) return values[i][pair];
        return widen_f8x2(values[i][pair / 2] >> (pair % 2 * 16));
    }

    __device__ __forceinline__ void gather(const u32 (&w)[4], float (&sums)[D / 8][4]) const {
#pragma unroll
        for (int pair = 0; pair < D / 16; pair++) {
            u32 x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = value_pair(i, pair);
            // An operand holds two tokens of one dimension.
            mma(sums[2 * pair], w, __byte_perm(x[0], x[1], 0x5410),
                __byte_perm(x[2], x[3], 0x5410));
            mma(sums[2 * pair + 1], w, __byte_perm(x[0], x[1], 0x7632),
                __byte_perm(x[2], x[3], 0x7632));
        }
    }
};

// Memory of a decoding block: its queries; what its warps found, then its output in order.
template <int D> struct DecodeShared {
    union {
        float4 sums[DECODE_WARPS][D / 8][32];
        // The padding keeps rows that are written together in banks of their own.
        float out[MMA_ROWS][D + 4];
    };
    float2 stats[DECODE_WARPS][MMA_ROWS];
    bf16 queries[MMA_ROWS][D + CHUNK];
    Angles<D / 2> angles;
    u32 is_last;
};

// Positions [begin, end) that a decoding row sees, and the parts that they fall into.
struct Span {
    u32 begin, end, shift, first_part, n_parts;

    __device__ __forceinline__ Span(u32 start, u32 window) {
        end = start + 1;
        begin = window < end ? end - window : 0;
        shift = part_shift(end - begin);
        first_part = begin >> shift;
        n_parts = ((end - 1) >> shift) - first_part + 1;
    }
};

// The row's query heads of this key/value head; those that do not exist are zero.
template <int D>
__device__ __forceinline__ void stage_queries(const Args& args, int token,
                                              DecodeShared<D>& shared) {
    const bf16* from = args.q + i64(token) * args.q_stride + i64(blockIdx.y) * args.group * D;
    for (int at = threadIdx.x; at < MMA_ROWS * D / CHUNK; at += 32 * DECODE_WARPS) {
        const int head = at / (D / CHUNK), dim = at % (D / CHUNK) * CHUNK;
        u32 x[4];
        load<16>(x, from + head * D + dim, head < args.group, read_again());
        *reinterpret_cast<uint4*>(&shared.queries[head][dim]) = make_uint4(x[0], x[1], x[2], x[3]);
    }
    __syncthreads();
}

// The same from a projection's columns. Where `has_own`, the block has the part with the row's own
// position, and its key and value go to their place in the cache.
template <int D, int BYTES>
__device__ __forceinline__ void stage_projected(const Args& args, const Projected& projected,
                                                const int4& row, bool has_own,
                                                DecodeShared<D>& shared) {
    constexpr int N_PAIRS = D / 2, N_CHUNKS = N_PAIRS / CHUNK;
    const int slot = row.x, token = row.y, position = row.w;
    shared.angles.find(projected.frequencies, N_PAIRS, position);
    __syncthreads();
    const i64 first = i64(token) * projected.stride;
    const float token_scale = projected.token_scales ? projected.token_scales[token] : 1.0f;
    const int n_q_heads = args.n_kv_heads * args.group;
    // The block's own key, its value, and its queries.
    for (int at = threadIdx.x; at < (2 + MMA_ROWS) * N_CHUNKS; at += 32 * DECODE_WARPS) {
        const int head = at / N_CHUNKS - 2, pair = at % N_CHUNKS * CHUNK;
        const bool is_query = head >= 0, is_value = head == -1;
        if (is_query ? head >= args.group : !has_own) continue;
        const int column_head = is_query   ? blockIdx.y * args.group + head
                                : is_value ? n_q_heads + args.n_kv_heads + blockIdx.y
                                           : n_q_heads + blockIdx.y;
        const int col = column_head * D + pair;
        const float part = is_query   ? projected.q_factor
                           : is_value ? projected.v_factor
                                      : projected.k_factor;
        const float factor = part * token_scale;
        F32x8 low = finished(projected, first, col, factor, CHUNK, true);
        F32x8 high = finished(projected, first, col + N_PAIRS, factor, CHUNK, true);
        if (!is_value) shared.angles.turn(low, high, pair, N_PAIRS);
        if (is_query) {
            bf16* place = &shared.queries[head][pair];
            store_chunk(place, low, CHUNK, true);
            store_chunk(place + N_PAIRS, high, CHUNK, true);
        } else {
            using Element = typename Cached<BYTES>::Type;
            const int page = args.tables[i64(slot) * args.n_table_entries + position / PAGE_TOKENS];
            const i64 run = i64(page) * args.n_kv_heads + blockIdx.y;
            const i64 offset = (run * PAGE_TOKENS + position % PAGE_TOKENS) * D + pair;
            Element* place = reinterpret_cast<Element*>(is_value ? args.values : args.keys) + offset;
            const float scale = is_value ? projected.v_scale : projected.k_scale;
            store_cached(place, low, scale, CHUNK, true);
            store_cached(place + N_PAIRS, high, scale, CHUNK, true);
        }
    }
    // Heads that do not exist.
    for (int at = args.group * D / CHUNK + threadIdx.x; at < MMA_ROWS * D / CHUNK;
         at += 32 * DECODE_WARPS) {
        const int head = at / (D / CHUNK), dim = at % (D / CHUNK) * CHUNK;
        *reinterpret_cast<uint4*>(&shared.queries[head][dim]) = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
}

// Queries as first operands, in the order of dimensions that the keys come in.
template <int D, int BYTES>
__device__ __forceinline__ void load_queries(const DecodeShared<D>& shared, u32 (&q)[D / 16][4]) {
    const int quad = threadIdx.x % 4, eighth = threadIdx.x % 32 / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            const int dim = Lanes<D, BYTES>::key_dim(4 * k, quad);
            const uint2 x = *reinterpret_cast<const uint2*>(&shared.queries[eighth + 8 * r][dim]);
            q[k][r] = x.x, q[k][2 + r] = x.y;
        }
    }
}

// One warp's pages of a part, one after another: those whose number is the warp's own modulo the
// number of warps. Numbers count from the part's first, which is a multiple of the warps.
template <int D, int BYTES> struct Walk {
    const Args& args;
    const Span& span;
    const u32 part_page;
    // Of the part.
    u32 n_pages;
    // The present one; none where it is not below `n_pages`.
    u32 at;
    int page_of_lane;
    const u64 policy;
    // Where the page's head lies, and which of its tokens are seen.
    const u8* keys;
    const u8* values;
    int begin, end;

    __device__ __forceinline__ Walk(const Args& args, int slot, const Span& span, u32 part)
        : args(args), span(span), part_page(part << (span.shift - 4)), policy(read_once()) {
        const u32 warp = threadIdx.x / 32, own = warp + DECODE_WARPS * (threadIdx.x % 32);
        n_pages = min(1u << (span.shift - 4), (span.end + 15) / 16 - part_page);
        const u32 n_before = span.begin / 16 > part_page ? span.begin / 16 - part_page : 0;
        const int* table = args.tables + i64(slot) * args.n_table_entries + part_page;
        page_of_lane = own >= n_before && own < n_pages ? __ldg(table + own) : 0;
        at = warp;
        while (at < n_before) at += DECODE_WARPS;
        if (has_page()) find();
    }

    __device__ __forceinline__ bool has_page() const { return at < n_pages; }

    // Whether the page has the row's own position.
    __device__ __forceinline__ bool is_last() const {
        return part_page + at == (span.end - 1) / PAGE_TOKENS;
    }

    __device__ __forceinline__ void advance() {
        at += DECODE_WARPS;
        if (has_page()) find();
    }

    __device__ __forceinline__ void find() {
        const int id = __shfl_sync(FULL_WARP, page_of_lane, at / DECODE_WARPS);
        const i64 head = i64(id) * args.n_kv_heads + blockIdx.y;
        const i64 offset = head * (PAGE_TOKENS * D * BYTES);
        keys = args.keys + offset, values = args.values + offset;
        const int first = (part_page + at) * PAGE_TOKENS;
        begin = (int)span.begin - first, end = (int)span.end - first;
    }

    __device__ __forceinline__ void load_keys(Page<D, BYTES>& page) const {
        page.load_keys(keys, begin, end, policy);
    }

    __device__ __forceinline__ void load_values(Page<D, BYTES>& page) const {
        page.load_values(values, begin, end, policy);
    }
};

// Attends to the pages of a walk, the first of which is loaded.
template <int D, int BYTES>
__device__ __forceinline__ void attend(Walk<D, BYTES>& walk, Page<D, BYTES>& page,
                                       const DecodeShared<D>& shared, Running<D>& running) {
    const int quad = threadIdx.x % 4;
    const float score_factor = walk.args.score_factor;
    u32 q[D / 16][4];
    load_queries<D, BYTES>(shared, q);
    while (true) {
        float scores[2][4];
        page.score(q, scores);
        const int seen_begin = walk.begin, seen_end = walk.end;
        walk.advance();
        if (walk.has_page()) walk.load_keys(page);
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int token = 8 * i + 2 * quad + c % 2;
                const bool is_seen = seen_begin <= token && token < seen_end;
                scores[i][c] = is_seen ? scores[i][c] * score_factor : minus_infinity();
            }
        }
        u32 weights[1][4];
        running.template weigh<2>(scores, weights);
        page.gather(weights[0], running.values);
        if (!walk.has_page()) return;
        walk.load_values(page);
    }
}

// Adds what warps or parts found, in their order, into this thread's share: every fourth tile of
// values. `stats(i)` and `sums(i, tile)` yield the i-th.
template <int D> struct Merged {
    float greatest[2], sum[2];
    float4 values[D / 32];

    template <typename Stats, typename Sums>
    __device__ __forceinline__ void merge(u32 n, const Stats& stats, const Sums& sums) {
        const int eighth = threadIdx.x % 32 / 4;
        greatest[0] = greatest[1] = minus_infinity();
        for (u32 i = 0; i < n; i++) {
            greatest[0] = fmaxf(greatest[0], stats(i, eighth).x);
            greatest[1] = fmaxf(greatest[1], stats(i, eighth + 8).x);
        }
        sum[0] = sum[1] = 0.0f;
#pragma unroll
        for (int t = 0; t < D / 32; t++) values[t] = make_float4(0, 0, 0, 0);
#pragma unroll 2
        for (u32 i = 0; i < n; i++) {
            float factor[2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float2 found = stats(i, eighth + 8 * r);
                factor[r] = exp2_approx(found.x - reference(greatest[r]));
                sum[r] += factor[r] * found.y;
            }
#pragma unroll
            for (int t = 0; t < D / 32; t++) {
                const float4 x = sums(i, threadIdx.x / 32 + DECODE_WARPS * t);
                values[t].x += factor[0] * x.x, values[t].y += factor[0] * x.y;
                values[t].z += factor[1] * x.z, values[t].w += factor[1] * x.w;
            }
        }
    }
};

// Divides, and writes the heads in order.
template <int D, int BYTES>
__device__ __forceinline__ void finish_decode(const Args& args, int token, const Merged<D>& merged,
                                              DecodeShared<D>& shared) {
    const int warp = threadIdx.x / 32, quad = threadIdx.x % 4, eighth = threadIdx.x % 32 / 4;
#pragma unroll
    for (int t = 0; t < D / 32; t++) {
        const int tile = warp + DECODE_WARPS * t;
        const int dim = Lanes<D, BYTES>::value_dim(tile, 2 * quad);
        const int next = Lanes<D, BYTES>::value_dim(tile, 2 * quad + 1);
        shared.out[eighth][dim] = merged.values[t].x / merged.sum[0];
        shared.out[eighth][next] = merged.values[t].y / merged.sum[0];
        shared.out[eighth + 8][dim] = merged.values[t].z / merged.sum[1];
        shared.out[eighth + 8][next] = merged.values[t].w / merged.sum[1];
    }
    __syncthreads();
    const i64 first = i64(token) * args.out_stride + i64(blockIdx.y) * args.group * D;
    for (u32 at = 2 * threadIdx.x; at < args.group * D; at += 2 * blockDim.x) {
        const float* x = &shared.out[at / D][at % D];
        store_pair(args, first + at, x[0], x[1]);
    }
}

// Grid: (most parts, kv heads, rows and behind them what fetches). Blocks beyond a row's parts leave
// at once; the last to arrive of the others adds them all up.
template <int D, int BYTES>
__device__ __forceinline__ void decode(const Args& args, const Projected& projected,
                                       const Ahead& ahead) {
    __shared__ DecodeShared<D> shared;
    if (blockIdx.z >= ahead.first_block) {
        const u32 n_layer = gridDim.x * gridDim.y;
        const u32 layer = blockIdx.z - ahead.first_block, n_layers = gridDim.z - ahead.first_block;
        const u32 block = layer * n_layer + blockIdx.y * gridDim.x + blockIdx.x;
        fetch_ahead<32 * DECODE_WARPS>(ahead, block, n_layers * n_layer);
        return;
    }
    const int4 row = __ldg(args.rows + blockIdx.z);
    if (row.x < 0) return;
    const Span span(row.w, args.window);
    if (blockIdx.x >= span.n_parts) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane % 4, eighth = lane / 4;

    // The first page is on its way while queries are turned, unless it waits for that itself.
    Walk<D, BYTES> walk(args, row.x, span, span.first_part + blockIdx.x);
    Page<D, BYTES> page;
    const bool waits = !args.q && walk.is_last();
    const auto load = [&] {
        walk.load_keys(page);
        walk.load_values(page);
    };
    if (walk.has_page() && !waits) load();
    if (args.q) {
        stage_queries<D>(args, row.y, shared);
    } else {
        const bool has_own = blockIdx.x == span.n_parts - 1;
        stage_projected<D, BYTES>(args, projected, row, has_own, shared);
    }
    Running<D> running;
    running.begin();
    if (walk.has_page()) {
        if (waits) load();
        attend(walk, page, shared, running);
    }
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        const float(&x)[4] = running.values[j];
        shared.sums[warp][j][lane] = make_float4(x[0], x[1], x[2], x[3]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float sum = quad_sum(running.sum[r]);
        if (quad == 0) shared.stats[warp][eighth + 8 * r] = make_float2(running.greatest[r], sum);
    }
    __syncthreads();
    Merged<D> merged;
    merged.merge(DECODE_WARPS, [&](u32 i, int r) { return shared.stats[i][r]; },
                 [&](u32 i, int tile) { return shared.sums[i][tile][lane]; });
    // The output takes the place of the warps' sums.
    __syncthreads();

    if (span.n_parts > 1) {
        const i64 head = i64(blockIdx.z) * args.n_kv_heads + blockIdx.y;
        float4* sums = args.part_sums + head * gridDim.x * (D / 8 * 32);
        float2* stats = args.part_stats + head * gridDim.x * MMA_ROWS;
#pragma unroll
        for (int t = 0; t < D / 32; t++) {
            const int tile = warp + DECODE_WARPS * t;
            sums[(i64(blockIdx.x) * (D / 8) + tile) * 32 + lane] = merged.values[t];
        }
        if (warp == 0 && quad == 0) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                stats[blockIdx.x * MMA_ROWS + eighth + 8 * r] =
                    make_float2(merged.greatest[r], merged.sum[r]);
            }
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            // Wraps to zero with the last: ready for the next launch.
            shared.is_last = atomicInc(args.n_arrived + head, span.n_parts - 1) == span.n_parts - 1;
        }
        __syncthreads();
        if (!shared.is_last) return;
        __threadfence();
        merged.merge(span.n_parts, [&](u32 i, int r) { return __ldcg(stats + i * MMA_ROWS + r); },
                     [&](u32 i, int tile) {
                         return __ldcg(sums + (i64(i) * (D / 8) + tile) * 32 + lane);
                     });
    }
    finish_decode<D, BYTES>(args, row.y, merged, shared);
}

#define DECODE(NAME, D, BYTES)                                                        \
    extern "C" __global__ void __launch_bounds__(32 * DECODE_WARPS)                   \
        attention_decode_##NAME(const __grid_constant__ Args args,                    \
                                const __grid_constant__ Projected projected,          \
                                const __grid_constant__ Ahead ahead) {                \
        decode<D, BYTES>(args, projected, ahead);                                     \
    }

FOR_EACH_SHAPE(DECODE)
