//! Messages to one prompt text, by the chat template that ships with the weights. It knows which
//! texts are markup, but no tokens.

mod tools;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::error::Error as _;
use std::fmt;

use minijinja::value::ValueKind;
use minijinja::{Environment, Value};

use super::error::{TextError, TextLoadError};
use super::jinja::{self, Raised};
use super::sources::TextSettings;
use super::special::SpecialMarkup;
use super::thinking::{Thinking, ThinkingStyle};

/// The template for conversations with tools, where a checkpoint brings several.
const TOOL_USE: &str = "tool_use";

/// One turn of a conversation, with its content as one text: parts joined, null empty.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What was said.
    pub content: String,
    /// Whatever else templates read from a message: `name`, `tool_calls`, `tool_call_id`.
    pub extra: BTreeMap<String, Value>,
}

/// How a conversation is rendered.
#[derive(Clone, Debug)]
pub struct TemplateOptions {
    /// Ends with the header of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Turns reasoning on or off; `None` leaves it to the messages and the template.
    pub thinking: Option<Thinking>,
    /// More variables: `tools`, `documents`, and what the caller passes to the template.
    pub variables: BTreeMap<String, Value>,
}

/// A rendered conversation: text in which the template's own special tokens are markup, and those
/// that came in with a message are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedChat {
    text: String,
    /// Stands inside every special token's text that a message brought.
    mark: Option<char>,
    reasons: bool,
}

/// A checkpoint's chat templates.
pub(crate) struct ChatTemplates {
    environment: Environment<'static>,
    /// Name of the template for conversations without tools.
    default_name: String,
    style: ThinkingStyle,
    bos_token: String,
    eos_token: String,
}

impl ChatMessage {
    /// A plain turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> ChatMessage {
        ChatMessage { role: role.into(), content: content.into(), extra: BTreeMap::new() }
    }
}

impl TemplateOptions {
    /// For an answer, with reasoning as the template has it.
    pub fn answer() -> TemplateOptions {
        TemplateOptions { add_generation_prompt: true, thinking: None, variables: BTreeMap::new() }
    }
}

impl RenderedChat {
    /// The prompt as the model sees it.
    pub fn text(&self) -> Cow<'_, str> {
        self.unmarked(&self.text)
    }

    /// Whether the prompt ends inside a reasoning section that the answer has to close.
    pub fn opens_thinking(&self) -> bool {
        self.text.trim_end().ends_with("<think>")
    }

    /// Whether the answer is expected to begin with reasoning, as far as the prompt tells.
    pub fn reasons(&self) -> bool {
        self.reasons || self.opens_thinking()
    }

    /// The text, marks included.
    pub(crate) fn marked(&self) -> &str {
        &self.text
    }

    /// A part of the text without its marks.
    pub(crate) fn unmarked<'a>(&self, part: &'a str) -> Cow<'a, str> {
        match self.mark {
            Some(mark) if part.contains(mark) => Cow::Owned(part.replace(mark, "")),
            _ => Cow::Borrowed(part),
        }
    }
}

impl fmt::Display for RenderedChat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl ChatTemplates {
    /// Compiles the templates; `None` where there are none.
    ///
    /// # Errors
    /// A template is not Jinja, or names a token that the tokenizer lacks.
    pub(crate) fn new(
        settings: &TextSettings,
        markup: &SpecialMarkup,
    ) -> Result<Option<ChatTemplates>, TextLoadError> {
        let named = |name: &str| settings.templates.iter().find(|(other, _)| other == name);
        let Some((default_name, source)) = named("default").or(settings.templates.first()) else {
            return Ok(None);
        };
        let bos_token = settings.bos_token.clone().unwrap_or_default();
        if source.contains("bos_token") && markup.token(&bos_token).is_none() {
            let token = if bos_token.is_empty() { "named bos_token".to_owned() } else { bos_token };
            return Err(TextLoadError::MissingToken { token, needed_by: "the chat template" });
        }
        let mut environment = jinja::environment();
        for (name, source) in &settings.templates {
            require_markup(source, markup)?;
            let added = environment.add_template_owned(name.clone(), source.clone());
            added.map_err(|error| TextLoadError::Malformed {
                file: "the chat template",
                cause: error.to_string(),
            })?;
        }
        Ok(Some(ChatTemplates {
            environment,
            default_name: default_name.clone(),
            style: ThinkingStyle::of(source),
            bos_token,
            eos_token: settings.eos_token.clone().unwrap_or_default(),
        }))
    }

    /// Renders a conversation.
    ///
    /// A special token's text in a message stays text: a mark is put inside it, which the
    /// template passes on and [`RenderedChat`] takes out again after the markup is found.
    /// (A template that deletes text from a message could still join the two halves of one.)
    ///
    /// # Errors
    /// The template refuses the messages or fails on them.
    pub(crate) fn render(
        &self,
        messages: &[ChatMessage],
        options: &TemplateOptions,
        markup: &SpecialMarkup,
    ) -> Result<RenderedChat, TextError> {
        let mut messages = messages.to_vec();
        let mut variables = options.variables.clone();
        if let Some(thinking) = options.thinking {
            self.style.apply(thinking, &mut messages);
            for (name, value) in thinking.variables() {
                variables.insert(name.to_owned(), value);
            }
        }
        let name = self.template_name(&variables);
        let template = self.environment.get_template(name).map_err(template_error)?;
        let source = template.source();
        tools::write_out(&mut messages, &variables, source);
        let reasons = self.style.reasons(&messages, options.thinking, source);
        let mark = guard_all(&mut messages, &mut variables, markup)?;
        for (name, value) in [("tools", Value::from(())), ("documents", Value::from(()))] {
            variables.entry(name.to_owned()).or_insert(value);
        }
        let own = [
            ("messages", messages.into_iter().map(ChatMessage::into_value).collect()),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("bos_token", Value::from(self.bos_token.as_str())),
            ("eos_token", Value::from(self.eos_token.as_str())),
        ];
        variables.extend(own.map(|(name, value)| (name.to_owned(), value)));
        let text = template.render(Value::from_iter(variables)).map_err(template_error)?;
        Ok(RenderedChat { text, mark, reasons })
    }

    /// The source of the template for conversations without tools.
    pub(crate) fn source(&self) -> Option<String> {
        let template = self.environment.get_template(&self.default_name).ok()?;
        Some(template.source().to_owned())
    }

    fn template_name(&self, variables: &BTreeMap<String, Value>) -> &str {
        let has_tools = variables.get("tools").is_some_and(Value::is_true);
        let has_template = self.environment.get_template(TOOL_USE).is_ok();
        if has_tools && has_template { TOOL_USE } else { &self.default_name }
    }
}

impl ChatMessage {
    fn into_value(self) -> Value {
        let mut entries = self.extra;
        entries.insert("role".to_owned(), Value::from(self.role));
        entries.insert("content".to_owned(), Value::from(self.content));
        Value::from_iter(entries)
    }
}

/// Fails where a template writes `<|name|>` and the tokenizer has no such special token: the
/// model would be prompted with text that it never saw.
fn require_markup(source: &str, markup: &SpecialMarkup) -> Result<(), TextLoadError> {
    let mut rest = source;
    while let Some(begin) = rest.find("<|") {
        rest = &rest[begin..];
        let n_name = rest[2..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let end = 2 + n_name.unwrap_or(rest.len() - 2);
        if end > 2 && rest[end..].starts_with("|>") && markup.token(&rest[..end + 2]).is_none() {
            let token = rest[..end + 2].to_owned();
            return Err(TextLoadError::MissingToken { token, needed_by: "the chat template" });
        }
        rest = &rest[2..];
    }
    Ok(())
}

/// Puts a mark inside every special token's text that came from the caller; `None` if there is
/// none, as almost always.
fn guard_all(
    messages: &mut [ChatMessage],
    variables: &mut BTreeMap<String, Value>,
    markup: &SpecialMarkup,
) -> Result<Option<char>, TextError> {
    let mut needs_guard = false;
    let mut private_use = HashSet::new();
    each_text(messages, variables, &mut |text| {
        needs_guard |= markup.is_in(text);
        private_use.extend(text.chars().filter(|c| *c >= '\u{F0000}'));
        None
    });
    if !needs_guard {
        return Ok(None);
    }
    let mut marks = '\u{F0000}'..='\u{10FFFD}';
    let mark = marks.find(|mark| !private_use.contains(mark)).ok_or_else(|| {
        TextError::Refused { reason: "the messages use every private-use character".to_owned() }
    })?;
    each_text(messages, variables, &mut |text| Some(markup.guard(text, mark)));
    Ok(Some(mark))
}

/// Visits every text that came from the caller; what `visit` returns takes its place.
fn each_text(
    messages: &mut [ChatMessage],
    variables: &mut BTreeMap<String, Value>,
    visit: &mut dyn FnMut(&str) -> Option<String>,
) {
    for message in messages {
        for text in [&mut message.role, &mut message.content] {
            if let Some(new) = visit(text) {
                *text = new;
            }
        }
        for value in message.extra.values_mut() {
            *value = map_texts(value, visit);
        }
    }
    for value in variables.values_mut() {
        *value = map_texts(value, visit);
    }
}

fn map_texts(value: &Value, visit: &mut dyn FnMut(&str) -> Option<String>) -> Value {
    match value.kind() {
        ValueKind::String => {
            value.as_str().and_then(visit).map_or_else(|| value.clone(), Value::from)
        }
        ValueKind::Seq => match value.try_iter() {
            Ok(items) => items.map(|item| map_texts(&item, visit)).collect(),
            Err(_) => value.clone(),
        },
        ValueKind::Map => match value.try_iter() {
            Ok(keys) => Value::from_iter(keys.map(|key| {
                let item = value.get_item(&key).unwrap_or_default();
                (map_texts(&key, visit), map_texts(&item, visit))
            })),
            Err(_) => value.clone(),
        },
        _ => value.clone(),
    }
}

fn template_error(error: minijinja::Error) -> TextError {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Raised(reason)) = cause.downcast_ref::<Raised>() {
            return TextError::Refused { reason: reason.clone() };
        }
        source = cause.source();
    }
    TextError::Template { cause: error.to_string() }
}

#[cfg(test)]
mod tests;
