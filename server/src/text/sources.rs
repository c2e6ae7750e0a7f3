//! The checkpoint files that text handling reads, and what it takes from their JSON.

use super::error::TextLoadError;
use std::borrow::Cow;

use serde::Deserialize;
use weights::Checkpoint;

pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
pub(crate) const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// A checkpoint's text files as they lie on disk, and what its `config.json` says about tokens.
#[derive(Clone, Debug, Default)]
pub struct TextSources {
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`, if there is one.
    pub tokenizer_config: Option<Vec<u8>>,
    /// `special_tokens_map.json`, if there is one.
    pub special_tokens_map: Option<Vec<u8>>,
    /// `generation_config.json`, if there is one.
    pub generation_config: Option<Vec<u8>>,
    /// `chat_template.jinja`, if there is one: it goes before `tokenizer_config.json`'s.
    pub chat_template: Option<Vec<u8>>,
    /// Entries of the model's embedding.
    pub vocab_size: usize,
    /// `eos_token_id` of `config.json`.
    pub eos_tokens: Vec<u32>,
}

impl TextSources {
    /// Reads the files of a checkpoint.
    ///
    /// # Errors
    /// `tokenizer.json` is missing, or a file cannot be read.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<TextSources, TextLoadError> {
        let optional = |name: &str| match checkpoint.file(name) {
            Ok(bytes) => Ok(bytes.map(Cow::into_owned)),
            Err(source) => Err(TextLoadError::Unreadable(source)),
        };
        let tokenizer = optional(TOKENIZER)?.ok_or(TextLoadError::NoTokenizer)?;
        Ok(TextSources {
            tokenizer,
            tokenizer_config: optional(TOKENIZER_CONFIG)?,
            special_tokens_map: optional(SPECIAL_TOKENS_MAP)?,
            generation_config: optional(GENERATION_CONFIG)?,
            chat_template: optional(CHAT_TEMPLATE)?,
            vocab_size: checkpoint.spec().vocab_size,
            eos_tokens: checkpoint.spec().eos_tokens.clone(),
        })
    }
}

/// What the files say, parsed.
#[derive(Debug, Default)]
pub(crate) struct TextSettings {
    /// Text of the beginning-of-sequence token.
    pub(crate) bos_token: Option<String>,
    /// Text of the end-of-sequence token.
    pub(crate) eos_token: Option<String>,
    /// `eos_token_id` of `generation_config.json`.
    pub(crate) eos_tokens: Vec<u32>,
    /// Chat templates by name; a lone one is called `default`.
    pub(crate) templates: Vec<(String, String)>,
}

impl TextSettings {
    /// Parses everything but the tokenizer itself.
    ///
    /// # Errors
    /// A file is not the JSON (or, for the template, the UTF-8) that it should be.
    pub(crate) fn parse(sources: &TextSources) -> Result<TextSettings, TextLoadError> {
        let config: TokenizerConfig = parse(TOKENIZER_CONFIG, sources.tokenizer_config.as_deref())?;
        let map: TokenizerConfig =
            parse(SPECIAL_TOKENS_MAP, sources.special_tokens_map.as_deref())?;
        let generation: GenerationConfig =
            parse(GENERATION_CONFIG, sources.generation_config.as_deref())?;
        let mut templates = config.chat_template.map_or(Vec::new(), ChatTemplates::named);
        if let Some(bytes) = &sources.chat_template {
            let source = std::str::from_utf8(bytes).map_err(|error| TextLoadError::Malformed {
                file: CHAT_TEMPLATE,
                cause: error.to_string(),
            })?;
            templates = vec![("default".to_owned(), source.to_owned())];
        }
        Ok(TextSettings {
            bos_token: config.bos_token.or(map.bos_token).map(TokenEntry::text),
            eos_token: config.eos_token.or(map.eos_token).map(TokenEntry::text),
            eos_tokens: generation.eos_token_id.map_or(Vec::new(), OneOrMany::list),
            templates,
        })
    }
}

/// The numbering of a `tokenizer.json`'s added tokens, as the file has it.
///
/// # Errors
/// The file is not a tokenizer's JSON.
pub(crate) fn added_tokens(tokenizer: &[u8]) -> Result<Vec<AddedEntry>, TextLoadError> {
    let layout: TokenizerLayout = parse(TOKENIZER, Some(tokenizer))?;
    Ok(layout.added_tokens)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenizerLayout {
    added_tokens: Vec<AddedEntry>,
}

/// An added token of `tokenizer.json`.
#[derive(Deserialize)]
pub(crate) struct AddedEntry {
    pub(crate) id: u32,
    pub(crate) content: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    bos_token: Option<TokenEntry>,
    eos_token: Option<TokenEntry>,
    chat_template: Option<ChatTemplates>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GenerationConfig {
    eos_token_id: Option<OneOrMany>,
}

/// A token by its text, or an object that holds its text beside flags.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenEntry {
    Text(String),
    Object { content: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ChatTemplates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl TokenEntry {
    fn text(self) -> String {
        match self {
            TokenEntry::Text(text) | TokenEntry::Object { content: text } => text,
        }
    }
}

impl OneOrMany {
    fn list(self) -> Vec<u32> {
        match self {
            OneOrMany::One(id) => vec![id],
            OneOrMany::Many(ids) => ids,
        }
    }
}

impl ChatTemplates {
    fn named(self) -> Vec<(String, String)> {
        match self {
            ChatTemplates::One(template) => vec![("default".to_owned(), template)],
            ChatTemplates::Named(list) => {
                list.into_iter().map(|named| (named.name, named.template)).collect()
            }
        }
    }
}

fn parse<T: Default + for<'de> Deserialize<'de>>(
    file: &'static str,
    bytes: Option<&[u8]>,
) -> Result<T, TextLoadError> {
    let Some(bytes) = bytes else { return Ok(T::default()) };
    serde_json::from_slice(bytes)
        .map_err(|error| TextLoadError::Malformed { file, cause: error.to_string() })
}
