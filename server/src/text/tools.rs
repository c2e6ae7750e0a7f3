//! Tool calls in an answer, in both forms that the family writes: JSON,
//! `<TOOLCALL>[{"name": "f", "arguments": {"a": 1}}]</TOOLCALL>` (Super v1.5, Nano), and Python,
//! `<TOOLCALL>[f(a=1), g()]</TOOLCALL>` (Ultra). It knows text only: neither tokens nor which tools
//! there are.

mod json;
mod python;

use std::mem;

const OPEN: &str = "<TOOLCALL>";
const CLOSE: &str = "</TOOLCALL>";

/// Text that is held while it may yet become a call; what is longer is no call.
const N_HELD_BYTES_MAX: usize = 128 << 10;

/// Lists and objects within each other in a call's arguments at most.
const N_NESTED_MAX: usize = 64;

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolPiece {
    /// Text; never empty.
    Text(String),
    /// A call.
    Call(ToolCall),
}

/// Tells calls from text in an answer that arrives in pieces. However it is cut, the same calls and
/// the same text come out:
///
/// - a call is told as soon as it is complete, also before its section is;
/// - what is malformed is text, from the section's beginning or the last call that was complete;
/// - white space around a section is dropped.
#[derive(Clone, Debug)]
pub struct ToolCallParser {
    state: State,
    /// Text whose kind is not decided yet.
    held: String,
    /// Bytes of it that were looked at, and what was found there.
    scan: Scan,
    n_calls: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Outside a section; whether one came right before.
    Text { after_section: bool },
    /// After `<TOOLCALL>`: a list must begin.
    Opened,
    /// In the list, where a call may begin; whether one must, after a comma.
    Call { is_first: bool },
    /// After a call: a comma or the list's end.
    Next,
    /// After the list: `</TOOLCALL>`.
    Closing,
}

/// How far a call was looked at: each byte is looked at once, however the text arrives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Scan {
    n_seen: usize,
    n_open: usize,
    /// The quote that a string began with.
    quote: Option<u8>,
    is_escaped: bool,
}

/// What one look led to.
enum Step {
    /// Something was decided.
    Done,
    /// It takes more text.
    More,
    /// This is no call.
    Malformed,
}

impl ToolCallParser {
    /// For the text after the reasoning.
    pub fn new() -> ToolCallParser {
        ToolCallParser {
            state: State::Text { after_section: false },
            held: String::new(),
            scan: Scan::default(),
            n_calls: 0,
        }
    }

    /// Calls told so far.
    pub fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// Takes the next piece of the answer and returns what is decided, in order.
    pub fn push(&mut self, piece: &str) -> Vec<ToolPiece> {
        self.held.push_str(piece);
        let mut pieces = Vec::new();
        loop {
            let step = match self.state {
                State::Text { after_section } => self.text(after_section, &mut pieces),
                _ if self.held.len() > N_HELD_BYTES_MAX => Step::Malformed,
                State::Opened => self.opened(),
                State::Call { is_first } => self.call(is_first, &mut pieces),
                State::Next => self.next(),
                State::Closing => self.closing(),
            };
            match step {
                Step::Done => {}
                Step::More => return pieces,
                Step::Malformed => self.give_up(&mut pieces),
            }
        }
    }

    /// The answer is over: what is left, if anything.
    pub fn finish(&mut self) -> Option<ToolPiece> {
        let held = mem::take(&mut self.held);
        let state = mem::replace(&mut self.state, State::Text { after_section: false });
        self.scan = Scan::default();
        let is_dropped = match state {
            State::Text { after_section } => after_section && held.trim().is_empty(),
            // Cut off after a call: what was missing says nothing.
            State::Next | State::Closing => is_rest_of_section(&held),
            State::Call { is_first: false } => {
                held.trim_start().trim_start_matches(',').trim() == ""
            }
            State::Opened | State::Call { .. } => false,
        };
        (!held.is_empty() && !is_dropped).then_some(ToolPiece::Text(held))
    }

    /// Outside a section: everything is passed on but white space and what may be `<TOOLCALL>`.
    fn text(&mut self, after_section: bool, pieces: &mut Vec<ToolPiece>) -> Step {
        if let Some(begin) = self.held.find(OPEN) {
            let before = self.held[..begin].trim_end().to_owned();
            let before = if after_section { before.trim_start().to_owned() } else { before };
            push_text(pieces, before);
            // The tag stays: it is text again if this is no call.
            self.held.drain(..begin);
            self.state = State::Opened;
            self.scan.n_seen = OPEN.len();
            return Step::Done;
        }
        let n_partial = (1..OPEN.len()).rev().find(|&n| self.held.ends_with(&OPEN[..n]));
        let n_kept = n_partial.unwrap_or(0);
        let decided = &self.held[..self.held.len() - n_kept];
        let n_text = decided.trim_end().len();
        if n_text > 0 {
            let kept = self.held.split_off(n_text);
            let text = mem::replace(&mut self.held, kept);
            let text = if after_section { text.trim_start().to_owned() } else { text };
            push_text(pieces, text);
            self.state = State::Text { after_section: false };
        }
        Step::More
    }

    fn opened(&mut self) -> Step {
        match self.mark(b"[") {
            Mark::Found(_) => self.state = State::Call { is_first: true },
            Mark::Missing => return Step::More,
            Mark::Other => return Step::Malformed,
        }
        Step::Done
    }

    fn call(&mut self, is_first: bool, pieces: &mut Vec<ToolPiece>) -> Step {
        let begin = self.element_begin();
        match self.held.as_bytes().get(begin) {
            None => Step::More,
            // An empty list is no call.
            Some(b']') if is_first => Step::Malformed,
            Some(_) => self.element(begin, pieces),
        }
    }

    /// Looks for the end of the call that begins at `begin`.
    fn element(&mut self, begin: usize, pieces: &mut Vec<ToolPiece>) -> Step {
        let mut at = self.scan.n_seen.max(begin);
        let bytes = self.held.as_bytes();
        while at < bytes.len() {
            match self.scan.take(bytes[at]) {
                Step::Done => {
                    let element = &self.held[begin..=at];
                    let call = match element.starts_with('{') {
                        true => json::call(element),
                        false => python::call(element),
                    };
                    let Some(call) = call else { return Step::Malformed };
                    pieces.push(ToolPiece::Call(call));
                    self.n_calls += 1;
                    self.held.drain(..=at);
                    self.scan = Scan::default();
                    self.state = State::Next;
                    return Step::Done;
                }
                Step::Malformed => return Step::Malformed,
                Step::More => at += 1,
            }
        }
        self.scan.n_seen = at;
        Step::More
    }

    /// Where the call begins: behind the tag, the list's beginning and white space.
    fn element_begin(&self) -> usize {
        let mut begin = 0;
        if self.held.starts_with(OPEN) {
            begin = self.held.find('[').map_or(0, |at| at + 1);
        } else if self.held.trim_start().starts_with(',') {
            begin = self.held.find(',').map_or(0, |at| at + 1);
        }
        let rest = &self.held.as_bytes()[begin..];
        begin + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
    }

    fn next(&mut self) -> Step {
        match self.mark(b",]") {
            Mark::Found(b',') => self.state = State::Call { is_first: false },
            Mark::Found(_) => self.state = State::Closing,
            Mark::Missing => return Step::More,
            Mark::Other => return Step::Malformed,
        }
        Step::Done
    }

    fn closing(&mut self) -> Step {
        let rest = self.held[self.scan.n_seen..].trim_start();
        if let Some(after) = rest.strip_prefix(CLOSE) {
            self.held = after.to_owned();
            self.scan = Scan::default();
            self.state = State::Text { after_section: true };
            return Step::Done;
        }
        if CLOSE.starts_with(rest) { Step::More } else { Step::Malformed }
    }

    /// Skips white space up to one of some characters.
    fn mark(&mut self, wanted: &[u8]) -> Mark {
        let bytes = self.held.as_bytes();
        while let Some(&byte) = bytes.get(self.scan.n_seen) {
            self.scan.n_seen += 1;
            match byte {
                byte if byte.is_ascii_whitespace() => {}
                byte if wanted.contains(&byte) => return Mark::Found(byte),
                _ => return Mark::Other,
            }
        }
        Mark::Missing
    }

    /// The section is no calls from here on: its first character is text, and what follows is
    /// looked at anew.
    fn give_up(&mut self, pieces: &mut Vec<ToolPiece>) {
        let n_first = self.held.chars().next().map_or(0, char::len_utf8);
        push_text(pieces, self.held.drain(..n_first).collect());
        self.scan = Scan::default();
        self.state = State::Text { after_section: false };
    }
}

impl Default for ToolCallParser {
    fn default() -> ToolCallParser {
        ToolCallParser::new()
    }
}

enum Mark {
    Found(u8),
    Missing,
    Other,
}

impl Scan {
    /// Takes a call's next byte: done where it closes the outermost bracket.
    fn take(&mut self, byte: u8) -> Step {
        if let Some(quote) = self.quote {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                _ if byte == quote => self.quote = None,
                _ => {}
            }
            return Step::More;
        }
        match byte {
            b'"' | b'\'' => {
                // A call begins with a name or an object.
                if self.n_open == 0 {
                    return Step::Malformed;
                }
                self.quote = Some(byte);
            }
            b'{' | b'[' | b'(' => {
                self.n_open += 1;
                if self.n_open > N_NESTED_MAX {
                    return Step::Malformed;
                }
            }
            b'}' | b']' | b')' => match self.n_open {
                0 => return Step::Malformed,
                1 => return Step::Done,
                _ => self.n_open -= 1,
            },
            b',' | b'<' if self.n_open == 0 => return Step::Malformed,
            _ => {}
        }
        Step::More
    }
}

/// Adds text, to the last piece where that is text.
fn push_text(pieces: &mut Vec<ToolPiece>, text: String) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(ToolPiece::Text(last)) => last.push_str(&text),
        _ => pieces.push(ToolPiece::Text(text)),
    }
}

/// Whether a text is what remains of a section after its last call, or a part of that.
fn is_rest_of_section(text: &str) -> bool {
    let text = text.trim_start();
    let after_list = text.strip_prefix(']').map(str::trim_start);
    text.is_empty() || after_list.is_some_and(|rest| CLOSE.starts_with(rest))
}

#[cfg(test)]
mod tests;
