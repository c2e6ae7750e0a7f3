//! Where `<think>` and `</think>` stand in an answer, found token by token in its bytes: the tags
//! are plain text over several tokens. [`ReasoningSplitter`](crate::text::ReasoningSplitter) sees
//! the same section in the text.

use std::sync::Arc;

use engine::{Allowed, TokenId, TokenSet};

use crate::text::TextModel;

pub(super) const OPEN: &[u8] = b"<think>";
pub(super) const CLOSE: &[u8] = b"</think>";

/// Where an answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// White space and a part of `<think>`, which is this long, so far.
    Start { n_matched: usize },
    /// In the reasoning, whose end matches so many bytes of `</think>`.
    Inside { n_matched: usize },
    /// Behind it, or there is none.
    Answer,
}

impl Section {
    /// Behind more of the answer's bytes.
    pub(super) fn after(self, bytes: &[u8]) -> Section {
        bytes.iter().fold(self, Section::after_byte)
    }

    fn after_byte(self, &byte: &u8) -> Section {
        match self {
            Section::Start { n_matched: 0 } if byte.is_ascii_whitespace() => self,
            Section::Start { n_matched } if byte == OPEN[n_matched] => {
                match n_matched + 1 == OPEN.len() {
                    true => Section::Inside { n_matched: 0 },
                    false => Section::Start { n_matched: n_matched + 1 },
                }
            }
            Section::Inside { n_matched } => {
                // `<` begins the tag and stands nowhere else in it.
                let n_matched = match byte {
                    byte if byte == CLOSE[n_matched] => n_matched + 1,
                    b'<' => 1,
                    _ => 0,
                };
                match n_matched == CLOSE.len() {
                    true => Section::Answer,
                    false => Section::Inside { n_matched },
                }
            }
            Section::Start { .. } | Section::Answer => Section::Answer,
        }
    }
}

/// What may be said in the reasoning when an answer in a format follows: anything but the answer's
/// end, and no token that closes the reasoning and already says something of the answer.
pub(super) struct ReasoningSets {
    /// By how many bytes of `</think>` were matched.
    sets: Vec<Allowed>,
}

impl ReasoningSets {
    pub(super) fn new(text: &TextModel, vocab_size: usize) -> ReasoningSets {
        let all = || (0..vocab_size as u32).map(TokenId);
        let stops = text.stop_tokens();
        let sets = (0..CLOSE.len()).map(|n_matched| {
            let says_more = |token: &TokenId| {
                let bytes = text.token_bytes(*token);
                closes_at(n_matched, bytes).is_some_and(|n| !is_blank(&bytes[n..]))
            };
            let mut banned: Vec<TokenId> = all().filter(says_more).collect();
            banned.extend(stops.iter());
            match TokenSet::all_but(&banned, vocab_size) {
                Some(set) => Allowed::Only(Arc::new(set)),
                None => Allowed::Nothing { cause: "the vocabulary has no text".into() },
            }
        });
        ReasoningSets { sets: sets.collect() }
    }

    /// What may follow in the reasoning.
    pub(super) fn allowed(&self, n_matched: usize) -> Allowed {
        self.sets[n_matched].clone()
    }
}

/// How many of a token's bytes it takes to close the reasoning, if it does.
fn closes_at(n_matched: usize, bytes: &[u8]) -> Option<usize> {
    let mut section = Section::Inside { n_matched };
    for (byte_idx, byte) in bytes.iter().enumerate() {
        section = section.after_byte(byte);
        if section == Section::Answer {
            return Some(byte_idx + 1);
        }
    }
    None
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::{Piece, ReasoningSplitter};

    /// Whether the reasoning has been closed, or there is none, as the splitter sees it.
    fn is_answer(text: &str) -> bool {
        let mut splitter = ReasoningSplitter::new();
        let mut pieces = splitter.push(text);
        // Whatever comes next shows where it is.
        pieces.extend(splitter.push("x"));
        pieces.extend(splitter.finish());
        matches!(pieces.last(), Some(Piece::Content(_)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000_000))]
        #[test]
        fn the_splitter_sees_the_same_section(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("<think>"), Just("</think>"), Just("<"), Just("</thi"), Just("nk>"),
                    Just("\n"), Just("<thi"), Just("é"), Just("a"), Just(" "),
                ],
                0..8,
            ),
            n_first in 0_usize..64,
        ) {
            let text = parts.concat();
            let (one, two) = text.as_bytes().split_at(n_first.min(text.len()));
            let section = Section::Start { n_matched: 0 }.after(one).after(two);
            // One that is half open is decided by what follows, which the splitter is told.
            let section = section.after(b"x");
            prop_assert_eq!(section == Section::Answer, is_answer(&text), "{:?}", text);
        }
    }

    #[test]
    fn what_closes_the_reasoning_is_found_within_a_token() {
        let cases: [(usize, &[u8], Option<usize>); 7] = [
            (7, b">\n\n", Some(1)),
            (7, b">{", Some(1)),
            (0, b"</think>x", Some(8)),
            (3, b"hink>", Some(5)),
            (3, b"hin", None),
            (3, b"</think>", Some(8)),
            (7, b"", None),
        ];
        for (n_matched, bytes, expected) in cases {
            assert_eq!(closes_at(n_matched, bytes), expected, "{n_matched} {bytes:?}");
        }
    }
}
