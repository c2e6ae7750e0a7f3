//! One connection: what is read from it and written to it, and when it is given up.
//!
//! Its bytes go through [`Patient`], which gives up a client that takes nothing for too long while
//! there is something for it; its requests through [`Attended`], which keeps the connection's seat
//! busy until their answers are handed over. It knows no routes.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::seats::{Busy, Seat};
use super::state::App;
use crate::metrics::Cut;

/// What a client of HTTP/2 says first (RFC 9113, 3.4).
const N_PREFACE_BYTES: usize = 24;

/// Bytes of an answer that a connection takes at once.
const N_FRAME_BYTES: usize = 16 << 10;

/// A connection's bytes.
pub(super) struct Patient {
    stream: TcpStream,
    seat: Arc<Seat>,
    app: App,
    /// Until its first bytes are there, where the protocol's own code waits for them for ever.
    preface: Option<Preface>,
    /// Since the client takes no more. The connection is busy meanwhile: bytes are under way.
    stalled: Option<Stalled>,
}

struct Preface {
    n_left: usize,
    deadline: Pin<Box<Sleep>>,
}

struct Stalled {
    deadline: Pin<Box<Sleep>>,
    is_given_up: bool,
    _busy: Busy,
}

impl Patient {
    /// Waits for the client to take something as long as the limits say.
    pub(super) fn new(stream: TcpStream, seat: &Arc<Seat>, app: &App) -> Patient {
        let (seat, app) = (Arc::clone(seat), Arc::clone(app));
        Patient { stream, seat, app, preface: None, stalled: None }
    }

    /// The same where HTTP/2 is spoken: a client that does not say so in the time that a head may
    /// take is given up.
    pub(super) fn for_http2(stream: TcpStream, seat: &Arc<Seat>, app: &App) -> Patient {
        let deadline = Box::pin(sleep(app.config.limits.head_timeout));
        let preface = Some(Preface { n_left: N_PREFACE_BYTES, deadline });
        Patient { preface, ..Patient::new(stream, seat, app) }
    }

    /// Looks at the clock while the first bytes are not there.
    fn await_preface(&mut self, cx: &mut Context<'_>, n_read: Option<usize>) -> Poll<()> {
        let Some(preface) = &mut self.preface else { return Poll::Pending };
        preface.n_left = preface.n_left.saturating_sub(n_read.unwrap_or(0));
        if preface.n_left == 0 {
            self.preface = None;
            return Poll::Pending;
        }
        preface.deadline.as_mut().poll(cx)
    }

    fn progress<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let Patient { seat, app, stalled, .. } = self;
        let stalled = stalled.get_or_insert_with(|| Stalled {
            deadline: Box::pin(sleep(app.config.limits.write_timeout)),
            is_given_up: false,
            _busy: seat.busy(),
        });
        if !stalled.is_given_up && stalled.deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if !std::mem::replace(&mut stalled.is_given_up, true) {
            app.metrics.connection_cut(Cut::WriteTimeout);
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n_before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let n_read = read.is_ready().then(|| buffer.filled().len() - n_before);
        if self.await_preface(cx, n_read).is_ready() && read.is_pending() {
            self.preface = None;
            self.app.metrics.connection_cut(Cut::Silent);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.progress(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.progress(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A connection's requests.
pub(super) struct Attended {
    router: TowerToHyperService<Router>,
    seat: Arc<Seat>,
}

impl Attended {
    /// Answered by `router`.
    pub(super) fn new(router: Router, seat: &Arc<Seat>) -> Attended {
        Attended { router: TowerToHyperService::new(router), seat: Arc::clone(seat) }
    }
}

impl hyper::service::Service<Request<Incoming>> for Attended {
    type Response = Response<Held>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Held>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let busy = self.seat.busy();
        let answering = self.router.call(request);
        let held = |body| Held { body, rest: Bytes::new(), _busy: busy };
        Box::pin(async move { Ok(answering.await?.map(held)) })
    }
}

/// An answer's body, which keeps its connection busy. It goes out in small frames: the connection
/// puts them together in a buffer that stays.
pub(super) struct Held {
    body: Body,
    /// Of a frame, what is still to go out.
    rest: Bytes,
    _busy: Busy,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)?) {
                Some(frame) => frame,
                None => return Poll::Ready(None),
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let n_bytes = self.rest.len().min(N_FRAME_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(n_bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (n_rest, of_body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + n_rest);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + n_rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::super::seats::Seats;
    use super::*;

    #[tokio::test]
    async fn a_large_answer_goes_out_in_small_frames_of_which_its_length_is_known() {
        let bytes: Vec<u8> = (0..2 * N_FRAME_BYTES + 100).map(|idx| (idx % 251) as u8).collect();
        let seat = Seats::new(1).take().await;
        let (body, rest) = (Body::from(bytes.clone()), Bytes::new());
        let mut held = Held { body, rest, _busy: seat.seat().busy() };
        let mut cx = Context::from_waker(Waker::noop());
        let mut read = Vec::new();
        for n_bytes in [N_FRAME_BYTES, N_FRAME_BYTES, 100] {
            let n_left = (bytes.len() - read.len()) as u64;
            assert_eq!((held.size_hint().exact(), held.is_end_stream()), (Some(n_left), false));
            let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut held).poll_frame(&mut cx) else {
                panic!("{n_left} bytes are left");
            };
            let data = frame.into_data().expect("bytes");
            assert_eq!(data.len(), n_bytes);
            read.extend_from_slice(&data);
        }
        assert_eq!((held.size_hint().exact(), held.is_end_stream()), (Some(0), true));
        assert!(matches!(Pin::new(&mut held).poll_frame(&mut cx), Poll::Ready(None)));
        assert_eq!(read, bytes);
    }
}
