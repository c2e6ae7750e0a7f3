//! One request as it is to be made, whatever protocol carries it.

use std::sync::Arc;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The operator.
    System,
    /// The asker.
    User,
    /// The model.
    Assistant,
}

/// A piece of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who.
    pub role: Role,
    /// What.
    pub text: Arc<str>,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// Tokens to generate: so many exactly, unless answers end by themselves; then at most.
    pub n_out: usize,
    /// Of its draws.
    pub seed: u64,
    /// Hang up after so many pieces of the answer.
    pub cancel_after: Option<usize>,
}

impl Role {
    /// OpenAI's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

impl Ask {
    /// The conversation as one text, for protocols that know no turns.
    pub fn text(&self) -> String {
        let texts: Vec<&str> = self.messages.iter().map(|message| &*message.text).collect();
        texts.join("\n")
    }
}
