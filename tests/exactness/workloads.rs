//! Random workloads on random engines: whatever comes when, is called off, passes others, finds
//! its beginning or is guessed, every request's tokens and the logits that they were drawn from are
//! those of the request alone. `SEED=n` replays one workload.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::mpsc::{self, Receiver};

use engine::{
    Engine, HostKv, Output, Policy, Priorities, Request, SamplingParams, TenantId, Terms, Ticket,
};
use harness::serving::HeldEngine;

use super::*;

/// A token, and a hash of what its logits say: the likeliest tokens and their shares of the whole.
type Answer = Vec<(TokenId, u64)>;

/// Tokens whose shares are asked for: as many as may be.
const N_LOGPROBS: usize = engine::N_LOGPROBS_MAX;

/// A request, and what becomes of it.
struct Job {
    request: Request,
    /// Steps that the engine makes before it comes.
    n_steps_before: usize,
    /// Tokens after which its reader goes.
    n_read_max: usize,
}

/// What is drawn for a workload besides its jobs.
struct Workload {
    jobs: Vec<Job>,
    config: EngineConfig,
}

impl Workload {
    /// `base` decides device, ranks and numbers; the rest is drawn.
    fn new(random: &mut Random, base: &EngineConfig, vocab_size: usize, kv_bytes: u64) -> Workload {
        let caches_prefixes = random.below(4) > 0;
        let host_kv = HostKv { n_bytes: 1 << 20, n_tokens_min: 1 + random.below(40) };
        let n_levels = 1 + random.below(3) as u32;
        let priorities = Priorities { n_levels, default_level: n_levels, n_steps_a_level: 4 };
        let n_slots = 4 + random.below(5);
        let config = EngineConfig {
            n_slots,
            n_tokens_per_step: n_slots + random.below(40),
            kv_bytes: Some(kv_bytes * (28 + random.below(8) as u64) / 100),
            overlaps_steps: random.below(2) == 0,
            caches_prefixes,
            host_kv: (random.below(2) == 0).then_some(host_kv),
            n_candidates_max: [0, 0, 2, 6][random.below(4)],
            policy: Policy { priorities, ..Policy::plain() },
            ..base.clone()
        };
        let n_jobs = 8 + random.below(6);
        let beginning = random_tokens(random, vocab_size, 90);
        let mut jobs: Vec<Job> = Vec::new();
        for idx in 0..n_jobs {
            let mut job = job(random, &beginning, vocab_size);
            if idx > 0 && random.below(4) == 0 {
                let sibling = &jobs[random.below(idx)].request;
                job.request.prompt = Arc::clone(&sibling.prompt);
            }
            jobs.push(job);
        }
        Workload { jobs, config }
    }
}

fn job(random: &mut Random, beginning: &[TokenId], vocab_size: usize) -> Job {
    let n_prompt = 1 + random.below(64);
    let n_alike = [0, random.below(n_prompt + 1), n_prompt][random.below(3)];
    let mut prompt = beginning[..n_alike].to_vec();
    prompt.extend(random_tokens(random, vocab_size, n_prompt - n_alike));
    if random.below(3) == 0 {
        prompt = prompt.iter().copied().cycle().skip(n_prompt / 2).take(n_prompt).collect();
    }
    let mut sampling = SamplingParams::greedy();
    sampling.seed = random.below(1000) as u64;
    if random.below(2) == 0 {
        sampling.temperature = 0.8;
        sampling.top_p = 0.9;
        sampling.frequency_penalty = [0.0, 0.7][random.below(2)];
        sampling.n_tokens_min = random.below(6);
    }
    let priority = random.below(4) as u32;
    let n_stops = [0, 0, 6][random.below(3)];
    let request = Request {
        prompt: prompt.into(),
        n_new_max: [1 + random.below(20), 40 + random.below(20)][random.below(2)],
        stop_tokens: random_tokens(random, vocab_size, n_stops).into(),
        sampling,
        n_logprobs: Some(N_LOGPROBS),
        n_prompt_logprobs: None,
        cache_salt: [None, None, Some("salt".into())][random.below(3)].clone(),
        terms: Terms { priority, tenant: TenantId(0), ..Terms::ordinary() },
    };
    let n_read_max = if random.below(4) == 0 { random.below(10) } else { usize::MAX };
    Job { request, n_steps_before: [0, 0, 1, 5][random.below(4)], n_read_max }
}

fn submit(engine: &Engine, job: &Job) -> (Ticket, Receiver<Output>) {
    let (sender, receiver) = mpsc::channel();
    let mut n_left = job.n_read_max;
    let deliver = Box::new(move |output| {
        if matches!(output, Output::Token { .. }) {
            n_left = n_left.checked_sub(1).ok_or(engine::ReaderGone)?;
        }
        sender.send(output).map_err(|_| engine::ReaderGone)
    });
    let ticket = engine.handle().submit(job.request.clone(), deliver).expect("it is taken");
    (ticket, receiver)
}

fn read((_ticket, receiver): (Ticket, Receiver<Output>)) -> Answer {
    let mut answer = Answer::new();
    for output in receiver {
        if let Output::Token { token, score } = output {
            let score = score.expect("asked for");
            let mut hasher = DefaultHasher::new();
            score.logprob.to_bits().hash(&mut hasher);
            for (token, logprob) in &score.top {
                (token.0, logprob.to_bits()).hash(&mut hasher);
            }
            answer.push((token, hasher.finish()));
        }
    }
    answer
}

/// What happened, so that a test can tell whether it saw enough.
#[derive(Default, Debug)]
struct Seen {
    n_preemptions: u64,
    n_cached_tokens: u64,
    n_shared_tokens: u64,
    n_host_tokens: u64,
    n_accepted_tokens: u64,
}

/// Runs a workload and every request of it alone. Adds what happened to `seen`.
fn compare(checkpoint: &Arc<Checkpoint>, base: &EngineConfig, seed: u64, seen: &mut Seen) {
    let mut random = Random::new(seed);
    let memory = Probe::new(Arc::clone(checkpoint), base).expect("it boots");
    let kv_bytes = memory.memory().ranks.iter().map(|rank| rank.kv_bytes).sum();
    drop(memory);
    let vocab_size = checkpoint.spec().vocab_size;
    let Workload { jobs, config } = Workload::new(&mut random, base, vocab_size, kv_bytes);
    let engine = engine::boot(Arc::clone(checkpoint), &config).expect("it boots");
    let held = HeldEngine::new(&engine.handle());
    let submitted: Vec<_> = jobs
        .iter()
        .map(|job| {
            held.make_steps(job.n_steps_before);
            submit(&engine, job)
        })
        .collect();
    drop(held);
    let together: Vec<Answer> = submitted.into_iter().map(read).collect();
    let stats = engine.handle().stats();
    engine.shutdown();
    let engine = engine::boot(Arc::clone(checkpoint), base).expect("it boots");
    for (idx, (job, together)) in jobs.iter().zip(&together).enumerate() {
        let alone = Job { request: job.request.clone(), n_steps_before: 0, n_read_max: usize::MAX };
        let alone = read(submit(&engine, &alone));
        let n_read = alone.len().min(job.n_read_max);
        assert!(*together == alone[..n_read], "request {idx} differs with SEED={seed}: {config:?}");
    }
    seen.n_preemptions += stats.n_preemptions;
    seen.n_cached_tokens += stats.n_cached_tokens;
    seen.n_shared_tokens += stats.n_shared_tokens;
    seen.n_host_tokens += stats.n_host_tokens;
    seen.n_accepted_tokens += stats.n_accepted_tokens;
}

#[test]
fn random_workloads_answer_as_their_requests_alone() {
    let formats = FORMATS.map(|(format, dtype)| (tiny("workloads", format), dtype));
    let mut seen = Seen::default();
    let seeds = match harness::wanted_seed() {
        Some(seed) => seed..seed + 1,
        None => 0..50,
    };
    let is_replay = seeds.end - seeds.start == 1;
    for seed in seeds {
        let (checkpoint, kv_dtype) = &formats[seed as usize % 4];
        let base = config([1, 1, 2][seed as usize % 3], 2, *kv_dtype);
        compare(checkpoint, &base, seed, &mut seen);
    }
    let Seen { n_preemptions, n_cached_tokens, n_shared_tokens, .. } = seen;
    let met = [n_preemptions, n_cached_tokens, n_shared_tokens, seen.n_host_tokens];
    let is_enough = met.iter().chain([&seen.n_accepted_tokens]).all(|&n| n >= 10);
    assert!(is_enough || is_replay, "workloads that meet too little: {seen:?}");
}
