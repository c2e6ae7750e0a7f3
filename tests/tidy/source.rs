//! A Rust file taken apart: its code, its comments and its literals, line by line.
//!
//! Knows just enough of the language to tell those three apart and to find where functions and
//! test modules end. Whatever else a rule wants to know, it reads off the code.

use std::ops::Range;

/// A file of the workspace.
pub(crate) struct Source {
    /// From the root of the repository, with forward slashes.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The text with comments and the insides of literals blanked, of the same shape.
    pub(crate) code: Vec<String>,
    /// The text with everything but comments blanked.
    pub(crate) comments: Vec<String>,
    pub(crate) literals: Vec<Literal>,
}

/// A string literal.
pub(crate) struct Literal {
    /// Counted from 0.
    pub(crate) line_idx: usize,
    pub(crate) text: String,
}

/// A function with a body.
pub(crate) struct Function {
    pub(crate) name: String,
    /// From `fn` to the closing brace.
    pub(crate) lines: Range<usize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Code,
    Comment,
    Literal,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Source {
        let classes = classify(text.as_bytes());
        let only = |kept: Class| {
            let bytes = text.bytes().zip(&classes);
            let kept = bytes.map(|(b, &class)| if class == kept || b == b'\n' { b } else { b' ' });
            let kept: Vec<u8> = kept.collect();
            String::from_utf8_lossy(&kept).lines().map(str::to_owned).collect()
        };
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            code: only(Class::Code),
            comments: only(Class::Comment),
            literals: literals(text, &classes),
        }
    }

    /// Lines whose code has `word` as a word of its own.
    pub(crate) fn lines_with_word(&self, word: &str) -> impl Iterator<Item = usize> {
        let has = move |line: &String| word_positions(line, word).next().is_some();
        self.code.iter().enumerate().filter(move |(_, line)| has(line)).map(|(idx, _)| idx)
    }

    /// Lines whose code has `text`, which starts and ends wherever it likes.
    pub(crate) fn lines_with(&self, text: &str) -> impl Iterator<Item = usize> {
        let lines = self.code.iter().enumerate();
        lines.filter(move |(_, line)| line.contains(text)).map(|(idx, _)| idx)
    }

    /// Every function with a body, in the order of their first lines.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let mut functions = Vec::new();
        for (line_idx, line) in self.code.iter().enumerate() {
            for at in word_positions(line, "fn") {
                let rest = line[at + 2..].trim_start();
                let name: String = rest.chars().take_while(|&c| is_word(c)).collect();
                if name.is_empty() {
                    continue;
                }
                if let Some(end) = self.end_of_item(line_idx, at) {
                    functions.push(Function { name, lines: line_idx..end });
                }
            }
        }
        functions
    }

    /// Lines of the modules that exist only in tests.
    pub(crate) fn test_lines(&self) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        for line_idx in self.lines_with("#[cfg(test)]") {
            let next = self.code.get(line_idx + 1).map_or("", |line| line.trim());
            if next.starts_with("mod ") {
                // `mod tests;` has no body: its lines are in a file of their own.
                let end = self.end_of_item(line_idx + 1, 0).unwrap_or(line_idx + 2);
                found.push(line_idx..end);
            }
        }
        found
    }

    /// Where the item that starts there ends: behind the line with its closing brace. `None` if a
    /// semicolon comes before any brace.
    fn end_of_item(&self, line_idx: usize, column: usize) -> Option<usize> {
        let mut n_open = 0;
        let mut n_brackets = 0;
        for (idx, line) in self.code.iter().enumerate().skip(line_idx) {
            let from = if idx == line_idx { column } else { 0 };
            for c in line[from..].chars() {
                match c {
                    '{' => n_open += 1,
                    '}' => n_open -= 1,
                    '[' | '(' => n_brackets += 1,
                    ']' | ')' => n_brackets -= 1,
                    ';' if n_open == 0 && n_brackets == 0 => return None,
                    _ => continue,
                }
                if c == '}' && n_open == 0 {
                    return Some(idx + 1);
                }
            }
        }
        None
    }
}

/// Where `word` stands in `line` with nothing of a word around it.
pub(crate) fn word_positions<'a>(line: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    line.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What each byte belongs to. Quotes and prefixes of literals count as code.
fn classify(text: &[u8]) -> Vec<Class> {
    let mut classes = vec![Class::Code; text.len()];
    let mut at = 0;
    while at < text.len() {
        let (class, inside, next) = token(text, at);
        classes[inside].fill(class);
        at = next;
    }
    classes
}

/// The token at `at`: its class, the bytes inside it, and where the next one starts.
fn token(text: &[u8], at: usize) -> (Class, Range<usize>, usize) {
    let rest = &text[at..];
    if rest.starts_with(b"//") {
        let end = at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
        return (Class::Comment, at..end, end);
    }
    if rest.starts_with(b"/*") {
        let end = end_of_block_comment(text, at);
        return (Class::Comment, at..end, end);
    }
    let starts_word = at == 0 || !is_word(char::from(text[at - 1]));
    if starts_word && let Some(n_hashes) = raw_string_hashes(rest) {
        let open = at + rest.iter().position(|&b| b == b'"').expect("a raw string has a quote") + 1;
        let closing = [b"\"".as_slice(), &b"#".repeat(n_hashes)].concat();
        let n_inside = text[open..].windows(closing.len()).position(|window| window == closing);
        let end = open + n_inside.unwrap_or(text.len() - open);
        return (Class::Literal, open..end, (end + closing.len()).min(text.len()));
    }
    match rest[0] {
        b'"' => {
            let end = end_of_quoted(text, at + 1, b'"');
            (Class::Literal, at + 1..end, (end + 1).min(text.len()))
        }
        b'\'' if is_char_literal(rest) => {
            let end = end_of_quoted(text, at + 1, b'\'');
            (Class::Literal, at + 1..end, (end + 1).min(text.len()))
        }
        _ => (Class::Code, at..at + 1, at + 1),
    }
}

fn end_of_block_comment(text: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < text.len() {
        match &text[at..] {
            [b'/', b'*', ..] => depth += 1,
            [b'*', b'/', ..] => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            break;
        }
    }
    at
}

/// The hashes of a raw string that starts here, with `r`, `br` or `cr`.
fn raw_string_hashes(rest: &[u8]) -> Option<usize> {
    let prefix = [b"r".as_slice(), b"br", b"cr"].into_iter().find(|p| rest.starts_with(p))?;
    let rest = &rest[prefix.len()..];
    let n_hashes = rest.iter().take_while(|&&b| b == b'#').count();
    (rest.get(n_hashes) == Some(&b'"')).then_some(n_hashes)
}

fn end_of_quoted(text: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start;
    while at < text.len() && text[at] != quote {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at.min(text.len())
}

/// Tells `'a'` from the lifetime `'a`.
fn is_char_literal(rest: &[u8]) -> bool {
    let after_quote = String::from_utf8_lossy(&rest[1..rest.len().min(8)]);
    let mut chars = after_quote.chars();
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

fn literals(text: &str, classes: &[Class]) -> Vec<Literal> {
    let mut found = Vec::new();
    let (mut at, mut line_idx) = (0, 0);
    for run in classes.chunk_by(|a, b| a == b) {
        let part = &text.as_bytes()[at..at + run.len()];
        if run[0] == Class::Literal {
            let text = String::from_utf8_lossy(part).into_owned();
            found.push(Literal { line_idx, text });
        }
        line_idx += part.iter().filter(|&&b| b == b'\n').count();
        at += run.len();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        let source = Source::new("a.rs", text);
        source.code.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        for (text, expected) in [
            ("a // b", "a"),
            ("a /* b /* c */ d */ e", "a                   e"),
            ("f(\"// x\") // y", "f(\"    \")"),
            ("\"a\\\"b\" c", "\"    \" c"),
            ("r#\"a\"b\"# c", "r#\"   \"# c"),
            ("br\"a\\\" c", "br\"  \" c"),
            ("'\"' a '\\'' b", "' ' a '  ' b"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("\"a\nb\" c", "\"| \" c"),
            ("for\"x\"", "for\" \""),
        ] {
            assert_eq!(code(text), expected, "{text}");
        }
    }

    #[test]
    fn literals_know_their_lines() {
        let source = Source::new("a.rs", "a\n\"x\"; r\"y\"\n\"\"\n\"ü\nv\" \"z\"");
        let found: Vec<_> = source.literals.iter().map(|l| (l.line_idx, &*l.text)).collect();
        assert_eq!(found, [(1, "x"), (1, "y"), (3, "ü\nv"), (4, "z")]);
    }

    #[test]
    fn functions_end_at_their_brace() {
        let text = "trait T { fn a(x: [u8; 2]); }\nimpl S {\n\
                    fn b() -> Vec<fn(u8)> {\n    {}\n  }\nfn c() {}\n}";
        let source = Source::new("a.rs", text);
        let found: Vec<_> = source
            .functions()
            .into_iter()
            .map(|f| (f.name, f.lines.start, f.lines.len()))
            .collect();
        assert_eq!(found, [("b".to_owned(), 2, 3), ("c".to_owned(), 5, 1)]);
    }

    #[test]
    fn test_modules_are_found() {
        for (text, expected) in [
            ("a\n#[cfg(test)]\nmod tests {\n  {}\n}\nb", 1..5),
            ("a\n#[cfg(test)]\nmod tests;\nb {}", 1..3),
        ] {
            assert_eq!(Source::new("a.rs", text).test_lines(), vec![expected]);
        }
    }

    #[test]
    fn words_stand_alone() {
        let source = Source::new("a.rs", "unsafe {}\nunsafe_code\nis_unsafe // unsafe");
        assert_eq!(source.lines_with_word("unsafe").collect::<Vec<_>>(), [0]);
    }
}
