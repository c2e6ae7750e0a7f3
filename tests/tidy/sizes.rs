//! How long lines, functions and files may be. What is longer is on a list that only shrinks.

use crate::finding::Finding;
use crate::source::Source;

const N_COLUMNS_MAX: usize = 100;
const N_FUNCTION_LINES_MAX: usize = 70;
const N_FILE_LINES_MAX: usize = 400;

/// Something that is longer than it may be, and how long.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Excess {
    pub(crate) path: String,
    /// The function; `None` for the file.
    pub(crate) function: Option<String>,
    pub(crate) line_idx: usize,
    pub(crate) n_lines: usize,
}

/// What is over its limit for now. The numbers may be lowered, never raised, and nothing may be
/// added: split what grows instead.
pub(crate) struct Exception {
    pub(crate) path: &'static str,
    /// The function; `None` for the file.
    pub(crate) function: Option<&'static str>,
    pub(crate) n_lines: usize,
}

pub(crate) const EXCEPTIONS: &[Exception] = &[];

/// Lines that are too wide. The lines within a text, and links, are as wide as they are.
pub(crate) fn columns(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line_idx, line) in source.text.lines().enumerate() {
        let n_columns = line.chars().count();
        let comment = &source.comments[line_idx];
        let within_text = source.code[line_idx].trim().is_empty() && comment.trim().is_empty();
        if n_columns > N_COLUMNS_MAX && !within_text && !comment.contains("://") {
            let problem = format!("{n_columns} columns, at most {N_COLUMNS_MAX}");
            findings.push(Finding::at(&source.path, line_idx, problem, "break the line"));
        }
    }
    findings
}

/// A file that does not say what it is for.
pub(crate) fn purpose(source: &Source) -> Vec<Finding> {
    let first = source.text.lines().position(|line| !line.trim().is_empty());
    let first_idx = first.unwrap_or(0);
    if source.text.lines().nth(first_idx).is_some_and(|line| line.starts_with("//!")) {
        return Vec::new();
    }
    let remedy = "begin with `//!`: what the module is for, and what it does not know";
    vec![Finding::at(&source.path, first_idx, "no purpose stated".to_owned(), remedy)]
}

/// The file and its functions, as far as they are too long.
pub(crate) fn excesses(source: &Source) -> Vec<Excess> {
    let mut found = Vec::new();
    let mut add = |function: Option<String>, line_idx, n_lines| {
        found.push(Excess { path: source.path.clone(), function, line_idx, n_lines });
    };
    let n_test_lines: usize = source.test_lines().iter().map(ExactSizeIterator::len).sum();
    let n_lines = source.text.lines().count() - n_test_lines;
    if n_lines > N_FILE_LINES_MAX && !is_unit_tests(&source.path) {
        add(None, 0, n_lines);
    }
    for function in source.functions() {
        let n_lines = function.lines.len();
        if n_lines > N_FUNCTION_LINES_MAX {
            add(Some(function.name), function.lines.start, n_lines);
        }
    }
    found
}

/// A crate's unit tests in a file of their own count as no more than those at a file's end.
fn is_unit_tests(path: &str) -> bool {
    path.contains("/src/") && (path.ends_with("/tests.rs") || path.contains("/tests/"))
}

/// What is too long and not excepted, and exceptions that are no longer what they say.
pub(crate) fn ratchet(excesses: &[Excess], exceptions: &[Exception]) -> Vec<Finding> {
    let excepts = |exception: &Exception, excess: &Excess| {
        exception.path == excess.path && exception.function == excess.function.as_deref()
    };
    let mut findings = Vec::new();
    for excess in excesses {
        let exception = exceptions.iter().find(|exception| excepts(exception, excess));
        let (what, limit) = match &excess.function {
            None => ("the file".to_owned(), N_FILE_LINES_MAX),
            Some(name) => (format!("fn {name}"), N_FUNCTION_LINES_MAX),
        };
        let n_lines_max = exception.map_or(limit, |exception| exception.n_lines);
        if excess.n_lines > n_lines_max {
            let problem = format!("{what} has {} lines, at most {n_lines_max}", excess.n_lines);
            findings.push(Finding::at(&excess.path, excess.line_idx, problem, "split it"));
        }
        if let Some(exception) = exception.filter(|exception| excess.n_lines < exception.n_lines) {
            let problem = format!("{what} is down from {} lines", exception.n_lines);
            let remedy =
                format!("lower its exception in tests/tidy/sizes.rs to {}", excess.n_lines);
            findings.push(Finding::at(&excess.path, excess.line_idx, problem, &remedy));
        }
    }
    for exception in exceptions {
        if !excesses.iter().any(|excess| excepts(exception, excess)) {
            let what = exception.function.unwrap_or("the file");
            let problem = format!("{what} needs no exception any more");
            let remedy = "remove it from tests/tidy/sizes.rs";
            findings.push(Finding::at(exception.path, 0, problem, remedy));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("engine/src/a.rs", text)
    }

    #[test]
    fn lines_are_narrow() {
        let wide = "x".repeat(101);
        assert_eq!(columns(&source(&format!("\n{wide}")))[0].line, 2);
        assert_eq!(columns(&source(&format!("// {wide}"))).len(), 1);
        assert_eq!(columns(&source(&format!("f(\"{wide}\")"))).len(), 1);
        assert_eq!(columns(&source(&"ü".repeat(100))), []);
        assert_eq!(columns(&source(&format!("// https://{wide}"))), []);
        assert_eq!(columns(&source(&format!("r\"\n{wide}\n\""))), []);
    }

    #[test]
    fn files_state_their_purpose() {
        assert_eq!(purpose(&source("//! For a.\nuse b;")), []);
        assert_eq!(purpose(&source("\nuse b;\n//! For a."))[0].line, 2);
        assert_eq!(purpose(&source("/// For a.")).len(), 1);
        assert_eq!(purpose(&source("")).len(), 1);
    }

    fn function(n_lines: usize) -> String {
        format!("\nfn f() {{\n{}}}", "x;\n".repeat(n_lines - 2))
    }

    #[test]
    fn functions_are_short() {
        assert_eq!(excesses(&source(&function(70))), []);
        let found = &excesses(&source(&function(71)))[0];
        assert_eq!((found.function.as_deref(), found.line_idx, found.n_lines), (Some("f"), 1, 71));
    }

    #[test]
    fn files_are_short_without_their_tests() {
        let body = "x;\n".repeat(400);
        let tests = "#[cfg(test)]\nmod tests {\n    x;\n}\n";
        assert_eq!(excesses(&source(&format!("{body}{tests}"))), []);
        assert_eq!(excesses(&source(&format!("{body}x;\n{tests}")))[0].n_lines, 401);
        let long = "x;\n".repeat(401);
        assert_eq!(excesses(&Source::new("engine/src/a/tests.rs", &long)), []);
        assert_eq!(excesses(&Source::new("tests/sim/main.rs", &long)).len(), 1);
    }

    #[test]
    fn exceptions_only_shrink() {
        let found = |n_lines| excesses(&source(&function(n_lines)));
        let exception =
            |n_lines| [Exception { path: "engine/src/a.rs", function: Some("f"), n_lines }];
        assert_eq!(ratchet(&found(80), &exception(80)), []);
        for (n_lines, n_excepted, remedy) in [
            (81, 80, "split it"),
            (79, 80, "lower its exception in tests/tidy/sizes.rs to 79"),
            (70, 80, "remove it from tests/tidy/sizes.rs"),
        ] {
            let findings = ratchet(&found(n_lines), &exception(n_excepted));
            let remedies: Vec<_> = findings.iter().map(|finding| &*finding.remedy).collect();
            assert_eq!(remedies, [remedy]);
        }
        assert_eq!(ratchet(&found(71), &[]).len(), 1);
    }
}
