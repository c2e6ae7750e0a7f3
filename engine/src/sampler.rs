//! From logits to a token. Every draw depends only on the request's seed and on how many tokens it
//! has generated, so batching, preemption and restarts cannot change it.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use scheduler::TokenId;

use crate::batch::EmitPoint;
use crate::rank::{Entering, RowOutput};
use crate::request::{Request, SamplingParams, TokenScore};

/// Sampling state of every slot, and memory for one row of logits.
pub(crate) struct Sampler {
    slots: Vec<Option<Slot>>,
    adjusted: Vec<f32>,
    candidates: Vec<u32>,
    weights: Vec<f64>,
}

struct Slot {
    request: Arc<Request>,
    n_generated: usize,
    /// Tokens seen; kept only for requests with penalties.
    seen: HashMap<TokenId, Seen>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    n_generated: u32,
}

impl Sampler {
    pub(crate) fn new(n_slots: usize, vocab_size: usize) -> Sampler {
        Sampler {
            slots: (0..n_slots).map(|_| None).collect(),
            adjusted: Vec::with_capacity(vocab_size),
            candidates: Vec::with_capacity(vocab_size),
            weights: Vec::with_capacity(vocab_size),
        }
    }

    /// Bytes that [`Sampler::new`] allocates for its row.
    pub(crate) fn n_bytes(vocab_size: usize) -> u64 {
        (vocab_size * (size_of::<f32>() + size_of::<u32>() + size_of::<f64>())) as u64
    }

    /// A sequence takes a slot.
    pub(crate) fn enter(&mut self, entering: &Entering) {
        let mut slot =
            Slot { request: Arc::clone(&entering.request), n_generated: 0, seen: HashMap::new() };
        if slot.has_penalties() {
            for &token in slot.request.prompt.iter() {
                slot.seen.entry(token).or_default();
            }
        }
        for &token in &entering.generated {
            slot.push(token);
        }
        self.slots[entering.slot.idx()] = Some(slot);
    }

    /// Does what the point asks with its logits `[vocab]`.
    pub(crate) fn take(&mut self, point: &EmitPoint, logits: &[f32], output: &mut RowOutput) {
        if logits.iter().any(|logit| !logit.is_finite()) {
            output.is_broken = true;
        }
        let slot = self.slots[point.slot.idx()].as_mut().expect("a row's slot was entered");
        let request = Arc::clone(&slot.request);
        if point.scores
            && let Some(&token) = request.prompt.get(point.position + 1)
        {
            let n_top = request.n_prompt_logprobs.unwrap_or(0);
            output.prompt_scores.push(score(logits, token, n_top));
        }
        if !point.samples {
            return;
        }
        let token = self.sample(point, logits);
        output.token = Some(token);
        output.score = request.n_logprobs.map(|n_top| score(logits, token, n_top));
    }

    fn sample(&mut self, point: &EmitPoint, logits: &[f32]) -> TokenId {
        let slot = self.slots[point.slot.idx()].as_mut().expect("a row's slot was entered");
        let params = &slot.request.sampling;
        let forbids_stop = slot.n_generated < params.n_tokens_min;
        let token = if params.temperature == 0.0
            && params.logit_bias.is_empty()
            && !slot.has_penalties()
            && !forbids_stop
        {
            argmax(logits)
        } else {
            self.adjusted.clear();
            self.adjusted.extend_from_slice(logits);
            adjust(slot, forbids_stop, &mut self.adjusted);
            if params.temperature == 0.0 {
                argmax(&self.adjusted)
            } else {
                self.adjusted.iter_mut().for_each(|logit| *logit /= params.temperature);
                let uniform = uniform(params.seed, slot.n_generated as u64);
                draw(&self.adjusted, params, uniform, &mut self.candidates, &mut self.weights)
            }
        };
        slot.push(token);
        token
    }
}

impl Slot {
    fn has_penalties(&self) -> bool {
        let params = &self.request.sampling;
        params.repetition_penalty != 1.0
            || params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0
    }

    fn push(&mut self, token: TokenId) {
        self.n_generated += 1;
        if self.has_penalties() {
            self.seen.entry(token).or_default().n_generated += 1;
        }
    }
}

/// Bias, penalties and the ban on stop tokens, in this order.
fn adjust(slot: &Slot, forbids_stop: bool, logits: &mut [f32]) {
    let params = &slot.request.sampling;
    for &(token, bias) in &params.logit_bias {
        logits[token.idx()] += bias;
    }
    for (token, seen) in &slot.seen {
        let logit = &mut logits[token.idx()];
        let penalty = params.repetition_penalty;
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        if seen.n_generated > 0 {
            *logit -= params.presence_penalty;
            *logit -= params.frequency_penalty * seen.n_generated as f32;
        }
    }
    if forbids_stop {
        for token in slot.request.stop_tokens.iter() {
            logits[token.idx()] = f32::NEG_INFINITY;
        }
    }
}

/// The first of the greatest.
fn argmax(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    TokenId(best as u32)
}

/// Likelier first; of equals, the smaller id.
fn by_likelihood(logits: &[f32]) -> impl Fn(&u32, &u32) -> Ordering {
    move |&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

/// Draws from the filtered softmax of `logits` by inverting its cumulative distribution over the
/// candidates in an order that depends on `logits` only. `candidates` and `weights` are scratch.
fn draw(
    logits: &[f32],
    params: &SamplingParams,
    uniform: f64,
    candidates: &mut Vec<u32>,
    weights: &mut Vec<f64>,
) -> TokenId {
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
fn uniform(seed: u64, draw_idx: u64) -> f64 {
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
fn score(logits: &[f32], token: TokenId, n_top: usize) -> TokenScore {
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
    }
}

#[cfg(test)]
mod tests;
