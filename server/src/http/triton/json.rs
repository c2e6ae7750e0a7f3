//! Reading JSON as Triton's server does: members in order and with repetitions, and complaints in
//! the words of its parser, RapidJSON, at the same offsets.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::error::Refusal;

/// An object's members as they stand in the text.
pub(super) struct Members(pub(super) Vec<(String, Value)>);

/// Reads an object.
///
/// # Errors
/// The text is no JSON, or no object.
pub(super) fn members(body: &[u8]) -> Result<Members, Refusal> {
    serde_json::from_slice(body).map_err(|_| complaint(body).unwrap_or(Refusal::NotAnObject))
}

/// The members of a value; what is no object has none.
///
/// # Errors
/// The text is no JSON.
pub(super) fn members_if_any(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match value(body)? {
        Value::Object(members) => Ok(members),
        _ => Ok(Map::new()),
    }
}

/// Reads any value.
///
/// # Errors
/// The text is no JSON.
pub(super) fn value(body: &[u8]) -> Result<Value, Refusal> {
    let unknown = Refusal::Malformed { problem: "Invalid value.", at: 0 };
    serde_json::from_slice(body).map_err(|_| complaint(body).unwrap_or(unknown))
}

/// RapidJSON's complaint about a text; a text in another encoding than UTF-8, which it does not ask
/// about, is told in its words too.
fn complaint(body: &[u8]) -> Option<Refusal> {
    let mut scanner = Scanner { body, at: 0 };
    if let Err(refusal) = scanner.document() {
        return Some(refusal);
    }
    let at = std::str::from_utf8(body).err()?.valid_up_to();
    Some(Refusal::Malformed { problem: "Invalid encoding in string.", at })
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// Levels of nesting beyond which the scanner gives up, as serde_json does.
const DEPTH_MAX: usize = 128;

/// Finds RapidJSON's complaint about a text that serde_json has refused. Only then it runs, so it
/// is written for its messages, not for speed.
struct Scanner<'a> {
    body: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn document(&mut self) -> Result<(), Refusal> {
        self.blanks();
        if self.peek().is_none() {
            return Err(self.problem("The document is empty."));
        }
        self.value(0)?;
        self.blanks();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.problem("The document root must not be followed by other values.")),
        }
    }

    fn value(&mut self, depth: usize) -> Result<(), Refusal> {
        if depth > DEPTH_MAX {
            return Err(self.problem("Terminate parsing due to Handler error."));
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string(),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            _ => self.number(),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), Refusal> {
        self.at += 1;
        self.blanks();
        if self.took(b'}') {
            return Ok(());
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.problem("Missing a name for object member."));
            }
            self.string()?;
            self.blanks();
            if !self.took(b':') {
                return Err(self.problem("Missing a colon after a name of object member."));
            }
            self.blanks();
            self.value(depth + 1)?;
            self.blanks();
            if self.took(b'}') {
                return Ok(());
            }
            if !self.took(b',') {
                return Err(self.problem("Missing a comma or '}' after an object member."));
            }
            self.blanks();
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), Refusal> {
        self.at += 1;
        self.blanks();
        if self.took(b']') {
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            self.blanks();
            if self.took(b']') {
                return Ok(());
            }
            if !self.took(b',') {
                return Err(self.problem("Missing a comma or ']' after an array element."));
            }
            self.blanks();
        }
    }

    fn string(&mut self) -> Result<(), Refusal> {
        self.at += 1;
        loop {
            match self.peek() {
                None => {
                    return Err(self.problem("Missing a closing quotation mark in string."));
                }
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(0..0x20) => return Err(self.problem("Invalid encoding in string.")),
                Some(_) => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Result<(), Refusal> {
        let start = self.at;
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                let is_low = |unit: &u16| (0xdc00..0xe000).contains(unit);
                let unit = self.unit(start)?;
                let has_its_half = match unit {
                    0xd800..0xdc00 if self.took(b'\\') && self.peek() == Some(b'u') => {
                        is_low(&self.unit(start)?)
                    }
                    unit => !(0xd800..0xe000).contains(&unit),
                };
                if !has_its_half {
                    self.at = start;
                    return Err(self.problem("The surrogate pair in string is invalid."));
                }
            }
            _ => {
                self.at = start;
                return Err(self.problem("Invalid escape character in string."));
            }
        }
        Ok(())
    }

    /// The number behind `u`, of an escape that begins at `start`.
    fn unit(&mut self, start: usize) -> Result<u16, Refusal> {
        self.at += 1;
        let digits = self.body.get(self.at..self.at + 4);
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let unit = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok());
        self.at = if unit.is_some() { self.at + 4 } else { start };
        unit.ok_or_else(|| self.problem("Incorrect hex digit after \\u escape in string."))
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Refusal> {
        for &byte in word {
            if !self.took(byte) {
                return Err(self.problem("Invalid value."));
            }
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Refusal> {
        let start = self.at;
        let _ = self.took(b'-');
        if !self.took(b'0') && !self.digits() {
            return Err(self.problem("Invalid value."));
        }
        if self.took(b'.') && !self.digits() {
            return Err(self.problem("Miss fraction part in number."));
        }
        if self.took(b'e') || self.took(b'E') {
            let _ = self.took(b'+') || self.took(b'-');
            if !self.digits() {
                return Err(self.problem("Miss exponent in number."));
            }
        }
        let digits = std::str::from_utf8(&self.body[start..self.at]);
        let number = digits.ok().and_then(|digits| digits.parse::<f64>().ok());
        if !number.is_some_and(f64::is_finite) {
            self.at = start;
            return Err(self.problem("Number too big to be stored in double."));
        }
        Ok(())
    }

    fn digits(&mut self) -> bool {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at > start
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn took(&mut self, byte: u8) -> bool {
        let is_it = self.peek() == Some(byte);
        self.at += usize::from(is_it);
        is_it
    }

    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    fn problem(&self, problem: &'static str) -> Refusal {
        Refusal::Malformed { problem, at: self.at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_those_of_a_real_triton() {
        let prefix = "failed to parse the request JSON buffer: ";
        let cases = [
            ("", "The document is empty. at 0"),
            ("{", "Missing a name for object member. at 1"),
            ("not json", "Invalid value. at 1"),
            (r#"{"text_input": "a""#, "Missing a comma or '}' after an object member. at 18"),
            (r#"{"a" 1}"#, "Missing a colon after a name of object member. at 5"),
            (r#"{"a":1} x"#, "The document root must not be followed by other values. at 8"),
            ("[1 2]", "Missing a comma or ']' after an array element. at 3"),
            (r#"{"a":["abc"#, "Missing a closing quotation mark in string. at 10"),
            ("[-1e400]", "Number too big to be stored in double. at 1"),
            (r#"["\ud800"]"#, "The surrogate pair in string is invalid. at 2"),
            (r#"["\ud800\u0041"]"#, "The surrogate pair in string is invalid. at 2"),
            (r#"["\ud800\ud800"]"#, "The surrogate pair in string is invalid. at 2"),
            (r#"["\ud800\n"]"#, "The surrogate pair in string is invalid. at 2"),
            (r#"["\u12g4"]"#, "Incorrect hex digit after \\u escape in string. at 2"),
            (r#"["\u12"#, "Incorrect hex digit after \\u escape in string. at 2"),
            (r#"{"a":"\x"}"#, "Invalid escape character in string. at 6"),
            (r#"{"a":1.}"#, "Miss fraction part in number. at 7"),
        ];
        for (body, words) in cases {
            let refusal = members(body.as_bytes()).err().expect("refused");
            assert_eq!(refusal.to_string(), format!("{prefix}{words}"), "{body}");
        }
        let refusal = members(b"{\"a\":\"\xff\"}").err().expect("refused");
        assert_eq!(refusal.to_string(), format!("{prefix}Invalid encoding in string. at 6"));
        assert!(members(br#"{"a":"\ud83d\ude00"}"#).is_ok());
        for body in ["[1]", r#""x""#, "3"] {
            assert_eq!(members(body.as_bytes()).err(), Some(Refusal::NotAnObject), "{body}");
        }
    }

    #[test]
    fn members_keep_their_order_and_their_repetitions() {
        let Members(members) = members(br#"{"b":1,"a":2,"b":3}"#).expect("an object");
        let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["b", "a", "b"]);
    }
}
