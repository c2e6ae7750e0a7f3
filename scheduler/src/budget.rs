//! How many tokens a step has, and who gets them: every decode row its one, prefill the rest.
//!
//! Who is held until it is known what may follow its last token has no decode row.
//! Decode comes first so that tokens keep flowing to the readers while prompts are computed; a
//! prompt is cut to what is left and goes on in the next step. As no more sequences run than a step
//! has tokens, the oldest always gets at least one. It does not know pages or the queue.
//!
//! Candidates of speculative rows come last: they get what nobody else wants.

use crate::pace::Pace;
use crate::sequence::Sequence;

/// The tokens of one step that are not spoken for.
#[derive(Debug)]
pub(crate) struct Budget {
    n_prefill_left: usize,
}

impl Budget {
    /// Sets one token aside for each of the running sequences that decode. While any does, also one
    /// that is held, prefill has what the `pace` allows.
    pub(crate) fn new<'a>(
        n_tokens_per_step: usize,
        pace: &Pace,
        running: impl Iterator<Item = &'a Sequence>,
    ) -> Budget {
        let (mut n_decodes, mut n_held) = (0, 0);
        for sequence in running.filter(|sequence| decodes(sequence)) {
            let n = if sequence.is_held() { &mut n_held } else { &mut n_decodes };
            *n += 1;
        }
        let n_left = n_tokens_per_step.checked_sub(n_decodes);
        let n_left = n_left.expect("no more slots than tokens in a step");
        let somebody_reads = n_decodes + n_held > 0;
        let n_prefill_left =
            if somebody_reads { n_left.min(pace.n_prompt_tokens_max()) } else { n_left };
        Budget { n_prefill_left }
    }

    /// Tokens that a sequence may have, zero if none is left for it.
    pub(crate) fn offer(&self, sequence: &Sequence) -> usize {
        if decodes(sequence) {
            return usize::from(!sequence.is_held());
        }
        sequence.n_row_tokens_max().min(self.n_prefill_left)
    }

    /// Tokens that a sequence may have that enters a slot in this step: nothing was set aside for
    /// it, however short it is or however much of it is cached.
    pub(crate) fn offer_newcomer(&self, sequence: &Sequence) -> usize {
        sequence.n_row_tokens_max().min(self.n_prefill_left)
    }

    /// It takes what it was offered, or a part of it.
    pub(crate) fn take_newcomer(&mut self, n_tokens: usize) {
        self.n_prefill_left -= n_tokens;
    }

    /// What candidates may have, once all others are served.
    pub(crate) fn n_spare(&self) -> usize {
        self.n_prefill_left
    }

    /// Candidates take what is spare, or a part of it.
    pub(crate) fn take_spare(&mut self, n_tokens: usize) {
        self.n_prefill_left -= n_tokens;
    }

    /// A sequence takes what it was offered, or a part of it.
    pub(crate) fn take(&mut self, sequence: &Sequence, n_tokens: usize) {
        assert!(n_tokens <= self.offer(sequence), "{n_tokens} > {}", self.offer(sequence));
        if !decodes(sequence) {
            self.n_prefill_left -= n_tokens;
        }
    }

    /// Whether nothing is left for prefill.
    pub(crate) fn is_spent(&self) -> bool {
        self.n_prefill_left == 0
    }
}

/// Whether a sequence that runs has computed all but its last token: from its prompt's end on,
/// always.
pub(crate) fn decodes(sequence: &Sequence) -> bool {
    sequence.n_planned() > 0 && sequence.n_remaining() == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::Turn;
    use crate::{Limits, Priorities, Request, RequestId, Terms, TokenId};

    fn newcomer(n_prompt: usize) -> Sequence {
        let limits = Limits {
            n_slots: 4,
            n_waiting_max: 1,
            n_tokens_per_step: 8,
            n_context_tokens: 64,
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
            id: RequestId(0),
            prompt: vec![TokenId(1); n_prompt].into(),
            n_new_max: 1,
            stop_tokens: [].into(),
            scores_prompt: false,
            cache_salt: None,
            is_guided: false,
            terms: Terms::ordinary(),
        };
        Sequence::new(request, Turn::new(0, 0), &limits)
    }

    /// A sequence with `n_remaining` of `n_prompt` tokens to compute.
    fn running(n_prompt: usize, n_remaining: usize) -> Sequence {
        let mut sequence = newcomer(n_prompt);
        sequence.plan(n_prompt - n_remaining, 0, &mut Vec::new());
        sequence
    }

    #[test]
    fn decode_rows_come_off_the_top() {
        let all = [running(9, 1), running(20, 10), running(5, 1)];
        let full = Pace::new(None, 8);
        let mut budget = Budget::new(8, &full, all.iter());
        assert_eq!(budget.offer(&all[1]), 6);
        budget.take(&all[1], 5);
        assert_eq!(budget.offer_newcomer(&newcomer(7)), 1);
        budget.take_newcomer(1);
        assert!(budget.is_spent());
        assert_eq!(budget.offer(&all[0]), 1, "its token was set aside");
        assert_eq!(budget.offer_newcomer(&newcomer(1)), 0, "a newcomer's was not");
        let cached = running(9, 1);
        assert_eq!(budget.offer_newcomer(&cached), 0, "nor that of one that finds the rest");
    }

    #[test]
    fn prefill_keeps_pace_only_while_somebody_decodes() {
        let target = crate::LatencyTarget { step_us: 1, n_prompt_tokens_min: 3 };
        let pace = Pace::new(Some(target), 8);
        let prefills = [running(20, 10)];
        assert_eq!(Budget::new(8, &pace, prefills.iter()).offer(&prefills[0]), 8);
        let both = [running(20, 10), running(9, 1)];
        assert_eq!(Budget::new(8, &pace, both.iter()).offer(&both[0]), 3);
    }

    #[test]
    fn the_last_prefill_among_full_slots_has_a_token() {
        let all = [running(20, 10), running(9, 1), running(9, 1), running(9, 1)];
        assert_eq!(Budget::new(4, &Pace::new(None, 4), all.iter()).offer(&all[0]), 1);
    }
}
