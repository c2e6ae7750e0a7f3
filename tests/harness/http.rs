//! A plain HTTP/1.1 client over blocking sockets, so that tests see what is on the wire. It knows
//! no JSON beyond bodies.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

/// Speaks to one server.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    headers: Vec<(String, String)>,
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What came before the body.
    pub head: Head,
    /// The body, decoded from chunks.
    pub body: Vec<u8>,
}

/// A response's first lines.
#[derive(Clone, Debug)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// Its words.
    pub reason: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

/// A connection that takes one request after the other.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

/// A response that is read event by event. Dropping it hangs up.
pub struct EventStream {
    /// What came before the events.
    pub head: Head,
    connection: Connection,
    /// Bytes of events that are not complete.
    pending: Vec<u8>,
    is_over: bool,
}

impl Client {
    /// For a server at an address.
    pub fn new(address: SocketAddr) -> Client {
        Client { address, headers: Vec::new() }
    }

    /// Where the server is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same with one more header on every request.
    pub fn with_header(&self, name: &str, value: &str) -> Client {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// A connection. It waits for as long as an answer takes: no machine is too slow.
    pub fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_nodelay(true).expect("an option can be set");
        Connection { stream: BufReader::new(stream) }
    }

    /// `GET`.
    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, b"")
    }

    /// `POST` of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, body.to_string().as_bytes())
    }

    /// Any request on a connection of its own.
    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        let mut connection = self.connect();
        connection.write(method, path, &self.headers, body).expect("the server reads");
        connection.read_reply(method).expect("the server answers")
    }

    /// `POST` of JSON, answered with events.
    pub fn stream(&self, path: &str, body: &Value) -> EventStream {
        let mut connection = self.connect();
        let body = body.to_string();
        connection.write("POST", path, &self.headers, body.as_bytes()).expect("the server reads");
        let head = connection.read_head().expect("the server answers");
        EventStream { head, connection, pending: Vec::new(), is_over: false }
    }
}

impl Reply {
    /// The status.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {}: {}", self.head.status, self.text()))
    }

    /// The body of a 200 as JSON.
    pub fn ok(&self) -> Value {
        assert_eq!(self.head.status, 200, "{}", self.text());
        self.json()
    }
}

impl Head {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let named = self.headers.iter().find(|(given, _)| given == name);
        named.map(|(_, value)| value.as_str())
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding") == Some("chunked")
    }
}

impl Connection {
    /// Writes a request, its body's length included.
    pub fn write(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> io::Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        self.write_raw(&[head.as_bytes(), body].concat())
    }

    /// Writes bytes as they are.
    pub fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads a whole response.
    pub fn read_reply(&mut self, method: &str) -> io::Result<Reply> {
        let head = self.read_head()?;
        let mut body = Vec::new();
        if method == "HEAD" || head.status == 204 {
            return Ok(Reply { head, body });
        }
        if head.is_chunked() {
            while let Some(chunk) = self.read_chunk()? {
                body.extend(chunk);
            }
        } else {
            let n_bytes = head.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
            body.resize(n_bytes, 0);
            self.stream.read_exact(&mut body)?;
        }
        Ok(Reply { head, body })
    }

    /// Reads a response's first lines.
    pub fn read_head(&mut self) -> io::Result<Head> {
        let line = self.read_line()?;
        let mut words = line.splitn(3, ' ').skip(1);
        let status = words.next().and_then(|status| status.parse().ok());
        let reason = words.next().unwrap_or_default().to_owned();
        let mut head = Head {
            status: status.ok_or_else(|| io::Error::other(format!("no status in {line:?}")))?,
            reason,
            headers: Vec::new(),
        };
        loop {
            let line = self.read_line()?;
            match line.split_once(':') {
                Some((name, value)) => {
                    head.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                }
                None => return Ok(head),
            }
        }
    }

    /// The next chunk; `None` after the last one.
    pub fn read_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.read_line()?;
        let n_bytes = usize::from_str_radix(line.trim(), 16)
            .map_err(|_| io::Error::other(format!("no chunk size in {line:?}")))?;
        let mut chunk = vec![0; n_bytes];
        self.stream.read_exact(&mut chunk)?;
        self.read_line()?;
        Ok((n_bytes > 0).then_some(chunk))
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

impl EventStream {
    /// All events to come, parsed, without `[DONE]`.
    ///
    /// # Panics
    /// An event is no JSON.
    pub fn values(self) -> Vec<Value> {
        let events = self.filter(|event| event != "[DONE]");
        events.map(|event| serde_json::from_str(&event).expect("events are JSON")).collect()
    }
}

impl Iterator for EventStream {
    type Item = String;

    /// The next event's data.
    fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.pending.drain(..end + 2).collect();
                let event = String::from_utf8(event).expect("events are UTF-8");
                let data = event.trim_end().strip_prefix("data: ").expect("events are data");
                return Some(data.to_owned());
            }
            if self.is_over {
                assert!(self.pending.is_empty(), "half an event: {:?}", self.pending);
                return None;
            }
            match self.connection.read_chunk().expect("the stream ends with a last chunk") {
                Some(chunk) => self.pending.extend(chunk),
                None => self.is_over = true,
            }
        }
    }
}
