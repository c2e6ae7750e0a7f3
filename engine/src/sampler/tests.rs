//! Filters against their definitions written another way, draws against their probabilities.

use super::*;
use scheduler::SlotIdx;

use crate::kernels::testing::Rng;
use crate::request::{SamplingParams, Terms};

fn request(sampling: SamplingParams) -> Request {
    Request {
        prompt: vec![TokenId(1), TokenId(2), TokenId(2)].into(),
        n_new_max: 10,
        stop_tokens: vec![TokenId(0)].into(),
        sampling,
        n_logprobs: None,
        n_prompt_logprobs: None,
        hashes_logits: false,
        cache_salt: None,
        terms: Terms::ordinary(),
    }
}

fn sampler(sampling: SamplingParams, vocab_size: usize, generated: &[u32]) -> Sampler {
    let mut sampler = Sampler::new(1, vocab_size);
    sampler.enter(&Entering {
        slot: SlotIdx(0),
        request: Arc::new(request(sampling)),
        generated: generated.iter().map(|&token| TokenId(token)).collect(),
        is_guided: false,
    });
    sampler
}

fn point() -> EmitPoint {
    EmitPoint {
        row_idx: 0,
        answer_idx: 0,
        slot: SlotIdx(0),
        position: 2,
        scores: false,
        samples: true,
        candidate: None,
    }
}

fn sample(sampler: &mut Sampler, logits: &[f32]) -> TokenId {
    let mut output = RowOutput::default();
    sampler.take(&point(), (logits, None), &mut output);
    output.token.expect("it samples")
}

/// The hash that comes with a score.
fn hashed(logits: &[f32]) -> Option<u64> {
    let mut sampler = Sampler::new(1, logits.len());
    let mut asked = request(SamplingParams::greedy());
    (asked.n_logprobs, asked.hashes_logits) = (Some(2), true);
    let entering = Entering {
        slot: SlotIdx(0),
        request: Arc::new(asked),
        generated: Vec::new(),
        is_guided: false,
    };
    sampler.enter(&entering);
    let mut output = RowOutput::default();
    sampler.take(&point(), (logits, None), &mut output);
    output.score.expect("asked for").logits_hash
}

#[test]
fn a_hash_sees_every_bit_of_every_logit() {
    let logits = pseudo_logits(50, 3);
    let expected = hashed(&logits);
    // The same in every build: hashes of two machines are compared.
    assert_eq!(expected, Some(0xd582_0129_a990_9c1a));
    for idx in 0..logits.len() {
        let mut other = logits.clone();
        other[idx] = f32::from_bits(other[idx].to_bits() ^ 1);
        assert_ne!(hashed(&other), expected, "logit {idx}");
    }
    let mut swapped = logits.clone();
    swapped.swap(7, 8);
    assert_ne!(hashed(&swapped), expected);
    let mut sampler = sampler(SamplingParams::greedy(), 50, &[]);
    let mut output = RowOutput::default();
    sampler.take(&point(), (&logits, None), &mut output);
    assert_eq!(output.score, None, "nobody pays who does not ask");
}

fn pseudo_logits(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64).map(|idx| (uniform(seed, idx) * 12.0 - 6.0) as f32).collect()
}

/// Probabilities after temperature and filters, straight from the definitions.
fn filtered(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let scaled: Vec<f64> =
        logits.iter().map(|&logit| f64::from(logit / params.temperature)).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| scaled[b].total_cmp(&scaled[a]).then(a.cmp(&b)));
    let max = scaled[order[0]];
    let mut p: Vec<f64> = scaled.iter().map(|logit| (logit - max).exp()).collect();
    if params.top_k > 0 {
        order.iter().skip(params.top_k).for_each(|&token| p[token] = 0.0);
    }
    let total: f64 = p.iter().sum();
    let mut before = 0.0;
    for &token in &order {
        let share = p[token] / total;
        if before >= f64::from(params.top_p) {
            p[token] = 0.0;
        }
        before += share;
    }
    p.iter_mut().filter(|p| **p < f64::from(params.min_p)).for_each(|p| *p = 0.0);
    let total: f64 = p.iter().sum();
    p.iter().map(|p| p / total).collect()
}

/// Every filter, alone and with others.
fn filters() -> [SamplingParams; 5] {
    let base = SamplingParams { temperature: 1.0, ..SamplingParams::greedy() };
    [
        base.clone(),
        SamplingParams { temperature: 0.6, top_p: 0.95, ..base.clone() },
        SamplingParams { top_k: 5, ..base.clone() },
        SamplingParams { min_p: 0.1, ..base.clone() },
        SamplingParams { temperature: 2.0, top_k: 300, top_p: 0.7, min_p: 0.02, ..base },
    ]
}

#[test]
fn draws_follow_the_filtered_probabilities() {
    for (case_idx, params) in filters().into_iter().enumerate() {
        let logits = pseudo_logits(500, case_idx as u64);
        let expected = filtered(&logits, &params);
        let n_draws = 20_000;
        let mut counts = vec![0usize; logits.len()];
        for seed in 0..n_draws {
            let params = SamplingParams { seed, ..params.clone() };
            counts[sample(&mut sampler(params, logits.len(), &[]), &logits).idx()] += 1;
        }
        let mut chi_squared = 0.0;
        let mut n_cells = 0;
        for (&count, &p) in counts.iter().zip(&expected) {
            let mean = p * n_draws as f64;
            assert!(p > 0.0 || count == 0, "case {case_idx}: a filtered token was drawn");
            if mean >= 5.0 {
                chi_squared += (count as f64 - mean).powi(2) / mean;
                n_cells += 1;
            }
        }
        // Mean n, standard deviation sqrt(2n): six of them never happen by chance.
        let bound = n_cells as f64 + 6.0 * (2.0 * n_cells as f64).sqrt();
        assert!(chi_squared < bound, "case {case_idx}: {chi_squared} over {n_cells} cells");
    }
}

/// The order is part of the answer: a device that draws alike yields the same tokens.
#[test]
fn draws_invert_the_distribution_in_the_tokens_order() {
    for (case_idx, params) in filters().into_iter().enumerate() {
        let logits = pseudo_logits(500, case_idx as u64);
        let p = filtered(&logits, &params);
        let mut n_clear = 0;
        for seed in 0..2000 {
            let params = SamplingParams { seed, ..params.clone() };
            let drawn = sample(&mut sampler(params, logits.len(), &[]), &logits).idx();
            let (below, target): (f64, f64) = (p[..drawn].iter().sum(), uniform(seed, 0));
            // Rounding decides at a border.
            let is_inside = below - 1e-9 <= target && target < below + p[drawn] + 1e-9;
            assert!(is_inside, "case {case_idx}, seed {seed}: {drawn} from {below} for {target}");
            n_clear += usize::from(p[drawn] > 1e-6);
        }
        assert!(n_clear > 1900, "case {case_idx}: {n_clear} draws could have failed");
    }
}

#[test]
fn a_draw_depends_on_seed_and_count_only() {
    let params = SamplingParams { temperature: 1.0, seed: 9, ..SamplingParams::greedy() };
    let rows: Vec<Vec<f32>> = (0..8).map(|seed| pseudo_logits(100, seed)).collect();
    let mut whole = sampler(params.clone(), 100, &[]);
    let tokens: Vec<u32> = rows.iter().map(|row| sample(&mut whole, row).0).collect();
    for n_before in 0..rows.len() {
        let mut resumed = sampler(params.clone(), 100, &tokens[..n_before]);
        for (row, &token) in rows.iter().zip(&tokens).skip(n_before) {
            assert_eq!(sample(&mut resumed, row).0, token);
        }
    }
}

#[test]
fn penalties_and_bias_change_the_logits_as_defined() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        logit_bias: vec![(TokenId(5), 3.0)],
        ..SamplingParams::greedy()
    };
    let mut sampler = sampler(params, 8, &[3, 3, 4]);
    let mut logits = vec![1.0, 1.0, -1.0, 4.0, -4.0, 0.0, 1.0, 1.0];
    let slot = sampler.slots[0].take().expect("it was entered");
    adjust(&slot, false, &mut logits);
    // 1 and 2 are prompt only; 3 was generated twice, 4 once; 5 is biased.
    assert_eq!(logits, [1.0, 0.5, -2.0, 2.0 - 0.5 - 0.5, -8.0 - 0.5 - 0.25, 3.0, 1.0, 1.0]);
}

#[test]
fn stop_tokens_wait_for_the_least_count() {
    let params = SamplingParams { n_tokens_min: 2, ..SamplingParams::greedy() };
    let mut sampler = sampler(params, 4, &[]);
    let logits = [9.0, 1.0, 2.0, 0.0];
    let tokens: Vec<u32> = (0..3).map(|_| sample(&mut sampler, &logits).0).collect();
    assert_eq!(tokens, [2, 2, 0]);
}

/// As if the vocabulary were only what is allowed: the same draw from its logits alone.
#[test]
fn a_guided_draw_is_one_from_what_is_allowed() {
    for (case_idx, params) in filters().into_iter().chain([SamplingParams::greedy()]).enumerate() {
        let logits = pseudo_logits(500, case_idx as u64);
        for seed in 0..200 {
            let params = SamplingParams { seed, ..params.clone() };
            let n_allowed = 1 + seed as usize % 40;
            let ids: Vec<u32> = (0..500).filter(|id| (id * 7 + seed as u32) % 500 < 40).collect();
            let ids = &ids[..n_allowed.min(ids.len())];
            let tokens: Vec<TokenId> = ids.iter().copied().map(TokenId).collect();
            let set = TokenSet::of(&tokens, 500).expect("not empty");
            let alone: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
            let expected = sample(&mut sampler(params.clone(), ids.len(), &[]), &alone);
            let mut guided = sampler(params, 500, &[]);
            let drawn = guided.sample(SlotIdx(0), &logits, Some(&set));
            assert_eq!(drawn.0, ids[expected.idx()], "case {case_idx}, seed {seed}");
        }
    }
}

#[test]
fn a_guide_that_allows_only_the_end_has_it_before_the_least_count() {
    let params = SamplingParams { n_tokens_min: 9, ..SamplingParams::greedy() };
    let mut sampler = sampler(params, 4, &[]);
    let logits = [9.0, 1.0, 2.0, 0.0];
    let allowing = |ids: &[u32]| {
        TokenSet::of(&ids.iter().copied().map(TokenId).collect::<Vec<_>>(), 4).expect("some")
    };
    let both = sampler.sample(SlotIdx(0), &logits, Some(&allowing(&[0, 1])));
    assert_eq!(both, TokenId(1), "0 stops, and it is too early");
    let end = sampler.sample(SlotIdx(0), &logits, Some(&allowing(&[0])));
    assert_eq!(end, TokenId(0));
}

#[test]
fn greedy_takes_the_first_of_equals() {
    let mut sampler = sampler(SamplingParams::greedy(), 4, &[]);
    assert_eq!(sample(&mut sampler, &[1.0, 7.0, 7.0, 0.0]), TokenId(1));
}

#[test]
fn scores_are_the_logarithm_of_the_softmax() {
    let logits = pseudo_logits(300, 4);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let scored = score(&logits, TokenId(17), 5);
    let expected = f64::from(logits[17]) - sum.ln();
    assert!((f64::from(scored.logprob) - expected).abs() < 1e-6);
    let mut order: Vec<usize> = (0..300).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let top: Vec<usize> = scored.top.iter().map(|(token, _)| token.idx()).collect();
    assert_eq!(top, order[..5]);
}

#[test]
fn broken_logits_are_noticed() {
    let mut sampler = sampler(SamplingParams::greedy(), 4, &[]);
    for broken in [f32::NAN, f32::INFINITY] {
        let mut output = RowOutput::default();
        sampler.take(&point(), (&[0.0, broken, 1.0, 2.0], None), &mut output);
        assert!(output.is_broken);
    }
}

/// By looking at one after the other.
fn plain_argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (idx, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = idx;
        }
    }
    best
}

#[test]
fn the_first_of_the_greatest_is_found_wherever_it_stands() {
    let mut rng = Rng::new(31);
    for n in [1, 15, 16, 17, 1023, 1024, 1025, 3000] {
        // Few values, so that the greatest stands in many places.
        let row: Vec<f32> = (0..n).map(|_| (rng.next_u64() % 200) as f32 - 190.0).collect();
        let mut rows = vec![row.clone(), vec![f32::NEG_INFINITY; n], vec![-0.0; n]];
        for idx in [0, n / 2, n - 1] {
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1000.0] {
                let mut row = row.clone();
                row[idx] = odd;
                assert_eq!(are_finite(&row), odd.is_finite(), "{odd} at {idx} of {n}");
                rows.push(row);
            }
        }
        for row in rows {
            assert_eq!(argmax(&row).idx(), plain_argmax(&row), "{n}: {row:?}");
        }
    }
}
