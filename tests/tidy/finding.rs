//! What a rule has to say about a line.

use std::fmt;

/// A rule that is broken somewhere.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    pub(crate) path: String,
    /// Counted from 1, as editors do.
    pub(crate) line: usize,
    pub(crate) problem: String,
    pub(crate) remedy: String,
}

impl Finding {
    /// About the line at `line_idx`, counted from 0.
    pub(crate) fn at(path: &str, line_idx: usize, problem: String, remedy: &str) -> Finding {
        Finding { path: path.to_owned(), line: line_idx + 1, problem, remedy: remedy.to_owned() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; {}", self.path, self.line, self.problem, self.remedy)
    }
}
