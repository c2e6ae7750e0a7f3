//! From logits to a token. Every draw depends only on the request's seed and on how many tokens it
//! has generated, so batching, preemption and restarts cannot change it.

use std::collections::HashMap;
use std::sync::Arc;

use scheduler::{SlotIdx, TokenId};

use crate::batch::EmitPoint;
use crate::guide::TokenSet;
use crate::kernels::sample::cpu::{Scratch, are_finite, argmax, draw, hash, score, uniform};
use crate::rank::{Entering, RowOutput};
use crate::request::{Request, TokenScore};

/// Sampling state of every slot, and memory for one row of logits.
pub(crate) struct Sampler {
    slots: Vec<Option<Slot>>,
    adjusted: Vec<f32>,
    scratch: Scratch,
}

struct Slot {
    request: Arc<Request>,
    n_generated: usize,
    /// What was sampled last for the row that is being taken, unless a guess was wrong since.
    last: Option<TokenId>,
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
            scratch: Scratch::new(vocab_size),
        }
    }

    /// Bytes that [`Sampler::new`] allocates for its row.
    pub(crate) fn n_bytes(vocab_size: usize) -> u64 {
        (vocab_size * size_of::<f32>() + Scratch::n_bytes(vocab_size)) as u64
    }

    /// A sequence takes a slot.
    pub(crate) fn enter(&mut self, entering: &Entering) {
        let mut slot = Slot {
            request: Arc::clone(&entering.request),
            n_generated: 0,
            last: None,
            seen: HashMap::new(),
        };
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

    /// Does what the point asks with its logits `[vocab]`, and samples among the tokens that are
    /// allowed, where not all are. Nothing, from the first guess of a row on that was wrong.
    pub(crate) fn take(
        &mut self,
        point: &EmitPoint,
        (logits, allowed): (&[f32], Option<&TokenSet>),
        output: &mut RowOutput,
    ) {
        let slot = self.slots[point.slot.idx()].as_mut().expect("a row's slot was entered");
        if point.candidate.is_some() && point.candidate != slot.last {
            slot.last = None;
            return;
        }
        if !are_finite(logits) {
            output.is_broken = true;
        }
        let request = Arc::clone(&slot.request);
        let scored = |token, n_top| TokenScore {
            logits_hash: request.hashes_logits.then(|| hash(logits)),
            ..score(logits, token, n_top)
        };
        if point.scores
            && let Some(&token) = request.prompt.get(point.position + 1)
        {
            output.prompt_scores.push(scored(token, request.n_prompt_logprobs.unwrap_or(0)));
        }
        if !point.samples {
            return;
        }
        let token = self.sample(point.slot, logits, allowed);
        output.token = Some(token);
        output.score = request.n_logprobs.map(|n_top| scored(token, n_top));
    }

    /// The next token of a slot, drawn from its logits `[vocab]` among those that are `allowed`.
    pub(crate) fn sample(
        &mut self,
        slot: SlotIdx,
        logits: &[f32],
        allowed: Option<&TokenSet>,
    ) -> TokenId {
        let slot = self.slots[slot.idx()].as_mut().expect("a row's slot was entered");
        let params = &slot.request.sampling;
        let forbids_stop = slot.forbids_stop(allowed);
        let token = if params.temperature == 0.0
            && params.logit_bias.is_empty()
            && !slot.has_penalties()
            && !forbids_stop
            && allowed.is_none()
        {
            argmax(logits)
        } else {
            self.adjusted.clear();
            self.adjusted.extend_from_slice(logits);
            adjust(slot, forbids_stop, &mut self.adjusted);
            if let Some(allowed) = allowed {
                allowed.mask(&mut self.adjusted);
            }
            if params.temperature == 0.0 {
                argmax(&self.adjusted)
            } else {
                self.adjusted.iter_mut().for_each(|logit| *logit /= params.temperature);
                let uniform = uniform(params.seed, slot.n_generated as u64);
                draw(&self.adjusted, params, uniform, &mut self.scratch)
            }
        };
        slot.push(token);
        token
    }

    /// What a slot draws from: its logits `[vocab]` after all that comes before the filters.
    #[cfg(test)]
    pub(crate) fn adjusted(&self, slot: SlotIdx, logits: &[f32]) -> Vec<f32> {
        let slot = self.slots[slot.idx()].as_ref().expect("the slot was entered");
        let params = &slot.request.sampling;
        let mut adjusted = logits.to_vec();
        adjust(slot, slot.forbids_stop(None), &mut adjusted);
        adjusted.iter_mut().for_each(|logit| *logit /= params.temperature);
        adjusted
    }
}

impl Slot {
    fn has_penalties(&self) -> bool {
        let params = &self.request.sampling;
        params.repetition_penalty != 1.0
            || params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0
    }

    /// Whether stop tokens are out of the question: it is too short for one, unless nothing else is
    /// allowed.
    fn forbids_stop(&self, allowed: Option<&TokenSet>) -> bool {
        if self.n_generated >= self.request.sampling.n_tokens_min {
            return false;
        }
        let stops = self.request.stop_tokens.iter();
        // Each once: a request may name one twice.
        let stops: std::collections::BTreeSet<TokenId> = stops.copied().collect();
        let n_stops = |set: &TokenSet| stops.iter().filter(|&&stop| set.contains(stop)).count();
        allowed.is_none_or(|set| n_stops(set) < set.n_tokens())
    }

    fn push(&mut self, token: TokenId) {
        self.n_generated += 1;
        self.last = Some(token);
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

#[cfg(test)]
mod tests;
