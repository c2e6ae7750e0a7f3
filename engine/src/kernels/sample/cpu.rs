//! From one row of logits to a token, on the host: what [`Sampler`](crate::sampler) does with a
//! row, and what defines the answers of `sample.cu`.

use std::cmp::Ordering;

use scheduler::TokenId;

use crate::request::{SamplingParams, TokenScore};

/// Memory for one draw.
pub(crate) struct Scratch {
    candidates: Vec<u32>,
    weights: Vec<f64>,
}

impl Scratch {
    pub(crate) fn new(vocab_size: usize) -> Scratch {
        Scratch {
            candidates: Vec::with_capacity(vocab_size),
            weights: Vec::with_capacity(vocab_size),
        }
    }

    /// Bytes that [`Scratch::new`] allocates.
    pub(crate) fn n_bytes(vocab_size: usize) -> usize {
        vocab_size * (size_of::<u32>() + size_of::<f64>())
    }
}

/// Logits that are looked at together, all lanes of a vector side by side.
const N_TOGETHER: usize = 1024;

/// The first of the greatest.
pub(crate) fn argmax(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (chunk_idx, chunk) in logits.chunks(N_TOGETHER).enumerate() {
        let (rows, rest) = chunk.as_chunks::<16>();
        let mut greatest = [f32::NEG_INFINITY; 16];
        for row in rows {
            for lane in 0..16 {
                greatest[lane] =
                    if row[lane] > greatest[lane] { row[lane] } else { greatest[lane] };
            }
        }
        let all = greatest.iter().chain(rest);
        let found = all.fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        // Whoever stands first stays, a NaN as well, unless somebody is greater.
        if found > logits[best] {
            let place = chunk.iter().position(|&logit| logit == found);
            best = chunk_idx * N_TOGETHER + place.expect("it was found there");
        }
    }
    TokenId(best as u32)
}

/// Whether all are numbers.
pub(crate) fn are_finite(logits: &[f32]) -> bool {
    let is_fine = |chunk: &[f32]| chunk.iter().fold(true, |is_fine, x| is_fine & x.is_finite());
    logits.chunks(N_TOGETHER).all(is_fine)
}

/// Likelier first; of equals, the smaller id.
fn by_likelihood(logits: &[f32]) -> impl Fn(&u32, &u32) -> Ordering {
    move |&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

/// Draws from the filtered softmax of `logits` by inverting its cumulative distribution over the
/// candidates in the tokens' order.
pub(crate) fn draw(
    logits: &[f32],
    params: &SamplingParams,
    uniform: f64,
    scratch: &mut Scratch,
) -> TokenId {
    let Scratch { candidates, weights } = scratch;
    let max = logits[argmax(logits).idx()];
    let weight = |token: u32| f64::from(logits[token as usize] - max).exp();
    candidates.clear();
    candidates.extend(0..logits.len() as u32);
    if params.top_k > 0 && params.top_k < candidates.len() {
        candidates.select_nth_unstable_by(params.top_k - 1, by_likelihood(logits));
        candidates.truncate(params.top_k);
        // The sum below must not depend on how the selection left them.
        candidates.sort_unstable();
    }
    if params.top_p < 1.0 {
        keep_nucleus(logits, f64::from(params.top_p), candidates, &weight);
        candidates.sort_unstable();
    }
    if params.min_p > 0.0 {
        candidates.retain(|&token| weight(token) >= f64::from(params.min_p));
    }
    weights.clear();
    let mut total = 0.0;
    for &token in candidates.iter() {
        total += weight(token);
        weights.push(total);
    }
    let target = uniform * total;
    let drawn = weights.partition_point(|&cumulative| cumulative <= target);
    TokenId(candidates[drawn.min(candidates.len() - 1)])
}

/// Keeps the likeliest candidates whose share of the whole reaches `top_p`, likeliest first.
///
/// Sorting a vocabulary of 128,256 costs more than the model's head; the nucleus is nearly always
/// small, so ever larger heads of the list are sorted until one suffices.
fn keep_nucleus(
    logits: &[f32],
    top_p: f64,
    candidates: &mut Vec<u32>,
    weight: &impl Fn(u32) -> f64,
) {
    let total: f64 = candidates.iter().map(|&token| weight(token)).sum();
    let mut n_sorted = 128.min(candidates.len());
    loop {
        if n_sorted < candidates.len() {
            candidates.select_nth_unstable_by(n_sorted - 1, by_likelihood(logits));
        }
        candidates[..n_sorted].sort_unstable_by(by_likelihood(logits));
        let mut reached = 0.0;
        for (idx, &token) in candidates[..n_sorted].iter().enumerate() {
            reached += weight(token);
            if reached >= top_p * total {
                candidates.truncate(idx + 1);
                return;
            }
        }
        if n_sorted == candidates.len() {
            return;
        }
        n_sorted = (n_sorted * 8).min(candidates.len());
    }
}

/// A number in [0, 1) that depends on its two arguments only (SplitMix64's finaliser, twice:
/// Steele et al., OOPSLA 2014).
pub(crate) fn uniform(seed: u64, draw_idx: u64) -> f64 {
    let mixed = mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ draw_idx);
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(state: u64) -> u64 {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// Log-probability of `token`, and of the `n_top` likeliest.
pub(crate) fn score(logits: &[f32], token: TokenId, n_top: usize) -> TokenScore {
    let max = logits[argmax(logits).idx()];
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let log_sum = f64::from(max) + sum.ln();
    let logprob = |token: u32| (f64::from(logits[token as usize]) - log_sum) as f32;
    let order = by_likelihood(logits);
    let mut top: Vec<u32> = Vec::with_capacity(n_top + 1);
    for candidate in 0..logits.len() as u32 {
        let place = top.partition_point(|other| order(other, &candidate) == Ordering::Less);
        if place < n_top {
            top.insert(place, candidate);
            top.truncate(n_top);
        }
    }
    TokenScore {
        token,
        logprob: logprob(token.0),
        top: top.into_iter().map(|token| (TokenId(token), logprob(token))).collect(),
        logits_hash: None,
    }
}

/// A number that depends on every bit of every logit, and on their order.
pub(crate) fn hash(logits: &[f32]) -> u64 {
    logits.iter().fold(logits.len() as u64, |hash, logit| mix(hash ^ u64::from(logit.to_bits())))
}
