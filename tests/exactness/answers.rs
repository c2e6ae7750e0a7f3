//! Answers through the whole engine: every request alone, then all of them in a crowd.

use std::sync::{Arc, mpsc};

use engine::{Allowed, Engine, Guide, HostKv, Output, Request, SamplingParams, Terms, TokenSet};
use harness::serving::HeldEngine;

use super::*;

/// What a reader saw: tokens, and where it asked for scores a hash of the logits that each was
/// drawn from.
pub(super) type Answer = Vec<(TokenId, Option<u64>)>;

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
    answer_guided(engine, requests, |request| is_guided(request).then(|| guide(vocab_size)))
}

/// Each with its guide, if it has one.
pub(super) fn answer_guided(
    engine: &Engine,
    requests: &[Request],
    guide_of: impl Fn(&Request) -> Option<Guide>,
) -> Vec<Answer> {
    // They all come at once, however fast the engine is.
    let held = HeldEngine::new(&engine.handle());
    let submitted: Vec<_> = requests
        .iter()
        .map(|request| {
            let (sender, receiver) = mpsc::channel();
            let deliver =
                Box::new(move |output| sender.send(output).map_err(|_| engine::ReaderGone));
            let ticket = engine.handle().submit_guided(request.clone(), guide_of(request), deliver);
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
                    Output::Token { token, score, .. } => {
                        tokens.push((token, score.and_then(|score| score.logits_hash)));
                    }
                    Output::Finish(_) => return tokens,
                    Output::Admitted { .. } | Output::PromptScores(_) => {}
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
    /// Whether scores are asked for. On devices the host then draws, so that no step is launched
    /// before the tokens of the one before it are seen.
    scores: bool,
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
                    n_logprobs: self.scores.then_some(0),
                    n_prompt_logprobs: None,
                    hashes_logits: true,
                    cache_salt: None,
                    terms: Terms::ordinary(),
                }
            })
            .collect();
        // The first three answer one prompt, longer than a page.
        let longest = requests.iter().max_by_key(|request| request.prompt.len());
        let prompt = Arc::clone(&longest.expect("a crowd").prompt);
        requests.iter_mut().take(3).for_each(|request| request.prompt = Arc::clone(&prompt));
        requests
    }
}

/// Crowds that come one after another until one is too large for the pool.
const N_ROUNDS_MAX: usize = 10;

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
        host_kv: None,
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
    let mut rounds: Vec<Vec<Answer>> = (0..n_rounds).map(|_| answer(&engine, &requests)).collect();
    // Guides answer in their own time: while theirs are awaited, the others may get through with
    // nobody sent back.
    while engine.handle().stats().n_preemptions == 0 && rounds.len() < N_ROUNDS_MAX {
        rounds.push(answer(&engine, &requests));
    }
    // Whether a crowd's prompts are still there is chance; that of the one just answered is.
    let longest = (0..requests.len()).max_by_key(|&idx| requests[idx].prompt.len());
    let longest = longest.expect("a crowd");
    let again = || answer(&engine, std::slice::from_ref(&requests[longest])).remove(0);
    let repeated = [again(), again()];
    let stats = engine.handle().stats();
    assert!(stats.n_preemptions > 0, "the pool was meant to be too small");
    assert_eq!(stats.n_pages_used, 0, "every page came back");
    assert_eq!(stats.n_cached_tokens > 0, roomy.caches_prefixes, "a prompt was known");
    assert_eq!(stats.n_host_tokens > 0, roomy.host_kv.is_some(), "a prompt came back");
    assert_eq!(stats.in_kv_bytes > 0, roomy.host_kv.is_some(), "its pages have bytes");
    let on_host_max = engine.handle().info().host_kv_bytes;
    assert!(stats.host_kv_bytes <= stats.out_kv_bytes.min(on_host_max), "{stats:?}");
    assert_eq!(stats.n_accepted_tokens > 0, roomy.n_candidates_max > 0, "some guess was right");
    assert_eq!(stats.n_proposed_tokens > stats.n_accepted_tokens, roomy.n_candidates_max > 0);
    let differs = |&idx: &usize| {
        rounds.iter().any(|together| alone[idx] != together[idx])
            || idx == longest && repeated.iter().any(|again| alone[idx] != *again)
    };
    (0..requests.len()).filter(differs).collect()
}

#[test]
fn answers_are_bit_equal_alone_preempted_overlapped_cached_moved_and_guessed() {
    // Room for little more than one sequence.
    let crowd = Crowd {
        n_requests: 12,
        n_prompt_min: 1,
        n_prompt_max: 61,
        n_new: 40,
        tenths_of_kv: 3,
        scores: true,
    };
    for (format, kv_dtype) in FORMATS {
        let checkpoint = tiny("preemption", format);
        let seed = harness::seed_or(1);
        let host_kv = Some(HostKv { n_bytes: 1 << 20, n_tokens_min: 1 });
        for (overlaps_steps, caches_prefixes, host_kv, n_candidates_max) in [
            (false, false, None, 0),
            (true, false, None, 0),
            (false, true, None, 0),
            (true, true, None, 0),
            (false, true, None, 3),
            (true, true, None, 5),
            (false, true, host_kv, 0),
            (true, true, host_kv, 3),
        ] {
            let roomy = EngineConfig {
                overlaps_steps,
                caches_prefixes,
                host_kv,
                n_candidates_max,
                ..config(1, 2, kv_dtype)
            };
            let differing = differing_answers(&checkpoint, &roomy, &crowd, seed);
            assert!(
                differing.is_empty(),
                "{format:?}, overlapped: {overlaps_steps}, cached: {caches_prefixes}, guesses: \
                 {n_candidates_max}, host: {host_kv:?}: requests {differing:?} differ (SEED={seed})"
            );
        }
    }
}

/// Has one prompt answered `n` times together, each answer's requests also alone, with all the room
/// there is: the answers together, those alone, and the tokens that were shared.
fn answered_together(
    checkpoint: &Arc<Checkpoint>,
    config: &EngineConfig,
    n: usize,
) -> (Vec<Answer>, Vec<Answer>, u64) {
    let crowd = Crowd {
        n_requests: n,
        n_prompt_min: 40,
        n_prompt_max: 41,
        n_new: 20,
        tenths_of_kv: 10,
        scores: true,
    };
    let mut random = Random::new(3);
    let mut requests = crowd.requests(&mut random, checkpoint.spec().vocab_size);
    let prompt = Arc::clone(&requests[0].prompt);
    requests.iter_mut().for_each(|request| request.prompt = Arc::clone(&prompt));
    let engine = engine::boot(Arc::clone(checkpoint), config).expect("it boots");
    let together = answer(&engine, &requests);
    let n_shared_tokens = engine.handle().stats().n_shared_tokens;
    engine.shutdown();
    let engine = engine::boot(Arc::clone(checkpoint), config).expect("it boots");
    let alone = requests.iter().map(|one| answer(&engine, std::slice::from_ref(one)).remove(0));
    (together, alone.collect(), n_shared_tokens)
}

#[test]
fn answers_to_one_prompt_share_it() {
    for (format, kv_dtype) in FORMATS {
        let checkpoint = tiny("siblings", format);
        for (overlaps_steps, caches_prefixes) in [(false, false), (true, false), (true, true)] {
            let config = EngineConfig { overlaps_steps, caches_prefixes, ..config(2, 2, kv_dtype) };
            let (together, alone, n_shared_tokens) = answered_together(&checkpoint, &config, 5);
            assert!(together == alone, "{format:?}, {overlaps_steps}, {caches_prefixes}");
            assert_eq!(n_shared_tokens, 4 * 39, "all but the last of 40 tokens");
        }
    }
}

#[test]
fn devices_copy_the_page_that_answers_share() {
    split_as_a_real_node_does();
    let checkpoint = tiny_for_devices("siblings-devices", SyntheticFormat::ModelOptFp8);
    let config = on_devices(2, KvDtype::Fp8, true);
    let (together, alone, n_shared_tokens) = answered_together(&checkpoint, &config, 2);
    assert!(together == alone, "two answers to one prompt");
    assert_eq!(n_shared_tokens, 39, "all but the last of 40 tokens");
}

#[test]
fn devices_answer_alike_under_preemption_where_they_are_told_to() {
    split_as_a_real_node_does();
    let checkpoint = tiny_for_devices("preempted-devices", SyntheticFormat::ModelOptFp8);
    for scores in [true, false] {
        let crowd = Crowd {
            n_requests: 7,
            n_prompt_min: 8,
            n_prompt_max: 24,
            n_new: 44,
            tenths_of_kv: 3,
            scores,
        };
        // Alone steps go one after another; together they are launched ahead, where devices draw.
        let roomy = EngineConfig { overlaps_steps: true, ..on_devices(2, KvDtype::Fp8, true) };
        let differing = differing_answers(&checkpoint, &roomy, &crowd, 9);
        assert!(differing.is_empty(), "scored: {scores}: requests {differing:?} differ");
        if scores {
            let host_kv = Some(HostKv { n_bytes: 1 << 20, n_tokens_min: 1 });
            let guessing =
                EngineConfig { n_candidates_max: 4, caches_prefixes: true, host_kv, ..roomy };
            let differing = differing_answers(&checkpoint, &guessing, &crowd, 9);
            assert!(differing.is_empty(), "with guesses requests {differing:?} differ");
        }
    }
}
