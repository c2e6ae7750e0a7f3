//! Infer: tensors in JSON and in bytes, both ways, compressed and not.

use std::io::Write;

use harness::http::Reply;
use serde_json::{Value, json};

use super::{INFER, J, P, body};
use crate::shared;

/// What every answer of one text begins with.
const HEAD: &str = concat!(
    r#"{"model_name":"ensemble","model_version":"1","outputs":["#,
    r#"{"name":"text_output","datatype":"BYTES","shape":[1,1],"#,
);

fn text_of(value: &Value) -> &str {
    value.as_str().expect("text")
}

/// What generate says to the same.
fn text() -> String {
    let body = json!({ "text_input": "What is 27 + 58?", "max_tokens": 8 });
    let answer = shared().post("/v2/models/ensemble/generate", &body).ok();
    answer["text_output"].as_str().expect("text").to_owned()
}

fn header<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    reply.head.header(name)
}

#[test]
fn infer_answers_in_json() {
    let text = Value::from(text());
    let one = format!(r#"{HEAD}"data":[{text}]}}]}}"#);
    let outputs = json!([{ "name": "text_output" }, { "name": "cum_log_probs" }]);
    for members in [json!({}), json!({ "id": "" }), json!({ "outputs": outputs })] {
        let reply = shared().post(INFER, &body(members.clone()));
        assert_eq!((reply.status(), reply.text()), (200, one.clone()), "{members}");
        assert_eq!(header(&reply, "content-type"), Some(J));
    }
    let named = shared().post(INFER, &body(json!({ "id": "abc-1" }))).text();
    assert_eq!(named, one.replacen('{', r#"{"id":"abc-1","#, 1));
    let two = json!({ "inputs": [
        { "name": "text_input", "datatype": "BYTES", "shape": [2, 1],
          "data": [["What is 27 + 58?"], ["What is 27 + 58?"]] },
        { "name": "max_tokens", "datatype": "INT32", "shape": [2, 1], "data": [8, 3] },
        { "name": "return_log_probs", "datatype": "BOOL", "shape": [2, 1], "data": [true, true] },
        { "name": "ignore_eos", "datatype": "BOOL", "shape": [2, 1], "data": [true, true] },
        { "name": "return_num_output_tokens", "datatype": "BOOL", "shape": [2, 1],
          "data": [true, true] },
    ] });
    let outputs = shared().post(INFER, &two).ok()["outputs"].clone();
    let shapes: Vec<_> = outputs.as_array().expect("a list").iter().map(|o| &o["shape"]).collect();
    assert_eq!(json!(shapes), json!([[2, 1], [2, 1], [2, 1, 8], [2, 1]]));
    assert!(outputs[0]["data"][0].as_str().is_some_and(|long| long.starts_with(text_of(&text))));
    assert_eq!(outputs[3]["data"], json!([8, 3]));
    assert_eq!(outputs[2]["data"][11], 0.0, "three scores, then nothing");
    assert!(outputs[2]["data"][10].as_f64().is_some_and(|score| score < 0.0));
}

#[test]
fn infer_answers_in_bytes_and_compressed() {
    let text = text();
    let whole = body(json!({ "parameters": { "binary_data_output": true } }));
    let named = json!([{ "name": "text_output", "parameters": { "binary_data": true } }]);
    let n_bytes = text.len() + 4;
    let head = format!(r#"{HEAD}"parameters":{{"binary_data_size":{n_bytes}}}}}]}}"#);
    let length = (text.len() as u32).to_le_bytes();
    let wanted = [head.as_bytes(), &length, text.as_bytes()].concat();
    for body in [whole.clone(), body(json!({ "outputs": named }))] {
        let reply = shared().post(INFER, &body);
        assert_eq!(reply.body, wanted);
        assert_eq!(header(&reply, "content-type"), Some("application/octet-stream"));
        let n_head = head.len().to_string();
        assert_eq!(header(&reply, "inference-header-content-length"), Some(n_head.as_str()));
    }
    for (accepted, given) in
        [("gzip", Some("gzip")), ("deflate;q=1, gzip;q=0.5", Some("deflate")), ("br", None)]
    {
        let reply = shared().with_header("Accept-Encoding", accepted).post(INFER, &whole);
        assert_eq!(header(&reply, "content-encoding"), given);
        assert_eq!(inflated(&reply.body, given), wanted, "{accepted}");
    }
}

fn inflated(bytes: &[u8], encoding: Option<&str>) -> Vec<u8> {
    let mut plain = Vec::new();
    let inflate = |plain: &mut dyn Write| match encoding {
        Some("gzip") => flate2::write::GzDecoder::new(plain).write_all(bytes),
        Some(_) => flate2::write::ZlibDecoder::new(plain).write_all(bytes),
        None => plain.write_all(bytes),
    };
    inflate(&mut plain).expect("it is what it says");
    plain
}

/// JSON, then tensors; `n_left_out` bytes are missing at the end.
fn binary(n_left_out: usize, more: &[u8]) -> (String, Vec<u8>) {
    let json = json!({ "inputs": [
        { "name": "text_input", "datatype": "BYTES", "shape": [1, 1],
          "parameters": { "binary_data_size": 20 } },
        { "name": "max_tokens", "datatype": "INT32", "shape": [1, 1],
          "parameters": { "binary_data_size": 4 } },
    ] })
    .to_string();
    let mut bytes = json.clone().into_bytes();
    bytes.extend([&16_u32.to_le_bytes()[..], b"What is 27 + 58?", &8_i32.to_le_bytes()].concat());
    bytes.truncate(bytes.len() - n_left_out);
    bytes.extend(more);
    (json.len().to_string(), bytes)
}

#[test]
fn infer_reads_bytes_and_what_is_compressed() {
    let text = text();
    let (n_head, bytes) = binary(0, b"");
    let headed = shared().with_header("Inference-Header-Content-Length", &n_head);
    let answer = headed.send("POST", INFER, &bytes).ok();
    assert_eq!(answer["outputs"][0]["data"][0], text);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).expect("memory");
    let gzip = gzip.finish().expect("memory");
    let answer = headed.with_header("Content-Encoding", "gzip").send("POST", INFER, &gzip).ok();
    assert_eq!(answer["outputs"][0]["data"][0], text);
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    deflate.write_all(&bytes).expect("memory");
    let deflate = deflate.finish().expect("memory");
    let deflated = headed.with_header("Content-Encoding", "deflate");
    assert_eq!(deflated.send("POST", INFER, &deflate).ok()["outputs"][0]["data"][0], text);
    // Half a stream, and one that would not fit.
    let half = deflated.send("POST", INFER, &deflate[..deflate.len() / 2]);
    assert_eq!((half.status(), header(&half, "content-type")), (400, Some(P)));
    let mut bomb = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    bomb.write_all(&vec![b' '; (64 << 20) + 1]).expect("memory");
    let bomb = deflated.send("POST", INFER, &bomb.finish().expect("memory"));
    assert_eq!(bomb.status(), 400);
    assert!(bomb.text().contains("exceeds the maximum allowed input size of 67108864 bytes"));
    let unknown = headed.with_header("Content-Encoding", "zstd").send("POST", INFER, &bytes);
    assert_eq!((unknown.status(), header(&unknown, "content-type")), (501, Some(P)));
    assert_eq!(header(&unknown, "accept-encoding"), Some("gzip, deflate"));
    assert_eq!(unknown.text(), r#"{"error":"Unsupported compression type"}"#);
}

#[test]
fn binary_data_that_does_not_fit() {
    let (n_head, _) = binary(0, b"");
    let cases: [(String, Vec<u8>, u16, &str, String); 6] = [
        (
            n_head.clone(),
            binary(1, b"").1,
            400,
            J,
            "unexpected size for input 'max_tokens', expecting 1 additional bytes for model \
             'ensemble'"
                .into(),
        ),
        (
            n_head.clone(),
            binary(0, b"x").1,
            400,
            J,
            "unexpected additional input data for model 'ensemble'".into(),
        ),
        (
            "320".into(),
            b"{}".into(),
            400,
            P,
            "inference header size should be in range (0, 2), got: 320".into(),
        ),
        (
            "-1".into(),
            b"{}".into(),
            400,
            P,
            "inference header size should be in range (0, 2), got: -1".into(),
        ),
        (
            "abc".into(),
            b"{}".into(),
            400,
            P,
            "Unable to parse Inference-Header-Content-Length, got: abc".into(),
        ),
        (
            "0".into(),
            b"{}".into(),
            400,
            J,
            "[request id: <id_unknown>] Raw request must only have 1 input (found 1) to be \
             deduced but got 32 inputs in 'ensemble' model configuration"
                .into(),
        ),
    ];
    for (n_head, bytes, status, content_type, words) in cases {
        let client = shared().with_header("Inference-Header-Content-Length", &n_head);
        let reply = client.send("POST", INFER, &bytes);
        assert_eq!((reply.status(), reply.json()), (status, json!({ "error": words })));
        assert_eq!(header(&reply, "content-type"), Some(content_type), "{words}");
    }
}

/// No row of `answers.txt`: a real Triton 2.51 dies of it.
#[test]
fn outputs_are_no_classes() {
    let outputs = json!([{ "name": "text_output", "parameters": { "classification": 2 } }]);
    let reply = shared().post(INFER, &body(json!({ "outputs": outputs })));
    assert_eq!((reply.status(), header(&reply, "content-type")), (501, Some(J)));
    let words = "classification is not supported: the outputs are no classes";
    assert_eq!(reply.json(), json!({ "error": words }));
}

#[test]
fn shapes_and_depths_have_bounds() {
    let with = |members: Value| {
        let mut body = body(json!({}));
        body["inputs"][0] = crate::with(&body["inputs"][0], members);
        body
    };
    let shape = shared().post(INFER, &with(json!({ "shape": [1, 1, 1] })));
    let words = "[request id: <id_unknown>] unexpected shape for input 'text_input' for model \
                 'ensemble'. Expected [-1,1], got [1,1,1]. NOTE: ";
    assert_eq!(shape.status(), 400);
    assert!(shape.json()["error"].as_str().is_some_and(|error| error.starts_with(words)));
    let deep = format!("{}\"a\"{}", "[".repeat(110), "]".repeat(110));
    let deep: Value = deep.parse().expect("JSON");
    let deep = shared().post(INFER, &with(json!({ "data": deep })));
    assert_eq!(deep.status(), 400);
    assert_eq!(deep.json()["error"], "JSON nesting depth exceeds maximum allowed limit (100)");
}
