//! Calls that must be made, in the form of Ultra's template: `f(a=1, b="x")`. Values are written as
//! JSON, which the family mixes with Python's literals and the parser reads alike.

use std::fmt::Write;

use serde_json::{Map, Value, json};

/// Members of a function's parameters that say nothing which this form cannot keep.
const PLAIN: [&str; 8] = [
    "$defs",
    "$schema",
    "additionalProperties",
    "definitions",
    "description",
    "required",
    "title",
    "type",
];

/// Whether a checkpoint's template has calls written so: `<TOOLCALL>[name(`.
pub(super) fn is_form_of(template: &str) -> bool {
    template.match_indices("<TOOLCALL>[").any(|(at, open)| {
        let rest = template[at + open.len()..].trim_start();
        let name = rest.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
        name.len() < rest.len() && name.starts_with('(')
    })
}

/// A grammar for calls of `tools`, at most `n_calls_max`. `None` where one of them cannot be
/// written so: a name that is none in Python, or parameters that are more than a list of
/// properties.
pub(super) fn grammar(tools: &[(&str, &Value)], n_calls_max: usize) -> Option<String> {
    let names: Vec<String> = (0..tools.len()).map(|idx| format!("call{idx}")).collect();
    let more = match n_calls_max {
        1 => String::new(),
        n => format!(" (/, ?/ call){{0,{}}}", n - 1),
    };
    let mut text = format!("start: \"<TOOLCALL>[\" call{more} \"]</TOOLCALL>\"\n");
    let _ = writeln!(text, "call: {}", names.join(" | "));
    for (idx, (name, parameters)) in tools.iter().enumerate() {
        add_call(&mut text, &format!("call{idx}"), (name, parameters))?;
    }
    Some(text)
}

/// The rules of one tool. Its arguments come in the order of its properties, each once; those that
/// are not required may be missing.
fn add_call(text: &mut String, rule: &str, (name, parameters): (&str, &Value)) -> Option<()> {
    let none = Map::new();
    let properties = plain_properties(parameters, &none)?;
    let required: Vec<&str> = match &parameters["required"] {
        Value::Null => Vec::new(),
        Value::Array(names) => names.iter().map(Value::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    let is_known = |name: &&str| properties.contains_key(*name);
    if !is_name(name, ".-") || !required.iter().all(is_known) {
        return None;
    }
    let n = properties.len();
    // `rest{i}`: what may come from property i on, behind another; the last one is nothing.
    let rest = |idx: usize| if idx < n { format!(" {rule}rest{idx}") } else { String::new() };
    let mut beginnings = Vec::new();
    let mut is_first_open = true;
    for (idx, (key, schema)) in properties.iter().enumerate() {
        if !is_name(key, "") {
            return None;
        }
        let is_required = required.contains(&key.as_str());
        let _ = writeln!(text, "{rule}arg{idx}: \"{key}=\" {rule}value{idx}");
        let _ = writeln!(text, "{rule}value{idx}: %json {}", with_definitions(schema, parameters)?);
        if is_first_open {
            beginnings.push(format!("{rule}arg{idx}{}", rest(idx + 1)));
            is_first_open = !is_required;
        }
        if idx > 0 {
            let mark = if is_required { "" } else { "?" };
            let next = rest(idx + 1);
            let _ = writeln!(text, "{rule}rest{idx}: (/, ?/ {rule}arg{idx}){mark}{next}");
        }
    }
    match beginnings.is_empty() {
        true => writeln!(text, "{rule}: \"{name}()\"").ok(),
        false => {
            let mark = if is_first_open { "?" } else { "" };
            let _ = writeln!(text, "{rule}: \"{name}(\" {rule}args{mark} \")\"");
            writeln!(text, "{rule}args: {}", beginnings.join(" | ")).ok()
        }
    }
}

/// The properties, where these are all that the parameters are about.
fn plain_properties<'a>(
    parameters: &'a Value,
    none: &'a Map<String, Value>,
) -> Option<&'a Map<String, Value>> {
    let members = match parameters {
        Value::Null => return Some(none),
        Value::Object(members) => members,
        _ => return None,
    };
    let is_plain = |name: &String| name == "properties" || PLAIN.contains(&name.as_str());
    if !members.keys().all(is_plain)
        || !matches!(members.get("type").and_then(Value::as_str), Some("object"))
    {
        return None;
    }
    match members.get("properties") {
        None => Some(none),
        Some(properties) => properties.as_object(),
    }
}

/// A property's schema on its own, with what it refers to. `None` where it refers to the whole.
fn with_definitions(schema: &Value, parameters: &Value) -> Option<Value> {
    let mut schema = match schema {
        Value::Object(members) => members.clone(),
        Value::Bool(true) => Map::new(),
        _ => return None,
    };
    let written = parameters.to_string();
    if written.contains("\"$ref\"") {
        let refers_to_parts = ["\"$ref\":\"#/$defs/", "\"$ref\":\"#/definitions/"];
        let n_parts: usize = refers_to_parts.iter().map(|part| written.matches(part).count()).sum();
        if n_parts != written.matches("\"$ref\"").count() {
            return None;
        }
        for name in ["$defs", "definitions"] {
            if let Some(definitions) = parameters.get(name) {
                schema.insert(name.into(), definitions.clone());
            }
        }
    }
    let guidance = json!({"whitespace_pattern": " ?", "coerce_one_of": true});
    schema.insert("x-guidance".into(), guidance);
    Some(schema.into())
}

/// Whether the parser reads it as a name; `marks` may be in it, too.
fn is_name(text: &str, marks: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || marks.contains(c);
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && text.chars().all(is_part)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine::{Allowed, TokenId};
    use proptest::prelude::*;

    use super::*;
    use crate::guide::{AnswerRules, Format, Formats, GuideParts};
    use crate::text::{ToolCall, ToolCallParser, ToolPiece, fixture};

    /// An answer whose tokens are picked from those allowed; `None` where it is not over in time.
    fn answer(grammar: String, picks: &[u16]) -> Option<String> {
        let text = fixture::model();
        let formats = Formats::new(Arc::clone(&text), fixture::VOCAB_SIZE);
        let format = formats.compile(&Format::Grammar(grammar)).expect("it compiles");
        let rules = AnswerRules { format: Some(format), ..AnswerRules::free() };
        let parts = GuideParts::new(Arc::clone(&text), fixture::VOCAB_SIZE);
        let mut guide = rules.guide(&Arc::new(parts));
        let (mut allowed, mut tokens) = (guide.first, Vec::new());
        for &pick in picks {
            let Allowed::Only(set) = &allowed else { panic!("a format allows a set") };
            let all = (0..fixture::VOCAB_SIZE as u32).map(TokenId);
            let choice: Vec<TokenId> = all.filter(|&token| set.contains(token)).collect();
            if let Some(stop) = choice.iter().find(|token| text.stop_tokens().contains(token)) {
                let is_stop = |token: &TokenId| text.stop_tokens().contains(token);
                assert!(choice.iter().all(is_stop), "nothing follows the calls: {stop:?}");
                return Some(text.decode(&tokens, false));
            }
            tokens.push(choice[pick as usize % choice.len()]);
            allowed = (guide.next)(tokens[tokens.len() - 1]);
        }
        None
    }

    fn calls(text: &str) -> Vec<ToolCall> {
        let mut parser = ToolCallParser::new();
        let mut pieces = parser.push(text);
        pieces.extend(parser.finish());
        let call = |piece| match piece {
            ToolPiece::Call(call) => call,
            ToolPiece::Text(text) => panic!("{text:?} is no call"),
        };
        pieces.into_iter().map(call).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn what_the_grammar_allows_is_read_as_calls(
            picks in proptest::collection::vec(any::<u16>(), 200),
            n_calls_max in 1_usize..4,
            is_required in any::<[bool; 3]>(),
        ) {
            let keys = ["a", "of_two", "c3"];
            let required: Vec<&str> =
                keys.iter().zip(is_required).filter(|(_, is)| *is).map(|(key, _)| *key).collect();
            let parameters = json!({
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "minimum": 0, "maximum": 12},
                    "of_two": {"enum": ["x", "it's \"y\""]},
                    "c3": {"type": "array", "items": {"$ref": "#/$defs/on"}, "maxItems": 2},
                },
                "required": required,
                "$defs": {"on": {"type": ["boolean", "null"]}},
            });
            let tools = [("first.tool", &parameters), ("other", &Value::Null)];
            let grammar = grammar(&tools, n_calls_max).expect("it can be written");
            let Some(text) = answer(grammar, &picks) else { return Ok(()) };
            let calls = calls(&text);
            prop_assert!((1..=n_calls_max).contains(&calls.len()), "{}", text);
            for call in calls {
                let arguments: Value = serde_json::from_str(&call.arguments).expect("JSON");
                let told = arguments.as_object().expect("an object");
                if call.name == "other" {
                    prop_assert!(told.is_empty(), "{}", text);
                    continue;
                }
                prop_assert_eq!(&call.name, "first.tool");
                prop_assert!(required.iter().all(|key| told.contains_key(*key)), "{}", text);
                for (key, value) in told {
                    let is_right = match key.as_str() {
                        "a" => value.as_u64().is_some_and(|n| n <= 12),
                        "of_two" => value == "x" || value == "it's \"y\"",
                        "c3" => value.as_array().is_some_and(|items| {
                            let is_on = |item: &Value| item.is_boolean() || item.is_null();
                            items.len() <= 2 && items.iter().all(is_on)
                        }),
                        _ => false,
                    };
                    prop_assert!(is_right, "{}", text);
                }
            }
        }
    }

    #[test]
    fn the_form_is_told_by_the_template() {
        let ultra = "put it in the format of <TOOLCALL>[func1(params_name1=params_value1), \
                     func2(params)]</TOOLCALL>";
        assert!(is_form_of(ultra));
        assert!(!is_form_of("<TOOLCALL>[{\"name\": \"f\", \"arguments\": {}}]</TOOLCALL>"));
        assert!(!is_form_of("'<TOOLCALL>[' ~ call ~ ']</TOOLCALL>'"));
        assert!(!is_form_of("<TOOLCALL>[(1)]"));
    }

    #[test]
    fn what_cannot_be_written_so_is_left_to_the_other_form() {
        let object = |members: Value| {
            let mut all = json!({"type": "object"});
            for (name, value) in members.as_object().expect("an object") {
                all[name] = value.clone();
            }
            all
        };
        let cases = [
            ("f", Value::Null, true),
            ("f.g-h", object(json!({})), true),
            ("f g", object(json!({})), false),
            ("1f", object(json!({})), false),
            ("f", object(json!({"properties": {"a b": {}}})), false),
            ("f", object(json!({"required": ["a"]})), false),
            ("f", object(json!({"anyOf": [{"required": ["a"]}]})), false),
            ("f", json!({"properties": {}}), false),
            ("f", object(json!({"properties": {"a": {"$ref": "#"}}})), false),
            (
                "f",
                object(json!({"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": true}})),
                true,
            ),
        ];
        for (name, parameters, is_written) in cases {
            let written = grammar(&[(name, &parameters)], 1);
            assert_eq!(written.is_some(), is_written, "{name} {parameters}");
        }
    }
}
