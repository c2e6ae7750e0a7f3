//! Everything under `/v2` but generation from one JSON object, against what a real Triton (2.51.0)
//! answered to the same requests.

mod infer;
mod operating;

use serde_json::{Value, json};

use super::{shared, with};

const INFER: &str = "/v2/models/ensemble/infer";

/// Content types: JSON and plain text.
const J: &str = "application/json";
const P: &str = "text/plain";

/// An input of text and one of a number.
fn inputs() -> Value {
    json!([
        { "name": "text_input", "datatype": "BYTES", "shape": [1, 1],
          "data": ["What is 27 + 58?"] },
        { "name": "max_tokens", "datatype": "INT32", "shape": [1, 1], "data": [8] },
    ])
}

fn body(members: Value) -> Value {
    with(&json!({ "inputs": inputs() }), members)
}

#[test]
fn answers_are_tritons_byte_for_byte() {
    let [text, max] = [0, 1].map(|idx| inputs()[idx].to_string());
    let names = [
        ("$TEXT", text.as_str()),
        ("$MAX", &max),
        ("$ID", "[request id: <id_unknown>]"),
        ("$IN", "32"),
        ("$N", "16"),
    ];
    let whole = |line: &str| names.iter().fold(line.to_owned(), |line, (a, b)| line.replace(a, b));
    let lines = include_str!("answers.txt").lines();
    let mut lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut n_answers = 0;
    while let (Some(request), Some(answer)) = (lines.next(), lines.next()) {
        let (request, answer) = (whole(request), whole(answer));
        let mut words = request.strip_prefix("> ").expect("a request").splitn(3, ' ');
        let [method, path] = [(); 2].map(|()| words.next().expect("a method and a path"));
        let reply = shared().send(method, path, words.next().unwrap_or_default().as_bytes());
        let wanted = answer.strip_prefix("< ").expect("an answer");
        let kind = match reply.head.header("content-type") {
            Some(J) => "J",
            Some(P) => "P",
            other => panic!("{request}: {other:?}"),
        };
        let given = format!("{} {kind} {}", reply.status(), reply.text());
        assert_eq!(given.trim_end(), wanted, "{request}");
        assert!(reply.head.header("content-length").is_some(), "{request}");
        n_answers += 1;
    }
    assert!(n_answers >= 167, "{n_answers}");
}

#[test]
fn metadata_and_configuration_tell_of_one_interface() {
    let mut place = String::new();
    for line in include_str!("model.txt").lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with('/') {
            place = shared().get(line).text();
        } else {
            assert!(place.contains(line), "no {line} in {place}");
        }
    }
    let config = shared().get("/v2/models/demo/config").ok();
    let metadata = shared().get("/v2/models/demo").ok();
    for (of_config, of_metadata) in [("input", "inputs"), ("output", "outputs")] {
        let names = |list: &Value| -> Vec<Value> {
            let tensors = list.as_array().expect("a list").iter();
            tensors.map(|tensor| tensor["name"].clone()).collect()
        };
        assert_eq!(names(&config[of_config]), names(&metadata[of_metadata]));
    }
    let server = shared().get("/v2").ok();
    assert_eq!(server["name"], "lnserve");
    for extension in ["statistics", "binary_tensor_data", "model_configuration"] {
        assert!(server["extensions"].as_array().expect("a list").contains(&json!(extension)));
    }
}
