//! Signals that end a command before it is done: Ctrl-C, and SIGTERM as service managers send it.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals, heard from the moment on at which this is made.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

/// The signal that came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interrupted {
    /// As people know it.
    pub(super) name: &'static str,
    /// What a shell reports for a program that it ended.
    pub(super) status: i32,
}

impl Interrupts {
    /// From now on neither ends the program by itself. Wants to be called inside a runtime.
    ///
    /// # Errors
    /// The system does not let signals be caught.
    pub(super) fn new() -> std::io::Result<Interrupts> {
        Ok(Interrupts {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Comes back when the next one has come.
    pub(super) async fn next(&mut self) -> Interrupted {
        tokio::select! {
            _ = self.interrupt.recv() => Interrupted { name: "Ctrl-C", status: 130 },
            _ = self.terminate.recv() => Interrupted { name: "SIGTERM", status: 143 },
        }
    }
}
