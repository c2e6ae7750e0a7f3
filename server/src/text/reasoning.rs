//! Splits an answer at `<think>` and `</think>`, which are plain text over several tokens.
//! It knows text only: neither tokens nor whether thinking was asked for.

use std::mem;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// A run of one kind of text; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// What stands between `<think>` and `</think>`.
    Reasoning(String),
    /// Everything else.
    Content(String),
}

/// Tells reasoning from content in a text that arrives in pieces. However the text is cut, the
/// reasoning and the content come out the same:
///
/// - a text that begins with `<think>`, after white space at most, has a reasoning section; any
///   other text is content throughout, whatever it contains;
/// - the section ends at the first `</think>`, or with the text; later tags are content;
/// - dropped: white space before `<think>`, one newline right after it, and after `</think>` all
///   white space up to the last newline of the run (the blank lines before the answer).
#[derive(Clone, Debug)]
pub struct ReasoningSplitter {
    state: State,
    /// Text whose kind is not decided yet.
    held: String,
}

/// Where in the answer the text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space and perhaps a part of `<think>` so far.
    Start,
    /// Right after `<think>`: one newline is dropped.
    Opened,
    /// In the reasoning section.
    Inside,
    /// After `</think>`: blank lines are dropped.
    Closed,
    /// In the content, to the end.
    Content,
}

impl ReasoningSplitter {
    /// For an answer that writes `<think>` itself, as Llama-Nemotron's do.
    pub fn new() -> ReasoningSplitter {
        ReasoningSplitter { state: State::Start, held: String::new() }
    }

    /// For an answer to a prompt that already ends with `<think>`.
    pub fn inside() -> ReasoningSplitter {
        ReasoningSplitter { state: State::Opened, held: String::new() }
    }

    /// Whether the text so far ends within the reasoning.
    pub fn is_inside(&self) -> bool {
        matches!(self.state, State::Opened | State::Inside)
    }

    /// Takes the next piece of the answer and returns what is decided, in order.
    pub fn push(&mut self, piece: &str) -> Vec<Piece> {
        self.held.push_str(piece);
        let mut pieces = Vec::new();
        // Each turn decides the held text's beginning or leaves it held for want of more.
        while !self.held.is_empty() && self.decide(&mut pieces) {}
        pieces
    }

    /// The answer is over: what is left, if anything.
    pub fn finish(&mut self) -> Option<Piece> {
        let held = mem::take(&mut self.held);
        if held.is_empty() {
            return None;
        }
        match self.state {
            State::Start | State::Closed | State::Content => Some(Piece::Content(held)),
            State::Opened | State::Inside => Some(Piece::Reasoning(held)),
        }
    }

    /// One transition; false if it takes more text to know.
    fn decide(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start => self.decide_start(),
            State::Opened => {
                if self.held.starts_with('\n') {
                    self.held.remove(0);
                }
                self.state = State::Inside;
                true
            }
            State::Inside => self.decide_inside(pieces),
            State::Closed => self.decide_closed(),
            State::Content => {
                pieces.push(Piece::Content(mem::take(&mut self.held)));
                false
            }
        }
    }

    fn decide_start(&mut self) -> bool {
        let begun = self.held.trim_start();
        if let Some(rest) = begun.strip_prefix(OPEN) {
            self.held = rest.to_owned();
            self.state = State::Opened;
        } else if OPEN.starts_with(begun) {
            return false;
        } else {
            self.state = State::Content;
        }
        true
    }

    fn decide_inside(&mut self, pieces: &mut Vec<Piece>) -> bool {
        if let Some((reasoning, rest)) = self.held.split_once(CLOSE) {
            if !reasoning.is_empty() {
                pieces.push(Piece::Reasoning(reasoning.to_owned()));
            }
            self.held = rest.to_owned();
            self.state = State::Closed;
            return true;
        }
        let n_partial = (1..CLOSE.len()).rev().find(|&n| self.held.ends_with(&CLOSE[..n]));
        let kept = self.held.split_off(self.held.len() - n_partial.unwrap_or(0));
        let reasoning = mem::replace(&mut self.held, kept);
        if !reasoning.is_empty() {
            pieces.push(Piece::Reasoning(reasoning));
        }
        false
    }

    fn decide_closed(&mut self) -> bool {
        let n_blank = self.held.len() - self.held.trim_start().len();
        if let Some(newline_idx) = self.held[..n_blank].rfind('\n') {
            self.held.drain(..=newline_idx);
        }
        let is_answer = !self.held.trim_start().is_empty();
        if is_answer {
            self.state = State::Content;
        }
        is_answer
    }
}

impl Default for ReasoningSplitter {
    fn default() -> ReasoningSplitter {
        ReasoningSplitter::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All reasoning and all content, checking that reasoning never follows content.
    fn run<'a>(
        mut splitter: ReasoningSplitter,
        pieces: impl IntoIterator<Item = &'a str>,
    ) -> (String, String) {
        let mut all = Vec::new();
        for piece in pieces {
            all.extend(splitter.push(piece));
        }
        all.extend(splitter.finish());
        let (mut reasoning, mut content) = (String::new(), String::new());
        for piece in all {
            match piece {
                Piece::Reasoning(text) => {
                    assert!(!text.is_empty() && content.is_empty(), "{text:?} after {content:?}");
                    reasoning.push_str(&text);
                }
                Piece::Content(text) => {
                    assert!(!text.is_empty(), "an empty piece");
                    content.push_str(&text);
                }
            }
        }
        (reasoning, content)
    }

    fn split(text: &str) -> (String, String) {
        run(ReasoningSplitter::new(), [text])
    }

    fn pair(reasoning: &str, content: &str) -> (String, String) {
        (reasoning.to_owned(), content.to_owned())
    }

    #[test]
    fn the_family_s_answer_is_taken_apart() {
        let answer = "<think>\n27+58\n=85\n</think>\n\nThe answer is 85.";
        assert_eq!(split(answer), pair("27+58\n=85\n", "The answer is 85."));
    }

    #[test]
    fn corner_cases() {
        let cases = [
            ("", "", ""),
            ("no tags", "", "no tags"),
            ("  indented", "", "  indented"),
            ("a <think>b</think>", "", "a <think>b</think>"),
            ("\n <think>a</think>b", "a", "b"),
            ("<think>never closed", "never closed", ""),
            ("<think>\n", "", ""),
            ("<think></think>x", "", "x"),
            ("<think>\n\n</think>\n\nx", "\n", "x"),
            ("<think>a</think> x", "a", " x"),
            ("<think>a</think>\n \n  x\n", "a", "  x\n"),
            ("<think>a</think>\n\n", "a", ""),
            ("<think>a</think>b<think>c</think>d", "a", "b<think>c</think>d"),
            ("<think>a<think>b</think>c", "a<think>b", "c"),
            ("<think>1 < 2 </ 3 </think>y", "1 < 2 </ 3 ", "y"),
            ("<thin", "", "<thin"),
            ("<thinker>", "", "<thinker>"),
            ("<think>a</thin", "a</thin", ""),
        ];
        for (text, reasoning, content) in cases {
            assert_eq!(split(text), pair(reasoning, content), "{text:?}");
        }
    }

    #[test]
    fn a_prompt_that_opens_the_section_starts_inside_it() {
        let splitter = ReasoningSplitter::inside();
        assert_eq!(run(splitter, ["\na", "</thi", "nk>\nb"]), pair("a", "b"));
    }

    #[test]
    fn text_is_passed_on_as_soon_as_its_kind_is_known() {
        let mut splitter = ReasoningSplitter::new();
        assert_eq!(splitter.push("<thi"), []);
        assert_eq!(splitter.push("nk>\nab"), [Piece::Reasoning("ab".to_owned())]);
        assert_eq!(splitter.push("c</"), [Piece::Reasoning("c".to_owned())]);
        assert_eq!(splitter.push("d"), [Piece::Reasoning("</d".to_owned())]);
        assert_eq!(splitter.push("</think>\n"), []);
        assert_eq!(splitter.push("\nx"), [Piece::Content("x".to_owned())]);
        assert_eq!(splitter.push(" </think>"), [Piece::Content(" </think>".to_owned())]);
        assert_eq!(splitter.finish(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000_000))]
        #[test]
        fn any_cut_gives_the_same(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("<think>".to_owned()), Just("</think>".to_owned()), Just("\n".to_owned()),
                    Just(" ".to_owned()), Just("<".to_owned()), Just("</".to_owned()), "[é😀a]{1,3}",
                ],
                0..10,
            ),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
            is_inside in any::<bool>(),
        ) {
            let text = parts.concat();
            let boundaries: Vec<usize> =
                text.char_indices().map(|(idx, _)| idx).chain([text.len()]).collect();
            let mut cuts: Vec<usize> =
                cuts.iter().map(|cut| boundaries[cut.index(boundaries.len())]).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|ends| &text[ends[0]..ends[1]]);
            let splitter =
                if is_inside { ReasoningSplitter::inside() } else { ReasoningSplitter::new() };
            prop_assert_eq!(run(splitter.clone(), pieces), run(splitter, [text.as_str()]));
        }
    }
}
