//! A load generator that costs little: it looks for what ends an event or an answer and at nothing
//! else.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes read at once.
const N_BUFFER_BYTES: usize = 16 << 10;

/// What ends a body that came in chunks.
pub(crate) const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// A connection that stays.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// To a server.
    ///
    /// # Errors
    /// It does not listen.
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: vec![0; N_BUFFER_BYTES] })
    }

    /// Over one that is open.
    ///
    /// # Errors
    /// It is none that can be waited for.
    pub(crate) fn over(stream: std::net::TcpStream) -> anyhow::Result<Connection> {
        stream.set_nonblocking(true)?;
        let stream = TcpStream::from_std(stream)?;
        Ok(Connection { stream, buffer: vec![0; N_BUFFER_BYTES] })
    }

    /// Asks for a stream and says when each of its events was here, to `heard` too, which gets
    /// the number of those that came together.
    ///
    /// # Errors
    /// The connection broke, or the answer is not 200.
    pub(crate) async fn stream(
        &mut self,
        request: &[u8],
        mut heard: impl FnMut(usize),
    ) -> anyhow::Result<Vec<Instant>> {
        self.stream.write_all(request).await?;
        let mut moments = Vec::new();
        let mut last = Vec::new();
        loop {
            let n_bytes = self.stream.read(&mut self.buffer).await?;
            anyhow::ensure!(n_bytes > 0, "the server hung up");
            let bytes = &self.buffer[..n_bytes];
            if moments.is_empty() && last.is_empty() {
                expect_ok(bytes)?;
            }
            let now = Instant::now();
            let n_events = count_events(last.last() == Some(&b'\n'), bytes);
            moments.extend(std::iter::repeat_n(now, n_events));
            heard(n_events);
            keep_last(&mut last, bytes);
            if last.ends_with(LAST_CHUNK) {
                return Ok(moments);
            }
        }
    }

    /// Asks for a whole answer and reads it.
    ///
    /// # Errors
    /// The connection broke, or the answer is not 200.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(request).await?;
        let mut answer = Vec::new();
        loop {
            let n_bytes = self.stream.read(&mut self.buffer).await?;
            anyhow::ensure!(n_bytes > 0, "the server hung up");
            answer.extend_from_slice(&self.buffer[..n_bytes]);
            expect_ok(&answer)?;
            if is_complete(&answer) {
                return Ok(());
            }
        }
    }
}

/// A request as it is sent.
pub(crate) fn request(path: &str, body: &str) -> Vec<u8> {
    let n_bytes = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {n_bytes}\r\n\r\n{body}").into()
}

fn expect_ok(answer: &[u8]) -> anyhow::Result<()> {
    let is_ok = answer.starts_with(b"HTTP/1.1 200");
    anyhow::ensure!(is_ok, "{}", String::from_utf8_lossy(answer));
    Ok(())
}

/// Events end with an empty line. Heads and chunks have carriage returns in theirs.
fn count_events(mut was_newline: bool, bytes: &[u8]) -> usize {
    let mut n_events = 0;
    for &byte in bytes {
        let is_newline = byte == b'\n';
        n_events += usize::from(is_newline && was_newline);
        was_newline = is_newline;
    }
    n_events
}

fn keep_last(last: &mut Vec<u8>, bytes: &[u8]) {
    last.extend_from_slice(&bytes[bytes.len().saturating_sub(LAST_CHUNK.len())..]);
    last.drain(..last.len().saturating_sub(LAST_CHUNK.len()));
}

fn is_complete(answer: &[u8]) -> bool {
    const LENGTH: &[u8] = b"content-length: ";
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let at = answer[..head].windows(LENGTH.len()).position(|found| found == LENGTH);
    let Some(at) = at else { return answer.ends_with(LAST_CHUNK) };
    let digits = answer[at + LENGTH.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    let n_bytes = digits.fold(0, |n, digit| 10 * n + usize::from(digit - b'0'));
    answer.len() == head + 4 + n_bytes
}
