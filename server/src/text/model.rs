//! One checkpoint's tokenizer, special tokens and chat template, checked against the model at
//! load. Shared by all requests.

use std::sync::Arc;

use engine::TokenId;
use tokenizers::Tokenizer;
use weights::Checkpoint;

use super::caught::caught;
use super::error::{TextError, TextLoadError};
use super::sources::{self, TextSettings, TextSources};
use super::special::{Segment, SpecialMarkup};
use super::template::{ChatMessage, ChatTemplates, RenderedChat, TemplateOptions};
use super::vocabulary::Vocabulary;

/// Tokens that end an assistant's turn; where the template writes one, generating it is the end.
const TURN_ENDS: [&str; 2] = ["<|eot_id|>", "<|im_end|>"];

/// What becomes of special tokens' texts, such as `<|eot_id|>`, when a text is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They become special tokens, and the beginning of the sequence is put before the text
    /// unless the text brings it: a completion's prompt.
    Add,
    /// They become special tokens; nothing is added.
    Parse,
    /// They stay text; nothing is added.
    Literal,
}

/// Text to tokens, tokens to text, conversations to prompts. Cheap to share through `Arc`.
pub struct TextModel {
    /// Never makes special tokens itself: [`SpecialMarkup`] finds them first.
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    markup: SpecialMarkup,
    /// What the tokenizer puts before every text: the beginning of the sequence.
    prefix: Vec<TokenId>,
    templates: Option<ChatTemplates>,
    stop_tokens: Arc<[TokenId]>,
}

impl TextModel {
    /// Reads a checkpoint's tokenizer files.
    ///
    /// # Errors
    /// Files that are missing, malformed, or that do not fit the model; see [`TextLoadError`].
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<TextModel, TextLoadError> {
        TextModel::new(&TextSources::from_checkpoint(checkpoint)?)
    }

    /// Builds it from the files' bytes.
    ///
    /// # Errors
    /// As for [`TextModel::from_checkpoint`].
    pub fn new(sources: &TextSources) -> Result<TextModel, TextLoadError> {
        // The crate panics where a file says something impossible of a part that it knows, which
        // is no reason to end the program.
        caught(|| TextModel::read(sources)).unwrap_or_else(|words| {
            let cause = format!("the tokenizers library gave it up: {words}");
            Err(TextLoadError::Malformed { file: sources::TOKENIZER, cause })
        })
    }

    fn read(sources: &TextSources) -> Result<TextModel, TextLoadError> {
        let malformed = |error: tokenizers::Error| TextLoadError::Malformed {
            file: sources::TOKENIZER,
            cause: error.to_string(),
        };
        let mut tokenizer = Tokenizer::from_bytes(&sources.tokenizer).map_err(malformed)?;
        require_numbering(&tokenizer, &sources.tokenizer)?;
        // Published checkpoints ship what their calibration ran with, truncation to 512 tokens
        // among it; the crate would apply it without a word.
        tokenizer.with_truncation(None).map_err(malformed)?;
        tokenizer.with_padding(None);
        let prefix = sequence_prefix(&tokenizer).map_err(malformed)?;
        tokenizer.set_encode_special_tokens(true);
        let vocabulary = Vocabulary::new(&tokenizer, sources.vocab_size)?;
        let markup = SpecialMarkup::new(&tokenizer)?;
        let settings = TextSettings::parse(sources)?;
        let stop_tokens = stop_tokens(sources, &settings, (&vocabulary, &markup))?;
        let templates = ChatTemplates::new(&settings, &markup)?;
        Ok(TextModel { tokenizer, vocabulary, markup, prefix, templates, stop_tokens })
    }

    /// Tokens of a text.
    ///
    /// # Errors
    /// The tokenizer gives up, which byte-level tokenizers do on no text that we know.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>, TextError> {
        let mut tokens = Vec::new();
        match special {
            SpecialTokens::Literal => self.encode_text(text, &mut tokens)?,
            SpecialTokens::Parse | SpecialTokens::Add => {
                for segment in self.markup.split(text) {
                    match segment {
                        Segment::Special(token) => tokens.push(token),
                        Segment::Text(text) => self.encode_text(text, &mut tokens)?,
                    }
                }
            }
        }
        if special == SpecialTokens::Add && !tokens.starts_with(&self.prefix) {
            tokens.splice(0..0, self.prefix.iter().copied());
        }
        Ok(tokens)
    }

    /// Tokens of a rendered conversation: the template's special tokens are parsed, those in the
    /// messages stay text, so that no message can end its turn or begin another's.
    ///
    /// # Errors
    /// As for [`TextModel::encode`].
    pub fn encode_chat(&self, chat: &RenderedChat) -> Result<Vec<TokenId>, TextError> {
        let mut tokens = Vec::new();
        for segment in self.markup.split(chat.marked()) {
            match segment {
                Segment::Special(token) => tokens.push(token),
                Segment::Text(text) => self.encode_text(&chat.unmarked(text), &mut tokens)?,
            }
        }
        Ok(tokens)
    }

    /// A conversation as one prompt, by the checkpoint's chat template.
    ///
    /// # Errors
    /// There is no template, or it refuses the messages or fails on them.
    pub fn render_chat(
        &self,
        messages: &[ChatMessage],
        options: &TemplateOptions,
    ) -> Result<RenderedChat, TextError> {
        let templates = self.templates.as_ref().ok_or(TextError::NoChatTemplate)?;
        templates.render(messages, options, &self.markup)
    }

    /// Text of tokens, with U+FFFD for bytes that are not UTF-8; `skips_special` leaves out
    /// special tokens' texts. (No clean-up of blanks before punctuation: the text is what the
    /// model wrote.)
    pub fn decode(&self, tokens: &[TokenId], skips_special: bool) -> String {
        let shown = tokens.iter().filter(|&&token| !(skips_special && self.is_special(token)));
        let bytes: Vec<u8> = shown.flat_map(|&token| self.token_bytes(token)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A token's bytes, which need not be whole characters; none for an id without a token.
    pub fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.vocabulary.token_bytes(token)
    }

    /// A token's text, with U+FFFD for bytes that are not UTF-8.
    pub fn token_text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(self.token_bytes(token)).into_owned()
    }

    /// Whether a token is markup rather than text.
    pub fn is_special(&self, token: TokenId) -> bool {
        self.vocabulary.is_special(token)
    }

    /// Whether conversations can be rendered.
    pub fn has_chat_template(&self) -> bool {
        self.templates.is_some()
    }

    /// The chat template's source, if there is one.
    pub fn chat_template(&self) -> Option<String> {
        self.templates.as_ref()?.source()
    }

    /// What stands before every text, as text.
    pub fn prefix_text(&self) -> String {
        self.decode(&self.prefix, false)
    }

    /// Tokens that end an answer: at least one, ascending.
    pub fn stop_tokens(&self) -> &Arc<[TokenId]> {
        &self.stop_tokens
    }

    fn encode_text(&self, text: &str, tokens: &mut Vec<TokenId>) -> Result<(), TextError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| TextError::Encode { cause: error.to_string() })?;
        tokens.extend(encoding.get_ids().iter().map(|&id| TokenId(id)));
        Ok(())
    }
}

/// Fails where the crate has numbered special tokens otherwise than the file: it counts on from the
/// vocabulary, whatever the file says.
fn require_numbering(tokenizer: &Tokenizer, file: &[u8]) -> Result<(), TextLoadError> {
    for entry in sources::added_tokens(file)? {
        let assigned = tokenizer.token_to_id(&entry.content).unwrap_or(entry.id);
        if assigned != entry.id {
            let sources::AddedEntry { id, content: token } = entry;
            return Err(TextLoadError::MisnumberedToken { token, id, assigned });
        }
    }
    Ok(())
}

/// What the tokenizer's post-processor puts before a text.
fn sequence_prefix(tokenizer: &Tokenizer) -> Result<Vec<TokenId>, tokenizers::Error> {
    let with = tokenizer.encode("a", true)?;
    let bare = tokenizer.encode("a", false)?;
    let is_text = |ids: &[u32]| ids == bare.get_ids();
    let n_bare = bare.len().max(1);
    let n_prefix = with.get_ids().windows(n_bare).position(is_text).unwrap_or(0);
    Ok(with.get_ids()[..n_prefix].iter().map(|&id| TokenId(id)).collect())
}

/// Every token that some file calls an end of sequence, or that ends a turn in the template.
fn stop_tokens(
    sources: &TextSources,
    settings: &TextSettings,
    (vocabulary, markup): (&Vocabulary, &SpecialMarkup),
) -> Result<Arc<[TokenId]>, TextLoadError> {
    let mut tokens = Vec::new();
    let by_id = [
        (&sources.eos_tokens, "eos_token_id of config.json"),
        (&settings.eos_tokens, "eos_token_id of generation_config.json"),
    ];
    for (ids, needed_by) in by_id {
        for &id in ids {
            if vocabulary.token_bytes(TokenId(id)).is_empty() {
                let token = format!("id {id}");
                return Err(TextLoadError::MissingToken { token, needed_by });
            }
            tokens.push(TokenId(id));
        }
    }
    if let Some(text) = &settings.eos_token {
        let needed_by = "eos_token of tokenizer_config.json";
        let missing = || TextLoadError::MissingToken { token: text.clone(), needed_by };
        tokens.push(markup.token(text).ok_or_else(missing)?);
    }
    let is_written =
        |text: &str| settings.templates.iter().any(|(_, source)| source.contains(text));
    let turn_ends = TURN_ENDS.into_iter().filter(|text| is_written(text));
    tokens.extend(turn_ends.filter_map(|text| markup.token(text)));
    tokens.sort_unstable();
    tokens.dedup();
    if tokens.is_empty() { Err(TextLoadError::NoStopToken) } else { Ok(tokens.into()) }
}

#[cfg(test)]
mod tests;
