//! Where an answer is shown: reasoning dimmed, the answer plain. It knows no model.

use std::io::{self, IsTerminal, Write};

use engine::Finish;

use crate::text::Piece;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// The terminal; or, where standard output is none, standard output for the answer and standard
/// error for the reasoning.
pub(super) struct Screen {
    has_colour: bool,
    is_terminal: bool,
    is_interactive: bool,
    /// What was shown last.
    shown: Shown,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Nothing,
    Reasoning { ends_line: bool },
    Content { ends_line: bool },
}

impl Screen {
    pub(super) fn new(has_colour: bool) -> Screen {
        Screen {
            has_colour,
            is_terminal: io::stdout().is_terminal(),
            is_interactive: io::stdin().is_terminal() && io::stdout().is_terminal(),
            shown: Shown::Nothing,
        }
    }

    /// Asks for a line, where somebody sees it.
    pub(super) fn invite(&self) {
        if self.is_interactive {
            print!("> ");
            // A prompt that cannot be shown is no reason to stop.
            let _ = io::stdout().flush();
        }
    }

    /// A word from the program itself.
    pub(super) fn note(&self, text: &str) {
        eprintln!("{}", self.dimmed(text));
    }

    /// A piece of the answer.
    pub(super) fn show(&mut self, piece: &Piece) -> io::Result<()> {
        let before = self.shown;
        let (text, shown) = match piece {
            Piece::Reasoning(text) => {
                (self.dimmed(text), Shown::Reasoning { ends_line: text.ends_with('\n') })
            }
            Piece::Content(text) => {
                (text.clone(), Shown::Content { ends_line: text.ends_with('\n') })
            }
        };
        self.shown = shown;
        if !self.is_terminal && matches!(piece, Piece::Reasoning(_)) {
            return io::stderr().write_all(text.as_bytes());
        }
        let mut out = io::stdout().lock();
        if self.is_terminal && matches!(piece, Piece::Content(_)) {
            out.write_all(separator(before).as_bytes())?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// The answer is over: the next line begins at the left.
    pub(super) fn end(&mut self) {
        match self.shown {
            Shown::Reasoning { ends_line: false } if !self.is_terminal => eprintln!(),
            Shown::Reasoning { ends_line: false } | Shown::Content { ends_line: false } => {
                println!();
            }
            Shown::Nothing | Shown::Reasoning { .. } | Shown::Content { .. } => {}
        }
        self.shown = Shown::Nothing;
    }

    /// How long the answer was and took, in a conversation.
    pub(super) fn summarise(&mut self, finish: &Finish) {
        if !self.is_interactive {
            return;
        }
        self.end();
        let timing = &finish.timing;
        let first_token = timing.first_token.unwrap_or(timing.finished);
        let wait = first_token.duration_since(timing.arrived);
        let generating_s = timing.finished.duration_since(first_token).as_secs_f64();
        let rate = match finish.n_generated.saturating_sub(1) {
            0 => String::new(),
            n_after_first => format!(", {:.0} tokens/s", n_after_first as f64 / generating_s),
        };
        let n_generated = finish.n_generated;
        self.note(&format!("{n_generated} tokens, first after {} ms{rate}", wait.as_millis()));
    }

    fn dimmed(&self, text: &str) -> String {
        if self.has_colour { format!("{DIM}{text}{PLAIN}") } else { text.to_owned() }
    }
}

/// What stands between reasoning and answer: a blank line.
fn separator(before: Shown) -> &'static str {
    match before {
        Shown::Reasoning { ends_line: true } => "\n",
        Shown::Reasoning { ends_line: false } => "\n\n",
        Shown::Nothing | Shown::Content { .. } => "",
    }
}
