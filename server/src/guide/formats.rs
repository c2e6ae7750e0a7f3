//! Formats and what they compile to. Compiling is bounded in work and memory, and what was compiled
//! is kept: the last few formats that were asked for.

use std::fmt;
use std::sync::{Arc, OnceLock};

use engine::{Allowed, TokenId, TokenSet};
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use parking_lot::Mutex;
use serde_json::{Value, json};
use thiserror::Error;
use toktrie::SimpleVob;

use super::vocabulary::token_environment;
use crate::text::TextModel;

/// Compiled formats that are kept.
const N_KEPT_MAX: usize = 32;

/// Bytes of a format as it is written: more is refused before anything is compiled.
const N_SOURCE_BYTES_MAX: usize = 128 << 10;

/// What may stand between two marks of JSON: a blank, or a line's end and the next one's
/// indentation. A model that cannot go on as it likes would write blanks for ever.
const JSON_BLANKS: &str = r" |\r?\n[ \t]{0,40}";

/// Lists, objects, groups within each other in a format as it is written.
const N_NESTED_MAX: usize = 256;

/// The compiler follows a format's parts by recursion: a thread of its own has room for all that a
/// format of the greatest length can make it do.
const N_STACK_BYTES: usize = 512 << 20;

/// States of a format's lexer, one or two kilobytes each.
const N_LEXER_STATES_MAX: usize = 10_000;

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema(Value),
    /// A regular expression, for the whole answer.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in Lark's notation.
    Grammar(String),
}

/// Why a format cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FormatError {
    /// It is longer than its bound.
    #[error("it has {n_bytes} bytes, but at most {n_bytes_max} are compiled")]
    TooLong {
        /// Its length.
        n_bytes: usize,
        /// The bound.
        n_bytes_max: usize,
    },
    /// Its parts are nested too deep.
    #[error("it is nested {n_nested} levels deep, but at most {n_nested_max} are compiled")]
    TooDeep {
        /// Levels.
        n_nested: usize,
        /// The bound.
        n_nested_max: usize,
    },
    /// It is not what it should be, or takes more work or memory than it may.
    #[error("{problem}")]
    Invalid {
        /// The compiler's words.
        problem: String,
    },
}

/// Compiles formats for one model, and keeps them.
pub struct Formats {
    text: Arc<TextModel>,
    vocab_size: usize,
    /// Made for the first format: it takes a large vocabulary a while.
    factory: OnceLock<Result<ParserFactory, FormatError>>,
    /// What was compiled, used last first.
    kept: Mutex<Vec<(String, Arc<CompiledFormat>)>>,
}

/// A format, compiled: where every answer in it begins.
pub struct CompiledFormat {
    start: Matcher,
    first: Allowed,
    vocab_size: usize,
}

/// An answer in a format, as far as it has come.
pub(super) struct FormatState {
    matcher: Matcher,
    vocab_size: usize,
}

impl Format {
    /// What only equal formats are called.
    fn name(&self) -> String {
        match self {
            Format::JsonObject => "json object".into(),
            Format::JsonSchema(schema) => format!("json {schema}"),
            Format::Regex(regex) => format!("regex {regex}"),
            Format::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
                format!("choice {}", texts.join(" | "))
            }
            Format::Grammar(grammar) => format!("grammar {grammar}"),
        }
    }

    fn grammar(&self) -> TopLevelGrammar {
        match self {
            Format::JsonObject => json_grammar(json!({"type": "object"})),
            Format::JsonSchema(schema) => json_grammar(schema.clone()),
            Format::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Format::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
                TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
            }
            Format::Grammar(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        }
    }
}

/// Refuses what is too long or nested too deep to be looked at.
fn check(name: &str) -> Result<(), FormatError> {
    let (n_bytes, n_bytes_max) = (name.len(), N_SOURCE_BYTES_MAX);
    if n_bytes > n_bytes_max {
        return Err(FormatError::TooLong { n_bytes, n_bytes_max });
    }
    let (n_nested, n_nested_max) = (n_nested(name), N_NESTED_MAX);
    if n_nested > n_nested_max {
        return Err(FormatError::TooDeep { n_nested, n_nested_max });
    }
    Ok(())
}

/// Brackets of any kind that are open at once, at most.
fn n_nested(text: &str) -> usize {
    let (mut n_open, mut n_max) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => n_open += 1,
            b')' | b']' | b'}' => n_open = n_open.saturating_sub(1),
            _ => {}
        }
        n_max = n_max.max(n_open);
    }
    n_max
}

/// JSON with few blanks, and `oneOf` taken for `anyOf`: what is generated from left to right cannot
/// be held to "not the others".
fn json_grammar(mut schema: Value) -> TopLevelGrammar {
    if let Some(members) = schema.as_object_mut() {
        members
            .entry("x-guidance")
            .or_insert_with(|| json!({"whitespace_pattern": JSON_BLANKS, "coerce_one_of": true}));
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// A text as a literal of the grammar's notation, whose literals are JSON's.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

impl Formats {
    /// For a model with so many entries in its vocabulary.
    pub fn new(text: Arc<TextModel>, vocab_size: usize) -> Formats {
        Formats { text, vocab_size, factory: OnceLock::new(), kept: Mutex::new(Vec::new()) }
    }

    /// Compiles a format, unless it is among the last that were.
    ///
    /// # Errors
    /// What is wrong with it, or that it takes too much.
    pub fn compile(&self, format: &Format) -> Result<Arc<CompiledFormat>, FormatError> {
        let name = format.name();
        check(&name)?;
        if let Some(known) = self.take_kept(&name) {
            return Ok(known);
        }
        let factory = self.factory.get_or_init(|| self.new_factory());
        let factory = factory.as_ref().map_err(Clone::clone)?;
        let compiled = std::thread::scope(|scope| {
            let compile = || self.compile_grammar(factory, format.grammar());
            let thread = std::thread::Builder::new().name("format".into());
            let compiling = thread.stack_size(N_STACK_BYTES).spawn_scoped(scope, compile);
            let compiling = compiling.map_err(|error| problem(&error.to_string()))?;
            compiling.join().unwrap_or_else(|_| Err(problem("the compiler gave up")))
        })?;
        let compiled = Arc::new(compiled);
        let mut kept = self.kept.lock();
        // Another may have compiled it meanwhile.
        kept.retain(|(other, _)| *other != name);
        kept.truncate(N_KEPT_MAX - 1);
        kept.insert(0, (name, Arc::clone(&compiled)));
        Ok(compiled)
    }

    fn compile_grammar(
        &self,
        factory: &ParserFactory,
        grammar: TopLevelGrammar,
    ) -> Result<CompiledFormat, FormatError> {
        let mut start = Matcher::new(factory.create_parser(grammar));
        let first = start.compute_mask().map_err(|error| problem(&error.to_string()))?;
        match allowed(&first, self.vocab_size) {
            Allowed::Nothing { cause } => Err(problem(&cause)),
            first => Ok(CompiledFormat { start, first, vocab_size: self.vocab_size }),
        }
    }

    fn take_kept(&self, name: &str) -> Option<Arc<CompiledFormat>> {
        let mut kept = self.kept.lock();
        let place = kept.iter().position(|(other, _)| other == name)?;
        let found = kept.remove(place);
        let compiled = Arc::clone(&found.1);
        kept.insert(0, found);
        Some(compiled)
    }

    fn new_factory(&self) -> Result<ParserFactory, FormatError> {
        let environment = token_environment(&self.text, self.vocab_size);
        let factory = ParserFactory::new_simple(&environment);
        let mut factory = factory.map_err(|error| problem(&error.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.verbose_errors = false;
        limits.max_lexer_states = N_LEXER_STATES_MAX;
        Ok(factory)
    }
}

impl fmt::Debug for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Formats").field("n_kept", &self.kept.lock().len()).finish_non_exhaustive()
    }
}

impl CompiledFormat {
    /// What an answer may begin with.
    pub(super) fn first(&self) -> Allowed {
        self.first.clone()
    }

    /// The beginning of an answer. It shares nothing with others: what those met on their way
    /// changes neither what is allowed nor what that costs.
    pub(super) fn begin(&self) -> FormatState {
        FormatState { matcher: self.start.deep_clone(), vocab_size: self.vocab_size }
    }
}

impl fmt::Debug for CompiledFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledFormat").finish_non_exhaustive()
    }
}

impl FormatState {
    /// Takes the answer's next token; what may follow it.
    pub(super) fn push(&mut self, token: TokenId) -> Allowed {
        let masked =
            self.matcher.consume_token(token.0).and_then(|()| self.matcher.compute_mask_or_eos());
        match masked {
            Ok(mask) => allowed(&mask, self.vocab_size),
            Err(error) => Allowed::Nothing { cause: first_line(&error.to_string()) },
        }
    }
}

fn allowed(mask: &SimpleVob, vocab_size: usize) -> Allowed {
    match TokenSet::from_words(mask.as_slice().to_vec(), vocab_size) {
        Some(set) => Allowed::Only(Arc::new(set)),
        None => Allowed::Nothing { cause: "no token may follow".into() },
    }
}

fn problem(words: &str) -> FormatError {
    FormatError::Invalid { problem: first_line(words) }
}

/// The compiler adds the grammar itself, which the caller knows.
fn first_line(words: &str) -> String {
    words.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it is invalid").to_owned()
}

#[cfg(test)]
mod tests;
