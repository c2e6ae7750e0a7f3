//! What a step takes, predicted: its tokens as one product a projection, the attention of its
//! answers as one launch a block, that of every prompt's chunk as one more. What attention fetches
//! ahead is left out.

use std::collections::HashMap;

use benches::cost::machine::Machine;
use benches::cost::work::{Kind, Launch, Step, launches};
use scheduler::{PageMove, Row, StepPlan};
use weights::ModelSpec;

use crate::setup::N_RANKS;

/// Launches of the last norm, the head and the choice: for rows that sample alone.
const HEAD: [&str; 3] = ["head", "all_gather", "sample"];

/// Numbers of tokens are told apart by so many.
const GRAIN: u64 = 8;

/// Seconds that a token's KV takes to the host or back, over all ranks: published runs of this
/// model with vLLM 0.27 on eight H100s answer a prompt of 8,176 tokens that lie there after 593 ms,
/// where 128 tokens that are computed take 307 ms. A step waits for it.
const HOST_SECONDS_A_TOKEN: f64 = (0.593 - 0.307) / 8176.0;

/// What steps take.
pub(crate) struct Cost {
    page_tokens: usize,
    spec: ModelSpec,
    /// Seconds by number of tokens and whether prompts are among them, without attention and head.
    bodies: HashMap<(u64, bool), f64>,
    /// Seconds by number of rows that sample.
    heads: HashMap<u64, f64>,
    /// Of one block, for one sequence.
    attention: HashMap<(u64, u64), f64>,
}

impl Cost {
    pub(crate) fn new(spec: ModelSpec, page_tokens: usize) -> Cost {
        let (bodies, heads, attention) = Default::default();
        Cost { page_tokens, spec, bodies, heads, attention }
    }

    /// Seconds of a plan's step.
    pub(crate) fn seconds(&mut self, plan: &StepPlan) -> f64 {
        let n_samples = plan.rows.iter().filter(|row| row.emit.samples()).count() as u64;
        let has_prompts = plan.rows.iter().any(|row| row.n_tokens > 1);
        let n_tokens = plan.tokens.len() as u64;
        let mut seconds = self.body(n_tokens, has_prompts) + self.head(n_samples);
        let end = |row: &Row| (row.start + row.n_tokens) as u64;
        let answers = plan.rows.iter().filter(|row| row.n_tokens == 1);
        // One launch reads what all of them have in the cache, as it would for one of that length.
        let n_positions: u64 = answers.map(end).sum();
        if n_positions > 0 {
            seconds += self.attention(1, n_positions);
        }
        for row in plan.rows.iter().filter(|row| row.n_tokens > 1) {
            seconds += self.attention(row.n_tokens as u64, end(row));
        }
        let goes_far = |page: &&PageMove| !matches!(page, PageMove::Copy { .. });
        let n_moved = plan.moves.iter().filter(goes_far).count() * self.page_tokens;
        seconds + n_moved as f64 * HOST_SECONDS_A_TOKEN
    }

    fn body(&mut self, n_tokens: u64, has_prompts: bool) -> f64 {
        let n_tokens = n_tokens.next_multiple_of(GRAIN);
        let spec = &self.spec;
        *self.bodies.entry((n_tokens, has_prompts)).or_insert_with(|| {
            // Rows of more than one token are turned by a kernel of their own.
            let n_tokens_each = if has_prompts { 2 } else { 1 };
            let n_sequences = n_tokens / n_tokens_each;
            let step = Step { n_sequences, n_tokens_each, context: n_tokens_each };
            let is_body = |one: &Launch| one.kind != Kind::Attention && !HEAD.contains(&one.name);
            seconds(spec, step, is_body)
        })
    }

    fn head(&mut self, n_rows: u64) -> f64 {
        let n_sequences = n_rows.max(1).next_multiple_of(GRAIN);
        let spec = &self.spec;
        *self.heads.entry(n_sequences).or_insert_with(|| {
            let step = Step { n_sequences, n_tokens_each: 1, context: 1 };
            seconds(spec, step, |one| HEAD.contains(&one.name))
        })
    }

    fn attention(&mut self, n_tokens: u64, end: u64) -> f64 {
        // Within a hundredth of what it is.
        let grain = (end / 128).next_power_of_two().max(1);
        let context = end.next_multiple_of(grain).max(n_tokens);
        let spec = &self.spec;
        *self.attention.entry((n_tokens, context)).or_insert_with(|| {
            let step = Step { n_sequences: 1, n_tokens_each: n_tokens, context };
            seconds(spec, step, |one| one.kind == Kind::Attention)
        })
    }
}

fn seconds(spec: &ModelSpec, step: Step, is_asked: impl Fn(&Launch) -> bool) -> f64 {
    let asked: Vec<Launch> =
        launches(spec, step, N_RANKS).into_iter().filter(|one| is_asked(one)).collect();
    Machine::EXPECTED.seconds(&asked)
}
