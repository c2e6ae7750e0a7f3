//! One request and its answer, timed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::{HeaderMap, Method};

use super::ask::Ask;
use super::client::{Client, Exchange, SendError};
use super::clock::Clock;
use super::protocol::{Asking, Piece, Waits, error_words};
use super::sample::{Failure, Outcome, Sample};
use super::sse::EventReader;

/// Bytes of a whole answer, or of an error, at most.
const N_BODY_BYTES_MAX: usize = 64 << 20;

/// Who asks, and how.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The connections.
    pub client: Arc<Client>,
    /// The time.
    pub clock: Clock,
    /// What is the same in all requests.
    pub asking: Arc<Asking>,
    /// An answer takes no longer.
    pub timeout: Duration,
    /// What everybody may look at meanwhile.
    pub progress: Arc<Progress>,
}

/// How far a run is, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests that were begun.
    pub n_begun: AtomicUsize,
    /// Requests that are over, well or not.
    pub n_over: AtomicUsize,
    /// Of these, those that failed.
    pub n_failed: AtomicUsize,
    /// Pieces of answers, each of which is a token or a few.
    pub n_pieces: AtomicU64,
}

/// When a request should start, and which it is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// See [`Sample::idx`].
    pub idx: u64,
    /// See [`Sample::turn`].
    pub turn: usize,
    /// See [`Sample::intended`].
    pub intended: Duration,
}

/// What has come of an answer.
#[derive(Debug, Default)]
struct Coming {
    head: Option<Duration>,
    first_event: Option<Duration>,
    first: Option<Duration>,
    last: Option<Duration>,
    gaps_us: Vec<u32>,
    n_prompt: Option<usize>,
    n_cached: Option<usize>,
    n_counted: Option<usize>,
    n_pieces: usize,
    waits: Option<Waits>,
    text: String,
}

impl Asker {
    /// Asks and reads the answer, whose text comes beside the sample.
    pub async fn ask(&self, ask: &Ask, place: Place) -> (Sample, String) {
        let began = self.clock.now();
        self.progress.n_begun.fetch_add(1, Ordering::Relaxed);
        let mut coming = Coming::default();
        let deadline = began + self.timeout;
        let outcome = tokio::select! {
            // The answer goes first where both are ready.
            biased;
            ended = self.read(ask, &mut coming) => match ended {
                Ok(outcome) => outcome,
                Err(failure) => Outcome::Failed(failure),
            },
            () = self.clock.sleep_until(deadline) => {
                let words = format!("no end after {} s", self.timeout.as_secs_f64());
                Outcome::Failed(Failure { kind: "timeout".into(), words })
            }
        };
        self.progress.n_over.fetch_add(1, Ordering::Relaxed);
        if matches!(outcome, Outcome::Failed(_)) {
            self.progress.n_failed.fetch_add(1, Ordering::Relaxed);
        }
        let sample = Sample {
            idx: place.idx,
            turn: place.turn,
            intended: place.intended.min(began),
            began,
            head: coming.head,
            first_event: coming.first_event,
            first: coming.first,
            gaps_us: coming.gaps_us,
            last: coming.last,
            ended: self.clock.now(),
            outcome,
            n_prompt: coming.n_prompt,
            n_cached: coming.n_cached,
            n_out: coming.n_counted.unwrap_or(coming.n_pieces),
            is_counted: coming.n_counted.is_some(),
            n_out_wanted: ask.n_out,
            waits: coming.waits,
        };
        (sample, coming.text)
    }

    async fn read(&self, ask: &Ask, coming: &mut Coming) -> Result<Outcome, Failure> {
        let path = self.asking.endpoint.path(&self.asking.model);
        let body = self.asking.body(ask).into();
        let mut exchange =
            self.client.send(Method::POST, &path, body).await.map_err(|error| match error {
                SendError::Connect(_) => failure("connect", error.to_string()),
                SendError::Broken(_) => failure("broken", error.to_string()),
            })?;
        coming.head = Some(self.clock.now());
        let status = exchange.response.status();
        if !status.is_success() {
            let body = read_whole(&mut exchange).await?;
            exchange.keep();
            let words = error_words(&String::from_utf8_lossy(&body));
            return Err(failure(status.as_str(), words));
        }
        coming.waits = waits_of(exchange.response.headers());
        if !self.asking.endpoint.streams() {
            let body = read_whole(&mut exchange).await?;
            exchange.keep();
            let piece = self.piece(&String::from_utf8_lossy(&body))?;
            coming.take(piece, self.clock.now(), false);
            return Ok(Outcome::Done);
        }
        self.read_events(exchange, ask, coming).await
    }

    async fn read_events(
        &self,
        mut exchange: Exchange,
        ask: &Ask,
        coming: &mut Coming,
    ) -> Result<Outcome, Failure> {
        let mut reader = EventReader::default();
        while let Some(frame) = exchange.response.body_mut().frame().await {
            let frame = frame.map_err(|error| failure("broken", error.to_string()))?;
            let at = self.clock.now();
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(frame) => {
                    let trailers = frame.trailers_ref();
                    coming.waits = trailers.and_then(waits_of).or(coming.waits);
                    continue;
                }
            };
            let events = reader.push(&data).map_err(|bad| failure("malformed", bad.0.into()))?;
            for event in events {
                let piece = self.piece(&event)?;
                let has_token = piece.has_token;
                coming.take(piece, at, true);
                if has_token {
                    self.progress.n_pieces.fetch_add(1, Ordering::Relaxed);
                    if ask.cancel_after.is_some_and(|n| coming.n_pieces >= n) {
                        // The connection is dropped with the exchange: that is the cancel.
                        return Ok(Outcome::Cancelled);
                    }
                }
            }
        }
        if reader.is_within_event() {
            return Err(failure("malformed", "the stream ended within an event".into()));
        }
        exchange.keep();
        match coming.n_pieces {
            0 => Err(failure("empty", "a stream without a token".into())),
            _ => Ok(Outcome::Done),
        }
    }

    fn piece(&self, data: &str) -> Result<Piece, Failure> {
        self.asking.read(data).map_err(|words| failure("in answer", words))
    }
}

impl Coming {
    fn take(&mut self, piece: Piece, at: Duration, is_stream: bool) {
        self.n_prompt = piece.n_prompt.or(self.n_prompt);
        self.n_cached = piece.n_cached.or(self.n_cached);
        self.n_counted = piece.n_out.or(self.n_counted);
        if let Some(n_new) = piece.n_new {
            self.n_counted = Some(self.n_counted.unwrap_or(0) + n_new);
        }
        self.waits = self.waits.or(piece.waits);
        self.text.push_str(&piece.text);
        if is_stream && piece.is_answer {
            self.first_event.get_or_insert(at);
        }
        if !piece.has_token {
            return;
        }
        self.n_pieces += 1;
        if is_stream {
            self.first.get_or_insert(at);
            if let Some(last) = self.last {
                let gap = at.saturating_sub(last).as_micros();
                self.gaps_us.push(u32::try_from(gap).unwrap_or(u32::MAX));
            }
        }
        self.last = Some(at);
    }
}

async fn read_whole(exchange: &mut Exchange) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    while let Some(frame) = exchange.response.body_mut().frame().await {
        let frame = frame.map_err(|error| failure("broken", error.to_string()))?;
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > N_BODY_BYTES_MAX {
            return Err(failure("malformed", "an answer of more than 64 MiB".into()));
        }
    }
    Ok(bytes)
}

fn failure(kind: &str, words: String) -> Failure {
    Failure { kind: kind.to_owned(), words }
}

/// What `Server-Timing` says, in headers or trailers, as the W3C has it: `queue;dur=1.5, …`, in
/// milliseconds.
fn waits_of(headers: &HeaderMap) -> Option<Waits> {
    let text = headers.get("server-timing")?.to_str().ok()?;
    let duration = |name: &str| {
        let metric = text.split(',').find_map(|metric| {
            let (metric, parameters) = metric.trim().split_once(';')?;
            (metric == name).then_some(parameters)
        })?;
        let ms = metric.split(';').find_map(|parameter| parameter.trim().strip_prefix("dur="))?;
        Duration::try_from_secs_f64(ms.parse::<f64>().ok()? / 1e3).ok()
    };
    Some(Waits {
        prepare: duration("prepare")?,
        queue: duration("queue")?,
        prefill: duration("prefill")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_timing_is_read_whole_or_not_at_all() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("server-timing", text.parse().expect("a header"));
            waits_of(&headers)
        };
        let us = Duration::from_micros;
        let waits = Waits { prepare: us(250), queue: us(1500), prefill: us(20_000) };
        assert_eq!(read("prepare;dur=0.25, queue;dur=1.5, prefill;dur=20"), Some(waits));
        assert_eq!(
            read("cache, prefill;desc=x;dur=20,queue;dur=1.5, prepare;dur=0.25"),
            Some(waits)
        );
        for text in ["queue;dur=1", "prepare;dur=-1, queue;dur=1, prefill;dur=1", "miss", ""] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(waits_of(&HeaderMap::new()), None);
    }
}
