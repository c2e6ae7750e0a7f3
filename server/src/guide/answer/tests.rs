//! Answers that a stubborn model writes: it says what it wants wherever it may.

use super::super::formats::{Format, Formats};
use super::*;
use crate::text::fixture;

fn parts() -> Arc<GuideParts> {
    Arc::new(GuideParts::new(fixture::model(), fixture::VOCAB_SIZE))
}

fn choice(texts: &[&str]) -> Arc<CompiledFormat> {
    let formats = Formats::new(fixture::model(), fixture::VOCAB_SIZE);
    let texts = texts.iter().map(|text| (*text).to_owned()).collect();
    formats.compile(&Format::Choice(texts)).expect("it compiles")
}

/// What comes out where a model says `wanted`, byte by byte: a byte that may not be said is skipped
/// while others may, and where only one token may, it is said.
fn write(rules: &AnswerRules, wanted: &str) -> String {
    let (model, parts) = (fixture::model(), parts());
    let Guide { first, mut next } = rules.guide(&parts);
    let mut allowed = first;
    let mut wanted: VecDeque<u8> = wanted.bytes().collect();
    let mut tokens = Vec::new();
    while tokens.len() < 200 {
        let token = match &allowed {
            Allowed::Nothing { cause } => panic!("{cause}"),
            Allowed::Only(set) if set.n_tokens() == 1 => {
                let mut all = (0..fixture::VOCAB_SIZE as u32).map(TokenId);
                all.find(|&token| set.contains(token)).expect("it has one")
            }
            allowed => {
                let may = |byte: u8| match allowed {
                    Allowed::Only(set) => set.contains(TokenId(u32::from(byte))),
                    _ => true,
                };
                while wanted.front().is_some_and(|&byte| !may(byte)) {
                    wanted.pop_front();
                }
                let Some(byte) = wanted.pop_front() else { break };
                TokenId(u32::from(byte))
            }
        };
        if model.stop_tokens().contains(&token) {
            break;
        }
        tokens.push(token);
        allowed = next(token);
    }
    model.decode(&tokens, false)
}

fn rules(reasoning: Reasoning, max: Option<usize>, texts: Option<&[&str]>) -> AnswerRules {
    AnswerRules { reasoning, n_reasoning_max: max, format: texts.map(choice) }
}

#[test]
fn a_format_begins_where_the_reasoning_ends() {
    let yes_no: Option<&[&str]> = Some(&["yes", "no"]);
    let cases = [
        (rules(Reasoning::None, None, yes_no), "well, no", "no"),
        (
            rules(Reasoning::Free, None, yes_no),
            "hm</think>\n\nwell, no",
            "<think>\nhm</think>\n\nno",
        ),
        (rules(Reasoning::Free, None, yes_no), "hm</think>yes", "<think>\nhm</think>\n\nyes"),
        (
            rules(Reasoning::Opened, None, yes_no),
            "a < b </thin</think>no",
            "a < b </thin</think>\n\nno",
        ),
        // What it says within the reasoning is its own.
        (rules(Reasoning::Opened, None, yes_no), "yes, no</think>no", "yes, no</think>\n\nno"),
        (rules(Reasoning::Opened, Some(4), yes_no), "abcdefgh no", "abcd\n</think>\n\nno"),
        (rules(Reasoning::Opened, Some(4), yes_no), "abc\nefgh no", "abc\n</think>\n\nno"),
        (rules(Reasoning::Free, Some(0), yes_no), "hm no", "<think>\n</think>\n\nno"),
    ];
    for (rules, wanted, expected) in cases {
        assert!(rules.is_needed());
        assert_eq!(write(&rules, wanted), expected, "{rules:?} {wanted:?}");
    }
}

#[test]
fn a_bound_closes_the_reasoning_and_nothing_else() {
    let cases = [
        (Reasoning::Free, Some(3), "<think>abcdef", "<think>abc\n</think>\n\ndef"),
        (Reasoning::Free, Some(0), "<think>abc", "<think>\n</think>\n\nabc"),
        (Reasoning::Free, Some(3), "no reasoning at all", "no reasoning at all"),
        (Reasoning::Free, Some(3), "<thinker> abc def", "<thinker> abc def"),
        (Reasoning::Free, Some(20), "<think>abc</think>d<think>", "<think>abc</think>d<think>"),
        (Reasoning::Opened, Some(11), "abc</think>", "abc</think>"),
        (Reasoning::Opened, Some(5), "abc</think>x", "abc</\n</think>\n\nthink>x"),
    ];
    for (reasoning, max, wanted, expected) in cases {
        let rules = rules(reasoning, max, None);
        assert_eq!(write(&rules, wanted), expected, "{wanted:?}, at most {max:?}");
    }
    assert!(!rules(Reasoning::Free, None, None).is_needed());
}

/// A token that would close the reasoning and say something of the answer is not allowed there, nor
/// is the answer's end.
#[test]
fn the_reasoning_is_closed_cleanly() {
    let rules = rules(Reasoning::Opened, None, Some(&["x"]));
    let model = fixture::model();
    let Guide { first, mut next } = rules.guide(&parts());
    let mut allowed = first;
    for byte in "</think".bytes() {
        let Allowed::Only(set) = &allowed else { panic!("{allowed:?}") };
        assert!(!model.stop_tokens().iter().any(|&stop| set.contains(stop)));
        assert!(set.n_tokens() > 256, "everything else is");
        allowed = next(TokenId(u32::from(byte)));
    }
}
