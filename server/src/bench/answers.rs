//! Answers that were given under load, asked for again when nothing else runs: the same request has
//! the same seed, so it must have the same answer.

use serde::{Deserialize, Serialize};

use super::driver::Kept;
use super::exchange::{Asker, Place};
use super::sample::Outcome;

/// Characters of each answer that a difference shows.
const N_SHOWN: usize = 60;

/// What became of the sample that was asked again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// Requests that were made again.
    pub n_checked: usize,
    /// Those that were answered differently.
    pub differences: Vec<Difference>,
}

/// An answer that was another under load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The request's number in the run.
    pub idx: u64,
    /// Characters that are the same before the difference.
    pub n_same_chars: usize,
    /// What follows under load.
    pub under_load: String,
    /// And alone.
    pub alone: String,
}

/// Asks again, one after the other.
pub async fn check(asker: &Asker, kept: &[Kept]) -> Answers {
    let mut answers = Answers::default();
    for one in kept {
        let place = Place { idx: one.idx, turn: 0, intended: asker.clock.now() };
        let (sample, text) = asker.ask(&one.ask, place).await;
        answers.n_checked += 1;
        let difference = match &sample.outcome {
            Outcome::Failed(failure) => {
                let alone = format!("({}: {})", failure.kind, failure.words);
                Some(Difference { idx: one.idx, n_same_chars: 0, under_load: String::new(), alone })
            }
            _ => difference(one, &text, sample.n_out),
        };
        answers.differences.extend(difference);
    }
    answers
}

fn difference(kept: &Kept, text: &str, n_out: usize) -> Option<Difference> {
    if kept.text == text && kept.n_out == n_out {
        return None;
    }
    let n_same_chars = kept.text.chars().zip(text.chars()).take_while(|(a, b)| a == b).count();
    let rest = |text: &str, n_tokens: usize| {
        let rest: String = text.chars().skip(n_same_chars).take(N_SHOWN).collect();
        format!("{rest} ({n_tokens} tokens)")
    };
    Some(Difference {
        idx: kept.idx,
        n_same_chars,
        under_load: rest(&kept.text, kept.n_out),
        alone: rest(text, n_out),
    })
}

#[cfg(test)]
mod tests {
    use super::super::ask::Ask;
    use super::*;

    #[test]
    fn a_difference_says_where_it_begins() {
        let ask = Ask { messages: Vec::new(), n_out: 9, seed: 0, cancel_after: None };
        let kept = Kept { ask, text: "übermorgen".into(), n_out: 3, idx: 7 };
        assert_eq!(difference(&kept, "übermorgen", 3), None);
        let found = difference(&kept, "überall", 2).expect("it differs");
        assert_eq!((found.idx, found.n_same_chars), (7, 4));
        assert_eq!((&*found.under_load, &*found.alone), ("morgen (3 tokens)", "all (2 tokens)"));
        assert!(difference(&kept, "übermorgen", 4).is_some(), "tokens count too");
    }
}
