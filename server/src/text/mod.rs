//! Text to tokens and back: tokenizer, chat template, incremental detokenizer, stop strings,
//! reasoning split. Synchronous and pure: it knows no request, no HTTP and no engine.
//!
//! A conversation goes [`TextModel::render_chat`] → [`TextModel::encode_chat`]; an answer comes
//! back token by token through [`Detokenizer`] → [`StopMatcher`] → [`ReasoningSplitter`].

mod caught;
mod detokenizer;
mod error;
#[cfg(test)]
pub(crate) mod fixture;
mod jinja;
mod model;
mod reasoning;
mod sources;
mod special;
mod stop;
mod template;
mod thinking;
mod tools;
mod vocabulary;

pub use detokenizer::Detokenizer;
pub use error::{TextError, TextLoadError};
pub use model::{SpecialTokens, TextModel};
pub use reasoning::{Piece, ReasoningSplitter};
pub use sources::TextSources;
pub use stop::{StopMatcher, Stopped};
pub use template::{ChatMessage, RenderedChat, TemplateOptions};
pub use thinking::Thinking;
pub use tools::{ToolCall, ToolCallParser, ToolPiece};
