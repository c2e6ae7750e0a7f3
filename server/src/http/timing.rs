//! `Server-Timing` (W3C) for callers that ask for it with `X-Server-Timing`: how long a request was
//! prepared, waited for a slot, and computed until its first token, in milliseconds. A whole
//! response has it as a header; a stream, which begins before all of that is known, as a trailer,
//! which HTTP/1.1 sends to callers that say `TE: trailers`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{CONTENT_TYPE, TRAILER};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use hyper::body::Frame;

use super::observe::Record;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Moments of a request, from when it was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    /// The engine had it, or the first of its generations.
    pub submitted: Duration,
    /// That one had a slot.
    pub admitted: Duration,
    /// There was a token.
    pub first_token: Duration,
}

impl Moments {
    fn header(&self) -> HeaderValue {
        let between = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64() * 1e3;
        let text = format!(
            "prepare;dur={:.3}, queue;dur={:.3}, prefill;dur={:.3}",
            self.submitted.as_secs_f64() * 1e3,
            between(self.submitted, self.admitted),
            between(self.admitted, self.first_token)
        );
        HeaderValue::from_str(&text).expect("numbers and words of ours")
    }
}

/// Adds it to a response.
pub(super) fn add(record: &Arc<Record>, response: Response) -> Response {
    let content_type = response.headers().get(CONTENT_TYPE);
    let is_stream = content_type.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event"));
    if is_stream {
        let record = Arc::clone(record);
        let mut response = response.map(|body| Body::new(Timed { body, record: Some(record) }));
        response.headers_mut().insert(TRAILER, HeaderValue::from_static("server-timing"));
        return response;
    }
    let mut response = response;
    if let Some(moments) = record.moments() {
        response.headers_mut().insert(SERVER_TIMING, moments.header());
    }
    response
}

/// A body with a trailer.
struct Timed {
    body: Body,
    /// Gone once its moments were said.
    record: Option<Arc<Record>>,
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(None) => {
                let moments = self.record.take().and_then(|record| record.moments());
                let trailers = moments
                    .map(|moments| HeaderMap::from_iter([(SERVER_TIMING, moments.header())]));
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            frame => frame,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_said_as_durations() {
        let us = Duration::from_micros;
        let moments = Moments { submitted: us(1500), admitted: us(4000), first_token: us(104_001) };
        let expected = "prepare;dur=1.500, queue;dur=2.500, prefill;dur=100.001";
        assert_eq!(moments.header(), expected);
    }
}
