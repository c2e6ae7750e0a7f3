//! Special tokens as text: found in a prompt that may contain them, broken in one that must not.

use aho_corasick::{AhoCorasick, MatchKind};
use engine::TokenId;
use tokenizers::Tokenizer;

use super::error::TextLoadError;

/// Finds special tokens' texts, such as `<|eot_id|>`.
pub(crate) struct SpecialMarkup {
    finder: AhoCorasick,
    /// Tokens and texts, in the order of the finder's patterns.
    tokens: Vec<(TokenId, String)>,
}

/// A part of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment<'a> {
    /// Text to tokenize; not empty.
    Text(&'a str),
    /// A special token.
    Special(TokenId),
}

impl SpecialMarkup {
    /// Takes the added tokens that are marked special.
    ///
    /// # Errors
    /// One of them matches more or less than its own text (`lstrip`, `rstrip`, `single_word`).
    pub(crate) fn new(tokenizer: &Tokenizer) -> Result<SpecialMarkup, TextLoadError> {
        let added = tokenizer.get_added_tokens_decoder();
        let mut tokens = Vec::new();
        for (id, token) in added.iter().filter(|(_, token)| token.special) {
            let flags = [
                ("lstrip", token.lstrip),
                ("rstrip", token.rstrip),
                ("single_word", token.single_word),
            ];
            if let Some((flag, _)) = flags.into_iter().find(|(_, is_set)| *is_set) {
                return Err(TextLoadError::UnsupportedFlag { token: token.content.clone(), flag });
            }
            if !token.content.is_empty() {
                tokens.push((TokenId(*id), token.content.clone()));
            }
        }
        tokens.sort_unstable();
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(_, text)| text))
            .map_err(|error| TextLoadError::Malformed {
                file: super::sources::TOKENIZER,
                cause: error.to_string(),
            })?;
        Ok(SpecialMarkup { finder, tokens })
    }

    /// The special token with this text.
    pub(crate) fn token(&self, text: &str) -> Option<TokenId> {
        self.tokens.iter().find(|(_, other)| other == text).map(|(token, _)| *token)
    }

    /// Whether a special token's text occurs in `text`.
    pub(crate) fn is_in(&self, text: &str) -> bool {
        self.finder.is_match(text)
    }

    /// Cuts `text` at special tokens.
    pub(crate) fn split<'a>(&self, text: &'a str) -> Vec<Segment<'a>> {
        let mut segments = Vec::new();
        let mut end = 0;
        for found in self.finder.find_iter(text) {
            if found.start() > end {
                segments.push(Segment::Text(&text[end..found.start()]));
            }
            segments.push(Segment::Special(self.tokens[found.pattern().as_usize()].0));
            end = found.end();
        }
        if end < text.len() {
            segments.push(Segment::Text(&text[end..]));
        }
        segments
    }

    /// `text` with `mark` inside every special token's text, so that none is found in it.
    pub(crate) fn guard(&self, text: &str, mark: char) -> String {
        let mut guarded = text.to_owned();
        // Again for texts that overlapped: each turn breaks at least one.
        while self.is_in(&guarded) {
            let mut broken = String::with_capacity(guarded.len() + mark.len_utf8());
            let mut end = 0;
            for found in self.finder.find_iter(&guarded) {
                let first = guarded[found.start()..].chars().next().map_or(0, char::len_utf8);
                broken.push_str(&guarded[end..found.start() + first]);
                broken.push(mark);
                end = found.start() + first;
            }
            broken.push_str(&guarded[end..]);
            guarded = broken;
        }
        guarded
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn markup() -> SpecialMarkup {
        SpecialMarkup::new(&fixture::tokenizer()).expect("no flags are set")
    }

    #[test]
    fn text_is_cut_at_special_tokens() {
        let markup = markup();
        let eot = markup.token("<|eot_id|>").expect("there is one");
        assert_eq!(
            markup.split("<|eot_id|>a <|eot <|eot_id|><|eot_id|>"),
            [
                Segment::Special(eot),
                Segment::Text("a <|eot "),
                Segment::Special(eot),
                Segment::Special(eot),
            ]
        );
        assert_eq!(markup.split(""), []);
    }

    #[test]
    fn guarded_text_has_no_special_token_and_is_otherwise_the_same() {
        let markup = markup();
        let mark = '\u{F0000}';
        let text = "x<|eot_id|>y<|<|eot_id|>z <|eot_id|";
        let guarded = markup.guard(text, mark);
        assert!(!markup.is_in(&guarded), "{guarded:?}");
        assert_eq!(guarded.replace(mark, ""), text);
        assert_eq!(markup.guard("nothing <| special |>", mark), "nothing <| special |>");
    }

    #[test]
    fn a_flag_that_changes_what_matches_is_refused() {
        let mut layout = fixture::tokenizer_layout();
        layout["added_tokens"][0]["lstrip"] = true.into();
        let tokenizer = Tokenizer::from_bytes(layout.to_string()).expect("parses");
        let message = SpecialMarkup::new(&tokenizer).err().expect("refused").to_string();
        assert!(message.contains("lstrip") && message.contains("<|begin_of_text|>"), "{message}");
    }
}
