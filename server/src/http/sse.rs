//! Server-sent events: a JSON value an event.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::Serialize;

/// OpenAI's last word.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// Bytes that most events fit into: a token, and what names its answer.
const N_EVENT_BYTES: usize = 384;

/// An event as it is written.
pub fn event(value: &impl Serialize) -> Vec<u8> {
    let mut event = Vec::with_capacity(N_EVENT_BYTES);
    event.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut event, value).expect("values of ours can be written as JSON");
    event.extend_from_slice(b"\n\n");
    event
}

/// An event of a stream of which nothing but a text changes: what stands around that, written once.
#[derive(Debug)]
pub struct Frame {
    /// The text stands between any two.
    parts: Vec<Box<[u8]>>,
}

impl Frame {
    /// Stands where the text will, in an event to make a frame of.
    pub const TEXT: &str = "\u{F8FF}";

    /// Of the event of `value`, whose last `n_texts` strings that are [`Frame::TEXT`] are its text.
    pub fn of(value: &impl Serialize, n_texts: usize) -> Frame {
        let text = serde_json::to_vec(Frame::TEXT).expect("a string can be written as JSON");
        let mut rest = event(value);
        let mut parts = Vec::with_capacity(n_texts + 1);
        for _ in 0..n_texts {
            let at = rest.windows(text.len()).rposition(|found| found == text);
            let at = at.expect("the event has a place for the text");
            parts.push(rest[at + text.len()..].into());
            rest.truncate(at);
        }
        parts.push(rest.into());
        parts.reverse();
        Frame { parts }
    }

    /// The event with this text.
    pub fn event(&self, text: &str) -> Vec<u8> {
        let mut event = Vec::with_capacity(N_EVENT_BYTES);
        for (idx, part) in self.parts.iter().enumerate() {
            if idx > 0 {
                serde_json::to_writer(&mut event, text).expect("a string can be written as JSON");
            }
            event.extend_from_slice(part);
        }
        event
    }
}

/// An event that has its kind beside it.
pub fn named_event(kind: &str, value: &impl Serialize) -> Vec<u8> {
    let mut named = format!("event: {kind}\n").into_bytes();
    named.extend(event(value));
    named
}

/// The response that carries events.
pub fn response(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    let event_stream = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, event_stream);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Kinds and data of a stream's events, as the HTML standard has them read (section 9.2.6): an
    /// empty line ends an event, lines of data are put together.
    fn read(stream: &[u8]) -> Vec<(String, String)> {
        let text = std::str::from_utf8(stream).expect("events are UTF-8");
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let (mut events, mut kind, mut data) = (Vec::new(), String::new(), Vec::new());
        for line in text.split('\n') {
            match line.split_once(':').unwrap_or((line, "")) {
                ("", "") if !data.is_empty() => {
                    events.push((std::mem::take(&mut kind), data.join("\n")));
                    data.clear();
                }
                ("data", value) => data.push(value.strip_prefix(' ').unwrap_or(value)),
                ("event", value) => kind = value.trim_start().to_owned(),
                _ => {}
            }
        }
        assert!(data.is_empty(), "an event is not over: {data:?}");
        events
    }

    #[test]
    fn a_frame_around_a_text_reads_as_the_event_written_whole() {
        // What callers named stands before the text, whatever it is.
        let whole = |text: &str| {
            let said = json!({"text": text, "again": [text]});
            json!({"id": Frame::TEXT, "said": said, "end\"": null})
        };
        let frame = Frame::of(&whole(Frame::TEXT), 2);
        for text in ["", " and", "a\"}\n\n", "\u{0}\u{2028}", Frame::TEXT, "\"\u{F8FF}\""] {
            assert_eq!(frame.event(text), event(&whole(text)), "{text:?}");
        }
        assert_eq!(Frame::of(&Frame::TEXT, 1).event("b"), b"data: \"b\"\n\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000_000))]
        #[test]
        fn what_is_written_is_read_back(
            texts in proptest::collection::vec(
                proptest::collection::vec(
                    prop_oneof![
                        any::<char>(),
                        prop::sample::select(
                            "\n\r\u{2028}\u{0}:\\\" d".chars().collect::<Vec<_>>()
                        ),
                    ]
                    .prop_map(String::from)
                    .boxed(),
                    0..6,
                )
                .prop_map(|parts| parts.join("data: ")),
                0..3,
            ),
        ) {
            let mut stream = Vec::new();
            for (idx, text) in texts.iter().enumerate() {
                let value = json!({"delta": text});
                match idx % 2 {
                    0 => stream.extend(event(&value)),
                    _ => stream.extend(named_event("response.output_text.delta", &value)),
                }
            }
            let events = read(&stream);
            prop_assert_eq!(events.len(), texts.len());
            for (idx, ((kind, data), text)) in events.iter().zip(&texts).enumerate() {
                let value: Value = serde_json::from_str(data).expect("JSON");
                prop_assert_eq!(&value["delta"], text);
                prop_assert_eq!(kind.is_empty(), idx % 2 == 0);
            }
        }
    }
}
