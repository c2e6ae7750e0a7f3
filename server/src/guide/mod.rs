//! What an answer must look like: formats compiled to guides, which the engine asks after every
//! token, and the reasoning that comes before a format or is cut short.
//!
//! [`Formats`] compiles and keeps them; [`AnswerRules`] puts a format behind the reasoning and
//! makes an [`engine::Guide`] of both. It knows no HTTP and no request.

mod answer;
mod formats;
mod reasoning;
mod vocabulary;

pub use answer::{AnswerRules, GuideParts, Reasoning};
pub use formats::{CompiledFormat, Format, FormatError, Formats};
