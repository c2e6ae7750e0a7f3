//! Bodies: reading a request's within its bounds, and writing an answer as it comes into being.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, header};
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::error::ApiError;
use super::limits::HttpLimits;

/// Bytes that a body gets room for before any has come.
const N_FIRST_BYTES: usize = 64 << 10;

/// Reads a whole body.
///
/// # Errors
/// The body is compressed, longer than its bound, late, or broke off.
pub async fn read(
    headers: &HeaderMap,
    body: Body,
    limits: &HttpLimits,
) -> Result<Vec<u8>, ApiError> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
        return Err(ApiError::BodyEncoded { encoding });
    }
    read_encoded(body, limits).await
}

/// Reads a whole body as it is, compressed or not.
///
/// # Errors
/// The body is longer than its bound, late, or broke off.
pub async fn read_encoded(body: Body, limits: &HttpLimits) -> Result<Vec<u8>, ApiError> {
    let seconds = limits.body_timeout.as_secs();
    let reading = read_within(body, limits.n_body_bytes_max);
    match tokio::time::timeout(limits.body_timeout, reading).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(Broken::TooLarge { n_bytes })) => {
            Err(ApiError::BodyTooLarge { n_bytes, n_bytes_max: limits.n_body_bytes_max })
        }
        Ok(Err(Broken::Off)) | Err(_) => Err(ApiError::BodyIncomplete { seconds }),
    }
}

enum Broken {
    TooLarge { n_bytes: usize },
    Off,
}

async fn read_within(mut body: Body, n_bytes_max: usize) -> Result<Vec<u8>, Broken> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > n_bytes_max {
        return Err(Broken::TooLarge { n_bytes: announced });
    }
    // What is announced may never come: room is made as it does.
    let mut bytes = Vec::with_capacity(announced.min(N_FIRST_BYTES));
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame.map_err(|_| Broken::Off)?.into_data() else { continue };
        let n_bytes = bytes.len() + data.len();
        if n_bytes > n_bytes_max {
            return Err(Broken::TooLarge { n_bytes });
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// The writing end of a body that comes into being while it is sent.
pub struct Chunks {
    sender: mpsc::Sender<Bytes>,
}

/// The client is gone.
#[derive(Debug)]
pub struct ClientGone;

/// A body whose chunks are sent as they are written, at most `n_chunks_max` ahead of the client.
pub fn chunked(n_chunks_max: usize) -> (Chunks, Body) {
    let (sender, mut receiver) = mpsc::channel(n_chunks_max);
    (Chunks { sender }, made(move |cx| receiver.poll_recv(cx)))
}

/// A body of known bytes, but sent chunked: without `Content-Length`.
pub fn one_chunk(bytes: Vec<u8>) -> Body {
    let (chunks, body) = chunked(1);
    chunks.sender.try_send(bytes.into()).expect("an empty channel takes one chunk");
    body
}

impl Chunks {
    /// Writes a chunk; waits while the client reads slower than it could.
    pub async fn write(&self, chunk: impl Into<Bytes>) -> Result<(), ClientGone> {
        self.sender.send(chunk.into()).await.map_err(|_| ClientGone)
    }

    /// Comes back when the client is gone.
    pub async fn gone(&self) {
        self.sender.closed().await;
    }
}

/// A body whose every chunk is made when the connection has room for it, by `next`, on the
/// connection's own task: nothing stands between the two that would have to be woken. There is no
/// chunk after `None`. It is dropped with the connection.
pub fn made<Next>(next: Next) -> Body
where
    Next: FnMut(&mut Context<'_>) -> Poll<Option<Bytes>> + Send + Unpin + 'static,
{
    Body::new(MadeBody { next: Some(next) })
}

struct MadeBody<Next> {
    /// Gone after the last chunk.
    next: Option<Next>,
}

impl<Next> HttpBody for MadeBody<Next>
where
    Next: FnMut(&mut Context<'_>) -> Poll<Option<Bytes>> + Unpin,
{
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(next) = &mut self.next else { return Poll::Ready(None) };
        let chunk = ready!(next(cx));
        if chunk.is_none() {
            self.next = None;
        }
        Poll::Ready(chunk.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use hyper::body::SizeHint;

    use super::*;

    /// Announces more than it has.
    struct Boaster {
        n_announced: u64,
        chunks: Vec<Bytes>,
    }

    impl HttpBody for Boaster {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            let broken = || Err(std::io::ErrorKind::UnexpectedEof.into());
            Poll::Ready(Some(self.chunks.pop().map(Frame::data).map_or_else(broken, Ok)))
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.n_announced)
        }
    }

    #[test]
    fn what_is_announced_takes_no_room_before_it_comes() {
        const N_MAX: usize = 64 << 20;
        for (n_announced, n_chunks, n_chunk_bytes) in
            [(N_MAX as u64, 0, 0), (N_MAX as u64, 1, 10), (N_MAX as u64, 64, 4 << 10)]
        {
            let chunks = vec![Bytes::from(vec![b' '; n_chunk_bytes]); n_chunks];
            let body = Body::new(Boaster { n_announced, chunks });
            let taken = allocation_counter::measure(|| {
                let mut reading = pin!(read_within(body, N_MAX));
                let read = reading.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                assert!(matches!(read, Poll::Ready(Err(Broken::Off))));
            });
            // A buffer that grows has twice its room, and the old one beside it meanwhile.
            let n_most = N_FIRST_BYTES + 3 * n_chunks * n_chunk_bytes + (4 << 10);
            assert!(taken.bytes_max <= n_most as u64, "{n_most} {taken:?}");
        }
    }
}
