//! What the kernel alone takes: a thread in the server's place that writes ready bytes.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use harness::serving::pin;

use crate::load::LAST_CHUNK;
use crate::stub::seconds_of;

/// Bytes of an event with its chunk's frame, about as many as a chat's.
const N_BYTES: usize = 256;

/// Writers of events, one thread for all connections, and what tells it when.
pub(crate) struct Bare {
    writer: JoinHandle<std::io::Result<f64>>,
    pacer: JoinHandle<Vec<Instant>>,
}

impl Bare {
    /// Writes `n_steps` events to each of so many connections, which come with it: at every step
    /// one, on processor `cpu`, as the server's threads would, one after the other.
    ///
    /// # Errors
    /// A connection broke.
    pub(crate) fn start(
        (n_readers, n_steps): (usize, usize),
        step: Duration,
        cpu: usize,
    ) -> anyhow::Result<(Bare, Vec<TcpStream>)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (mut connections, mut streams) = (Vec::new(), Vec::new());
        for _ in 0..n_readers {
            // One at a time: nobody waits in the listener's queue.
            connections.push(TcpStream::connect(listener.local_addr()?)?);
            let stream = listener.accept()?.0;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        let (go, gone) = sync_channel(1);
        let writer = thread::spawn(move || write_all(streams, &gone, cpu));
        let pacer = thread::spawn(move || {
            let mut next = Instant::now();
            let mut beat = || {
                next += step;
                thread::sleep(next.saturating_duration_since(Instant::now()));
                let now = Instant::now();
                go.send(()).expect("the writer waits");
                now
            };
            (0..n_steps).map(|_| beat()).collect()
        });
        Ok((Bare { writer, pacer }, connections))
    }

    /// When each step was, and the seconds for which the writer ran.
    ///
    /// # Errors
    /// A connection broke.
    pub(crate) fn finish(self) -> anyhow::Result<(Vec<Instant>, f64)> {
        let said = self.pacer.join().expect("it does not panic");
        Ok((said, self.writer.join().expect("it does not panic")?))
    }
}

/// Seconds for which it ran.
fn write_all(mut streams: Vec<TcpStream>, gone: &Receiver<()>, cpu: usize) -> std::io::Result<f64> {
    pin(cpu);
    let mut event = b"HTTP/1.1 200".to_vec();
    event.resize(N_BYTES - 2, b'.');
    event.extend_from_slice(b"\n\n");
    for () in gone {
        for stream in &mut streams {
            stream.write_all(&event)?;
        }
    }
    let seconds = seconds_of(Path::new("/proc/thread-self")).expect("the kernel tells of threads");
    streams.iter_mut().try_for_each(|stream| stream.write_all(LAST_CHUNK))?;
    Ok(seconds)
}
