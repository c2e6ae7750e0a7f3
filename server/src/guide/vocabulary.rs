//! The vocabulary as the grammar library wants it: a trie of its tokens' bytes. (The library's own
//! adapter is made for another version of the tokenizer's crate.)

use std::sync::Arc;

use engine::TokenId;
use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::text::{SpecialTokens, TextModel};

/// A checkpoint's tokens.
struct Vocabulary {
    text: Arc<TextModel>,
    trie: TokTrie,
}

/// The first `vocab_size` tokens. Special ones stand outside every text; those that end an answer
/// end a format.
pub(super) fn token_environment(text: &Arc<TextModel>, vocab_size: usize) -> TokEnv {
    let word = |id: u32| {
        let token = TokenId(id);
        let bytes = text.token_bytes(token);
        match text.is_special(token) {
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
            false => bytes.to_vec(),
        }
    };
    let words: Vec<Vec<u8>> = (0..vocab_size as u32).map(word).collect();
    let stops: Vec<u32> = text.stop_tokens().iter().map(|token| token.0).collect();
    let info = TokRxInfo::new(vocab_size as u32, stops[0]);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(&stops);
    Arc::new(Vocabulary { text: Arc::clone(text), trie })
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let encode = |text: &str| match self.text.encode(text, SpecialTokens::Literal) {
            Ok(tokens) => tokens.into_iter().map(|token| token.0).collect(),
            Err(_) => self.trie.greedy_tokenize(text.as_bytes()),
        };
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
    }
}
