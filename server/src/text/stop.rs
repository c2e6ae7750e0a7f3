//! Stop strings across token boundaries. It knows text only: no tokens, no end-of-sequence.

/// Looks for stop strings in a text that arrives in pieces, and holds back only what may still
/// become one. The result does not depend on how the text was cut: the stop string that is
/// *completed* first ends the text; of several completed by the same byte, the longest.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    keeps_stop: bool,
    /// Text not yet emitted: as long as the longest partial match.
    held: String,
    is_stopped: bool,
}

/// What a pushed piece led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// No stop string yet; this text is safe to emit (possibly none).
    No(String),
    /// A stop string is complete; the text ends here.
    Yes {
        /// The last text to emit: with the stop string if the matcher keeps it.
        text: String,
        /// Index of the stop string in the list given to [`StopMatcher::new`].
        stop_idx: usize,
    },
}

/// A stop string with its Knuth–Morris–Pratt automaton.
#[derive(Clone, Debug)]
struct Pattern {
    stop_idx: usize,
    bytes: Vec<u8>,
    /// `borders[n]`: length of the longest proper prefix of `bytes[..n]` that is also its suffix.
    borders: Vec<usize>,
    /// Bytes of the pattern that the text now ends with.
    n_matched: usize,
}

impl StopMatcher {
    /// Stops at any of `stops`; `keeps_stop` leaves the stop string in the text. Empty strings
    /// stop nothing. Time per byte grows with the number of stops: bound it at the edge.
    pub fn new(stops: &[String], keeps_stop: bool) -> StopMatcher {
        let named = stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let patterns = named.map(|(stop_idx, stop)| Pattern::new(stop_idx, stop)).collect();
        StopMatcher { patterns, keeps_stop, held: String::new(), is_stopped: false }
    }

    /// Takes the next piece of the text. Once stopped, further text is dropped.
    pub fn push(&mut self, piece: impl Into<String>) -> Stopped {
        let piece = piece.into();
        if self.is_stopped {
            return Stopped::No(String::new());
        }
        if self.patterns.is_empty() {
            return Stopped::No(piece);
        }
        let n_held = self.held.len();
        self.held.push_str(&piece);
        for (byte_idx, byte) in piece.bytes().enumerate() {
            if let Some((stop_idx, n_stop)) = self.advance(byte) {
                let end = n_held + byte_idx + 1;
                self.is_stopped = true;
                let mut text = std::mem::take(&mut self.held);
                text.truncate(if self.keeps_stop { end } else { end - n_stop });
                return Stopped::Yes { text, stop_idx };
            }
        }
        let n_partial = self.patterns.iter().map(|pattern| pattern.n_matched).max().unwrap_or(0);
        // A partial match begins with a stop string's first byte, hence at a character's start.
        let kept = self.held.split_off(self.held.len() - n_partial);
        Stopped::No(std::mem::replace(&mut self.held, kept))
    }

    /// The text is over: what was held back did not become a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Index and length of the longest stop string that `byte` completes.
    fn advance(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut found: Option<(usize, usize)> = None;
        for pattern in &mut self.patterns {
            let is_longer = found.is_none_or(|(_, n_stop)| pattern.bytes.len() > n_stop);
            if pattern.advance(byte) && is_longer {
                found = Some((pattern.stop_idx, pattern.bytes.len()));
            }
        }
        found
    }
}

impl Pattern {
    fn new(stop_idx: usize, stop: &str) -> Pattern {
        let bytes = stop.as_bytes().to_vec();
        let mut borders = vec![0; bytes.len() + 1];
        for n in 2..=bytes.len() {
            let mut border = borders[n - 1];
            while border > 0 && bytes[border] != bytes[n - 1] {
                border = borders[border];
            }
            borders[n] = if bytes[border] == bytes[n - 1] { border + 1 } else { 0 };
        }
        Pattern { stop_idx, bytes, borders, n_matched: 0 }
    }

    /// Whether `byte` completes the pattern.
    fn advance(&mut self, byte: u8) -> bool {
        while self.n_matched > 0 && self.bytes[self.n_matched] != byte {
            self.n_matched = self.borders[self.n_matched];
        }
        if self.bytes[self.n_matched] == byte {
            self.n_matched += 1;
        }
        self.n_matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(stops: &[&str], keeps_stop: bool) -> StopMatcher {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        StopMatcher::new(&stops, keeps_stop)
    }

    /// Everything emitted, and the stop string's index if there was one.
    fn run<'a>(
        mut matcher: StopMatcher,
        pieces: impl IntoIterator<Item = &'a str>,
    ) -> (String, Option<usize>) {
        let mut emitted = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                Stopped::No(text) => emitted.push_str(&text),
                Stopped::Yes { text, stop_idx } => return (emitted + &text, Some(stop_idx)),
            }
        }
        (emitted + &matcher.finish(), None)
    }

    #[test]
    fn a_stop_string_over_three_pieces_ends_the_text_before_it() {
        let pieces = ["one tw", "o EN", "", "D three"];
        assert_eq!(run(matcher(&["END"], false), pieces), ("one two ".to_owned(), Some(0)));
        assert_eq!(run(matcher(&["END"], true), pieces), ("one two END".to_owned(), Some(0)));
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held_back() {
        let mut matcher = matcher(&["\n\nUser:", "###"], false);
        assert_eq!(matcher.push("hello"), Stopped::No("hello".to_owned()));
        assert_eq!(matcher.push(" a\n"), Stopped::No(" a".to_owned()));
        assert_eq!(matcher.push("b##"), Stopped::No("\nb".to_owned()));
        assert_eq!(matcher.push("!"), Stopped::No("##!".to_owned()));
        assert_eq!(matcher.push("\n\nUse"), Stopped::No(String::new()));
        assert_eq!(matcher.finish(), "\n\nUse");
    }

    #[test]
    fn the_stop_string_completed_first_wins_then_the_longest() {
        assert_eq!(run(matcher(&["abcd", "bc"], false), ["xabcd"]), ("xa".to_owned(), Some(1)));
        assert_eq!(run(matcher(&["c", "abc"], false), ["xabc"]), ("x".to_owned(), Some(1)));
    }

    #[test]
    fn a_repetitive_stop_string_is_found_where_a_naive_restart_misses_it() {
        assert_eq!(run(matcher(&["aab"], false), ["a", "aaa", "b"]), ("aa".to_owned(), Some(0)));
        assert_eq!(run(matcher(&["abab!"], false), ["ababab!"]), ("ab".to_owned(), Some(0)));
    }

    #[test]
    fn characters_are_never_cut() {
        // 😀 is F0 9F 98 80 and 😁 F0 9F 98 81: three bytes are a partial match.
        assert_eq!(run(matcher(&["😁"], false), ["a😀", "b😁c"]), ("a😀b".to_owned(), Some(0)));
    }

    #[test]
    fn no_stop_strings_or_empty_ones_pass_everything_on() {
        assert_eq!(run(matcher(&[], false), ["ab", "c"]), ("abc".to_owned(), None));
        assert_eq!(run(matcher(&["", "z"], false), ["ab", "zc"]), ("ab".to_owned(), Some(1)));
    }

    #[test]
    fn text_after_the_stop_is_dropped() {
        let mut matcher = matcher(&["."], false);
        assert_eq!(matcher.push("a.b"), Stopped::Yes { text: "a".to_owned(), stop_idx: 0 });
        assert_eq!(matcher.push("c.d"), Stopped::No(String::new()));
        assert_eq!(matcher.finish(), "");
    }

    /// The same answer from the definition: try every end, smallest first.
    fn oracle(text: &str, stops: &[String], keeps_stop: bool) -> (String, Option<usize>) {
        for end in 0..=text.len() {
            let ended = |stop: &String| {
                !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes())
            };
            let longest = stops.iter().enumerate().filter(|(_, stop)| ended(stop));
            // The first of equally long ones: later duplicates never win.
            let longest = longest.rev().max_by_key(|(_, stop)| stop.len());
            if let Some((stop_idx, stop)) = longest {
                let end = if keeps_stop { end } else { end - stop.len() };
                return (text[..end].to_owned(), Some(stop_idx));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn any_cut_gives_what_the_definition_says(
            // Two letters, so that a stop string often begins again within itself; 😀 and 😁
            // differ in their last byte only.
            pieces in proptest::collection::vec(prop_oneof![6 => "[ab]{0,6}", 1 => "[😀😁]"], 0..12),
            stops in proptest::collection::vec(
                prop_oneof![6 => "[ab]{3,6}", 2 => "[ab]?[😀😁]", 1 => Just(String::new())], 0..3,
            ),
            keeps_stop in any::<bool>(),
        ) {
            let text = pieces.concat();
            let expected = oracle(&text, &stops, keeps_stop);
            let matcher = StopMatcher::new(&stops, keeps_stop);
            let as_cut = run(matcher.clone(), pieces.iter().map(String::as_str));
            prop_assert_eq!(as_cut, expected.clone());
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let one_by_one = run(matcher, characters.iter().map(String::as_str));
            prop_assert_eq!(one_by_one, expected);
        }
    }
}
