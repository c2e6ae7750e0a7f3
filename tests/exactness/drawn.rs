//! Two ways to one token: the device draws it, or the host does, from logits that are the same bits
//! where devices are told to be deterministic. Through the whole engine, which keeps a request's
//! penalties, biases and the number of its next draw in both places.

use engine::{Request, SamplingParams, Terms};

use super::answers::{Answer, answer_guided};
use super::*;

const N_REQUESTS: usize = 24;
const N_PROMPT: usize = 6;
const N_NEW: usize = 10;

/// Every way to draw with every other, as far as so many requests go.
fn sampling(random: &mut Random, vocab_size: usize) -> SamplingParams {
    let mut pick = |values: &[f32]| values[random.below(values.len())];
    let mut params = SamplingParams {
        temperature: pick(&[0.0, 0.6, 1.0, 3.0]),
        top_p: pick(&[1.0, 0.95, 0.6]),
        min_p: pick(&[0.0, 0.02]),
        repetition_penalty: pick(&[1.0, 1.3]),
        presence_penalty: pick(&[0.0, 0.6]),
        frequency_penalty: pick(&[0.0, 0.4]),
        ..SamplingParams::greedy()
    };
    params.top_k = [0, 0, 7, 40][random.below(4)];
    params.n_tokens_min = [0, 4][random.below(2)];
    params.seed = random.bits();
    if random.below(2) == 0 {
        let liked = TokenId(random.below(vocab_size) as u32);
        params.logit_bias.push((liked, 2.0));
    }
    params
}

/// Few distinct tokens, so that penalties find what they count.
fn requests(vocab_size: usize) -> Vec<Request> {
    let mut random = Random::new(harness::seed_or(11));
    let one = |_| {
        let sampling = sampling(&mut random, vocab_size);
        Request {
            prompt: random_tokens(&mut random, 30, N_PROMPT).into(),
            n_new_max: N_NEW,
            stop_tokens: random_tokens(&mut random, vocab_size, 3).into(),
            sampling,
            n_logprobs: None,
            n_prompt_logprobs: None,
            hashes_logits: false,
            cache_salt: None,
            terms: Terms::ordinary(),
        }
    };
    (0..N_REQUESTS).map(one).collect()
}

fn tokens(answers: Vec<Answer>) -> Vec<Vec<TokenId>> {
    let tokens = |answer: Answer| answer.into_iter().map(|(token, _)| token).collect();
    answers.into_iter().map(tokens).collect()
}

#[test]
fn a_device_draws_what_the_host_draws() {
    let checkpoint = tiny_for_devices("drawn", SyntheticFormat::ModelOptFp8);
    let drawn_by_device = requests(checkpoint.spec().vocab_size);
    let scored = |request: &Request| Request { n_logprobs: Some(0), ..request.clone() };
    let drawn_by_host: Vec<Request> = drawn_by_device.iter().map(scored).collect();
    for n_ranks in [1, 2] {
        let config =
            EngineConfig { overlaps_steps: true, ..on_devices(n_ranks, KvDtype::Fp8, true) };
        let engine = engine::boot(Arc::clone(&checkpoint), &config).expect("it boots");
        let device = tokens(answer_guided(&engine, &drawn_by_device, |_| None));
        let host = tokens(answer_guided(&engine, &drawn_by_host, |_| None));
        engine.shutdown();
        let n_drawn: usize = device.iter().map(Vec::len).sum();
        assert!(n_drawn > N_REQUESTS * N_NEW / 2, "stops end answers early: {n_drawn} tokens");
        let distinct: std::collections::HashSet<_> = device.iter().collect();
        assert!(distinct.len() > N_REQUESTS / 2, "these answers would show nothing");
        for (idx, (device, host)) in device.iter().zip(&host).enumerate() {
            let params = &drawn_by_device[idx].sampling;
            assert_eq!(device, host, "request {idx} on {n_ranks} ranks: {params:?}");
        }
    }
}
