//! Every token's raw bytes, as a table. It knows byte-level vocabularies only (Llama 3's kind),
//! in which each character of a stored token stands for one byte.

use std::collections::HashMap;

use engine::TokenId;
use tokenizers::{DecoderWrapper, Tokenizer};

use super::error::TextLoadError;

/// The bytes of every token id, end to end, and which ids are special.
pub(crate) struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each id's bytes end; they begin where the id before ends.
    ends: Vec<u32>,
    is_special: Vec<bool>,
}

impl Vocabulary {
    /// Takes the tokenizer's vocabulary apart. Ids that it does not have get no bytes.
    ///
    /// # Errors
    /// The tokenizer is not byte-level, or has an id outside the model's `vocab_size` entries.
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
    ) -> Result<Vocabulary, TextLoadError> {
        require_byte_level(tokenizer)?;
        let added = tokenizer.get_added_tokens_decoder();
        let mut tokens: Vec<(u32, String)> =
            tokenizer.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort_unstable();
        if let Some((id, token)) = tokens.last().filter(|(id, _)| *id as usize >= vocab_size) {
            let token = token.clone();
            return Err(TextLoadError::TokenOutsideVocabulary { token, id: *id, vocab_size });
        }
        let n_ids = tokens.last().map_or(0, |(id, _)| *id as usize + 1);
        let byte_of = byte_level_alphabet();
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(n_ids));
        for (id, token) in tokens {
            // Ids without a token end where the one before ends; of two tokens with one id, the
            // first counts.
            ends.resize(ends.len().max(id as usize), bytes.len() as u32);
            if ends.len() > id as usize {
                continue;
            }
            if added.contains_key(&id) {
                bytes.extend_from_slice(token.as_bytes());
            } else {
                push_token_bytes(&mut bytes, &token, &byte_of);
            }
            ends.push(u32::try_from(bytes.len()).expect("a vocabulary of less than 4 GiB"));
        }
        let mut is_special = vec![false; n_ids];
        for (&id, token) in &added {
            is_special[id as usize] = token.special;
        }
        Ok(Vocabulary { bytes, ends, is_special })
    }

    /// The token's bytes; none for an id without a token.
    pub(crate) fn token_bytes(&self, token: TokenId) -> &[u8] {
        let Some(&end) = self.ends.get(token.idx()) else { return &[] };
        let begin = if token.idx() == 0 { 0 } else { self.ends[token.idx() - 1] };
        &self.bytes[begin as usize..end as usize]
    }

    /// Whether the token is markup rather than text.
    pub(crate) fn is_special(&self, token: TokenId) -> bool {
        self.is_special.get(token.idx()).is_some_and(|&is_special| is_special)
    }
}

fn require_byte_level(tokenizer: &Tokenizer) -> Result<(), TextLoadError> {
    let decoder = match tokenizer.get_decoder() {
        Some(DecoderWrapper::ByteLevel(_)) => return Ok(()),
        Some(other) => format!("{other:?}").chars().take(40).collect(),
        None => "none".to_owned(),
    };
    Err(TextLoadError::UnsupportedDecoder { decoder })
}

/// A stored token's bytes: one a character, or, where a character stands for none, its own.
fn push_token_bytes(bytes: &mut Vec<u8>, token: &str, byte_of: &HashMap<char, u8>) {
    let n_before = bytes.len();
    for character in token.chars() {
        let Some(&byte) = byte_of.get(&character) else {
            bytes.truncate(n_before);
            bytes.extend_from_slice(token.as_bytes());
            return;
        };
        bytes.push(byte);
    }
}

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes, in
/// order, for the characters from U+0100 on.
pub(crate) fn byte_level_alphabet() -> HashMap<char, u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut stand_ins = (0x100_u32..).filter_map(char::from_u32);
    (0..=255_u8)
        .map(|byte| {
            let stand_in =
                if is_printable(byte) { Some(char::from(byte)) } else { stand_ins.next() };
            (stand_in.expect("more characters than bytes"), byte)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn bytes_of_text_special_and_missing_tokens() {
        let model = fixture::model();
        let space = fixture::bytes_as_tokens(&model, b" ")[0];
        assert_eq!(model.token_bytes(space), b" ");
        let eot = fixture::special(&model, "<|eot_id|>");
        assert_eq!(model.token_bytes(eot), b"<|eot_id|>");
        assert!(model.is_special(eot) && !model.is_special(space));
        let missing = TokenId(fixture::VOCAB_SIZE as u32 - 1);
        assert_eq!(model.token_bytes(missing), b"");
        assert_eq!(model.token_bytes(TokenId(u32::MAX)), b"");
        assert!(!model.is_special(TokenId(u32::MAX)));
    }

    #[test]
    fn the_alphabet_is_gpt_2_s() {
        let alphabet = byte_level_alphabet();
        assert_eq!(alphabet.len(), 256);
        let byte_of = |character| alphabet[&character];
        let expected = [('!', b'!'), ('Ġ', b' '), ('Ċ', b'\n'), ('ÿ', 0xFF), ('Ń', 0xAD)];
        for (character, byte) in expected {
            assert_eq!(byte_of(character), byte, "{character}");
        }
    }
}
