//! What is kept of one request: moments and counts, no text. All figures derive from these.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::protocol::Waits;

/// One request, from its intended start to its end. Moments are the run's clock's.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Counted from the run's beginning, in the order of intended starts.
    pub idx: u64,
    /// Turn of its conversation, from 0.
    pub turn: usize,
    /// When it should have been sent.
    pub intended: Duration,
    /// When the generator came to it.
    pub began: Duration,
    /// When the response's head was there.
    pub head: Option<Duration>,
    /// When the first event of the answer was there, where answers stream.
    pub first_event: Option<Duration>,
    /// When the first of them with text was there.
    pub first: Option<Duration>,
    /// Microseconds between pieces with tokens.
    pub gaps_us: Vec<u32>,
    /// When the last piece with a token was there.
    pub last: Option<Duration>,
    /// When it was over.
    pub ended: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// Tokens of the prompt, as the server counts.
    pub n_prompt: Option<usize>,
    /// Of these, from its cache.
    pub n_cached: Option<usize>,
    /// Tokens of the answer, as the server counts, or else pieces of it.
    pub n_out: usize,
    /// Whether the server counted them.
    pub is_counted: bool,
    /// Tokens that were asked for.
    pub n_out_wanted: usize,
    /// What the server says of its own share of the wait.
    pub waits: Option<Waits>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a whole answer.
    Done,
    /// We hung up, as planned.
    Cancelled,
    /// It failed.
    Failed(Failure),
}

/// Why it failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For counting: a status as `429`, or a word.
    pub kind: String,
    /// The server's words, or the system's.
    pub words: String,
}

impl Sample {
    /// Whether it has a whole answer.
    pub fn is_done(&self) -> bool {
        self.outcome == Outcome::Done
    }

    /// How late the generator was.
    pub fn lag(&self) -> Duration {
        self.began.saturating_sub(self.intended)
    }

    /// Time to the first token, from the intended start: a generator or a server that holds
    /// requests back does not make its figures better by that.
    pub fn ttft(&self) -> Option<Duration> {
        Some(self.first?.saturating_sub(self.intended))
    }

    /// The same from the actual start.
    pub fn ttft_uncorrected(&self) -> Option<Duration> {
        Some(self.first?.saturating_sub(self.began))
    }

    /// From the intended start to the answer's last token.
    pub fn e2e(&self) -> Duration {
        self.last.unwrap_or(self.ended).saturating_sub(self.intended)
    }

    /// The same from the actual start.
    pub fn e2e_uncorrected(&self) -> Duration {
        self.last.unwrap_or(self.ended).saturating_sub(self.began)
    }

    /// Time per output token after the first: (end - first) / (tokens - 1).
    pub fn tpot(&self) -> Option<Duration> {
        let n_after = u32::try_from(self.n_out.checked_sub(1)?).ok().filter(|&n| n > 0)?;
        Some(self.last?.checked_sub(self.first?)? / n_after)
    }

    /// What of the time to the first event the server does not account for: the network, both
    /// ends' sockets, and writing and reading the event. Only with the server's own moments.
    pub fn network(&self) -> Option<Duration> {
        let waits = self.waits?;
        let wait = self.first_event?.saturating_sub(self.began);
        Some(wait.saturating_sub(waits.prepare + waits.queue + waits.prefill))
    }

    /// From the first event to the first text: tokens that make none, such as tags.
    pub fn silent(&self) -> Option<Duration> {
        Some(self.first?.saturating_sub(self.first_event?))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Intended at 100 ms, sent 5 ms late, first token at 200, then every 10.
    pub(in crate::bench) fn sample() -> Sample {
        Sample {
            idx: 0,
            turn: 0,
            intended: ms(100),
            began: ms(105),
            head: Some(ms(190)),
            first_event: Some(ms(200)),
            first: Some(ms(200)),
            gaps_us: vec![10_000; 4],
            last: Some(ms(240)),
            ended: ms(241),
            outcome: Outcome::Done,
            n_prompt: Some(50),
            n_cached: Some(16),
            n_out: 5,
            is_counted: true,
            n_out_wanted: 5,
            waits: Some(Waits { prepare: ms(1), queue: ms(30), prefill: ms(60) }),
        }
    }

    #[test]
    fn figures_of_a_request_are_what_their_names_say() {
        let sample = sample();
        assert_eq!(sample.lag(), ms(5));
        assert_eq!((sample.ttft(), sample.ttft_uncorrected()), (Some(ms(100)), Some(ms(95))));
        assert_eq!((sample.e2e(), sample.e2e_uncorrected()), (ms(140), ms(135)));
        assert_eq!(sample.tpot(), Some(ms(10)));
        assert_eq!((sample.network(), sample.silent()), (Some(ms(4)), Some(ms(0))));
        let silent = Sample { first_event: Some(ms(198)), ..sample };
        assert_eq!((silent.network(), silent.silent()), (Some(ms(2)), Some(ms(2))));
    }

    #[test]
    fn one_token_has_no_time_per_token() {
        for n_out in [0, 1] {
            assert_eq!(Sample { n_out, ..sample() }.tpot(), None);
        }
        let whole = Sample { first: None, first_event: None, ..sample() };
        assert_eq!((whole.tpot(), whole.ttft(), whole.network()), (None, None, None));
    }
}
