//! The same request gives the same bits, whatever shares its batch: alone or together, whole or in
//! chunks, after preemption; on the processor also with steps overlapped, found in the cache, and
//! with tokens guessed.
//! On the processor always, on devices where they are told to be deterministic. No tolerance
//! anywhere in this file. That threads change no bit is for the kernels' own tests to show: this
//! model is mostly too small to be split.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use engine::{
    Allowed, DeviceKind, Engine, EngineConfig, Guide, KvDtype, Output, Probe, Request,
    SamplingParams, Terms, TokenId, TokenSet,
};
use harness::plans::{Planner, Span};
use harness::random::Random;
use harness::serving::HeldEngine;
use virtual_node::client::Node;
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_synthetic};
use weights::{Checkpoint, MixerSpec, ModelSpec};

const FORMATS: [(SyntheticFormat, KvDtype); 4] = [
    (SyntheticFormat::F32, KvDtype::F32),
    (SyntheticFormat::Bf16, KvDtype::Bf16),
    (SyntheticFormat::ModelOptFp8, KvDtype::Fp8),
    (SyntheticFormat::Fp8Dynamic, KvDtype::Bf16),
];

/// Written anew for each test: two that run at once do not share a folder.
fn tiny(test: &str, format: SyntheticFormat) -> Arc<Checkpoint> {
    write(test, format, preset("tiny").expect("a preset"))
}

/// The same with heads that a device's kernels know.
fn tiny_for_devices(test: &str, format: SyntheticFormat) -> Arc<Checkpoint> {
    let mut spec = preset("tiny").expect("a preset");
    for block in &mut spec.blocks {
        if let Some(MixerSpec::Attention(attention)) = &mut block.mixer {
            attention.head_dim = 32;
        }
    }
    write(test, format, spec)
}

fn write(test: &str, format: SyntheticFormat, spec: ModelSpec) -> Arc<Checkpoint> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{format:?}"));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("an earlier run's folder can be removed");
    }
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
        is_deterministic: false,
        overlaps_steps: false,
        caches_prefixes: false,
        policy: engine::Policy::plain(),
        n_candidates_max: 0,
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

/// Runs random sequences whole and alone on the first engine, cut at random on the second. How, and
/// for which sequence and position, logits differ first.
fn difference(
    checkpoint: &Arc<Checkpoint>,
    configs: [&EngineConfig; 2],
    seed: u64,
) -> Option<(&'static str, (usize, usize))> {
    let mut random = Random::new(seed);
    let vocab_size = checkpoint.spec().vocab_size;
    let sequences: Vec<Vec<TokenId>> = (0..6)
        .map(|_| {
            let n = 1 + random.below(90);
            random_tokens(&mut random, vocab_size, n)
        })
        .collect();
    let boot = |config| Probe::new(Arc::clone(checkpoint), config).expect("it boots");
    let [mut one, mut two] = configs.map(boot);
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
        let mut differing: Vec<_> = alone.keys().filter(|at| cut[at] != alone[at]).collect();
        differing.sort();
        if let Some(&&at) = differing.first() {
            return Some((what, at));
        }
    }
    None
}

#[test]
fn logits_are_bit_equal_alone_batched_and_chunked() {
    for (format, kv_dtype) in FORMATS {
        let checkpoint = tiny("chunks", format);
        for n_ranks in [1, 2, 4, 1, 2, 4, 1, 2, 4] {
            let seed = harness::seed();
            let [one, two] = [1, 2 * n_ranks].map(|n_threads| config(n_ranks, n_threads, kv_dtype));
            let differing = difference(&checkpoint, [&one, &two], seed);
            assert_eq!(differing, None, "{format:?}, {n_ranks} ranks (SEED={seed})");
        }
    }
}

/// As `config`, on devices.
fn on_devices(n_ranks: usize, kv_dtype: KvDtype, is_deterministic: bool) -> EngineConfig {
    EngineConfig { device: DeviceKind::Cuda, is_deterministic, ..config(n_ranks, 1, kv_dtype) }
}

/// Has the virtual node's products show in their bits which algorithm was chosen.
fn split_as_a_real_node_does() {
    let node = Node::open().expect("this runs on the virtual node");
    node.set_checks("splits").expect("it knows them");
}

#[test]
fn devices_give_equal_bits_where_they_are_told_to() {
    split_as_a_real_node_does();
    for (format, kv_dtype) in &FORMATS[1..] {
        let checkpoint = tiny_for_devices("devices", *format);
        for n_ranks in [1, 2] {
            let config = on_devices(n_ranks, *kv_dtype, true);
            let differing = difference(&checkpoint, [&config, &config], 5);
            assert_eq!(differing, None, "{format:?}, {n_ranks} ranks");
        }
        // And they are told for a reason: else this test would show nothing.
        let config = on_devices(2, *kv_dtype, false);
        assert_ne!(difference(&checkpoint, [&config, &config], 5), None, "{format:?}");
    }
}

/// What a reader saw: tokens and their log-probabilities, by bits.
type Answer = Vec<(TokenId, u32)>;

/// Allows about one token in eight, which ones depends on all before; now and then it allows all.
fn guide(vocab_size: usize) -> Guide {
    let allowed = move |history: u64| {
        let mut random = Random::new(history);
        if random.below(4) == 0 {
            return Allowed::All;
        }
        let tokens = random_tokens(&mut random, vocab_size, vocab_size.div_ceil(8));
        Allowed::Only(Arc::new(TokenSet::of(&tokens, vocab_size).expect("some are left")))
    };
    let mut history = 1;
    let next = move |token: TokenId| {
        history = Random::new(history ^ (u64::from(token.0) << 32)).bits();
        allowed(history)
    };
    Guide { first: allowed(history), next: Box::new(next) }
}

/// Half of them are held to a guide: some that are greedy, and some that are not.
fn is_guided(request: &Request) -> bool {
    [1, 2].contains(&(request.sampling.seed % 4))
}

/// Asserts that every token of an answer was allowed; says how many were chosen from a few.
fn check_guided(answer: &Answer, vocab_size: usize) -> usize {
    let Guide { first: mut allowed, mut next } = guide(vocab_size);
    let mut n_chosen = 0;
    for &(token, _) in answer {
        if let Allowed::Only(set) = &allowed {
            assert!(set.contains(token), "{token:?} is not allowed");
            n_chosen += 1;
        }
        allowed = next(token);
    }
    n_chosen
}

fn answer(engine: &Engine, requests: &[Request]) -> Vec<Answer> {
    let vocab_size = engine.handle().info().vocab_size;
    // They all come at once, however fast the engine is.
    let held = HeldEngine::new(&engine.handle());
    let submitted: Vec<_> = requests
        .iter()
        .map(|request| {
            let (sender, receiver) = mpsc::channel();
            let deliver =
                Box::new(move |output| sender.send(output).map_err(|_| engine::ReaderGone));
            let guide = is_guided(request).then(|| guide(vocab_size));
            let ticket = engine.handle().submit_guided(request.clone(), guide, deliver);
            let ticket = ticket.expect("it is taken");
            (ticket, receiver)
        })
        .collect();
    drop(held);
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

/// What requests are made of, and what part of the memory for all of them there is.
struct Crowd {
    n_requests: usize,
    n_prompt_min: usize,
    n_prompt_max: usize,
    n_new: usize,
    tenths_of_kv: u64,
}

impl Crowd {
    /// Some greedy, some drawn with penalties.
    fn requests(&self, random: &mut Random, vocab_size: usize) -> Vec<Request> {
        let beginning = random_tokens(random, vocab_size, self.n_prompt_max);
        let mut requests: Vec<Request> = (0..self.n_requests)
            .map(|idx| {
                let n_more = random.below(self.n_prompt_max - self.n_prompt_min);
                let n_prompt = self.n_prompt_min + n_more;
                let mut sampling = SamplingParams::greedy();
                sampling.seed = idx as u64;
                if idx % 2 == 1 {
                    sampling.temperature = 0.9;
                    sampling.top_p = 0.95;
                    sampling.repetition_penalty = 1.1;
                }
                // Two in three begin alike, one in four repeats itself.
                let n_alike = if idx % 3 == 0 { 0 } else { random.below(n_prompt + 1) };
                let mut prompt = beginning[..n_alike].to_vec();
                prompt.extend(random_tokens(random, vocab_size, n_prompt - n_alike));
                if idx % 4 == 0 {
                    prompt =
                        prompt.iter().copied().cycle().skip(n_prompt / 2).take(n_prompt).collect();
                }
                Request {
                    prompt: prompt.into(),
                    n_new_max: self.n_new,
                    stop_tokens: Vec::new().into(),
                    sampling,
                    n_logprobs: Some(0),
                    n_prompt_logprobs: None,
                    cache_salt: None,
                    terms: Terms::ordinary(),
                }
            })
            .collect();
        // The first three answer one prompt.
        let prompt = Arc::clone(&requests[0].prompt);
        requests[1..3].iter_mut().for_each(|request| request.prompt = Arc::clone(&prompt));
        requests
    }
}

/// Has every request answered alone, then all of them where somebody is always sent back. Which
/// ones differ.
fn differing_answers(
    checkpoint: &Arc<Checkpoint>,
    roomy: &EngineConfig,
    crowd: &Crowd,
    seed: u64,
) -> Vec<usize> {
    let mut random = Random::new(seed);
    let vocab_size = checkpoint.spec().vocab_size;
    let requests = crowd.requests(&mut random, vocab_size);
    let plain = EngineConfig {
        overlaps_steps: false,
        caches_prefixes: false,
        n_candidates_max: 0,
        ..roomy.clone()
    };
    let engine = engine::boot(Arc::clone(checkpoint), &plain).expect("it boots");
    let alone: Vec<Answer> = requests
        .iter()
        .map(|request| answer(&engine, std::slice::from_ref(request)).remove(0))
        .collect();
    engine.shutdown();
    let guided = requests.iter().zip(&alone).filter(|(request, _)| is_guided(request));
    let n_chosen: usize = guided.map(|(_, answer)| check_guided(answer, vocab_size)).sum();
    assert!(n_chosen > 20, "too few tokens were guided: {n_chosen}");
    let memory = Probe::new(Arc::clone(checkpoint), roomy).expect("it boots");
    let all_kv_bytes: u64 = memory.memory().ranks.iter().map(|rank| rank.kv_bytes).sum();
    drop(memory);
    let kv_bytes = Some(all_kv_bytes * crowd.tenths_of_kv / 10);
    let cramped = EngineConfig { kv_bytes, n_tokens_per_step: 24, ..roomy.clone() };
    let engine = engine::boot(Arc::clone(checkpoint), &cramped).expect("it boots");
    // The second time, what prompts begin with may be there.
    let n_rounds = if roomy.caches_prefixes { 2 } else { 1 };
    let rounds: Vec<Vec<Answer>> = (0..n_rounds).map(|_| answer(&engine, &requests)).collect();
    // Whether a crowd's prompts are still there is chance; that of the one just answered is.
    let longest = (0..requests.len()).max_by_key(|&idx| requests[idx].prompt.len());
    let longest = longest.expect("a crowd");
    let again = || answer(&engine, std::slice::from_ref(&requests[longest])).remove(0);
    let repeated = [again(), again()];
    let stats = engine.handle().stats();
    assert!(stats.n_preemptions > 0, "the pool was meant to be too small");
    assert_eq!(stats.n_pages_used, 0, "every page came back");
    assert_eq!(stats.n_cached_tokens > 0, roomy.caches_prefixes, "a prompt was known");
    assert!(stats.n_shared_tokens > 0, "siblings share");
    assert_eq!(stats.n_accepted_tokens > 0, roomy.n_candidates_max > 0, "some guess was right");
    assert_eq!(stats.n_proposed_tokens > stats.n_accepted_tokens, roomy.n_candidates_max > 0);
    let differs = |&idx: &usize| {
        rounds.iter().any(|together| alone[idx] != together[idx])
            || idx == longest && repeated.iter().any(|again| alone[idx] != *again)
    };
    (0..requests.len()).filter(differs).collect()
}

#[test]
fn answers_are_bit_equal_alone_preempted_overlapped_cached_and_guessed() {
    // Room for little more than one sequence.
    let crowd =
        Crowd { n_requests: 12, n_prompt_min: 1, n_prompt_max: 61, n_new: 40, tenths_of_kv: 3 };
    for (format, kv_dtype) in FORMATS {
        let checkpoint = tiny("preemption", format);
        let seed = harness::seed_or(1);
        for (overlaps_steps, caches_prefixes, n_candidates_max) in [
            (false, false, 0),
            (true, false, 0),
            (false, true, 0),
            (true, true, 0),
            (false, true, 3),
            (true, true, 5),
        ] {
            let roomy = EngineConfig {
                overlaps_steps,
                caches_prefixes,
                n_candidates_max,
                ..config(1, 2, kv_dtype)
            };
            let differing = differing_answers(&checkpoint, &roomy, &crowd, seed);
            assert!(
                differing.is_empty(),
                "{format:?}, overlapped: {overlaps_steps}, cached: {caches_prefixes}, guesses: \
                 {n_candidates_max}: requests {differing:?} differ (SEED={seed})"
            );
        }
    }
}

#[test]
fn devices_answer_alike_under_preemption_where_they_are_told_to() {
    split_as_a_real_node_does();
    let crowd =
        Crowd { n_requests: 7, n_prompt_min: 8, n_prompt_max: 24, n_new: 44, tenths_of_kv: 3 };
    let checkpoint = tiny_for_devices("preempted-devices", SyntheticFormat::ModelOptFp8);
    let roomy = on_devices(2, KvDtype::Fp8, true);
    let differing = differing_answers(&checkpoint, &roomy, &crowd, 9);
    assert!(differing.is_empty(), "requests {differing:?} differ");
    let guessing = EngineConfig { n_candidates_max: 4, ..roomy };
    let differing = differing_answers(&checkpoint, &guessing, &crowd, 9);
    assert!(differing.is_empty(), "with guesses requests {differing:?} differ");
}
