//! A request's JSON object, taken apart field by field: every complaint names the field, what it
//! takes and what it holds.
//!
//! It knows types and ranges, not meanings. Fields that nobody takes are ignored, as vLLM does;
//! `null` counts as absent.

use serde_json::{Map, Value};

use super::error::ApiError;

/// What is left of an object.
#[derive(Debug)]
pub struct Fields {
    members: Map<String, Value>,
    /// Where the object stands in the body: empty, or `"parent."`.
    path: String,
}

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// The body is no UTF-8, no JSON (more than 128 levels count as that), or no object.
    pub fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let text = std::str::from_utf8(body)
            .map_err(|error| ApiError::NotUtf8 { at: error.valid_up_to() })?;
        let value: Value = serde_json::from_str(text)
            .map_err(|error| ApiError::NotJson { problem: error.to_string() })?;
        match value {
            Value::Object(members) => Ok(Fields { members, path: String::new() }),
            other => Err(ApiError::NotAnObject { found: type_name(&other) }),
        }
    }

    /// An object found at `path` inside a body.
    pub fn nested(path: &str, members: Map<String, Value>) -> Fields {
        Fields { members, path: format!("{path}.") }
    }

    /// The field's full name.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// Whether the field is there and holds `null`.
    pub fn is_null(&self, name: &str) -> bool {
        self.members.get(name).is_some_and(Value::is_null)
    }

    /// Names that are left.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// A field of any type, which stays.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.members.get(name).filter(|value| !value.is_null())
    }

    /// A field of any type.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name).filter(|value| !value.is_null())
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "a boolean", |value| value.as_bool())
    }

    /// A boolean that is false unless given.
    pub fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.boolean(name)?.unwrap_or(false))
    }

    /// A string.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(self.path(name), "a string", &other)),
        }
    }

    /// A finite number.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        let Some(number) = self.typed(name, "a number", |value| value.as_f64())? else {
            return Ok(None);
        };
        let single = number as f32;
        if single.is_finite() {
            return Ok(Some(single));
        }
        Err(self.out_of_range(name, number.to_string(), "a finite number"))
    }

    /// An integer; `4.0` is one.
    pub fn integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => integer(&self.path(name), &value).map(Some),
        }
    }

    /// A count: an integer from `n_min` on.
    pub fn count(&mut self, name: &str, n_min: usize) -> Result<Option<usize>, ApiError> {
        let Some(given) = self.integer(name)? else { return Ok(None) };
        match usize::try_from(given) {
            Ok(n) if n >= n_min => Ok(Some(n)),
            _ => Err(self.out_of_range(name, given.to_string(), &format!("at least {n_min}"))),
        }
    }

    /// A count with an upper bound.
    pub fn count_within(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>, ApiError> {
        let Some(n) = self.count(name, *range.start())? else { return Ok(None) };
        if n <= *range.end() {
            return Ok(Some(n));
        }
        let words = format!("between {} and {}", range.start(), range.end());
        Err(self.out_of_range(name, n.to_string(), &words))
    }

    /// A seed: any integer. Negative ones are as good as others.
    pub fn seed(&mut self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(seed) => Ok(Some(seed)),
                None => Ok(Some(integer(&self.path(name), &value)? as u64)),
            },
        }
    }

    /// A list.
    pub fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong_type(self.path(name), "a list", &other)),
        }
    }

    /// An object.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(Fields::nested(&self.path(name), members))),
            Some(other) => Err(wrong_type(self.path(name), "an object", &other)),
        }
    }

    /// A string, or a list of at most `n_max` strings. Absent is empty.
    pub fn strings(&mut self, name: &str, n_max: usize) -> Result<Vec<String>, ApiError> {
        let path = self.path(name);
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(items)) => {
                at_most(&path, "entries", items.len(), n_max)?;
                items.into_iter().enumerate().map(|(idx, item)| text_at(&path, idx, item)).collect()
            }
            Some(other) => Err(wrong_type(path, "a string or a list of strings", &other)),
        }
    }

    /// Puts a field back, or another in its place.
    pub fn put(&mut self, name: &str, value: Value) {
        self.members.insert(name.into(), value);
    }

    /// Everything that is left.
    pub fn into_members(self) -> Map<String, Value> {
        self.members
    }

    /// The complaint that a field's value is outside its range.
    pub fn out_of_range(&self, name: &str, value: String, range: &str) -> ApiError {
        ApiError::OutOfRange { field: self.path(name), value, range: range.into() }
    }

    fn typed<T>(
        &mut self,
        name: &str,
        expected: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match read(&value) {
            Some(typed) => Ok(Some(typed)),
            None => Err(wrong_type(self.path(name), expected, &value)),
        }
    }
}

/// Refuses a list that is too long.
pub fn at_most(field: &str, what: &'static str, n: usize, n_max: usize) -> Result<(), ApiError> {
    if n <= n_max {
        return Ok(());
    }
    Err(ApiError::TooMany { field: field.into(), what, n, n_max })
}

/// The complaint that a value has another type.
pub fn wrong_type(field: String, expected: &'static str, value: &Value) -> ApiError {
    ApiError::WrongType { field, expected, found: type_name(value) }
}

/// An integer; `4.0` is one. `field` is for the complaint.
pub fn integer(field: &str, value: &Value) -> Result<i64, ApiError> {
    if let Some(whole) = value.as_i64() {
        return Ok(whole);
    }
    match value.as_f64() {
        Some(float) if float.fract() == 0.0 && float.abs() < i64::MAX as f64 => Ok(float as i64),
        Some(float) if float.fract() == 0.0 => Err(ApiError::OutOfRange {
            field: field.into(),
            value: value.to_string(),
            range: "an integer of 64 bits".into(),
        }),
        _ => Err(wrong_type(field.into(), "an integer", value)),
    }
}

fn text_at(path: &str, idx: usize, item: Value) -> Result<String, ApiError> {
    match item {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(format!("{path}[{idx}]"), "a string", &other)),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Reader = fn(&mut Fields) -> Option<ApiError>;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn complaints_name_the_field_and_both_types() {
        let cases: &[(&str, Reader, &str)] = &[
            (r#"{"a":"x"}"#, |f| f.number("a").err(), "`a` must be a number, not a string"),
            (r#"{"a":1.5}"#, |f| f.integer("a").err(), "`a` must be an integer, not a fraction"),
            (r#"{"a":-1}"#, |f| f.count("a", 1).err(), "`a` is -1, but must be at least 1"),
            (r#"{"a":1e400}"#, |f| f.number("a").err(), "never parsed"),
            (r#"{"a":1e39}"#, |f| f.number("a").err(), "a finite number"),
            (r#"{"a":["x",2]}"#, |f| f.strings("a", 9).err(), "`a[1]` must be a string"),
            (
                r#"{"o":{"a":[]}}"#,
                |f| f.object("o").unwrap().unwrap().boolean("a").err(),
                "`o.a` must be a boolean, not a list",
            ),
        ];
        for (body, read, words) in cases {
            let Ok(mut fields) = Fields::parse(body.as_bytes()) else {
                assert_eq!(*words, "never parsed", "{body}");
                continue;
            };
            let error = read(&mut fields).expect("refused").to_string();
            assert!(error.contains(words), "{body}: {error}");
        }
    }

    #[test]
    fn null_is_absent_and_whole_floats_are_integers() {
        let mut fields = fields(r#"{"a":null,"b":4.0,"c":-1,"d":18446744073709551615}"#);
        assert!(fields.is_null("a"));
        assert_eq!(fields.number("a"), Ok(None));
        assert_eq!(fields.integer("b"), Ok(Some(4)));
        assert_eq!(fields.seed("c"), Ok(Some(u64::MAX)));
        assert_eq!(fields.seed("d"), Ok(Some(u64::MAX)));
    }
}
