//! What the scheduler costs a step, prefix caching on: plan and apply, without the ranks.
//!
//! `cargo bench --bench scheduler [-- --json]`

use std::time::Instant;

use allocation_counter::measure;
use benches::Report;
use scheduler::{
    Effect, Event, GroupLimits, Limits, Moment, PrefixCache, Priorities, Request, RequestId,
    Scheduler, StepPlan, StepResult, Terms, TokenId,
};

const PAGE_TOKENS: usize = 16;
const N_PROMPT: usize = 512;
const N_NEW: usize = 512;
/// Steps of which the median is told: some sequence begins a page in each.
const N_STEPS: usize = 256;
const N_LONG: usize = 128 * 1024;
const N_LONG_RUNS: usize = 9;

fn main() {
    let report = Report::new("scheduler");
    for (n_running, n_waiting) in [(64, 0), (64, 100_000), (256, 0), (1024, 0), (4096, 0)] {
        steady(&report, n_running, n_waiting);
    }
    long_prompt(&report);
}

fn limits(n_slots: usize, n_waiting: usize, n_context_tokens: usize) -> Limits {
    let n_pages = n_slots * n_context_tokens.div_ceil(PAGE_TOKENS);
    Limits {
        n_slots,
        n_waiting_max: n_waiting.max(1),
        // Room to compute every prompt before the first answer ends.
        n_tokens_per_step: 8192.max(32 * n_slots),
        n_context_tokens,
        page_tokens: PAGE_TOKENS,
        // As the program has it.
        priorities: Priorities { n_levels: 3, default_level: 2, n_steps_a_level: 256 },
        n_tenants: 1,
        latency: None,
        prefix_cache: Some(PrefixCache { seed: 1 }),
        host_tier: None,
        speculation: None,
        groups: vec![GroupLimits { n_pages, window: None }],
    }
}

fn request(id: u64, n_prompt: usize, n_new_max: usize) -> Request {
    Request {
        id: RequestId(id),
        prompt: (0..n_prompt as u64).map(|at| TokenId((id * 7919 + at) as u32 % 128_000)).collect(),
        n_new_max,
        stop_tokens: [TokenId(128_001), TokenId(128_008), TokenId(128_009)].into(),
        scores_prompt: false,
        cache_salt: None,
        is_guided: false,
        terms: Terms::ordinary(),
    }
}

/// What the ranks would say.
fn result(plan: &StepPlan) -> Event {
    let token = |row: &scheduler::Row| row.emit.samples().then_some(TokenId(row.start as u32));
    let tokens = plan.rows.iter().map(token).collect();
    Event::Complete(StepResult { step: plan.step, tokens, took_us: 1 })
}

/// A scheduler on its own.
struct Bench {
    scheduler: Scheduler,
    effects: Vec<Effect>,
}

/// What a step took.
struct Cost {
    seconds: f64,
    n_allocations: u64,
    n_rows: usize,
    n_tokens: usize,
}

impl Bench {
    fn new(limits: Limits, requests: impl Iterator<Item = Request>) -> Bench {
        let mut effects = Vec::with_capacity(limits.n_slots);
        let mut scheduler = Scheduler::new(limits);
        for request in requests {
            scheduler.apply(Event::Arrive(request), Moment(0), &mut effects);
        }
        Bench { scheduler, effects }
    }

    /// Plans, and applies the results. The vector of the results is not the scheduler's.
    fn step(&mut self) -> Cost {
        let Bench { scheduler, effects } = self;
        effects.clear();
        let mut plan = None;
        let began = Instant::now();
        let planning = measure(|| plan = scheduler.plan());
        let planned = began.elapsed();
        let plan = plan.expect("somebody runs");
        let event = result(&plan);
        let began = Instant::now();
        let applying = measure(|| {
            scheduler.apply(event, Moment(0), effects);
        });
        let seconds = (planned + began.elapsed()).as_secs_f64();
        let (n_rows, n_tokens) = (plan.rows.len(), plan.tokens.len());
        scheduler.recycle(plan);
        let n_allocations = planning.count_total + applying.count_total;
        Cost { seconds, n_allocations, n_rows, n_tokens }
    }
}

/// Every slot decodes; where requests wait, they wait for a slot.
fn steady(report: &Report, n_running: usize, n_waiting: usize) {
    let requests = (0..(n_running + n_waiting) as u64).map(|id| request(id, N_PROMPT, N_NEW));
    let mut bench = Bench::new(limits(n_running, n_waiting, N_PROMPT + N_NEW), requests);
    let is_steady = |cost: &Cost| cost.n_rows == n_running && cost.n_tokens == n_running;
    while !is_steady(&bench.step()) {}
    let costs: Vec<Cost> = (0..N_STEPS).map(|_| bench.step()).collect();
    assert!(costs.iter().all(is_steady), "somebody ended");
    let mut seconds: Vec<f64> = costs.iter().map(|cost| cost.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let case = match n_waiting {
        0 => format!("steady running={n_running}"),
        _ => format!("steady running={n_running} waiting={n_waiting}"),
    };
    report.row(&case, seconds[N_STEPS / 2] * 1e6, "us/step");
    let n_allocations: u64 = costs.iter().map(|cost| cost.n_allocations).sum();
    report.row(&format!("{case}: allocations"), n_allocations as f64, "in all steps");
}

/// A long prompt all of whose full pages are known takes a slot.
fn long_prompt(report: &Report) {
    let seconds = (0..N_LONG_RUNS).map(|_| {
        let mut bench = Bench::new(limits(1, 1, N_LONG + 1), [long_request(0)].into_iter());
        while bench.scheduler.stats().n_running + bench.scheduler.stats().n_waiting > 0 {
            bench.step();
        }
        bench.scheduler.apply(Event::Arrive(long_request(1)), Moment(0), &mut bench.effects);
        let began = Instant::now();
        let plan = bench.scheduler.plan().expect("it waits");
        let seconds = began.elapsed().as_secs_f64();
        assert_eq!(plan.admitted[0].n_cached, N_LONG - PAGE_TOKENS, "all but its last page");
        seconds
    });
    let mut seconds: Vec<f64> = seconds.collect();
    seconds.sort_by(f64::total_cmp);
    report.row("admit 128k tokens, all cached", seconds[N_LONG_RUNS / 2] * 1e6, "us");
}

fn long_request(id: u64) -> Request {
    Request { id: RequestId(id), ..request(0, N_LONG, 1) }
}
