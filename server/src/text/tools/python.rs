//! A call as Ultra writes it: `f(a=1, b="x", c=[True, None], d={"k": 2.5})`, Python's literals as
//! keyword arguments.

use std::iter::Peekable;
use std::str::CharIndices;

use serde_json::{Map, Number, Value};

use super::{N_NESTED_MAX, ToolCall};

/// Reads a call; `None` where it is none.
pub(super) fn call(text: &str) -> Option<ToolCall> {
    let mut reader = Reader { text, chars: text.char_indices().peekable(), n_nested: 0 };
    let name = reader.dotted_name()?;
    reader.expect('(')?;
    let mut arguments = Map::new();
    reader.list(')', |reader| {
        let name = reader.name()?;
        reader.expect('=')?;
        let value = reader.value()?;
        // Python refuses a keyword that is repeated.
        arguments.insert(name, value).is_none().then_some(())
    })?;
    reader.blanks();
    let is_whole = reader.chars.next().is_none();
    is_whole.then(|| ToolCall { name, arguments: Value::Object(arguments).to_string() })
}

struct Reader<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    n_nested: usize,
}

impl Reader<'_> {
    fn blanks(&mut self) {
        while self.chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
    }

    fn peek(&mut self) -> Option<char> {
        self.blanks();
        self.chars.peek().map(|&(_, c)| c)
    }

    fn expect(&mut self, wanted: char) -> Option<()> {
        self.blanks();
        self.chars.next_if(|&(_, c)| c == wanted).map(drop)
    }

    /// Items between commas up to `end`, which is taken; a comma may stand before it.
    fn list(&mut self, end: char, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        loop {
            if self.peek()? == end {
                return self.expect(end);
            }
            item(self)?;
            if self.peek()? != end {
                self.expect(',')?;
            }
        }
    }

    fn word(&mut self, is_part: impl Fn(char) -> bool) -> &str {
        self.blanks();
        let begin = self.chars.peek().map_or(self.text.len(), |&(at, _)| at);
        let mut end = begin;
        while let Some((at, c)) = self.chars.next_if(|&(_, c)| is_part(c)) {
            end = at + c.len_utf8();
        }
        &self.text[begin..end]
    }

    fn name(&mut self) -> Option<String> {
        let word = self.word(|c| c.is_alphanumeric() || c == '_');
        let is_name = word.starts_with(|c: char| c.is_alphabetic() || c == '_');
        is_name.then(|| word.to_owned())
    }

    /// A tool's name, which may also have dots and dashes.
    fn dotted_name(&mut self) -> Option<String> {
        let word = self.word(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-'));
        let is_name = word.starts_with(|c: char| c.is_alphabetic() || c == '_');
        is_name.then(|| word.to_owned())
    }

    fn value(&mut self) -> Option<Value> {
        match self.peek()? {
            '"' | '\'' => self.string().map(Value::String),
            '[' => self.nested('[', ']'),
            '(' => self.nested('(', ')'),
            '{' => self.dictionary(),
            c if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => self.number(),
            // Models mix the notations of Python and JSON.
            _ => match self.name()?.as_str() {
                "True" | "true" => Some(Value::Bool(true)),
                "False" | "false" => Some(Value::Bool(false)),
                "None" | "null" => Some(Value::Null),
                _ => None,
            },
        }
    }

    fn deeper(&mut self) -> Option<()> {
        self.n_nested += 1;
        (self.n_nested <= N_NESTED_MAX).then_some(())
    }

    fn nested(&mut self, begin: char, end: char) -> Option<Value> {
        self.deeper()?;
        self.expect(begin)?;
        let mut items = Vec::new();
        self.list(end, |reader| {
            items.push(reader.value()?);
            Some(())
        })?;
        self.n_nested -= 1;
        Some(Value::Array(items))
    }

    fn dictionary(&mut self) -> Option<Value> {
        self.deeper()?;
        self.expect('{')?;
        let mut members = Map::new();
        self.list('}', |reader| {
            reader.peek()?;
            let key = reader.string()?;
            reader.expect(':')?;
            members.insert(key, reader.value()?);
            Some(())
        })?;
        self.n_nested -= 1;
        Some(Value::Object(members))
    }

    fn number(&mut self) -> Option<Value> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.' | '_');
        let word = self.word(is_part).replace('_', "");
        if let Ok(whole) = word.parse::<i64>() {
            return Some(whole.into());
        }
        if let Ok(whole) = word.parse::<u64>() {
            return Some(whole.into());
        }
        // `inf` and `nan` are numbers to Rust, and names to Python.
        let is_number =
            !word.contains(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'e' | 'E'));
        let float = is_number.then(|| word.parse::<f64>().ok())??;
        Number::from_f64(float).map(Value::Number)
    }

    fn string(&mut self) -> Option<String> {
        let (_, quote) = self.chars.next_if(|&(_, c)| c == '"' || c == '\'')?;
        let mut text = String::new();
        loop {
            match self.chars.next()?.1 {
                c if c == quote => return Some(text),
                '\\' => text.extend(self.escaped()?),
                c => text.push(c),
            }
        }
    }

    /// What a backslash and what follows it stand for; nothing for one at a line's end.
    fn escaped(&mut self) -> Option<Option<char>> {
        let c = self.chars.next()?.1;
        let plain = match c {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            '0' => '\0',
            '\n' => return Some(None),
            '\\' | '\'' | '"' | '/' => c,
            'x' => return self.code(2).map(Some),
            'u' => return self.unit().map(Some),
            'U' => return self.code(8).map(Some),
            _ => return None,
        };
        Some(Some(plain))
    }

    fn hex(&mut self, n_digits: usize) -> Option<u32> {
        (0..n_digits).try_fold(0, |code: u32, _| {
            Some(code.checked_mul(16)? + self.chars.next()?.1.to_digit(16)?)
        })
    }

    fn code(&mut self, n_digits: usize) -> Option<char> {
        char::from_u32(self.hex(n_digits)?)
    }

    /// A character of one unit of UTF-16, or of two, as JSON writes it.
    fn unit(&mut self) -> Option<char> {
        let high = self.hex(4)?;
        if !(0xD800..0xDC00).contains(&high) {
            return char::from_u32(high);
        }
        self.chars.next_if(|&(_, c)| c == '\\')?;
        self.chars.next_if(|&(_, c)| c == 'u')?;
        let low = self.hex(4)?;
        if !(0xDC00..0xE000).contains(&low) {
            return None;
        }
        char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    }
}
