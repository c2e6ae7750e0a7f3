//! What these tests would notice. A rank is told something else than the scheduler planned, as if
//! it had taken it over wrongly: a page table's entry, a chunk's position, a page that moves. Every
//! fault must change some answer's logits, or stop the rank; else equal bits would show little.

use std::collections::BTreeMap;

use engine::HostKv;
use scheduler::{
    Effect, Event, GroupLimits, HostTier, Limits, Moment, PageMove, PrefixCache, Priorities,
    Request, RequestId, Row, Scheduler, StepPlan, StepResult, Terms,
};

use super::*;

/// Tokens that each answer has: more than a page.
const N_NEW: usize = 36;

/// Something that a rank gets wrong in a plan.
type Fault = fn(&mut StepPlan);

const FAULTS: [(&str, Fault); 9] = [
    ("an entry of a page table is an old one", |plan| {
        plan.pages.pop();
    }),
    ("two sequences' pages are mixed up", |plan| {
        let Some(other) = plan.pages.iter().position(|one| one.slot != plan.pages[0].slot) else {
            return;
        };
        let page = plan.pages[0].page;
        plan.pages[0].page = std::mem::replace(&mut plan.pages[other].page, page);
    }),
    ("a page is filed one entry further", |plan| {
        plan.pages.iter_mut().for_each(|one| one.page_idx ^= 1);
    }),
    ("a chunk begins one position early", |plan| {
        let later = plan.rows.iter_mut().filter(|row| row.start > 0 && row.n_tokens > 1);
        later.for_each(|row| row.start -= 1);
    }),
    ("a token is written one position late", |plan| {
        let decodes = plan.rows.iter_mut().filter(|row| row.start > 0 && row.n_tokens == 1);
        decodes.for_each(|row| row.start += 1);
    }),
    ("pages that come back are each other's", |plan| {
        let mut back: Vec<_> = plan.moves.iter_mut().filter_map(back).collect();
        if back.len() > 1 {
            let first = *back[0];
            *back[0] = std::mem::replace(back[1], first);
        }
    }),
    ("what comes back stays away", |plan| {
        plan.moves.retain(|page| !matches!(page, PageMove::In { .. }));
    }),
    ("what falls out is not kept", |plan| {
        plan.moves.retain(|page| !matches!(page, PageMove::Out { .. }));
    }),
    ("a page that is shared is not copied", |plan| {
        plan.moves.retain(|page| !matches!(page, PageMove::Copy { .. }));
    }),
];

/// Where a page comes back from.
fn back(page: &mut PageMove) -> Option<&mut scheduler::HostPageId> {
    match page {
        PageMove::In { from, .. } => Some(from),
        PageMove::Out { .. } | PageMove::Copy { .. } => None,
    }
}

/// What one request's rows yielded, in order: likeliest tokens, and bits of all logits.
type Answers = BTreeMap<RequestId, Vec<Vec<u32>>>;

fn limits(probe: &Probe) -> Limits {
    let memory = probe.memory();
    let windows = memory.group_windows.iter();
    let groups = memory.group_pages.iter().zip(windows);
    Limits {
        n_slots: memory.n_slots,
        n_waiting_max: 16,
        n_tokens_per_step: memory.n_tokens_per_step,
        n_context_tokens: memory.n_context_tokens,
        page_tokens: PAGE_TOKENS,
        priorities: Priorities::single(),
        n_tenants: 1,
        latency: None,
        prefix_cache: Some(PrefixCache { seed: 1 }),
        host_tier: Some(HostTier { group_pages: memory.host_pages.clone(), n_tokens_min: 1 }),
        speculation: None,
        groups: groups.map(|(&n_pages, &window)| GroupLimits { n_pages, window }).collect(),
    }
}

/// The first of the greatest.
fn likeliest(logits: &[f32]) -> TokenId {
    let greatest = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
    TokenId((0..logits.len()).fold(0, greatest) as u32)
}

/// Has the scheduler answer `prompts`, each wave of them when the one before is done. `None` where
/// a rank stops at what it is told.
fn answer(config: &EngineConfig, waves: &[Vec<Arc<[TokenId]>>], fault: Fault) -> Option<Answers> {
    let checkpoint = Checkpoint::open(&folder()).expect("it was written");
    let mut probe = Probe::new(Arc::new(checkpoint), config).expect("it boots");
    let mut scheduler = Scheduler::new(limits(&probe));
    let (mut answers, mut effects, mut n_requests) = (Answers::new(), Vec::<Effect>::new(), 0);
    for prompt in waves.iter().flat_map(|wave| wave.iter().map(Some).chain([None])) {
        if let Some(prompt) = prompt {
            let request = request(RequestId(n_requests), prompt);
            n_requests += 1;
            scheduler.apply(Event::Arrive(request), Moment(0), &mut effects);
            continue;
        }
        while let Some(plan) = scheduler.plan() {
            let (step, rows) = (plan.step, plan.rows.clone());
            let mut told = plan;
            fault(&mut told);
            let probed = probe.run(told).ok()?;
            let mut tokens: Vec<Option<TokenId>> = vec![None; rows.len()];
            for one in probed {
                let row: &Row = &rows[one.row_idx];
                tokens[one.row_idx] = row.emit.samples().then(|| likeliest(&one.logits));
                let bits = one.logits.iter().map(|logit| logit.to_bits()).collect();
                answers.entry(row.request).or_default().push(bits);
            }
            let result = StepResult { step, tokens, took_us: 1 };
            scheduler.apply(Event::Complete(result), Moment(0), &mut effects);
        }
    }
    assert_eq!(scheduler.stats().counters.n_finished, n_requests);
    let counters = scheduler.stats().counters;
    let met = [counters.n_preemptions, counters.n_pages_out, counters.n_pages_in];
    assert!(met.iter().all(|&n| n > 1) && counters.n_shared_tokens > 0, "{counters:?}");
    Some(answers)
}

fn request(id: RequestId, prompt: &Arc<[TokenId]>) -> Request {
    Request {
        id,
        prompt: Arc::clone(prompt),
        n_new_max: N_NEW,
        stop_tokens: [].into(),
        scores_prompt: false,
        cache_salt: None,
        is_guided: false,
        terms: Terms::ordinary(),
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("planted-F32")
}

#[test]
fn faults_of_a_rank_are_noticed() {
    drop(tiny("planted", SyntheticFormat::F32));
    let roomy = EngineConfig {
        n_slots: 4,
        n_tokens_per_step: 24,
        n_context_tokens: Some(96),
        host_kv: Some(HostKv { n_bytes: 1 << 20, n_tokens_min: 1 }),
        ..config(1, 1, KvDtype::F32)
    };
    let checkpoint = Arc::new(Checkpoint::open(&folder()).expect("it was written"));
    let whole = Probe::new(checkpoint, &roomy).expect("it boots");
    let kv_bytes = kv_bytes(whole.memory(), &roomy, 9);
    drop(whole);
    let cramped = EngineConfig { kv_bytes: Some(kv_bytes), ..roomy };
    let mut random = Random::new(harness::seed_or(4));
    let mut prompt = |n: usize| -> Arc<[TokenId]> { random_tokens(&mut random, 301, n).into() };
    let (first, second) = (prompt(55), prompt(45));
    let others: Vec<Arc<[TokenId]>> = [20, 24, 28].map(&mut prompt).to_vec();
    // Two answers to one prompt; others, whose pages take theirs; it again.
    let waves = [
        vec![Arc::clone(&second), Arc::clone(&second)],
        vec![Arc::clone(&first)],
        others,
        vec![Arc::clone(&first), Arc::clone(&second), first],
    ];
    let right = answer(&cramped, &waves, |_| {}).expect("nothing is wrong");
    assert_eq!(Some(&right), answer(&cramped, &waves, |_| {}).as_ref(), "a run repeats");
    for (what, fault) in FAULTS {
        let outcome = answer(&cramped, &waves, fault);
        let n_wrong = outcome.as_ref().map(|wrong| {
            right.iter().filter(|(request, answer)| wrong.get(request) != Some(answer)).count()
        });
        eprintln!("{what}: answers that differ: {n_wrong:?}");
        assert_ne!(n_wrong, Some(0), "not noticed: {what}");
    }
}
