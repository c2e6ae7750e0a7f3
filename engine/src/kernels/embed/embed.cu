// Rows of the embedding table for the tokens of a step, from the part of it that this rank holds:
// out[t] = table[token - vocab_begin], or zeroes where another rank holds the token. The sum over
// the ranks is the embedding; it is made where the first block reads it.
//
//   tokens       i32 [n_tokens]; -1 - slot means what the slot sampled last, which the host may
//                not have seen yet
//   last_tokens  i32 [n_slots]
//   table        bf16 [n_entries, hidden]: vocabulary entries vocab_begin and on
//   out          bf16 [n_tokens, hidden]
//
// Who owns what: block (i, t) has columns [i, i + 1) * N_THREADS * N_CHUNKS * 8 of token t, a
// thread N_CHUNKS chunks that lie N_THREADS apart. Copies are exact.
//
// Bound: 4 * hidden bytes a token that is held, 2 * hidden for one that is not.
//
// sass embed_bf16: LDG.128 2, STG.128 2
#include "common.cuh"

constexpr int N_THREADS = 128;
constexpr int N_CHUNKS = 2;

extern "C" __global__ void __launch_bounds__(N_THREADS)
embed_bf16(const i32* __restrict__ tokens, const i32* __restrict__ last_tokens,
           const bf16* __restrict__ table, bf16* __restrict__ out, i32 vocab_begin,
           i32 n_entries, i32 hidden, i32 is_wide) {
    i32 token = tokens[blockIdx.y];
    if (token < 0) token = last_tokens[-1 - token];
    const i32 entry = token - vocab_begin;
    const bool is_held = entry >= 0 && entry < n_entries;
    const bf16* row = table + i64(is_held ? entry : 0) * hidden;
    bf16* place = out + i64(blockIdx.y) * hidden;
    const i32 first = (blockIdx.x * N_CHUNKS * N_THREADS + threadIdx.x) * CHUNK;

    uint4 chunks[N_CHUNKS];
#pragma unroll
    for (int i = 0; i < N_CHUNKS; i++) {
        const i32 col = first + i * N_THREADS * CHUNK;
        chunks[i] = make_uint4(0, 0, 0, 0);
        if (is_held && col < hidden) chunks[i] = load_chunk(row + col, hidden - col, is_wide);
    }
#pragma unroll
    for (int i = 0; i < N_CHUNKS; i++) {
        const i32 col = first + i * N_THREADS * CHUNK;
        if (col < hidden) store_chunk(place + col, chunks[i], hidden - col, is_wide);
    }
}
