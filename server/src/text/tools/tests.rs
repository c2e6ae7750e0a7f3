//! Both written forms, whatever is wrong with them, and however they are cut.

use proptest::prelude::*;

use super::*;

/// All text, and all calls with the text before each.
fn run<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Vec<ToolPiece> {
    let mut parser = ToolCallParser::new();
    let mut all = Vec::new();
    for piece in pieces {
        for piece in parser.push(piece) {
            merge(&mut all, piece);
        }
    }
    parser.finish().into_iter().for_each(|piece| merge(&mut all, piece));
    let n_calls = all.iter().filter(|piece| matches!(piece, ToolPiece::Call(_))).count();
    assert_eq!(parser.n_calls(), n_calls);
    all
}

fn merge(all: &mut Vec<ToolPiece>, piece: ToolPiece) {
    match (all.last_mut(), piece) {
        (Some(ToolPiece::Text(last)), ToolPiece::Text(text)) => last.push_str(&text),
        (_, piece) => all.push(piece),
    }
}

fn text(text: &str) -> ToolPiece {
    ToolPiece::Text(text.into())
}

fn call(name: &str, arguments: &str) -> ToolPiece {
    ToolPiece::Call(ToolCall { name: name.into(), arguments: arguments.into() })
}

#[test]
fn both_forms_are_read() {
    let cases = [
        ("plain text", vec![text("plain text")]),
        ("", vec![]),
        (
            r#"<TOOLCALL>[{"name": "f", "arguments": {"b": 1, "a": [2, "x"]}}]</TOOLCALL>"#,
            vec![call("f", r#"{"b":1,"a":[2,"x"]}"#)],
        ),
        ("<TOOLCALL>[f()]</TOOLCALL>", vec![call("f", "{}")]),
        (
            "<TOOLCALL>[f(b=1, a=[2, 'x']), mod.g(s=\"it's\")]</TOOLCALL>",
            vec![call("f", r#"{"b":1,"a":[2,"x"]}"#), call("mod.g", r#"{"s":"it's"}"#)],
        ),
        (
            "I look.\n\n<TOOLCALL>[\n  f(a=True, b=None, c=-2.5, d={'k': (1, 2,)}, )\n]\n\
             </TOOLCALL>\n",
            vec![text("I look."), call("f", r#"{"a":true,"b":null,"c":-2.5,"d":{"k":[1,2]}}"#)],
        ),
        (
            "<TOOLCALL>[f()]</TOOLCALL>\n<TOOLCALL>[g()]</TOOLCALL> done",
            vec![call("f", "{}"), call("g", "{}"), text("done")],
        ),
        (
            r#"<TOOLCALL>[{"name": "f", "parameters": "{\"a\": 1}"}, {"name": "g"}]</TOOLCALL>"#,
            vec![call("f", r#"{"a": 1}"#), call("g", "{}")],
        ),
        (
            r"<TOOLCALL>[f(a='\x41\u00e9\ud83d\ude00\n\'', b=1_000, c=1e3)]</TOOLCALL>",
            vec![call("f", r#"{"a":"Aé😀\n'","b":1000,"c":1000.0}"#)],
        ),
        // The list or the section is not closed: what was called was called.
        ("<TOOLCALL>[f()", vec![call("f", "{}")]),
        ("<TOOLCALL>[f()]</TOOLC", vec![call("f", "{}")]),
        ("<TOOLCALL>[f(),", vec![call("f", "{}")]),
        // Brackets and tags in strings are text.
        (
            r#"<TOOLCALL>[f(a="]</TOOLCALL> \" )(")]</TOOLCALL>"#,
            vec![call("f", r#"{"a":"]</TOOLCALL> \" )("}"#)],
        ),
    ];
    for (answer, expected) in cases {
        assert_eq!(run([answer]), expected, "{answer}");
    }
}

#[test]
fn what_is_malformed_is_text() {
    let whole = [
        "<TOOLCALL>[]</TOOLCALL>",
        "<TOOLCALL>f()</TOOLCALL>",
        "<TOOLCALL>[f(1)]</TOOLCALL>",
        "<TOOLCALL>[f(a=1, a=2)]</TOOLCALL>",
        "<TOOLCALL>[f(a=b)]</TOOLCALL>",
        "<TOOLCALL>[f(a='x)]</TOOLCALL>",
        r#"<TOOLCALL>[{"name": 3}]</TOOLCALL>"#,
        r#"<TOOLCALL>[{"name": "f", "arguments": 3}]</TOOLCALL>"#,
        r#"<TOOLCALL>[{"nam": "f"}]</TOOLCALL>"#,
        r#"<TOOLCALL>["f"]</TOOLCALL>"#,
        "<TOOLCALL>[f",
        "<TOOLCALL>[",
        "<TOOLCALL>",
        "<TOOLCAL",
        "a < b, <TOOLCALLS> and <TOOLCALL",
        r"<TOOLCALL>[f(a='\ud83d')]</TOOLCALL>",
    ];
    for answer in whole {
        assert_eq!(run([answer]), [text(answer)], "{answer}");
    }
    let after_a_call = "<TOOLCALL>[f(), g(]</TOOLCALL>";
    assert_eq!(run([after_a_call]), [call("f", "{}"), text(", g(]</TOOLCALL>")]);
    let twice = "<TOOLCALL><TOOLCALL>[f()]</TOOLCALL>";
    assert_eq!(run([twice]), [text("<TOOLCALL>"), call("f", "{}")]);
    let deep = format!("<TOOLCALL>[f(a={}", "[".repeat(100_000));
    assert_eq!(run([deep.as_str()]), [text(&deep)]);
    let long = format!("<TOOLCALL>[f(a='{}", "x".repeat(2 * N_HELD_BYTES_MAX));
    assert_eq!(run([long.as_str()]), [text(&long)]);
}

#[test]
fn a_call_is_told_as_soon_as_it_is_complete() {
    let mut parser = ToolCallParser::new();
    assert_eq!(parser.push("Hm <TOOLCA"), [text("Hm")]);
    assert_eq!(parser.push("LL>[f(a=1"), []);
    assert_eq!(parser.push(")"), [call("f", r#"{"a":1}"#)]);
    assert_eq!(parser.push(r#", {"name": "g""#), []);
    assert_eq!(parser.push("}]</TOOLCALL>"), [call("g", "{}")]);
    assert_eq!(parser.push("\n"), []);
    assert_eq!(parser.finish(), None);
}

/// Whoever opens lists for ever takes no more of the stack than a call may.
#[test]
fn what_is_nested_too_deeply_is_text() {
    for (n_deep, is_call) in [(10, true), (100, false), (5000, false)] {
        let (open, close) = ("[".repeat(n_deep), "]".repeat(n_deep));
        let answer = format!("<TOOLCALL>[f(a={open}1{close})]</TOOLCALL>");
        let pieces = run([answer.as_str()]);
        assert_eq!(matches!(pieces[..], [ToolPiece::Call(_)]), is_call, "{n_deep} deep");
        assert!(is_call || pieces == [text(&answer)], "{n_deep} deep: {pieces:?}");
    }
}

/// What is held never grows beyond its bound, whatever comes.
#[test]
fn what_is_held_is_bounded() {
    let mut parser = ToolCallParser::new();
    parser.push("<TOOLCALL>[f(a='");
    for _ in 0..1000 {
        parser.push(&"<TOOLCALL>[g(".repeat(100));
        assert!(parser.held.len() <= N_HELD_BYTES_MAX + 1300, "{}", parser.held.len());
    }
}

fn part() -> impl Strategy<Value = String> {
    let words = [
        "<TOOLCALL>",
        "</TOOLCALL>",
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        ",",
        "=",
        ":",
        "\"",
        "'",
        "\\",
        "f",
        "a",
        "f()",
        "g(a=1)",
        "1",
        "-2.5",
        "True",
        " ",
        "\n",
        "<",
        "</",
        "TOOLCALL>",
        "é",
        "😀",
        "{\"name\": \"f\", \"arguments\": {\"a\": [1, {\"b\": \"]\"}]}}",
        "\"name\"",
        "\\u00e9",
    ];
    proptest::sample::select(words.to_vec()).prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000_000))]
    #[test]
    fn any_cut_gives_the_same(
        opened in any::<bool>(),
        parts in proptest::collection::vec(part(), 0..16),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut answer = parts.concat();
        if opened {
            answer.insert_str(0, "<TOOLCALL>[");
        }
        let ends: Vec<usize> =
            answer.char_indices().map(|(at, _)| at).chain([answer.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| ends[cut.index(ends.len())]).collect();
        cuts.extend([0, answer.len()]);
        cuts.sort_unstable();
        let whole = run([answer.as_str()]);
        let cut = run(cuts.windows(2).map(|ends| &answer[ends[0]..ends[1]]));
        prop_assert_eq!(&cut, &whole);
        for piece in whole {
            if let ToolPiece::Call(call) = piece {
                let arguments: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(&call.arguments).expect("an object");
                prop_assert!(!call.name.is_empty() && arguments.len() < 16);
            }
        }
    }
}
