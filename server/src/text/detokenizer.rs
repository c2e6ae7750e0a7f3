//! Tokens to text, one at a time, never half a character. It knows no stop strings.

use std::sync::Arc;

use engine::TokenId;

use super::model::TextModel;

/// Turns a growing list of tokens into text. What it has emitted so far, and what
/// [`Detokenizer::finish`] adds, is [`TextModel::decode`] of all tokens pushed.
#[derive(Clone)]
pub struct Detokenizer {
    model: Arc<TextModel>,
    skips_special: bool,
    /// The beginning of a character whose other bytes are still to come: at most 3 bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// For one answer; `skips_special` leaves out special tokens' text.
    pub fn new(model: Arc<TextModel>, skips_special: bool) -> Detokenizer {
        Detokenizer { model, skips_special, pending: Vec::new() }
    }

    /// The text that `token` completes: empty while a character is incomplete. Bytes that cannot
    /// be UTF-8 become U+FFFD.
    pub fn push(&mut self, token: TokenId) -> String {
        if self.skips_special && self.model.is_special(token) {
            return String::new();
        }
        let bytes = self.model.token_bytes(token);
        if self.pending.is_empty()
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            return text.to_owned();
        }
        self.pending.extend_from_slice(bytes);
        take_complete(&mut self.pending)
    }

    /// The tokens are over: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

/// Removes everything but an incomplete last character from `bytes`, as text.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = bytes.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                rest = after;
                // No length: the bytes end within a character that may yet be completed.
                let Some(n_invalid) = error.error_len() else { break };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &rest[n_invalid..];
            }
        }
    }
    let n_done = bytes.len() - rest.len();
    bytes.drain(..n_done);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixture;
    use super::super::model::SpecialTokens;
    use super::*;

    fn stream(model: &Arc<TextModel>, tokens: &[TokenId], skips_special: bool) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(Arc::clone(model), skips_special);
        let mut pieces: Vec<String> = tokens.iter().map(|&token| detokenizer.push(token)).collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    #[test]
    fn a_character_appears_with_its_last_byte() {
        let model = fixture::model();
        let tokens = fixture::bytes_as_tokens(&model, "a😀é".as_bytes());
        assert_eq!(stream(&model, &tokens, true), ["a", "", "", "", "😀", "", "é", ""]);
    }

    #[test]
    fn broken_bytes_become_one_replacement_where_a_whole_decode_has_one() {
        let model = fixture::model();
        let tokens = fixture::bytes_as_tokens(&model, b"\xF0\x9F\x98a\xFFb\xE2\x82");
        let pieces = stream(&model, &tokens, true);
        assert_eq!(pieces, ["", "", "", "\u{FFFD}a", "\u{FFFD}", "b", "", "", "\u{FFFD}"]);
    }

    #[test]
    fn special_tokens_are_shown_or_left_out_and_do_not_break_a_character() {
        let model = fixture::model();
        let mut tokens = fixture::bytes_as_tokens(&model, "é".as_bytes());
        tokens.insert(1, fixture::special(&model, "<|eot_id|>"));
        assert_eq!(stream(&model, &tokens, true).concat(), "é");
        let shown = stream(&model, &tokens, false).concat();
        assert_eq!(shown, "\u{FFFD}<|eot_id|>\u{FFFD}");
        assert_eq!(model.decode(&tokens, false), shown);
    }

    proptest! {
        #[test]
        fn pieces_add_up_to_the_whole_decode_of_any_tokens(
            ids in proptest::collection::vec(0_u32..600, 0..60), skips_special in any::<bool>(),
        ) {
            let model = fixture::model();
            let tokens: Vec<TokenId> = ids.into_iter().map(TokenId).collect();
            let pieces = stream(&model, &tokens, skips_special).concat();
            prop_assert_eq!(&pieces, &model.decode(&tokens, skips_special));
            // The tokenizer's own decoder agrees on what its vocabulary holds.
            prop_assert_eq!(&pieces, &fixture::reference_decode(&tokens, skips_special));
        }

        #[test]
        fn pieces_add_up_to_the_text_of_any_string(
            text in "(\\PC|[ \n]|[\u{4E00}-\u{9FFF}]|[😀👩‍👩‍👧]){0,40}",
        ) {
            let model = fixture::model();
            let tokens = model.encode(&text, SpecialTokens::Literal).expect("encodes");
            prop_assert_eq!(stream(&model, &tokens, true).concat(), text);
        }

        #[test]
        fn byte_soup_is_what_a_lossy_decode_makes_of_it(
            bytes in proptest::collection::vec(
                // Any byte, and often those that begin a character or go on with one.
                prop_oneof![any::<u8>(), Just(0xF0), Just(0x9F), Just(0x98), Just(0xE2)],
                0..60,
            ),
        ) {
            let model = fixture::model();
            let tokens = fixture::bytes_as_tokens(&model, &bytes);
            let expected = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert_eq!(stream(&model, &tokens, true).concat(), expected);
        }
    }
}
