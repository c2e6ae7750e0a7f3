// Paged attention of rows with one query token each.
//
// A context is cut into parts at absolute positions; a block has one part of one row for the query
// heads of one key/value head. Its warps share the part's pages out by page number, each keeps a
// softmax of its own, and the block adds them up in the warps' order. The last block of a row and
// head to arrive adds up the parts, in the parts' order. So what a row yields depends on its own
// context and window, never on the batch, its padding, or which block came last.
//
// Where all rows of a step are such, the kernel also does what `rope_kv.cu` does for others, with
// the same bits: each block turns the row's queries itself, and the one that has the row's own
// position writes its key and value to the cache before it reads them as all others. That is a
// launch less for a block of the model, and costs the turning of 16 heads for each part.
//
// A few rows leave the memory with time to spare, and so does the wait for the last part. Blocks
// behind those of the rows fetch what the next product reads into the L2 cache (`ahead.cuh`), which
// the vectors of keys and values leave first.
//
// Bound: the bytes of the cache, each read once. A few sequences have few blocks, which must ask
// for much at a time: each warp has several pages on their way to shared memory, where a lane finds
// the vectors of up to 16 bytes that it has asked for itself, as the next mma takes them. No other
// lane reads them, so that nobody waits for another warp until the end. Sums of parts cost 16 KiB
// each way for each part of 1,024 tokens of 16 heads, 6 % of an e4m3 cache of head_dim 128, and
// stay in the L2.
//
// sass attention_decode_d128_f8: LDGSTS.128 8, LDS.128 8, HMMA.16816.F32.BF16 32
// sass attention_decode_d128_bf16: LDGSTS.128 16, LDS.128 16, HMMA.16816.F32.BF16 32
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

// One warp's page in shared memory: the raw bits of the keys and values that its lanes need, in
// rows of a vector for each lane.
template <int D, int BYTES> struct Page {
    using L = Lanes<D, BYTES>;
    static constexpr int K_VECTORS = D / 4 / L::K_DIMS, V_VECTORS = D / 8 / L::V_DIMS;
    alignas(16) u8 keys[2][K_VECTORS][32][L::K_DIMS * BYTES];
    alignas(16) u8 values[4][V_VECTORS][32][L::V_DIMS * BYTES];

    // Asks for this lane's vectors. Tokens before `begin` and from `end` on are not read; they
    // count as zeroes.
    __device__ __forceinline__ void fetch(const u8* head_keys, const u8* head_values, int begin,
                                          int end, u64 policy) {
        const int lane = threadIdx.x % 32, quad = lane % 4, eighth = lane / 4;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int token = 8 * i + eighth;
            const bool is_seen = begin <= token && token < end;
#pragma unroll
            for (int n = 0; n < K_VECTORS; n++) {
                const int dim = L::key_dim(n * L::K_DIMS, quad);
                const u8* from = head_keys + (token * D + dim) * BYTES;
                copy_async<L::K_DIMS * BYTES>(keys[i][n][lane], from, is_seen, policy);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int token = 2 * quad + (i & 1) + (i & 2) * 4;
            const bool is_seen = begin <= token && token < end;
#pragma unroll
            for (int n = 0; n < V_VECTORS; n++) {
                const int dim = L::value_dim(n * L::V_DIMS, eighth);
                const u8* from = head_values + (token * D + dim) * BYTES;
                copy_async<L::V_DIMS * BYTES>(values[i][n][lane], from, is_seen, policy);
            }
        }
    }

    // scores[i] = queries * keys of tokens 8 * i ..
    __device__ __forceinline__ void score(const u32 (&q)[D / 16][4], float (&scores)[2][4]) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 words[L::K_WORDS];
            take<L::K_DIMS * BYTES>(words, keys[i]);
            scores[i][0] = scores[i][1] = scores[i][2] = scores[i][3] = 0.0f;
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                if constexpr (BYTES == 2) {
                    mma(scores[i], q[k], words[2 * k], words[2 * k + 1]);
                } else {
                    const u32 four = words[k];
                    mma(scores[i], q[k], widen_f8x2(four), widen_f8x2(four >> 16));
                }
            }
        }
    }

    __device__ __forceinline__ void gather(const u32 (&w)[4], float (&sums)[D / 8][4]) const {
        u32 words[4][L::V_WORDS];
#pragma unroll
        for (int i = 0; i < 4; i++) take<L::V_DIMS * BYTES>(words[i], values[i]);
#pragma unroll
        for (int pair = 0; pair < D / 16; pair++) {
            // Two dimensions, 2 * pair and the next, of each token.
            u32 x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if constexpr (BYTES == 2) {
                    x[i] = words[i][pair];
                } else {
                    x[i] = widen_f8x2(words[i][pair / 2] >> (pair % 2 * 16));
                }
            }
            // An operand holds two tokens of one dimension.
            mma(sums[2 * pair], w, __byte_perm(x[0], x[1], 0x5410),
                __byte_perm(x[2], x[3], 0x5410));
            mma(sums[2 * pair + 1], w, __byte_perm(x[0], x[1], 0x7632),
                __byte_perm(x[2], x[3], 0x7632));
        }
    }

  private:
    // This lane's vectors of a token.
    template <int VECTOR, int N_WORDS, int N>
    static __device__ __forceinline__ void take(u32 (&words)[N_WORDS],
                                                const u8 (&rows)[N][32][VECTOR]) {
        static_assert(N * VECTOR == 4 * N_WORDS, "all of them");
#pragma unroll
        for (int n = 0; n < N; n++) {
            const u8* from = rows[n][threadIdx.x % 32];
            u32* to = words + n * VECTOR / 4;
            if constexpr (VECTOR == 16) {
                const uint4 x = *reinterpret_cast<const uint4*>(from);
                to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
            } else if constexpr (VECTOR == 8) {
                const uint2 x = *reinterpret_cast<const uint2*>(from);
                to[0] = x.x, to[1] = x.y;
            } else {
                to[0] = *reinterpret_cast<const u32*>(from);
            }
        }
    }
};

// Memory of a decoding block: pages on their way; then what its warps found, each in the place of
// its own pages; then its output in order. `shared_bytes` of the launcher is its size.
template <int D, int BYTES> struct DecodeShared {
    static constexpr int N_STAGES = BYTES == 1 ? 4 : 3;
    union Warp {
        Page<D, BYTES> pages[N_STAGES];
        float4 sums[D / 8][32];
    };
    union {
        Warp warps[DECODE_WARPS];
        // The padding keeps rows that are written together in banks of their own.
        float out[MMA_ROWS][D + 4];
    };
    float2 stats[DECODE_WARPS][MMA_ROWS];
    bf16 queries[MMA_ROWS][D + CHUNK];
    Angles<D / 2> angles;
    alignas(16) u32 is_last;
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
template <int D, int BYTES>
__device__ __forceinline__ void stage_queries(const Args& args, int token,
                                              DecodeShared<D, BYTES>& shared) {
    const bf16* from = args.q + i64(token) * args.q_stride + i64(blockIdx.y) * args.group * D;
    for (int at = threadIdx.x; at < MMA_ROWS * D / CHUNK; at += 32 * DECODE_WARPS) {
        const int head = at / (D / CHUNK), dim = at % (D / CHUNK) * CHUNK;
        u32 x[4];
        load<16>(x, from + head * D + dim, head < args.group);
        *reinterpret_cast<uint4*>(&shared.queries[head][dim]) = make_uint4(x[0], x[1], x[2], x[3]);
    }
    __syncthreads();
}

// The same from a projection's columns. Where `has_own`, the block has the part with the row's own
// position, and its key and value go to their place in the cache.
template <int D, int BYTES>
__device__ __forceinline__ void stage_projected(const Args& args, const Projected& projected,
                                                const int4& row, bool has_own,
                                                DecodeShared<D, BYTES>& shared) {
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
            u8* cache = is_value ? args.values : args.keys;
            Element* place = reinterpret_cast<Element*>(cache) + offset;
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
__device__ __forceinline__ void load_queries(const DecodeShared<D, BYTES>& shared,
                                             u32 (&q)[D / 16][4]) {
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

// One warp's pages of a part, as they are asked for one after another: those whose number is the
// warp's own modulo the number of warps. Numbers count from the part's first, which is a multiple
// of the warps.
template <int D, int BYTES> struct Walk {
    static constexpr int N_STAGES = DecodeShared<D, BYTES>::N_STAGES;
    const Args& args;
    const Span& span;
    Page<D, BYTES>* const pages;
    const u32 part_page;
    // Of the part.
    u32 n_pages;
    // The one to be asked for next; none where it is not below `n_pages`.
    u32 at;
    int page_of_lane;
    const u64 policy;

    __device__ __forceinline__ Walk(const Args& args, int slot, const Span& span, u32 part,
                                    Page<D, BYTES>* pages)
        : args(args), span(span), pages(pages), part_page(part << (span.shift - 4)),
          policy(read_once()) {
        const u32 warp = threadIdx.x / 32, own = warp + DECODE_WARPS * (threadIdx.x % 32);
        n_pages = min(1u << (span.shift - 4), (span.end + 15) / 16 - part_page);
        const u32 n_before = span.begin / 16 > part_page ? span.begin / 16 - part_page : 0;
        const int* table = args.tables + i64(slot) * args.n_table_entries + part_page;
        page_of_lane = own >= n_before && own < n_pages ? __ldg(table + own) : 0;
        at = warp;
        while (at < n_before) at += DECODE_WARPS;
    }

    // Whether the next page is there and has the row's own position.
    __device__ __forceinline__ bool is_own() const {
        return at < n_pages && part_page + at == (span.end - 1) / PAGE_TOKENS;
    }

    // The position of a page's first token.
    __device__ __forceinline__ int first(u32 page) const {
        return int((part_page + page) * PAGE_TOKENS);
    }

    // Asks for the next page, if there is one: a group of copies in any case.
    __device__ __forceinline__ void fetch(int stage) {
        if (at < n_pages) {
            const int id = __shfl_sync(FULL_WARP, page_of_lane, at / DECODE_WARPS);
            const i64 head = i64(id) * args.n_kv_heads + blockIdx.y;
            const i64 offset = head * (PAGE_TOKENS * D * BYTES);
            const int begin = (int)span.begin - first(at), end = (int)span.end - first(at);
            pages[stage].fetch(args.keys + offset, args.values + offset, begin, end, policy);
            at += DECODE_WARPS;
        }
        commit_copies();
    }
};

// Attends to all pages of a walk, of which `begin` is the first and N_STAGES - 1 have been asked
// for. None is under way afterwards.
template <int D, int BYTES>
__device__ __forceinline__ void attend(Walk<D, BYTES>& walk, u32 begin,
                                       const DecodeShared<D, BYTES>& shared, Running<D>& running) {
    constexpr int N_STAGES = Walk<D, BYTES>::N_STAGES;
    const int quad = threadIdx.x % 4;
    const float score_factor = walk.args.score_factor;
    u32 q[D / 16][4];
    load_queries<D, BYTES>(shared, q);
    int stage = 0;
    for (u32 at = begin; at < walk.n_pages; at += DECODE_WARPS) {
        await_copies<N_STAGES - 2>();
        // The next takes the place of the one before this.
        walk.fetch(stage == 0 ? N_STAGES - 1 : stage - 1);
        const Page<D, BYTES>& page = walk.pages[stage];
        float scores[2][4];
        page.score(q, scores);
        const int seen_begin = (int)walk.span.begin - walk.first(at);
        const int seen_end = (int)walk.span.end - walk.first(at);
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
        stage = stage == N_STAGES - 1 ? 0 : stage + 1;
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
                                              DecodeShared<D, BYTES>& shared) {
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

// Grid: (most parts, kv heads, rows and behind them what fetches). Blocks beyond a row's parts
// leave at once; the last to arrive of the others adds them all up.
template <int D, int BYTES>
__device__ __forceinline__ void decode(const Args& args, const Projected& projected,
                                       const Ahead& ahead) {
    extern __shared__ uint4 memory[];
    DecodeShared<D, BYTES>& shared = *reinterpret_cast<DecodeShared<D, BYTES>*>(memory);
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

    // The first pages are on their way while queries are turned, but for the one that has the row's
    // own position: it is only then complete.
    Walk<D, BYTES> walk(args, row.x, span, span.first_part + blockIdx.x, shared.warps[warp].pages);
    const u32 begin = walk.at;
    int n_asked = 0;
    while (n_asked < walk.N_STAGES - 1 && (args.q || !walk.is_own())) walk.fetch(n_asked++);
    if (args.q) {
        stage_queries<D, BYTES>(args, row.y, shared);
    } else {
        const bool has_own = blockIdx.x == span.n_parts - 1;
        stage_projected<D, BYTES>(args, projected, row, has_own, shared);
    }
    while (n_asked < walk.N_STAGES - 1) walk.fetch(n_asked++);
    Running<D> running;
    running.begin();
    attend(walk, begin, shared, running);
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        const float(&x)[4] = running.values[j];
        shared.warps[warp].sums[j][lane] = make_float4(x[0], x[1], x[2], x[3]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float sum = quad_sum(running.sum[r]);
        if (quad == 0) shared.stats[warp][eighth + 8 * r] = make_float2(running.greatest[r], sum);
    }
    __syncthreads();
    Merged<D> merged;
    merged.merge(DECODE_WARPS, [&](u32 i, int r) { return shared.stats[i][r]; },
                 [&](u32 i, int tile) { return shared.warps[i].sums[tile][lane]; });
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
