//! HTTP/1.1 to one server, over connections that are kept and used again. It hides nothing that
//! takes time: no queue, no retry of a request that was sent. It knows no protocol above HTTP.

use std::io;
use std::str::FromStr;
use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, TE};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::error::BenchError;
use crate::http::observe::SERVER_TIMING_WANTED;

/// Connections that wait to be used again at most; more are closed.
const N_IDLE_MAX: usize = 65_536;

/// Bytes of an answer to a question of ours (models, tokens) at most.
const N_REPLY_BYTES_MAX: usize = 64 << 20;

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    /// `host:port`.
    pub authority: String,
    /// What all paths begin with; without a slash at its end.
    pub base: String,
}

impl FromStr for ServerUrl {
    type Err = BenchError;

    fn from_str(url: &str) -> Result<ServerUrl, BenchError> {
        let wrong = |problem| BenchError::Url { url: url.to_owned(), problem };
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => {
                let problem = "TLS is not spoken, as it would be measured too; point it at the \
                               server behind the proxy, with http://";
                return Err(wrong(problem));
            }
            Some(_) => return Err(wrong("write http://HOST:PORT")),
            None => url,
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        if host.is_empty() || authority.contains(['@', '?', '#', ' ']) {
            return Err(wrong("write http://HOST:PORT"));
        }
        if port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err(wrong("the port is a number from 0 to 65535"));
        }
        let base = path.trim_end_matches('/').trim_end_matches("v1").trim_end_matches('/');
        Ok(ServerUrl {
            authority: format!("{host}:{}", port.unwrap_or("80")),
            base: if base.is_empty() { String::new() } else { format!("/{base}") },
        })
    }
}

/// How to reach it.
#[derive(Clone, Debug)]
pub enum Dial {
    /// A socket.
    Tcp,
    /// A server in this process takes the other end: for tests in virtual time.
    Memory(mpsc::Sender<DuplexStream>),
}

/// Why there is no response.
#[derive(Debug, Error)]
pub enum SendError {
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// It broke before the response.
    #[error("{0}")]
    Broken(#[from] hyper::Error),
}

/// Speaks to one server.
#[derive(Debug)]
pub struct Client {
    url: ServerUrl,
    dial: Dial,
    headers: HeaderMap,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// A response that is being read. Dropping it hangs up.
pub struct Exchange {
    client: Arc<Client>,
    sender: Option<SendRequest<Full<Bytes>>>,
    /// Status, headers, and the body as it comes.
    pub response: Response<Incoming>,
}

impl Client {
    /// With a key to show, if there is one.
    ///
    /// # Errors
    /// The key cannot be sent.
    pub fn new(
        url: ServerUrl,
        dial: Dial,
        api_key: Option<&str>,
    ) -> Result<Arc<Client>, BenchError> {
        let mut headers = HeaderMap::new();
        let host = HeaderValue::from_str(&url.authority).map_err(|_| BenchError::Url {
            url: url.authority.clone(),
            problem: "a host is written in ASCII",
        })?;
        headers.insert(HOST, host);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // Other servers do not know it and say nothing.
        headers.insert(SERVER_TIMING_WANTED, HeaderValue::from_static("1"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if let Some(key) = api_key {
            let value = HeaderValue::from_str(&format!("Bearer {key}"));
            let refuse = |_| BenchError::Settings("the API key is no header's value".into());
            headers.insert(AUTHORIZATION, value.map_err(refuse)?);
        }
        Ok(Arc::new(Client { url, dial, headers, idle: Mutex::default() }))
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.url.authority
    }

    /// Sends a request and waits for the response's head.
    ///
    /// # Errors
    /// There is no connection, or it broke.
    pub async fn send(
        self: &Arc<Client>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Exchange, SendError> {
        loop {
            let kept = self.idle.lock().pop();
            let is_kept = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            if is_kept && sender.ready().await.is_err() {
                // The server closed it while nobody looked.
                continue;
            }
            match sender.try_send_request(self.request(&method, path, body.clone())).await {
                Ok(response) => {
                    let client = Arc::clone(self);
                    return Ok(Exchange { client, sender: Some(sender), response });
                }
                // Handed back: no byte of it was written.
                Err(error) if is_kept && error.message().is_some() => {}
                Err(error) => return Err(SendError::Broken(error.into_error())),
            }
        }
    }

    /// A small question: status and whole body.
    ///
    /// # Errors
    /// As for [`Client::send`], or the body is too long.
    pub async fn ask(
        self: &Arc<Client>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(u16, Bytes), SendError> {
        let mut exchange = self.send(method, path, body).await?;
        let status = exchange.response.status().as_u16();
        let mut bytes = Vec::new();
        while let Some(frame) = exchange.response.body_mut().frame().await {
            if let Ok(data) = frame?.into_data() {
                bytes.extend_from_slice(&data);
            }
            if bytes.len() > N_REPLY_BYTES_MAX {
                return Ok((status, Bytes::new()));
            }
        }
        exchange.keep();
        Ok((status, bytes.into()))
    }

    fn request(&self, method: &Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        let path = format!("{}{path}", self.url.base);
        *request.uri_mut() = path.parse().expect("paths are escaped");
        request.headers_mut().clone_from(&self.headers);
        request
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, SendError> {
        match &self.dial {
            Dial::Tcp => {
                let stream = TcpStream::connect(&self.url.authority).await;
                let stream = stream.map_err(SendError::Connect)?;
                stream.set_nodelay(true).map_err(SendError::Connect)?;
                shake_hands(TokioIo::new(stream)).await
            }
            Dial::Memory(server) => {
                let (ours, theirs) = tokio::io::duplex(1 << 20);
                let gone = |_| SendError::Connect(io::ErrorKind::ConnectionRefused.into());
                server.send(theirs).await.map_err(gone)?;
                shake_hands(TokioIo::new(ours)).await
            }
        }
    }
}

impl Exchange {
    /// The body was read to its end: the connection may be used again.
    pub fn keep(mut self) {
        let Some(sender) = self.sender.take() else { return };
        let mut idle = self.client.idle.lock();
        if idle.len() < N_IDLE_MAX && !sender.is_closed() {
            idle.push(sender);
        }
    }
}

async fn shake_hands<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, SendError>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(stream).await?;
    // It ends when its sender is dropped, and the request that runs then sees what went wrong.
    tokio::spawn(connection);
    Ok(sender)
}

/// Escapes a part of a path.
pub fn escaped(part: &str) -> String {
    let mut text = String::new();
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let cases = [
            ("http://localhost:8000", "localhost:8000", ""),
            ("localhost:8000/", "localhost:8000", ""),
            ("http://h", "h:80", ""),
            ("http://h:1/v1", "h:1", ""),
            ("http://h:1/v1/", "h:1", ""),
            ("http://h:1/a/b/", "h:1", "/a/b"),
            ("http://[::1]:9", "[::1]:9", ""),
            ("http://[::1]", "[::1]:80", ""),
        ];
        for (url, authority, base) in cases {
            let read: ServerUrl = url.parse().expect(url);
            assert_eq!((&*read.authority, &*read.base), (authority, base), "{url}");
        }
        for (url, problem) in [
            ("https://h", "TLS is not spoken"),
            ("ftp://h", "write http://HOST:PORT"),
            ("http://", "write http://HOST:PORT"),
            ("http://u@h", "write http://HOST:PORT"),
            ("h:99999", "the port is a number"),
        ] {
            let message = url.parse::<ServerUrl>().expect_err(url).to_string();
            assert!(message.contains(url) && message.contains(problem), "{message}");
        }
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("a/b c-1"), "a%2Fb%20c-1");
    }
}
