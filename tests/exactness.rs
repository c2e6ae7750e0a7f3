//! The same request gives the same bits, whatever shares its batch: alone or together, whole or in
//! chunks, after preemption. No tolerance anywhere in this file. That threads change no bit is for
//! the kernels' own tests to show: this model is mostly too small to be split.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use engine::{
    DeviceKind, Engine, EngineConfig, KvDtype, Output, Probe, Request, SamplingParams, TokenId,
};
use harness::plans::{Planner, Span};
use harness::random::Random;
use weights::Checkpoint;
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_synthetic};

const FORMATS: [(SyntheticFormat, KvDtype); 4] = [
    (SyntheticFormat::F32, KvDtype::F32),
    (SyntheticFormat::Bf16, KvDtype::Bf16),
    (SyntheticFormat::ModelOptFp8, KvDtype::Fp8),
    (SyntheticFormat::Fp8Dynamic, KvDtype::Bf16),
];

/// Written anew for each test: two that run at once do not share a folder.
fn tiny(test: &str, format: SyntheticFormat) -> Arc<Checkpoint> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{format:?}"));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("an earlier run's folder can be removed");
    }
    let spec = preset("tiny").expect("a preset");
    let config = SyntheticConfig { spec, format, n_shards: 2, seed: 7 };
    write_synthetic(&dir, &config, &mut |_, _| {}).expect("it can be written");
    Arc::new(Checkpoint::open(&dir).expect("what we write is valid"))
}

fn config(n_ranks: usize, n_threads: usize, kv_dtype: KvDtype) -> EngineConfig {
    EngineConfig {
        device: DeviceKind::Cpu,
        n_ranks,
        n_threads: Some(n_threads),
        n_slots: 8,
        n_waiting_max: 64,
        n_tokens_per_step: 96,
        n_context_tokens: Some(128),
        kv_dtype: Some(kv_dtype),
        kv_bytes: None,
    }
}

fn random_tokens(random: &mut Random, vocab_size: usize, n: usize) -> Vec<TokenId> {
    (0..n).map(|_| TokenId(random.below(vocab_size) as u32)).collect()
}

/// Logits of every position of every sequence, by bits.
type Bits = HashMap<(usize, usize), Vec<u32>>;

/// Runs the sequences with rows cut at random; `n_rows_max` of 1 runs them one after another.
fn run_cut(
    probe: &mut Probe,
    sequences: &[Vec<TokenId>],
    random: &mut Random,
    n_rows_max: usize,
) -> Bits {
    let mut planner = Planner::new(probe.memory());
    let mut done = vec![0; sequences.len()];
    let mut bits = Bits::new();
    loop {
        let unfinished = (0..sequences.len()).filter(|&idx| done[idx] < sequences[idx].len());
        let mut slots: Vec<usize> = unfinished.collect();
        if slots.is_empty() {
            return bits;
        }
        random.shuffle(&mut slots);
        slots.truncate(1 + random.below(n_rows_max));
        let mut n_budget = probe.memory().n_tokens_per_step;
        let mut spans = Vec::new();
        for &slot in &slots {
            let n_left = sequences[slot].len() - done[slot];
            let n_tokens = (1 + random.below(n_left)).min(n_budget);
            if n_tokens == 0 {
                break;
            }
            n_budget -= n_tokens;
            let tokens = &sequences[slot][done[slot]..done[slot] + n_tokens];
            spans.push(Span { slot, start: done[slot], tokens });
            done[slot] += n_tokens;
        }
        let probed = probe.run(planner.plan(&spans)).expect("the ranks run");
        for one in probed {
            let logits = one.logits.iter().map(|logit| logit.to_bits()).collect();
            bits.insert((spans[one.row_idx].slot, one.position), logits);
        }
    }
}

#[test]
fn logits_are_bit_equal_alone_batched_and_chunked() {
    for (format, kv_dtype) in FORMATS {
        let checkpoint = tiny("chunks", format);
        for n_ranks in [1, 2, 4, 1, 2, 4, 1, 2, 4] {
            let seed = harness::seed();
            let mut random = Random::new(seed);
            let vocab_size = checkpoint.spec().vocab_size;
            let sequences: Vec<Vec<TokenId>> = (0..6)
                .map(|_| {
                    let n = 1 + random.below(90);
                    random_tokens(&mut random, vocab_size, n)
                })
                .collect();
            let boot = |n_threads| {
                Probe::new(Arc::clone(&checkpoint), &config(n_ranks, n_threads, kv_dtype))
                    .expect("it boots")
            };
            let (mut one, mut two) = (boot(1), boot(2 * n_ranks));
            let mut alone = Bits::new();
            for (slot, sequence) in sequences.iter().enumerate() {
                let mut planner = Planner::new(one.memory());
                let plan = planner.plan(&[Span { slot, start: 0, tokens: sequence }]);
                for probed in one.run(plan).expect("the ranks run") {
                    let bits = probed.logits.iter().map(|logit| logit.to_bits()).collect();
                    alone.insert((slot, probed.position), bits);
                }
            }
            for (what, n_rows_max) in [("in chunks", 1), ("batched", 6)] {
                let cut = run_cut(&mut two, &sequences, &mut random, n_rows_max);
                assert_eq!(cut.len(), alone.len());
                for (at, bits) in &alone {
                    assert!(
                        cut[at] == *bits,
                        "{format:?}, {n_ranks} ranks, {what}: sequence and position {at:?} \
                         differ (SEED={seed})"
                    );
                }
            }
        }
    }
}

/// What a reader saw: tokens and their log-probabilities, by bits.
type Answer = Vec<(TokenId, u32)>;

fn answer(engine: &Engine, requests: &[Request]) -> Vec<Answer> {
    let submitted: Vec<_> = requests
        .iter()
        .map(|request| {
            let (sender, receiver) = mpsc::channel();
            let deliver =
                Box::new(move |output| sender.send(output).map_err(|_| engine::ReaderGone));
            let ticket = engine.handle().submit(request.clone(), deliver).expect("it is taken");
            (ticket, receiver)
        })
        .collect();
    submitted
        .into_iter()
        .map(|(_ticket, receiver)| {
            let mut tokens = Answer::new();
            for output in receiver {
                match output {
                    Output::Token { token, score } => {
                        tokens.push((token, score.expect("asked for").logprob.to_bits()));
                    }
                    Output::Finish(_) => return tokens,
                    Output::PromptScores(_) => {}
                }
            }
            panic!("a request ended without its end");
        })
        .collect()
}

#[test]
fn answers_are_bit_equal_alone_and_under_preemption() {
    for (format, kv_dtype) in FORMATS {
        let checkpoint = tiny("preemption", format);
        let seed = harness::seed();
        let mut random = Random::new(seed);
        let vocab_size = checkpoint.spec().vocab_size;
        let requests: Vec<Request> = (0..12)
            .map(|idx| {
                let n_prompt = 1 + random.below(60);
                let mut sampling = SamplingParams::greedy();
                if idx % 2 == 1 {
                    sampling.temperature = 0.9;
                    sampling.top_p = 0.95;
                    sampling.repetition_penalty = 1.1;
                    sampling.seed = idx;
                }
                Request {
                    prompt: random_tokens(&mut random, vocab_size, n_prompt).into(),
                    n_new_max: 40,
                    stop_tokens: Vec::new().into(),
                    sampling,
                    n_logprobs: Some(0),
                    n_prompt_logprobs: None,
                }
            })
            .collect();
        let roomy = config(1, 2, kv_dtype);
        let engine = engine::boot(Arc::clone(&checkpoint), &roomy).expect("it boots");
        let alone: Vec<Answer> = requests
            .iter()
            .map(|request| answer(&engine, std::slice::from_ref(request)).remove(0))
            .collect();
        engine.shutdown();
        // Room for little more than one sequence: somebody is always sent back.
        let memory = Probe::new(Arc::clone(&checkpoint), &roomy).expect("it boots");
        let kv_bytes = memory.memory().ranks[0].kv_bytes * 3 / 10;
        drop(memory);
        let cramped =
            EngineConfig { kv_bytes: Some(kv_bytes), n_tokens_per_step: 24, ..roomy.clone() };
        let engine = engine::boot(Arc::clone(&checkpoint), &cramped).expect("it boots");
        let together = answer(&engine, &requests);
        let stats = engine.handle().stats();
        assert!(stats.n_preemptions > 0, "the pool was meant to be too small");
        assert_eq!(stats.n_pages_used, 0, "every page came back");
        for (idx, (alone, together)) in alone.iter().zip(&together).enumerate() {
            assert!(alone == together, "{format:?}: request {idx} differs (SEED={seed})");
        }
    }
}
