//! Random limits and requests: small, so that every bound is met often.

use std::sync::Arc;

use scheduler::{
    GroupLimits, HostTier, LatencyTarget, Limits, Moment, PrefixCache, Priorities, Request,
    RequestId, Speculation, TenantId, Terms, TokenId,
};

use crate::model::VOCAB_SIZE;
use crate::random::Random;

/// Limits whose relations hold.
pub(crate) fn limits(random: &mut Random) -> Limits {
    let n_slots = random.within(1, 8);
    let page_tokens = random.within(1, 5);
    let n_context_tokens = random.within(1, 48);
    let n_groups = random.within(0, 3);
    let group = |random: &mut Random| {
        let n_pages_longest = n_context_tokens.div_ceil(page_tokens);
        // Some pools hold less than one full context: they bound the sequences, then.
        let n_pages_min = if random.one_in(4) { 1 } else { n_pages_longest };
        GroupLimits {
            n_pages: random.within(n_pages_min, 2 * n_pages_longest),
            window: random.one_in(3).then(|| random.within(1, 12)),
        }
    };
    let groups: Vec<GroupLimits> = (0..n_groups).map(|_| group(random)).collect();
    let prefix_cache = (!random.one_in(3)).then(|| PrefixCache { seed: random.next() % 4 });
    let host_tier = prefix_cache.as_ref().filter(|_| random.one_in(2)).map(|_| HostTier {
        group_pages: groups.iter().map(|group| random.within(1, 2 * group.n_pages)).collect(),
        n_tokens_min: random.within(1, 12),
    });
    Limits {
        n_slots,
        n_waiting_max: random.within(1, 6),
        n_tokens_per_step: n_slots + random.within(0, 8),
        n_context_tokens,
        page_tokens,
        priorities: priorities(random),
        n_tenants: if random.one_in(2) { 1 } else { random.within(2, 3) },
        latency: random.one_in(3).then(|| LatencyTarget {
            step_us: random.within(1, 60) as u64,
            n_prompt_tokens_min: random.within(1, 4),
        }),
        prefix_cache,
        host_tier,
        speculation: random
            .one_in(2)
            .then(|| Speculation { n_candidates_max: random.within(1, 6) }),
        groups,
    }
}

fn priorities(random: &mut Random) -> Priorities {
    let n_levels = if random.one_in(2) { 1 } else { random.within(2, 3) as u32 };
    Priorities {
        n_levels,
        default_level: random.within(1, n_levels as usize) as u32,
        n_steps_a_level: random.within(1, 30) as u32,
    }
}

/// Any terms, levels and tenants that there are not among them.
pub(crate) fn terms(random: &mut Random, limits: &Limits, clock: u64) -> Terms {
    let mut within = |n_in: usize, us: usize| {
        random.one_in(n_in).then(|| Moment(clock + random.within(0, us) as u64))
    };
    let (queue_deadline, deadline) = (within(6, 100), within(8, 300));
    Terms {
        priority: random.within(0, limits.priorities.n_levels as usize + 1) as u32,
        tenant: TenantId(random.within(0, limits.n_tenants + 1) as u32),
        queue_deadline,
        deadline,
    }
}

/// What prompts begin with, so that several begin alike.
pub(crate) fn beginnings(random: &mut Random, limits: &Limits) -> Vec<Vec<TokenId>> {
    (0..3).map(|_| (0..limits.n_context_tokens).map(|_| token(random)).collect()).collect()
}

fn token(random: &mut Random) -> TokenId {
    TokenId((random.next() % VOCAB_SIZE) as u32)
}

/// Any request, one that must be refused among them.
pub(crate) fn request(
    random: &mut Random,
    id: RequestId,
    limits: &Limits,
    beginnings: &[Vec<TokenId>],
) -> Request {
    let n_max = limits.n_context_tokens;
    let n_prompt = match random.within(0, 9) {
        0 => random.within(0, n_max + 2),
        1..=4 => random.within(1, n_max),
        _ => random.within(1, n_max.min(6)),
    };
    let n_new_max = match random.within(0, 9) {
        0 => 0,
        1 => usize::MAX,
        2..=5 => random.within(1, n_max),
        _ => random.within(1, 8),
    };
    // Guesses are to run into stops.
    let stops_in = if limits.speculation.is_some() { 2 } else { 3 };
    let n_stops = if random.one_in(stops_in) { random.within(1, 4) } else { 0 };
    let mut prompt = beginnings[random.within(0, beginnings.len() - 1)].clone();
    let n_alike = if random.one_in(2) { n_prompt } else { random.within(0, n_prompt) };
    prompt.truncate(n_alike);
    prompt.extend((prompt.len()..n_prompt).map(|_| token(random)));
    Request {
        id,
        prompt: prompt.into(),
        n_new_max,
        stop_tokens: (0..n_stops).map(|_| token(random)).collect(),
        scores_prompt: n_new_max == 0 || random.one_in(3),
        cache_salt: random.one_in(4).then(|| ["a", "b"][random.within(0, 1)].into()),
        is_guided: false,
        terms: Terms::ordinary(),
    }
}

/// Makes a request another answer to the prompt of one that lives, mostly of the same salt.
pub(crate) fn sibling(random: &mut Random, request: &mut Request, of: &Request) {
    request.prompt = Arc::clone(&of.prompt);
    if !random.one_in(4) {
        request.cache_salt = of.cache_salt.clone();
    }
}
