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

    /// The conversation is over.
    pub(super) fn leave(&self) {
        if self.is_interactive {
            println!();
        }
    }

    /// A word from the program itself.
    pub(super) fn note(&self, text: &str) {
        eprintln!("{}", self.dimmed(text));
    }

    /// A piece of the answer.
    pub(super) fn show(&mut self, piece: &Piece) -> io::Result<()> {
        let text = self.styled(piece);
        if !self.is_terminal && matches!(piece, Piece::Reasoning(_)) {
            return io::stderr().write_all(text.as_bytes());
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// The answer is over: the next line begins at the left.
    pub(super) fn end(&mut self) {
        let rest = self.ending();
        match self.is_terminal || matches!(self.shown, Shown::Content { .. }) {
            true => print!("{rest}"),
            false => eprint!("{rest}"),
        }
        self.shown = Shown::Nothing;
    }

    /// A piece's text with what has to stand before it.
    fn styled(&mut self, piece: &Piece) -> String {
        let before = self.shown;
        match piece {
            Piece::Reasoning(text) => {
                self.shown = Shown::Reasoning { ends_line: text.ends_with('\n') };
                let is_first = !matches!(before, Shown::Reasoning { .. });
                let dim = if is_first && self.has_colour { DIM } else { "" };
                format!("{dim}{text}")
            }
            Piece::Content(text) => {
                self.shown = Shown::Content { ends_line: text.ends_with('\n') };
                let plain = if self.has_colour { PLAIN } else { "" };
                match before {
                    // A blank line between the two, where both go to the terminal.
                    Shown::Reasoning { ends_line: true } if self.is_terminal => {
                        format!("{plain}\n{text}")
                    }
                    Shown::Reasoning { ends_line: false } if self.is_terminal => {
                        format!("{plain}\n\n{text}")
                    }
                    _ => text.clone(),
                }
            }
        }
    }

    /// What closes the answer.
    fn ending(&self) -> &'static str {
        match self.shown {
            Shown::Nothing | Shown::Content { ends_line: true } => "",
            Shown::Content { ends_line: false } => "\n",
            Shown::Reasoning { ends_line: true } if self.has_colour => PLAIN,
            Shown::Reasoning { ends_line: true } => "",
            Shown::Reasoning { ends_line: false } if self.has_colour => "\x1b[0m\n",
            Shown::Reasoning { ends_line: false } => "\n",
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(has_colour: bool, is_terminal: bool, pieces: &[Piece]) -> String {
        let shown = Shown::Nothing;
        let mut screen = Screen { has_colour, is_terminal, is_interactive: false, shown };
        let text: String = pieces.iter().map(|piece| screen.styled(piece)).collect();
        text + screen.ending()
    }

    fn reasoning(text: &str) -> Piece {
        Piece::Reasoning(text.to_owned())
    }

    fn content(text: &str) -> Piece {
        Piece::Content(text.to_owned())
    }

    #[test]
    fn reasoning_is_dim_once_and_a_blank_line_precedes_the_answer() {
        let pieces = [reasoning("a"), reasoning("b\n"), content("c"), content("d")];
        assert_eq!(shown(true, true, &pieces), "\x1b[2mab\n\x1b[0m\ncd\n");
        assert_eq!(shown(false, true, &pieces), "ab\n\ncd\n");
        let pieces = [reasoning("a"), content("c\n")];
        assert_eq!(shown(true, true, &pieces), "\x1b[2ma\x1b[0m\n\nc\n");
    }

    #[test]
    fn a_stopped_answer_leaves_the_terminal_plain_and_at_the_left() {
        assert_eq!(shown(true, true, &[reasoning("a")]), "\x1b[2ma\x1b[0m\n");
        assert_eq!(shown(true, true, &[reasoning("a\n")]), "\x1b[2ma\n\x1b[0m");
        assert_eq!(shown(true, true, &[]), "");
    }

    #[test]
    fn what_is_not_a_terminal_gets_the_bare_answer() {
        assert_eq!(shown(false, false, &[reasoning("a\n"), content("c")]), "a\nc\n");
    }
}
