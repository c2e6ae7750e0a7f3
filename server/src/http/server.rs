//! The listener, its connections, and the order in which everything ends. It knows no routes.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::time::{interval, sleep};

use super::attend::attend;
use super::connection::{Attended, Patient};
use super::error::ApiError;
use super::limits::HttpLimits;
use super::router::{metrics_router, router};
use super::seats::{Held, Seats};
use super::shutdown::Phase;
use super::state::App;
use super::triton::grpc;

/// How often the engine is asked whether it still runs: its failure ends the program.
const ENGINE_WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// What last bytes get to leave once every answer is complete.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// What the last traces get to reach their collector.
const TRACE_FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause after the system refused a connection, as when it is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server that listens.
pub struct Server {
    http: TcpListener,
    grpc: Option<TcpListener>,
    /// Where metrics are read and nothing else, if they are to have a port of their own.
    metrics: Option<TcpListener>,
    app: App,
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    /// HTTP/2, which gRPC needs.
    Grpc,
}

/// How serving ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every request was answered.
    Drained,
    /// The deadline passed first.
    DeadlinePassed {
        /// Requests that were cut off.
        n_cut: usize,
    },
    /// A second signal came.
    Forced,
    /// The engine failed.
    EngineFailed {
        /// The first failure, in words.
        cause: String,
    },
}

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// Claims an address without listening yet: clients are refused until then. Port 0 takes any free
/// one.
///
/// # Errors
/// The host is unknown, or the address is taken or not ours.
pub async fn claim(host: &str, port: u16) -> io::Result<TcpSocket> {
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in lookup_host((host, port)).await? {
        match claim_address(address) {
            Ok(socket) => return Ok(socket),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn claim_address(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A server that was just stopped leaves its port in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

impl Server {
    /// Listens on claimed addresses, for gRPC where there is one. Must be called within a runtime.
    ///
    /// # Errors
    /// Somebody else listens there.
    pub fn listen(http: TcpSocket, grpc: Option<TcpSocket>, app: App) -> io::Result<Server> {
        let grpc = grpc.map(|socket| socket.listen(BACKLOG)).transpose()?;
        Ok(Server { http: http.listen(BACKLOG)?, grpc, metrics: None, app })
    }

    /// The same, with metrics on a port of their own too.
    ///
    /// # Errors
    /// Somebody else listens there.
    pub fn with_metrics(self, metrics: Option<TcpSocket>) -> io::Result<Server> {
        let metrics = metrics.map(|socket| socket.listen(BACKLOG)).transpose()?;
        Ok(Server { metrics, ..self })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.http.local_addr()
    }

    /// Where it listens for gRPC, if it does.
    ///
    /// # Errors
    /// The system does not say.
    pub fn grpc_address(&self) -> io::Result<Option<SocketAddr>> {
        self.grpc.as_ref().map(TcpListener::local_addr).transpose()
    }

    /// Where it listens for who reads metrics only, if it does.
    ///
    /// # Errors
    /// The system does not say.
    pub fn metrics_address(&self) -> io::Result<Option<SocketAddr>> {
        self.metrics.as_ref().map(TcpListener::local_addr).transpose()
    }

    /// Serves until the shutdown is complete or the engine fails. After notice was given it drains.
    /// Meanwhile the port stays open: health checks learn that it is not ready any more, new work
    /// is refused.
    pub async fn run(self) -> Outcome {
        // Every connection listens while it is open.
        let connections = watch::Sender::new(());
        if let Some(traces) = &self.app.config.traces {
            traces.start();
            let told = traces.clone();
            let deliver = Box::new(move |step| told.step(step));
            self.app.engine.trace_steps(traces.step_share(), deliver);
        }
        let outcome = tokio::select! {
            never = self.accept_http(&connections) => match never {},
            never = self.accept_grpc(&connections) => match never {},
            never = self.accept_metrics(&connections) => match never {},
            outcome = self.ended() => outcome,
        };
        let Server { http, grpc, metrics, app } = self;
        drop((http, grpc, metrics));
        connections.send_replace(());
        tokio::select! {
            () = connections.closed() => {}
            () = sleep(FLUSH_TIMEOUT) => {}
            () = app.shutdown.reached(Phase::Forced) => {}
        }
        // Last, so that nobody waits for it but whoever waits for the program's end.
        if let Some(traces) = &app.config.traces {
            traces.flush(TRACE_FLUSH_TIMEOUT).await;
        }
        outcome
    }

    async fn accept_http(&self, connections: &watch::Sender<()>) -> Infallible {
        let way_in = (Protocol::Http1, &self.http, router(&self.app));
        self.accept(way_in, connections).await
    }

    async fn accept_grpc(&self, connections: &watch::Sender<()>) -> Infallible {
        let Some(listener) = &self.grpc else { return pending().await };
        let way_in = (Protocol::Grpc, listener, grpc::router(&self.app));
        self.accept(way_in, connections).await
    }

    async fn accept_metrics(&self, connections: &watch::Sender<()>) -> Infallible {
        let Some(listener) = &self.metrics else { return pending().await };
        let way_in = (Protocol::Http1, listener, metrics_router(&self.app));
        self.accept(way_in, connections).await
    }

    async fn accept(
        &self,
        (protocol, listener, router): (Protocol, &TcpListener, Router),
        connections: &watch::Sender<()>,
    ) -> Infallible {
        let seats = Seats::new(self.app.config.limits.n_connections_max);
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Who has come already: nobody gives way to a place that stays empty.
                    let seat = seats.take().await;
                    self.serve((protocol, stream), router.clone(), connections, seat);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn serve(
        &self,
        (protocol, stream): (Protocol, TcpStream),
        router: Router,
        connections: &watch::Sender<()>,
        seat: Held,
    ) {
        let app = Arc::clone(&self.app);
        let limits = &app.config.limits;
        // A token is worth a packet of its own. Where this fails, the connection is gone already.
        let _ = stream.set_nodelay(true);
        let service = Attended::new(router, seat.seat());
        match protocol {
            Protocol::Http1 => {
                let stream = TokioIo::new(Patient::new(stream, seat.seat(), &app));
                let connection = http1(limits).serve_connection(stream, service);
                tokio::spawn(attend(app, connection, connections.subscribe(), seat));
            }
            Protocol::Grpc => {
                let stream = TokioIo::new(Patient::for_http2(stream, seat.seat(), &app));
                let connection = http2(limits).serve_connection(stream, service);
                tokio::spawn(attend(app, connection, connections.subscribe(), seat));
            }
        }
    }

    async fn ended(&self) -> Outcome {
        let app = &self.app;
        tokio::select! {
            () = app.shutdown.reached(Phase::Leaving) => {}
            cause = self.engine_failed() => return Outcome::EngineFailed { cause },
        }
        if app.shutdown.phase() == Phase::Leaving {
            let notice = app.shutdown.notice();
            tracing::info!(notice_s = notice.as_secs(), "leaving: not ready, requests are taken");
            tokio::select! {
                () = sleep(notice) => app.shutdown.drain(),
                () = app.shutdown.reached(Phase::Draining) => {}
                cause = self.engine_failed() => return Outcome::EngineFailed { cause },
            }
        }
        app.engine.drain();
        tracing::info!(n_requests = app.in_flight.n(), "draining");
        tokio::select! {
            () = app.in_flight.none_left() => Outcome::Drained,
            () = app.shutdown.reached(Phase::Forced) => Outcome::Forced,
            () = sleep(app.config.limits.drain_timeout) => {
                Outcome::DeadlinePassed { n_cut: app.in_flight.n() }
            }
        }
    }

    async fn engine_failed(&self) -> String {
        let mut ticks = interval(ENGINE_WATCH_INTERVAL);
        loop {
            ticks.tick().await;
            if let Err(ApiError::EngineFailed { cause }) = self.app.takes_requests() {
                return cause;
            }
        }
    }
}

fn http1(limits: &HttpLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // A token is one short write: to put its chunk together costs less than to queue its parts.
        .writev(false)
        .header_read_timeout(limits.head_timeout)
        .max_headers(limits.n_headers_max)
        .max_header_size(limits.n_head_bytes_max)
        .max_buf_size(2 * limits.n_head_bytes_max);
    builder
}

/// A peer that does not answer pings is gone.
fn http2(limits: &HttpLimits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.head_timeout)
        .keep_alive_timeout(limits.head_timeout)
        .max_concurrent_streams(limits.n_streams_max)
        .max_header_list_size(limits.n_head_bytes_max as u32)
        .max_send_buf_size(limits.n_head_bytes_max);
    builder
}
