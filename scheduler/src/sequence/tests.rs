//! A sequence on its own: what its rows yield, how it ends, what a preemption leaves it.

use super::*;
use crate::{Priorities, SlotIdx, Terms};

impl Sequence {
    /// Plans the next `n_tokens` and has the row land at once: for tests that need one
    /// which has computed something.
    pub(crate) fn run(
        &mut self,
        slot: SlotIdx,
        n_tokens: usize,
        tokens: &mut Vec<TokenId>,
    ) -> Emit {
        let (request, start) = (self.id(), self.n_planned());
        let (follows, emit) = self.plan(n_tokens, 0, tokens);
        let (token_idx, answer_idx, n_candidates) = (0, 0, 0);
        let row = Row {
            request,
            slot,
            start,
            n_tokens,
            n_candidates,
            token_idx,
            answer_idx,
            follows,
            emit,
        };
        self.land(&row, 0);
        emit
    }
}

fn sequence(n_prompt: u32, n_new_max: usize, scores_prompt: bool) -> Sequence {
    let limits = Limits {
        n_slots: 1,
        n_waiting_max: 1,
        n_tokens_per_step: 8,
        n_context_tokens: 12,
        page_tokens: 4,
        priorities: Priorities::single(),
        n_tenants: 1,
        latency: None,
        prefix_cache: None,
        host_tier: None,
        speculation: None,
        groups: Vec::new(),
    };
    let request = Request {
        id: RequestId(3),
        prompt: (0..n_prompt).map(TokenId).collect(),
        n_new_max,
        stop_tokens: [TokenId(99)].into(),
        scores_prompt,
        cache_salt: None,
        is_guided: false,
        terms: Terms::ordinary(),
    };
    let mut sequence = Sequence::new(request, Turn::new(0, 0), &limits);
    sequence.enter();
    sequence
}

/// Plans and lands the next `n_tokens`, and pushes `sampled` if the row samples.
fn step(sequence: &mut Sequence, n_tokens: usize, sampled: u32) -> (Emit, Vec<u32>) {
    let mut tokens = Vec::new();
    let emit = sequence.run(SlotIdx(0), n_tokens, &mut tokens);
    if emit.samples() {
        sequence.push(TokenId(sampled));
    }
    sequence.check();
    (emit, tokens.into_iter().map(|token| token.0).collect())
}

#[test]
fn a_row_spans_prompt_and_generated_tokens() {
    let mut sequence = sequence(3, 9, false);
    assert_eq!(step(&mut sequence, 2, 50), (Emit::Nothing, vec![0, 1]));
    assert_eq!(step(&mut sequence, 1, 50), (Emit::Sample, vec![2]));
    assert_eq!(step(&mut sequence, 1, 51), (Emit::Sample, vec![50]));
    assert_eq!(sequence.rewind(), 4);
    assert_eq!(sequence.n_row_tokens_max(), 5);
    assert_eq!(step(&mut sequence, 5, 52), (Emit::Sample, vec![0, 1, 2, 50, 51]));
    assert_eq!(sequence.generated(), [TokenId(50), TokenId(51), TokenId(52)]);
}

#[test]
fn it_ends_by_stop_count_or_context() {
    let mut stops = sequence(3, 1, false);
    step(&mut stops, 3, 99);
    assert_eq!(stops.finish_reason(), Some(FinishReason::Stop(TokenId(99))));

    let mut counts = sequence(3, 2, false);
    step(&mut counts, 3, 50);
    assert_eq!(counts.finish_reason(), None);
    step(&mut counts, 1, 50);
    assert_eq!(counts.finish_reason(), Some(FinishReason::Length));

    let mut fills = sequence(11, usize::MAX, false);
    step(&mut fills, 10, 50);
    assert_eq!(fills.finish_reason(), None);
    step(&mut fills, 1, 50);
    assert_eq!(fills.finish_reason(), Some(FinishReason::Length));
}

#[test]
fn a_prompt_alone_ends_when_it_is_computed() {
    let mut sequence = sequence(3, 0, true);
    assert_eq!(step(&mut sequence, 2, 50).0, Emit::Score);
    assert_eq!(sequence.finish_reason(), None);
    assert_eq!(step(&mut sequence, 1, 50).0, Emit::Score);
    assert_eq!(sequence.finish_reason(), Some(FinishReason::Length));
    assert_eq!(sequence.generated(), []);
}

#[test]
fn scored_positions_are_not_scored_again() {
    let mut sequence = sequence(8, 2, true);
    assert_eq!(step(&mut sequence, 5, 50).0, Emit::Score);
    sequence.rewind();
    assert_eq!(sequence.n_row_tokens_max(), 5, "not past what was scored");
    assert_eq!(step(&mut sequence, 3, 50).0, Emit::Nothing);
    assert_eq!(sequence.n_row_tokens_max(), 2);
    assert_eq!(step(&mut sequence, 2, 50).0, Emit::Nothing);
    assert_eq!(step(&mut sequence, 3, 50).0, Emit::ScoreAndSample);
    sequence.rewind();
    assert_eq!(sequence.n_row_tokens_max(), 9, "all is scored: one row may span it");
    assert_eq!(step(&mut sequence, 9, 50).0, Emit::Sample);
}
