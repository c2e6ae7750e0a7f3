//! A conversation on its way to the model, whichever endpoint it came to: tools and the toggle go
//! into the template, formats and bounds into a guide.

use std::sync::Arc;

use engine::TokenId;
use minijinja::Value as TemplateValue;

use super::super::error::ApiError;
use super::super::request::encode_chat;
use super::super::state::AppState;
use super::format::Wanted;
use super::speech::Speech;
use super::tools::Tools;
use crate::guide::{AnswerRules, Reasoning};
use crate::text::{ChatMessage, ReasoningSplitter, RenderedChat, TemplateOptions};

/// What was said, and how to go on.
pub(super) struct Conversation {
    pub(super) messages: Vec<ChatMessage>,
    pub(super) template: TemplateOptions,
    pub(super) tools: Option<Tools>,
    pub(super) format: Option<Wanted>,
    /// Tokens of reasoning at most.
    pub(super) n_reasoning_max: Option<usize>,
    /// The reasoning is told, or only counted.
    pub(super) tells_reasoning: bool,
}

/// What becomes of it.
pub(super) struct Prepared {
    pub(super) prompt: Arc<[TokenId]>,
    pub(super) answer: AnswerRules,
    /// As every answer begins.
    pub(super) speech: Speech,
}

impl Conversation {
    /// Whether the answer must keep a format.
    pub(super) fn has_format(&self) -> bool {
        self.format.is_some() || self.tools.as_ref().is_some_and(Tools::must_be_called)
    }

    /// Renders and tokenizes it, and compiles what the answer must be.
    ///
    /// # Errors
    /// The template refuses it, it is too long, or its format cannot be compiled.
    pub(super) fn prepare(mut self, app: &AppState) -> Result<Prepared, ApiError> {
        let template = app.text.chat_template().unwrap_or_default();
        let calls = self.tools.as_ref().and_then(|tools| tools.format(&template));
        let wanted = match (calls, self.format.take()) {
            (Some(_), Some(format)) => {
                let remedy = "with a `tool_choice` that must be called, the answer is the call";
                return Err(ApiError::Unsupported { field: format.field, remedy });
            }
            (calls, format) => calls.or(format),
        };
        if let Some(tools) = &self.tools {
            let listed = TemplateValue::from_serialize(&tools.listed);
            self.template.variables.insert("tools".into(), listed);
        }
        let chat = app.text.render_chat(&self.messages, &self.template)?;
        let prompt = encode_chat(app, &chat)?;
        let answer = AnswerRules {
            reasoning: reasoning(&chat),
            n_reasoning_max: self.n_reasoning_max,
            format: wanted.map(|wanted| wanted.compile(app)).transpose()?,
        };
        let splitter = match chat.opens_thinking() {
            true => ReasoningSplitter::inside(),
            false => ReasoningSplitter::new(),
        };
        let splitter = app.config.splits_reasoning.then_some(splitter);
        let mut speech = Speech::new(splitter, self.tools.map(|tools| tools.is_parallel));
        speech.tells_reasoning(self.tells_reasoning);
        Ok(Prepared { prompt, answer, speech })
    }
}

fn reasoning(chat: &RenderedChat) -> Reasoning {
    match (chat.opens_thinking(), chat.reasons()) {
        (true, _) => Reasoning::Opened,
        (false, true) => Reasoning::Free,
        (false, false) => Reasoning::None,
    }
}
