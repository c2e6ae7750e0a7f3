//! PTX text as tokens.

use crate::ptx::error::{Problem, PtxError};

/// A token and the line that it stands on, from 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub kind: Kind,
    pub line: u32,
}

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// An opcode, directive, name, register or label: anything that starts with a letter or one
    /// of `. _ $ %`.
    Word(String),
    Integer(i64),
    /// The bits of a `0f` literal.
    Single(u32),
    /// The bits of a `0d` literal, or of a decimal one with a point.
    Double(u64),
    Text(String),
    Punctuation(char),
}

impl Kind {
    /// As it was written, about.
    pub(super) fn text(&self) -> String {
        match self {
            Kind::Word(word) => word.clone(),
            Kind::Integer(value) => value.to_string(),
            Kind::Single(bits) => format!("0f{bits:08X}"),
            Kind::Double(bits) => format!("0d{bits:016X}"),
            Kind::Text(text) => format!("{text:?}"),
            Kind::Punctuation(c) => c.to_string(),
        }
    }
}

/// Cuts a text into tokens; comments are gone.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, PtxError> {
    let mut lexer = Lexer { bytes: text.as_bytes(), at: 0, line: 1 };
    let mut tokens = Vec::new();
    while lexer.skip_blanks()? {
        let line = lexer.line;
        let kind = lexer.token()?;
        tokens.push(Token { kind, line });
    }
    Ok(tokens)
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'.' | b'_' | b'$' | b'%')
}

fn continues_word(byte: u8) -> bool {
    starts_word(byte) || byte.is_ascii_digit()
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn refuse(&self, found: String, expected: &'static str) -> PtxError {
        let problem = Problem::Syntax { found: found.clone(), expected };
        PtxError { line: self.line, text: found, problem }
    }

    /// Goes on to the next token; tells whether there is one.
    fn skip_blanks(&mut self) -> Result<bool, PtxError> {
        while self.at < self.bytes.len() {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (b'/', b'/') => {
                    while self.at < self.bytes.len() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                (b'/', b'*') => {
                    while (self.peek(0), self.peek(1)) != (b'*', b'/') {
                        if self.at >= self.bytes.len() {
                            return Err(self.refuse("end of text".into(), "the comment's end"));
                        }
                        self.line += u32::from(self.peek(0) == b'\n');
                        self.at += 1;
                    }
                    self.at += 2;
                }
                // NVRTC ends its text with a zero byte.
                (byte, _) if byte.is_ascii_whitespace() || byte == 0 => self.at += 1,
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    fn token(&mut self) -> Result<Kind, PtxError> {
        let first = self.peek(0);
        if starts_word(first) && !(first == b'.' && self.peek(1).is_ascii_digit()) {
            return Ok(Kind::Word(self.word()));
        }
        if first.is_ascii_digit() {
            return self.number();
        }
        if first == b'"' {
            return self.quoted();
        }
        self.at += 1;
        if b",;:{}[]()<>=+-@!|".contains(&first) {
            Ok(Kind::Punctuation(first as char))
        } else {
            Err(self.refuse((first as char).to_string(), "a token"))
        }
    }

    /// A word; `::` joins two of them, as in `shared::cluster`.
    fn word(&mut self) -> String {
        let start = self.at;
        while continues_word(self.peek(0))
            || (self.peek(0) == b':' && self.peek(1) == b':' && continues_word(self.peek(2)))
        {
            self.at += if self.peek(0) == b':' { 2 } else { 1 };
        }
        String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned()
    }

    fn quoted(&mut self) -> Result<Kind, PtxError> {
        let start = self.at + 1;
        self.at = start;
        while self.peek(0) != b'"' {
            if self.at >= self.bytes.len() {
                return Err(self.refuse("end of text".into(), "a closing quote"));
            }
            self.at += if self.peek(0) == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        let text = String::from_utf8_lossy(&self.bytes[start..self.at - 1]).into_owned();
        Ok(Kind::Text(text))
    }

    fn number(&mut self) -> Result<Kind, PtxError> {
        let start = self.at;
        while self.peek(0).is_ascii_alphanumeric()
            || self.peek(0) == b'.'
            || (matches!(self.peek(0), b'+' | b'-') && self.follows_exponent(start))
        {
            self.at += 1;
        }
        let text = String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned();
        parse_number(&text).ok_or_else(|| self.refuse(text, "a number"))
    }

    /// Whether the byte before is the `e` of a decimal number.
    fn follows_exponent(&self, start: usize) -> bool {
        let read = &self.bytes[start..self.at];
        read.contains(&b'.') && matches!(read.last(), Some(b'e' | b'E'))
    }
}

fn parse_number(text: &str) -> Option<Kind> {
    let prefix = text.get(..2).unwrap_or("");
    let digits = text.get(2..).unwrap_or("");
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    match prefix {
        "0f" | "0F" => return Some(Kind::Single(u32::from_str_radix(digits, 16).ok()?)),
        "0d" | "0D" => return Some(Kind::Double(hex(digits)?)),
        "0x" | "0X" => {
            return Some(Kind::Integer(hex(digits.trim_end_matches(['U', 'u']))? as i64));
        }
        "0b" | "0B" => {
            let digits = digits.trim_end_matches(['U', 'u']);
            return Some(Kind::Integer(u64::from_str_radix(digits, 2).ok()? as i64));
        }
        _ => {}
    }
    if text.contains('.') {
        return Some(Kind::Double(text.parse::<f64>().ok()?.to_bits()));
    }
    let digits = text.trim_end_matches(['U', 'u']);
    let is_octal = digits.len() > 1 && digits.starts_with('0');
    let value = u64::from_str_radix(digits, if is_octal { 8 } else { 10 }).ok()?;
    Some(Kind::Integer(value as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Kind> {
        tokens(text).unwrap().into_iter().map(|token| token.kind).collect()
    }

    fn word(text: &str) -> Kind {
        Kind::Word(text.to_owned())
    }

    #[test]
    fn words_keep_their_dots_and_scopes() {
        let expected = vec![
            word("cp.async.bulk.shared::cluster.global"),
            Kind::Punctuation('['),
            word("%rd1"),
            Kind::Punctuation('+'),
            Kind::Punctuation('-'),
            Kind::Integer(4),
            Kind::Punctuation(']'),
            Kind::Punctuation(';'),
        ];
        assert_eq!(kinds("cp.async.bulk.shared::cluster.global [%rd1+-4];"), expected);
        assert_eq!(kinds("$L_1: // x"), vec![word("$L_1"), Kind::Punctuation(':')]);
    }

    #[test]
    fn numbers_of_all_spellings() {
        let expected = vec![
            Kind::Single(0x3f80_0000),
            Kind::Double(0x3ff0_0000_0000_0000),
            Kind::Integer(31),
            Kind::Integer(-1),
            Kind::Integer(8),
            Kind::Integer(5),
            Kind::Double(1.5f64.to_bits()),
        ];
        let text = "0f3F800000 0d3FF0000000000000 0x1F 0xFFFFFFFFFFFFFFFF 010 0b101 1.5";
        assert_eq!(kinds(text), expected);
    }

    #[test]
    fn lines_count_through_comments() {
        let tokens = tokens("a /* \n\n */ b // c\n d").unwrap();
        assert_eq!(tokens.iter().map(|token| token.line).collect::<Vec<_>>(), [1, 3, 4]);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let error = tokens("mov ?").unwrap_err();
        assert_eq!((error.line, error.text.as_str()), (1, "?"));
    }
}
