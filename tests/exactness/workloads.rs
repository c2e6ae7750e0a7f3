//! Random workloads on random engines: whatever comes when, is called off, passes others, finds
//! its beginning or is guessed, every request's tokens, and every bit of the logits that they were
//! drawn from, are those of the request alone. `SEED=n` replays one workload.

use std::ops::Range;
use std::sync::mpsc::{self, Receiver};

use engine::{
    Engine, HostKv, Output, Policy, Priorities, Request, SamplingParams, TenantId, Terms, Ticket,
};
use harness::serving::HeldEngine;

use super::*;

/// Workloads on devices.
const N_DEVICE_SEEDS: u64 = 12;

/// What a reader saw.
#[derive(Debug, PartialEq)]
struct Answer {
    /// With a hash of the logits that each token was drawn from, where the host drew it.
    tokens: Vec<(TokenId, Option<u64>)>,
    /// Hashes of the logits behind the prompt's tokens, where they are scored.
    prompt: Vec<Option<u64>>,
}

/// A request, and what becomes of it.
struct Job {
    request: Request,
    /// Steps that the engine makes before it comes.
    n_steps_before: usize,
    /// Tokens after which its reader goes.
    n_read_max: usize,
}

/// How much there is of everything.
struct Scale {
    n_jobs: Range<usize>,
    n_prompt_max: usize,
    n_new_short: usize,
    n_new_long: Range<usize>,
    /// Full attention has the pages of one sequence at full length, and fewer than so many more.
    n_pages_more: usize,
    /// One request in so many has no scores: on devices those are drawn there.
    unscored_in: usize,
}

/// What is drawn for a workload besides its jobs.
struct Workload {
    jobs: Vec<Job>,
    config: EngineConfig,
}

fn within(random: &mut Random, range: &Range<usize>) -> usize {
    range.start + random.below(range.len())
}

impl Workload {
    /// `base` decides device, ranks and numbers; the rest is drawn.
    fn new(random: &mut Random, base: &EngineConfig, scale: &Scale, room: &Room) -> Workload {
        let caches_prefixes = random.below(4) > 0;
        let host_kv = HostKv { n_bytes: 1 << 20, n_tokens_min: 1 + random.below(40) };
        let n_levels = 1 + random.below(3) as u32;
        let priorities = Priorities { n_levels, default_level: n_levels, n_steps_a_level: 4 };
        let n_slots = 4 + random.below(5);
        let mut config = EngineConfig {
            n_slots,
            n_tokens_per_step: n_slots + random.below(40),
            overlaps_steps: random.below(2) == 0,
            caches_prefixes,
            host_kv: (random.below(2) == 0).then_some(host_kv),
            n_candidates_max: [0, 0, 2, 6][random.below(4)],
            policy: Policy { priorities, ..Policy::plain() },
            ..base.clone()
        };
        let n_longest = room.memory.n_context_tokens.div_ceil(PAGE_TOKENS);
        let n_full_pages = n_longest + random.below(scale.n_pages_more);
        config.kv_bytes = Some(kv_bytes(&room.memory, &config, n_full_pages));
        let n_jobs = within(random, &scale.n_jobs);
        let beginning = random_tokens(random, room.vocab_size, 90);
        let mut jobs: Vec<Job> = Vec::new();
        for idx in 0..n_jobs {
            let mut job = job(random, &beginning, scale, room.vocab_size);
            if idx > 0 && random.below(4) == 0 {
                let sibling = &jobs[random.below(idx)].request;
                job.request.prompt = Arc::clone(&sibling.prompt);
            }
            jobs.push(job);
        }
        Workload { jobs, config }
    }
}

fn job(random: &mut Random, beginning: &[TokenId], scale: &Scale, vocab_size: usize) -> Job {
    let n_prompt = 1 + random.below(scale.n_prompt_max);
    let n_alike = [0, random.below(n_prompt + 1), n_prompt][random.below(3)];
    let mut prompt = beginning[..n_alike].to_vec();
    prompt.extend(random_tokens(random, vocab_size, n_prompt - n_alike));
    if random.below(3) == 0 {
        prompt = prompt.iter().copied().cycle().skip(n_prompt / 2).take(n_prompt).collect();
    }
    let n_new_long = within(random, &scale.n_new_long);
    let is_scored = scale.unscored_in == 0 || random.below(scale.unscored_in) > 0;
    let scores_prompt = is_scored && random.below(6) == 0;
    let priority = random.below(4) as u32;
    let n_stops = [0, 0, 6][random.below(3)];
    let request = Request {
        prompt: prompt.into(),
        n_new_max: [1 + random.below(scale.n_new_short), n_new_long][random.below(2)],
        stop_tokens: random_tokens(random, vocab_size, n_stops).into(),
        sampling: sampling(random, vocab_size),
        n_logprobs: is_scored.then_some(0),
        n_prompt_logprobs: scores_prompt.then_some(0),
        hashes_logits: true,
        cache_salt: [None, None, Some("salt".into())][random.below(3)].clone(),
        terms: Terms { priority, tenant: TenantId(0), ..Terms::ordinary() },
    };
    let n_read_max = if random.below(4) == 0 { random.below(10) } else { usize::MAX };
    Job { request, n_steps_before: [0, 0, 1, 5][random.below(4)], n_read_max }
}

/// Greedy, or drawn; half of what is drawn with penalties, which count what came before.
fn sampling(random: &mut Random, vocab_size: usize) -> SamplingParams {
    let mut sampling = SamplingParams::greedy();
    sampling.seed = random.below(1000) as u64;
    if random.below(2) == 0 {
        sampling.temperature = 0.8;
        sampling.top_p = 0.9;
        sampling.frequency_penalty = [0.0, 0.7][random.below(2)];
        sampling.n_tokens_min = random.below(6);
    }
    if random.below(4) == 0 {
        sampling.repetition_penalty = 1.3;
        sampling.logit_bias = vec![(random_tokens(random, vocab_size, 1)[0], 1.5)];
    }
    sampling
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
    let mut answer = Answer { tokens: Vec::new(), prompt: Vec::new() };
    for output in receiver {
        match output {
            Output::Token { token, score, .. } => {
                let hash = score.map(|score| score.logits_hash.expect("asked for"));
                answer.tokens.push((token, hash));
            }
            Output::PromptScores(scores) => {
                answer.prompt.extend(scores.iter().map(|score| score.logits_hash));
            }
            Output::Admitted { .. } | Output::Finish(_) => {}
        }
    }
    answer
}

/// What a model can say, and the room that it has by itself.
struct Room {
    vocab_size: usize,
    memory: MemoryPlan,
}

impl Room {
    fn of(checkpoint: &Arc<Checkpoint>, base: &EngineConfig) -> Room {
        let probe = Probe::new(Arc::clone(checkpoint), base).expect("it boots");
        let memory = probe.memory().clone();
        Room { vocab_size: checkpoint.spec().vocab_size, memory }
    }
}

/// What happened, so that a test can tell whether it saw enough.
#[derive(Default, Debug)]
struct Seen {
    n_preemptions: u64,
    n_cached_tokens: u64,
    n_shared_tokens: u64,
    n_host_tokens: u64,
    n_accepted_tokens: u64,
    n_prompt_hashes: u64,
    n_cut_short: u64,
}

impl Seen {
    fn is_enough(&self, n_wanted: u64) -> bool {
        let Seen { n_preemptions, n_cached_tokens, n_shared_tokens, .. } = *self;
        let Seen { n_host_tokens, n_accepted_tokens, n_prompt_hashes, n_cut_short, .. } = *self;
        let passed_on = [n_cached_tokens, n_shared_tokens, n_host_tokens, n_accepted_tokens];
        let met = [n_preemptions, n_prompt_hashes, n_cut_short];
        passed_on.iter().chain(&met).all(|&n| n >= n_wanted)
    }
}

/// Runs a workload, and every request of it alone on an engine of `base`. Adds what happened to
/// `seen`.
fn compare(
    checkpoint: &Arc<Checkpoint>,
    (base, alone): (&EngineConfig, &Engine),
    (scale, room): (&Scale, &Room),
    seed: u64,
    seen: &mut Seen,
) {
    let mut random = Random::new(seed);
    let Workload { jobs, config } = Workload::new(&mut random, base, scale, room);
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
    for (idx, (job, together)) in jobs.iter().zip(&together).enumerate() {
        let whole = Job { request: job.request.clone(), n_steps_before: 0, n_read_max: usize::MAX };
        let mut expected = read(submit(alone, &whole));
        seen.n_cut_short += u64::from(expected.tokens.len() > job.n_read_max);
        expected.tokens.truncate(job.n_read_max);
        seen.n_prompt_hashes += expected.prompt.len() as u64;
        assert!(*together == expected, "request {idx} differs with SEED={seed}: {config:?}");
    }
    seen.n_preemptions += stats.n_preemptions;
    seen.n_cached_tokens += stats.n_cached_tokens;
    seen.n_shared_tokens += stats.n_shared_tokens;
    seen.n_host_tokens += stats.n_host_tokens;
    seen.n_accepted_tokens += stats.n_accepted_tokens;
}

/// The one that is to be seen again, or those up to `n`.
fn seeds(n: u64) -> Range<u64> {
    harness::wanted_seed().map_or(0..n, |seed| seed..seed + 1)
}

#[test]
fn random_workloads_answer_as_their_requests_alone() {
    let formats = FORMATS.map(|(format, dtype)| (tiny("workloads", format), dtype));
    let scale = Scale {
        n_jobs: 8..14,
        n_prompt_max: 64,
        n_new_short: 20,
        n_new_long: 40..60,
        n_pages_more: 8,
        unscored_in: 0,
    };
    let mut seen = Seen::default();
    for seed in seeds(50) {
        let (checkpoint, kv_dtype) = &formats[seed as usize % 4];
        let base = config([1, 1, 2][seed as usize % 3], 2, *kv_dtype);
        let room = Room::of(checkpoint, &base);
        let alone = engine::boot(Arc::clone(checkpoint), &base).expect("it boots");
        compare(checkpoint, (&base, &alone), (&scale, &room), seed, &mut seen);
    }
    eprintln!("{seen:?}");
    let is_replay = harness::wanted_seed().is_some();
    assert!(seen.is_enough(10) || is_replay, "workloads that meet too little: {seen:?}");
}

/// The same on devices that are told to be deterministic. A third of the requests are drawn there,
/// whose tokens alone are seen, behind steps that are submitted ahead.
#[test]
fn random_workloads_answer_as_their_requests_alone_on_devices() {
    split_as_a_real_node_does();
    let scale = Scale {
        n_jobs: 6..10,
        n_prompt_max: 30,
        n_new_short: 8,
        n_new_long: 30..46,
        n_pages_more: 2,
        unscored_in: 3,
    };
    let mut seen = Seen::default();
    for (idx, (format, kv_dtype)) in FORMATS[1..].iter().enumerate() {
        let seeds = seeds(N_DEVICE_SEEDS).filter(|seed| *seed as usize % 3 == idx);
        let seeds: Vec<u64> = seeds.collect();
        if seeds.is_empty() {
            continue;
        }
        let checkpoint = write("workloads-devices", *format, short_for_devices());
        let base = EngineConfig { n_context_tokens: Some(80), ..on_devices(2, *kv_dtype, true) };
        let room = Room::of(&checkpoint, &base);
        let alone = engine::boot(Arc::clone(&checkpoint), &base).expect("it boots");
        for seed in seeds {
            compare(&checkpoint, (&base, &alone), (&scale, &room), seed, &mut seen);
        }
    }
    eprintln!("{seen:?}");
    let is_replay = harness::wanted_seed().is_some();
    assert!(seen.is_enough(4) || is_replay, "workloads that meet too little: {seen:?}");
}
