//! A plain gRPC client over HTTP/2 frames, so that tests decide what is read and when. It knows no
//! service.

use std::net::SocketAddr;

use bytes::{Buf, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::TcpStream;

/// Bytes before a message: whether it is compressed, and its length.
const N_PREFIX_BYTES: usize = 5;

/// What a call may be sent before it reads: so little that the library does not take a call that
/// reads nothing for an attack.
const N_WINDOW_BYTES: u32 = 4096;

/// A connection to one server.
#[derive(Clone)]
pub struct Channel {
    sender: SendRequest<Bytes>,
}

/// A call under way. Dropping it cancels it.
pub struct Call {
    requests: SendStream<Bytes>,
    head: Option<ResponseFuture>,
    responses: Option<RecvStream>,
    buffer: BytesMut,
    /// Said in the head, where there is nothing else.
    status: Option<Result<(), Refused>>,
}

/// How a call ended that did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// gRPC's code.
    pub code: u32,
    /// In words.
    pub words: String,
}

impl Channel {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Channel {
        let stream = TcpStream::connect(address).await.expect("the server accepts");
        let mut builder = h2::client::Builder::new();
        let handshake = builder.initial_window_size(N_WINDOW_BYTES).handshake(stream);
        let (sender, connection) = handshake.await.expect("the server speaks HTTP/2");
        tokio::spawn(async move {
            // Its end is seen by the calls.
            let _ = connection.await;
        });
        Channel { sender }
    }

    /// Begins a call of KServe's service.
    pub async fn call(&self, method: &str) -> Call {
        let uri = format!("http://test/inference.GRPCInferenceService/{method}");
        let request = Request::post(uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("well formed");
        let mut sender = self.sender.clone().ready().await.expect("the connection is open");
        let (head, requests) = sender.send_request(request, false).expect("it can be sent");
        let buffer = BytesMut::new();
        Call { requests, head: Some(head), responses: None, buffer, status: None }
    }

    /// A whole call: one message in, one out.
    pub async fn ask<M: Message + Default>(
        &self,
        method: &str,
        message: &impl Message,
    ) -> Result<M, Refused> {
        let mut call = self.call(method).await;
        call.send(message);
        call.close();
        let answer = call.next().await?.expect("an answer before its end");
        assert!(call.next::<M>().await?.is_none(), "one answer");
        Ok(answer)
    }
}

impl Call {
    /// Sends a message.
    pub fn send(&mut self, message: &impl Message) {
        let message = message.encode_to_vec();
        self.begin(message.len() as u32, &message);
    }

    /// Announces a message of so many bytes and sends its first ones.
    pub fn begin(&mut self, n_bytes: u32, first: &[u8]) {
        let framed = [&[0], n_bytes.to_be_bytes().as_slice(), first].concat();
        self.requests.send_data(framed.into(), false).expect("the call is open");
    }

    /// No more messages.
    pub fn close(&mut self) {
        self.requests.send_data(Bytes::new(), true).expect("the call is open");
    }

    /// The next message; `None` after the last one.
    ///
    /// # Errors
    /// The call did not end well.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Refused> {
        self.read_head().await;
        loop {
            if let Some(message) = self.buffered() {
                return Ok(Some(M::decode(message).expect("a message of this kind")));
            }
            if let Some(status) = self.status.clone() {
                return status.map(|()| None);
            }
            let responses = self.responses.as_mut().expect("there is a head");
            match responses.data().await {
                Some(data) => {
                    let data = data.expect("the stream is not reset");
                    let released = responses.flow_control().release_capacity(data.len());
                    released.expect("what was read is released");
                    self.buffer.extend_from_slice(&data);
                }
                None => {
                    let trailers = responses.trailers().await.expect("not reset");
                    let told = trailers.as_ref().and_then(status);
                    self.status = Some(told.expect("trailers tell how it ended"));
                }
            }
        }
    }

    async fn read_head(&mut self) {
        let Some(head) = self.head.take() else { return };
        let response = head.await.expect("the server answers");
        assert_eq!(response.status(), 200);
        self.status = status(response.headers());
        self.responses = Some(response.into_body());
    }

    fn buffered(&mut self) -> Option<Bytes> {
        let mut prefix = self.buffer.get(1..N_PREFIX_BYTES)?;
        let n_bytes = prefix.get_u32() as usize;
        if self.buffer.len() < N_PREFIX_BYTES + n_bytes {
            return None;
        }
        self.buffer.advance(N_PREFIX_BYTES);
        Some(self.buffer.split_to(n_bytes).freeze())
    }
}

fn status(headers: &HeaderMap) -> Option<Result<(), Refused>> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status")?.parse().expect("a code is a number");
    let words = unescaped(text("grpc-message").unwrap_or_default());
    Some(if code == 0 { Ok(()) } else { Err(Refused { code, words }) })
}

/// Messages are written like URLs.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = (byte == b'%').then(|| std::str::from_utf8(after.get(..2)?).ok()).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).expect("messages are UTF-8")
}
