//! Answers that keep to what is allowed are in the format, every one; and what is allowed is not
//! too little, where that can be told another way.

use engine::TokenId;
use proptest::prelude::*;

use super::*;
use crate::text::fixture;

fn formats() -> Formats {
    Formats::new(fixture::model(), fixture::VOCAB_SIZE)
}

/// Tokens of the fixture that a set holds.
fn listed(allowed: &Allowed) -> Vec<TokenId> {
    let Allowed::Only(set) = allowed else { panic!("a format allows a set: {allowed:?}") };
    let all = (0..fixture::VOCAB_SIZE as u32).map(TokenId);
    let listed: Vec<TokenId> = all.filter(|&token| set.contains(token)).collect();
    assert_eq!(listed.len(), set.n_tokens());
    listed
}

/// An answer whose tokens are picked from those allowed; `None` where it is not over in time.
fn answer(format: &CompiledFormat, picks: &[u16]) -> Option<String> {
    let text = fixture::model();
    let (mut state, mut allowed) = (format.begin(), format.first());
    let mut tokens = Vec::new();
    for &pick in picks {
        let choice = listed(&allowed);
        // Half of the time it ends where it may.
        let stop = choice.iter().find(|token| text.stop_tokens().contains(token));
        let token = match stop {
            Some(&stop) if pick % 2 == 0 => stop,
            _ => choice[pick as usize / 2 % choice.len()],
        };
        if text.stop_tokens().contains(&token) {
            return Some(text.decode(&tokens, false));
        }
        tokens.push(token);
        allowed = state.push(token);
    }
    None
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 0, "maximum": 12},
            "kind": {"enum": ["a", "bc"]},
            "on": {"$ref": "#/$defs/switch"},
        },
        "required": ["n", "kind"],
        "additionalProperties": false,
        "$defs": {"switch": {"type": "boolean"}},
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn answers_are_in_their_format(picks in proptest::collection::vec(any::<u16>(), 120)) {
        let formats = formats();
        let compiled = |format| formats.compile(&format).expect("it compiles");
        if let Some(answer) = answer(&compiled(Format::JsonSchema(schema())), &picks) {
            let value: Value = serde_json::from_str(&answer).expect("JSON");
            let n = value["n"].as_i64().expect("an integer");
            prop_assert!((0..=12).contains(&n), "{}", answer);
            prop_assert!(value["kind"] == "a" || value["kind"] == "bc", "{}", answer);
            let known = |name: &String| ["n", "kind", "on"].contains(&name.as_str());
            prop_assert!(value.as_object().expect("an object").keys().all(known), "{}", answer);
            prop_assert!(value.get("on").is_none_or(Value::is_boolean), "{}", answer);
        }
        if let Some(answer) = answer(&compiled(Format::JsonObject), &picks) {
            // Its numbers may be beyond what a machine's are.
            let read = serde_json::from_str::<serde::de::IgnoredAny>(&answer);
            prop_assert!(read.is_ok() && answer.trim_start().starts_with('{'), "{}", answer);
        }
        let regex = Format::Regex("[ab]{2,5}(-[0-9]+)?".into());
        if let Some(answer) = answer(&compiled(regex), &picks) {
            let (letters, digits) = answer.split_once('-').unwrap_or((&answer, "0"));
            prop_assert!((2..=5).contains(&letters.len()), "{}", answer);
            prop_assert!(letters.bytes().all(|byte| b"ab".contains(&byte)), "{}", answer);
            let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
            prop_assert!(!digits.is_empty() && all_digits, "{}", answer);
        }
        let grammar = "start: \"(\" start \")\" | \"x\"";
        if let Some(answer) = answer(&compiled(Format::Grammar(grammar.into())), &picks) {
            let n = answer.len() / 2;
            prop_assert_eq!(answer, format!("{}x{}", "(".repeat(n), ")".repeat(n)));
        }
    }
}

/// By trying every token after every beginning: what is allowed is what can become a choice. Where
/// one way is left to go on, the library may ask for the tokenizer's own spelling of it.
#[test]
fn a_choice_allows_exactly_what_can_become_one() {
    let texts = ["the thing", "then", "think", "it's \"quoted\" \n", "é😀"];
    let formats = formats();
    let choice = Format::Choice(texts.iter().map(|text| (*text).to_owned()).collect());
    let format = formats.compile(&choice).expect("it compiles");
    let text = fixture::model();
    let mut open = vec![(Vec::<TokenId>::new(), format.first())];
    let mut n_seen = 0;
    let mut reached = std::collections::BTreeSet::new();
    while let Some((tokens, allowed)) = open.pop() {
        n_seen += 1;
        assert!(n_seen < 5000, "too many ways");
        let so_far: Vec<u8> = tokens.iter().flat_map(|&t| text.token_bytes(t)).copied().collect();
        let allowed = listed(&allowed);
        let ways = texts.iter().filter(|text| text.as_bytes().starts_with(&so_far)).count();
        for id in 0..fixture::VOCAB_SIZE as u32 {
            let token = TokenId(id);
            let mut bytes = so_far.clone();
            bytes.extend_from_slice(text.token_bytes(token));
            let can = match text.is_special(token) {
                true => {
                    let is_whole = texts.iter().any(|text| text.as_bytes() == so_far);
                    is_whole && text.stop_tokens().contains(&token)
                }
                false => {
                    bytes.len() > so_far.len()
                        && texts.iter().any(|text| text.as_bytes().starts_with(&bytes))
                }
            };
            let is_allowed = allowed.contains(&token);
            assert!(can || !is_allowed, "{token:?} after {so_far:?}");
            assert!(is_allowed || !can || ways == 1, "{token:?} is left out after {so_far:?}");
        }
        for &token in &allowed {
            if text.stop_tokens().contains(&token) {
                reached.insert(String::from_utf8(so_far.clone()).expect("a choice"));
                continue;
            }
            let mut longer = tokens.clone();
            longer.push(token);
            let mut state = format.begin();
            let last = longer.iter().map(|&token| state.push(token)).last().expect("one");
            open.push((longer, last));
        }
    }
    let texts: std::collections::BTreeSet<String> = texts.map(String::from).into();
    assert_eq!(reached, texts);
}

#[test]
fn what_cannot_be_compiled_says_why() {
    let formats = formats();
    // Each rule is nothing but the next.
    let rules = (0..6_000).map(|n| format!("r{n}: r{}\n", n + 1)).collect::<String>();
    let chain = format!("start: r0\n{rules}");
    let long = Format::Regex("x".repeat(N_SOURCE_BYTES_MAX));
    let cases = [
        (Format::JsonSchema(json!({"type": "nonsense"})), "nonsense"),
        (Format::JsonSchema(json!({"$ref": "https://example.com/x"})), ""),
        (Format::JsonSchema(json!({"enum": []})), ""),
        (Format::JsonSchema(json!(3)), ""),
        (Format::Regex("[a".into()), ""),
        (Format::Grammar("start: nothing".into()), "nothing"),
        (Format::Grammar(String::new()), ""),
        (long, "at most"),
        (Format::Regex("(".repeat(1000)), "levels"),
        (Format::Grammar(chain), ""),
    ];
    for (format, word) in cases {
        let what = format!("{format:?}").chars().take(80).collect::<String>();
        let error = formats.compile(&format).expect_err(&what).to_string();
        assert!(error.contains(word) && !error.contains('\n'), "{what}: {error}");
        assert!(error.len() < 2000, "{what}: {error}");
    }
}

#[test]
fn the_last_formats_are_kept_and_no_more() {
    let formats = formats();
    let compile =
        |n: usize| formats.compile(&Format::Regex(format!("a{{{n}}}"))).expect("it compiles");
    let first = compile(1);
    assert!(Arc::ptr_eq(&first, &compile(1)), "it is kept");
    for n in 2..N_KEPT_MAX + 2 {
        compile(n);
    }
    assert_eq!(formats.kept.lock().len(), N_KEPT_MAX);
    assert!(!Arc::ptr_eq(&first, &compile(1)), "it was used longest ago");
}
