//! What can go wrong with text: at load, by the checkpoint's fault; later, by the caller's.

use thiserror::Error;

/// Why a checkpoint's tokenizer or chat template cannot be used.
#[derive(Debug, Error)]
pub enum TextLoadError {
    /// A file cannot be read.
    #[error(transparent)]
    Unreadable(weights::LoadError),
    /// The checkpoint brings no tokenizer.
    #[error("the checkpoint has no tokenizer.json: copy it from the model's repository")]
    NoTokenizer,
    /// A file is there but is not what its name says.
    #[error("{file} cannot be parsed: {cause}")]
    Malformed {
        /// The file, relative to the checkpoint.
        file: &'static str,
        /// What the parser said.
        cause: String,
    },
    /// A token that something relies on is not in the vocabulary.
    #[error("tokenizer.json has no token {token}, which {needed_by} needs")]
    MissingToken {
        /// The token's text, or `id N`.
        token: String,
        /// The file and field that rely on it.
        needed_by: &'static str,
    },
    /// Nothing says which token ends an answer.
    #[error(
        "no end-of-sequence token is named: add eos_token_id to config.json or \
         generation_config.json, or eos_token to tokenizer_config.json"
    )]
    NoStopToken,
    /// A token that the model has no embedding for.
    #[error(
        "tokenizer.json gives token {token:?} the id {id}, but config.json says vocab_size \
         {vocab_size}: the two files belong to different models"
    )]
    TokenOutsideVocabulary {
        /// The token's text.
        token: String,
        /// Its id.
        id: u32,
        /// Entries of the model's embedding.
        vocab_size: usize,
    },
    /// Special tokens are numbered with gaps, which the tokenizers crate would close in silence.
    #[error(
        "tokenizer.json gives the special token {token:?} the id {id}, but the tokenizer would \
         number it {assigned}: special tokens must follow the vocabulary without gaps"
    )]
    MisnumberedToken {
        /// The token's text.
        token: String,
        /// Its id in the file.
        id: u32,
        /// The id that it would get.
        assigned: u32,
    },
    /// Only byte-level tokenizers (Llama 3's kind) can be taken apart into bytes.
    #[error(
        "tokenizer.json has the decoder {decoder}: only byte-level tokenizers (decoder ByteLevel) \
         are supported"
    )]
    UnsupportedDecoder {
        /// The decoder's type.
        decoder: String,
    },
    /// A special token that matches differently from its plain text.
    #[error("tokenizer.json sets {flag} on the special token {token:?}, which is not supported")]
    UnsupportedFlag {
        /// The token's text.
        token: String,
        /// The flag that is set.
        flag: &'static str,
    },
}

/// Why a text could not be encoded or a conversation not rendered.
#[derive(Debug, Error)]
pub enum TextError {
    /// The tokenizer gave up.
    #[error("the text cannot be tokenized: {cause}")]
    Encode {
        /// What the tokenizer said.
        cause: String,
    },
    /// The checkpoint brings no chat template.
    #[error("this model has no chat template: use /v1/completions with the whole prompt")]
    NoChatTemplate,
    /// The chat template refused the messages, in its own words (`raise_exception`).
    #[error("the chat template refuses the messages: {reason}")]
    Refused {
        /// The template's words.
        reason: String,
    },
    /// The chat template failed on the messages.
    #[error("the chat template fails on these messages: {cause}")]
    Template {
        /// What the template engine said, with the template's line.
        cause: String,
    },
}
