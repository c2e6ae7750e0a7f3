//! Server-sent events: a JSON value an event.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::Serialize;

/// OpenAI's last word.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// An event as it is written.
pub fn event(value: &impl Serialize) -> Vec<u8> {
    let mut event = b"data: ".to_vec();
    serde_json::to_writer(&mut event, value).expect("values of ours can be written as JSON");
    event.extend_from_slice(b"\n\n");
    event
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
