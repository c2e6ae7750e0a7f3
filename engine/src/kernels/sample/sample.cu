// From logits to tokens: one block a row, the same on every rank, because every rank has all logits
// and a slot's whole state.
//
//   logits   f32 [n_ranks][n_rows][n_local], strides given, as an all-gather of a head that is cut by
//            tokens leaves them. Token rank * n_local + i. Read only.
//   slots    parameters and progress of each sequence
//   facts    u32 [slot][n_vocab]: how often a token was generated, and the flags below; looked at
//            only for slots that use them
//   biases   [slot][n_biases_max], ascending by token, each token once
//   rows     i32 [n_rows]: the slot of each row of logits; -1 is padding and does nothing
//   answers  [n_rows]
//   last_tokens  i32 [slot]: what the next step embeds
//
// Order: bias, penalties, ban on stop tokens, temperature, top-k, top-p, min-p, draw. A token's
// place in the order of likelihood is one integer (the logit's bits, then the smaller id), so every
// filter is a comparison with the last token that it keeps. That token is found by a histogram over
// distances from the greatest logit, and then by counting within one of its bins.
//
// A token's weight is exp(logit - greatest) as an integer, in units of 2^-40: sums are exact, in
// whatever order they are made, so an answer does not depend on threads, ranks or batch. Tokens
// whose weight rounds to zero take no part: a draw would not reach them.
//
// Bound: the row's bytes, 4 a token and pass, from the L2 after the first: one pass for a greedy
// row, two for a plain draw, two more for each of top-k and top-p.
//
// sass sample: LDG.128 6
#include "common.cuh"

constexpr int N_THREADS = 1024;
// Tokens that the block takes at once, four a thread. Tiles ascend with the tokens in them.
constexpr int TILE_TOKENS = 4 * N_THREADS;
constexpr int N_TILES_MAX = 256;
constexpr int N_BINS = 2 * N_THREADS;
// Tokens among which the last kept one is found by comparing all with all.
constexpr u32 N_LISTED_MAX = N_THREADS;
// exp(-28.5) is less than half of a weight's unit.
constexpr float DISTANCE_MAX = 28.5f;
constexpr float WEIGHT_ONE = 1099511627776.0f;

// Flags of a token's facts; the bits below are the count.
constexpr u32 IN_PROMPT = 1u << 31;
constexpr u32 IS_STOP = 1u << 30;
constexpr u32 HAS_BIAS = 1u << 29;
constexpr u32 COUNT = HAS_BIAS - 1;

struct Slot {
    u64 seed;
    // Times 2^63.
    u64 top_p;
    // Tokens drawn so far: the number of the next draw.
    u32 n_generated;
    // Stop tokens cannot be drawn before so many.
    u32 n_tokens_min;
    // 0 keeps all.
    u32 top_k;
    // 0 takes the likeliest.
    float temperature;
    float min_p;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    u32 n_biases;
    u32 uses_facts;
    u32 wants_logprob;
    u32 unused;
};

struct Bias {
    i32 token;
    float bias;
};

struct Answer {
    i32 token;
    // Whether a logit was no finite number.
    u32 is_broken;
    // Of the token, before bias, penalties and temperature; if it was wanted.
    float logprob;
    u32 unused;
};

struct Args {
    const float* logits;
    Slot* slots;
    u32* facts;
    const Bias* biases;
    const i32* rows;
    i32* last_tokens;
    Answer* answers;
    // In elements.
    i64 row_stride;
    i64 rank_stride;
    u32 n_ranks;
    u32 n_local;
    u32 n_vocab;
    u32 n_biases_max;
};
static_assert(sizeof(Slot) == 64 && sizeof(Args) == 88, "as the launcher has them, without gaps");

struct Shared {
    u64 bins[N_BINS];
    u64 listed[N_LISTED_MAX];
    u64 tiles[N_TILES_MAX];
    u64 of_warps[N_THREADS / 32];
    u64 least, most;
    u64 before;
    u32 found;
    u32 n_listed;
};

// ---- over the block ----------------------------------------------------------------------------

// The sum of this thread's and all earlier ones'. `room` may be used again after a barrier.
__device__ __forceinline__ u64 sum_up_to(u64 x, u64* room) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const u64 before = __shfl_up_sync(FULL_WARP, x, step);
        if (lane >= step) x += before;
    }
    if (lane == 31) room[warp] = x;
    __syncthreads();
    for (int i = 0; i < warp; i++) x += room[i];
    return x;
}

__device__ __forceinline__ u64 least_of_block(u64 x, u64* room) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        x = min(x, __shfl_xor_sync(FULL_WARP, x, distance));
    }
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    x = room[0];
    for (int i = 1; i < N_THREADS / 32; i++) x = min(x, room[i]);
    __syncthreads();
    return x;
}

__device__ __forceinline__ u64 sum_of_warp(u64 x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(FULL_WARP, x, distance);
    }
    return x;
}

// ---- one row -----------------------------------------------------------------------------------

// Likelier tokens have smaller places; of equals, the smaller id. -0 is less likely than 0.
__device__ __forceinline__ u64 place_of(float logit, u32 token) {
    const u32 bits = __float_as_uint(logit);
    const u32 ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
    return u64(~ascending) << 32 | token;
}

__device__ __forceinline__ float logit_at(u64 place) {
    const u32 ascending = ~u32(place >> 32);
    return __uint_as_float(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
}

__device__ __forceinline__ bool is_finite(float x) {
    return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

struct Row {
    const float* logits;
    const u32* facts;
    const Bias* biases;
    Slot slot;
    bool forbids_stop;

    __device__ __forceinline__ Row(const Args& args, i32 slot_idx, i64 row_idx)
        : logits(args.logits + row_idx * args.row_stride),
          facts(args.facts + i64(slot_idx) * args.n_vocab),
          biases(args.biases + i64(slot_idx) * args.n_biases_max),
          slot(args.slots[slot_idx]),
          forbids_stop(slot.n_generated < slot.n_tokens_min) {}

    __device__ __forceinline__ float bias_of(i32 token) const {
        u32 first = 0, n = slot.n_biases;
        while (n > 1) {
            const u32 half = n / 2;
            if (biases[first + half].token <= token) first += half;
            n -= half;
        }
        return biases[first].bias;
    }

    // Bias, penalties and the ban on stop tokens, each rounded as it is applied.
    __device__ __forceinline__ float adjusted(float logit, u32 token) const {
        if (!slot.uses_facts) return logit;
        const u32 fact = facts[token];
        if (fact & HAS_BIAS) logit += bias_of(token);
        if (fact & (IN_PROMPT | COUNT)) {
            logit = logit > 0.0f ? __fdiv_rn(logit, slot.repetition_penalty)
                                 : __fmul_rn(logit, slot.repetition_penalty);
        }
        if (fact & COUNT) {
            logit = __fsub_rn(logit, slot.presence_penalty);
            logit = __fsub_rn(logit, __fmul_rn(slot.frequency_penalty, float(fact & COUNT)));
        }
        return fact & IS_STOP && forbids_stop ? __int_as_float(0xff800000) : logit;
    }

    // What is drawn from: only where the temperature is not 0.
    __device__ __forceinline__ float scaled(float logit, u32 token) const {
        return __fdiv_rn(adjusted(logit, token), slot.temperature);
    }
};

// Four tokens from `first` on, of which `n` exist.
struct Quad {
    float x[4];
    u32 first;
    u32 n;
};

// The thread's part of tile `tile`: tile `tile % n_tiles_of_rank` of a rank's tokens.
__device__ __forceinline__ Quad load_quad(const Args& args, const float* logits, u32 tile) {
    const u32 n_tiles_of_rank = (args.n_local + TILE_TOKENS - 1) / TILE_TOKENS;
    const u32 rank = tile / n_tiles_of_rank;
    const u32 at = tile % n_tiles_of_rank * TILE_TOKENS + 4 * threadIdx.x;
    Quad quad;
    quad.first = rank * args.n_local + at;
    quad.n = at < args.n_local ? min(4u, args.n_local - at) : 0;
    quad.n = quad.first < args.n_vocab ? min(quad.n, args.n_vocab - quad.first) : 0;
    const float* from = logits + rank * args.rank_stride + at;
    if (quad.n == 4 && u64(from) % 16 == 0) {
        const float4 x = __ldg(reinterpret_cast<const float4*>(from));
        quad.x[0] = x.x, quad.x[1] = x.y, quad.x[2] = x.z, quad.x[3] = x.w;
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++) quad.x[i] = i < quad.n ? __ldg(from + i) : 0.0f;
    }
    return quad;
}

__device__ __forceinline__ u32 n_tiles(const Args& args) {
    return args.n_ranks * ((args.n_local + TILE_TOKENS - 1) / TILE_TOKENS);
}

// body(tile, quad) for every tile, the next on its way meanwhile.
template <typename Body>
__device__ __forceinline__ void for_each_tile(const Args& args, const float* logits,
                                              const Body& body) {
    Quad next = load_quad(args, logits, 0);
    for (u32 tile = 0; tile < n_tiles(args); tile++) {
        const Quad quad = next;
        if (tile + 1 < n_tiles(args)) next = load_quad(args, logits, tile + 1);
        body(tile, quad);
    }
}

// body(token, logit) for every token.
template <typename Body>
__device__ __forceinline__ void for_each_token(const Args& args, const float* logits,
                                               const Body& body) {
    for_each_tile(args, logits, [&](u32, const Quad& quad) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (i < quad.n) body(quad.first + i, quad.x[i]);
        }
    });
}

// The first of the greatest of `value(token, logit)`: its place.
template <typename Value>
__device__ __forceinline__ u64 greatest(const Args& args, const Row& row, Shared& shared,
                                        const Value& value) {
    u64 best = ~0ull;
    for_each_token(args, row.logits, [&](u32 token, float logit) {
        // -0 and 0 are equal here.
        best = min(best, place_of(value(token, logit) + 0.0f, token));
    });
    return least_of_block(best, shared.of_warps);
}

// exp(-distance) in units of 2^-40; 1 at the greatest logit.
__device__ __forceinline__ u64 weight_of(float weight) {
    return __float2ull_rn(weight * WEIGHT_ONE);
}

// The least integer that is not less than share / 2^63 of `total`.
__device__ __forceinline__ u64 share_of(u64 total, u64 share) {
    const u64 high = __umul64hi(total, share), low = total * share;
    return (high << 1 | low >> 63) + ((low & ~(1ull << 63)) != 0);
}

// A number in [0, 2^64) whose upper 53 bits are the draw's; SplitMix64's finaliser, twice.
__device__ __forceinline__ u64 mixed(u64 state) {
    state += 0x9e3779b97f4a7c15ull;
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9ull;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebull;
    return state ^ (state >> 31);
}

__device__ __forceinline__ u64 uniform(u64 seed, u64 draw_idx) {
    return mixed(mixed(seed + 0x9e3779b97f4a7c15ull) ^ draw_idx) & ~0x7ffull;
}

// ---- filters -----------------------------------------------------------------------------------

// A cut of places [least, most] into bins that ascend with them.
struct Cut {
    u64 least, most;
    // By distance from the greatest logit, or by the places' own bits.
    bool by_distance;
    int shift;

    __device__ __forceinline__ u32 bin_of(u64 place, float distance) const {
        if (!by_distance) return u32((place - least) >> shift);
        return min(u32(N_BINS - 1), u32(distance * (N_BINS / DISTANCE_MAX)));
    }
};

// Finds the last token that is kept when tokens up to place `limit` are taken likeliest first until
// their amounts (weights, or one each) reach `needed(total)`. If they never do, that is `limit`.
template <bool BY_WEIGHT, typename Needed>
__device__ __forceinline__ u64 last_kept(const Args& args, const Row& row, float max_logit,
                                         Shared& shared, u64 limit, const Needed& needed) {
    const auto amount_of = [&](float logit) {
        const u64 weight = weight_of(expf(logit - max_logit));
        return BY_WEIGHT ? weight : u64(weight > 0);
    };
    Cut cut = {0, limit, true, 0};
    u64 need = 0;
    // body(place, amount, bin) for tokens inside the cut.
    const auto for_each_inside = [&](const auto& body) {
        for_each_token(args, row.logits, [&](u32 token, float logit) {
            const float x = row.scaled(logit, token);
            const u64 place = place_of(x, token);
            const u64 amount = amount_of(x);
            if (amount > 0 && cut.least <= place && place <= cut.most) {
                body(place, amount, cut.bin_of(place, max_logit - x));
            }
        });
    };
    for (bool is_first = true;; is_first = false) {
        for (u32 i = threadIdx.x; i < N_BINS; i += N_THREADS) shared.bins[i] = 0;
        if (threadIdx.x == 0) {
            shared.n_listed = 0, shared.found = N_BINS;
            shared.least = ~0ull, shared.most = 0;
            if (is_first) shared.before = 0;
        }
        __syncthreads();
        for_each_inside([&](u64, u64 amount, u32 bin) { atomicAdd(&shared.bins[bin], amount); });
        __syncthreads();
        const u64 low = shared.bins[2 * threadIdx.x], high = shared.bins[2 * threadIdx.x + 1];
        const u64 before_all = shared.before;
        const u64 up_to = sum_up_to(low + high, shared.of_warps);
        __syncthreads();
        if (is_first) {
            if (threadIdx.x == N_THREADS - 1) shared.of_warps[0] = up_to;
            __syncthreads();
            const u64 total = shared.of_warps[0];
            need = needed(total);
            if (total < need) return limit;
            __syncthreads();
        }
        // The bin in which the need is met; one thread finds it.
        const u64 before = before_all + up_to - high - low;
        if (before < need && need <= before + low + high) {
            const bool is_low = need <= before + low;
            shared.found = 2 * threadIdx.x + !is_low;
            shared.before = is_low ? before : before + low;
        }
        __syncthreads();
        const u32 found = shared.found;
        for_each_inside([&](u64 place, u64, u32 bin) {
            if (bin != found) return;
            const u32 idx = atomicAdd(&shared.n_listed, 1);
            if (idx < N_LISTED_MAX) shared.listed[idx] = place;
            atomicMin(&shared.least, place);
            atomicMax(&shared.most, place);
        });
        __syncthreads();
        if (shared.n_listed <= N_LISTED_MAX) break;
        // Too many of one bin: cut what lies in it by the places' bits. 64 of them end soon.
        const u64 span = shared.most - shared.least;
        const int n_bits = 64 - __clzll(span);
        cut = {shared.least, shared.most, false, max(0, n_bits - 11)};
        __syncthreads();
    }
    const u32 n_listed = shared.n_listed;
    const u64 own = threadIdx.x < n_listed ? shared.listed[threadIdx.x] : 0;
    const u64 amount = threadIdx.x < n_listed ? amount_of(logit_at(own)) : 0;
    shared.bins[threadIdx.x] = amount;
    __syncthreads();
    if (threadIdx.x < n_listed) {
        u64 before = shared.before;
        for (u32 i = 0; i < n_listed; i++) {
            if (shared.listed[i] < own) before += shared.bins[i];
        }
        if (before < need && need <= before + amount) shared.least = own;
    }
    __syncthreads();
    const u64 last = shared.least;
    __syncthreads();
    return last;
}

// Draws by inverting the cumulative weights, in the tokens' order, of those that `weight` keeps.
template <typename Weight>
__device__ __forceinline__ u32 draw(const Args& args, const Row& row, Shared& shared,
                                    const Weight& weight) {
    const auto sum_of = [&](const Quad& quad) {
        u64 sum = 0;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (i < quad.n) sum += weight(quad.first + i, quad.x[i]);
        }
        return sum;
    };
    if (threadIdx.x < N_TILES_MAX) shared.tiles[threadIdx.x] = 0;
    __syncthreads();
    for_each_tile(args, row.logits, [&](u32 tile, const Quad& quad) {
        const u64 sum = sum_of_warp(sum_of(quad));
        if (threadIdx.x % 32 == 0) atomicAdd(&shared.tiles[tile], sum);
    });
    __syncthreads();
    const u64 of_tile = threadIdx.x < N_TILES_MAX ? shared.tiles[threadIdx.x] : 0;
    const u64 up_to = sum_up_to(of_tile, shared.of_warps);
    if (threadIdx.x == N_THREADS - 1) shared.most = up_to;
    if (threadIdx.x == 0) shared.found = 0;
    __syncthreads();
    // Less than the total, so that one tile and in it one token has it.
    const u64 target = __umul64hi(shared.most, uniform(row.slot.seed, row.slot.n_generated));
    if (up_to - of_tile <= target && target < up_to) {
        shared.found = threadIdx.x;
        shared.before = up_to - of_tile;
    }
    __syncthreads();
    const Quad quad = load_quad(args, row.logits, shared.found);
    u64 before = shared.before;
    __syncthreads();
    const u64 own = sum_of(quad);
    const u64 reached = before + sum_up_to(own, shared.of_warps);
    if (reached - own <= target && target < reached) {
        before = reached - own;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (i >= quad.n) continue;
            const u64 after = before + weight(quad.first + i, quad.x[i]);
            if (before <= target && target < after) shared.found = quad.first + i;
            before = after;
        }
    }
    __syncthreads();
    return shared.found;
}

__device__ __forceinline__ u32 sampled(const Args& args, const Row& row, Shared& shared) {
    const u64 best = greatest(args, row, shared, [&](u32 token, float logit) {
        return row.scaled(logit, token);
    });
    const float max_logit = logit_at(best);
    u64 limit = ~0ull;
    if (row.slot.top_k > 0 && row.slot.top_k < args.n_vocab) {
        limit = last_kept<false>(args, row, max_logit, shared, limit,
                                 [&](u64) { return u64(row.slot.top_k); });
    }
    if (row.slot.top_p < 1ull << 63) {
        limit = last_kept<true>(args, row, max_logit, shared, limit,
                                [&](u64 total) { return share_of(total, row.slot.top_p); });
    }
    return draw(args, row, shared, [&](u32 token, float logit) {
        const float x = row.scaled(logit, token);
        const float weight = expf(x - max_logit);
        return place_of(x, token) <= limit && weight >= row.slot.min_p ? weight_of(weight) : 0;
    });
}

// The logarithm of the token's share of exp(logit), over the logits as they came.
__device__ __forceinline__ float logprob(const Args& args, const Row& row, Shared& shared,
                                         float max_logit, u32 token) {
    u64 sum = 0;
    for_each_token(args, row.logits, [&](u32, float logit) {
        sum += weight_of(expf(logit - max_logit));
    });
    sum = sum_up_to(sum, shared.of_warps);
    __syncthreads();
    if (threadIdx.x != N_THREADS - 1) return 0.0f;
    const float logit = row.logits[token / args.n_local * args.rank_stride + token % args.n_local];
    return logit - max_logit - logf(float(sum) / WEIGHT_ONE);
}

extern "C" __global__ void __launch_bounds__(N_THREADS) sample(const __grid_constant__ Args args) {
    __shared__ Shared shared;
    const i32 slot_idx = args.rows[blockIdx.x];
    if (slot_idx < 0) return;
    const Row row(args, slot_idx, blockIdx.x);
    bool is_broken = false;
    const u64 raw_best = greatest(args, row, shared, [&](u32, float logit) {
        is_broken |= !is_finite(logit);
        return logit;
    });
    is_broken = __syncthreads_or(is_broken);
    u32 token;
    if (row.slot.temperature != 0.0f) {
        token = sampled(args, row, shared);
    } else if (row.slot.uses_facts) {
        const u64 best = greatest(args, row, shared, [&](u32 id, float logit) {
            return row.adjusted(logit, id);
        });
        token = u32(best);
    } else {
        token = u32(raw_best);
    }
    // What broken logits yield is of no use, but it is a token.
    token = min(token, args.n_vocab - 1);
    Answer answer = {i32(token), is_broken, 0.0f, 0};
    if (row.slot.wants_logprob) {
        answer.logprob = logprob(args, row, shared, logit_at(raw_best), token);
    }
    // The last thread knows the log-probability.
    if (threadIdx.x != N_THREADS - 1) return;
    args.answers[blockIdx.x] = answer;
    args.last_tokens[slot_idx] = answer.token;
    args.slots[slot_idx].n_generated = row.slot.n_generated + 1;
    if (row.slot.uses_facts) args.facts[i64(slot_idx) * args.n_vocab + token] += 1;
}

// A sequence's facts, when it takes its slot: of one block.
//
//   facts    u32 [n_vocab], of the slot
//   tokens   i32 [n_prompt + n_generated]: the prompt, then what was generated before
//   stops    i32 [n_stops]
//   biases   as above, of the slot
extern "C" __global__ void __launch_bounds__(N_THREADS)
sample_enter(u32* facts, u32 n_vocab, const i32* tokens, u32 n_prompt, u32 n_generated,
             const i32* stops, u32 n_stops, const Bias* biases, u32 n_biases) {
    for (u32 i = threadIdx.x; i < n_vocab; i += N_THREADS) facts[i] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < n_prompt; i += N_THREADS) atomicOr(facts + tokens[i], IN_PROMPT);
    for (u32 i = threadIdx.x; i < n_generated; i += N_THREADS) {
        atomicAdd(facts + tokens[n_prompt + i], 1);
    }
    for (u32 i = threadIdx.x; i < n_stops; i += N_THREADS) atomicOr(facts + stops[i], IS_STOP);
    for (u32 i = threadIdx.x; i < n_biases; i += N_THREADS) {
        atomicOr(facts + biases[i].token, HAS_BIAS);
    }
}
