//! Signals that end a command before it is done: Ctrl-C, and SIGTERM as service managers send it.

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use tokio::signal::unix::{Signal, SignalKind, signal};
use weights::LoadError;

use super::{CliError, io_error};

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
    pub(super) status: u8,
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

/// Hears them for a command that works on one thread, and asks now and then whether to go on.
pub(super) struct Watch {
    heard: Arc<OnceLock<Interrupted>>,
}

impl Watch {
    /// From now on neither signal ends the program by itself.
    ///
    /// # Errors
    /// The system does not let signals be caught.
    pub(super) fn begin() -> Result<Watch, CliError> {
        let failed = |source| io_error("cannot hear Ctrl-C")(source);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let mut interrupts = {
            let _inside = runtime.enter();
            Interrupts::new().map_err(failed)?
        };
        let heard = Arc::new(OnceLock::new());
        let first = Arc::clone(&heard);
        // It ends with the program.
        std::thread::spawn(move || first.set(runtime.block_on(interrupts.next())));
        Ok(Watch { heard })
    }

    /// Whether none has come yet.
    pub(super) fn go_on(&self) -> ControlFlow<()> {
        match self.heard.get() {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    }

    /// What was done, or which signal ended it.
    ///
    /// # Errors
    /// The signal, or what else went wrong.
    pub(super) fn outcome(&self, done: Result<(), LoadError>) -> Result<(), CliError> {
        match (done, self.heard.get()) {
            (Err(LoadError::Interrupted), Some(&Interrupted { name, status })) => {
                Err(CliError::Interrupted { name, status })
            }
            (done, _) => Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[test]
    fn a_signal_ends_what_asks_for_it_with_a_shells_status() {
        for (signal, name, status) in [(Signal::INT, "Ctrl-C", 130), (Signal::TERM, "SIGTERM", 143)]
        {
            let watch = Watch::begin().expect("signals can be heard");
            assert!(watch.go_on().is_continue());
            assert!(matches!(watch.outcome(Ok(())), Ok(())));
            kill_process(getpid(), signal).expect("it is ours");
            watch.heard.wait();
            assert!(watch.go_on().is_break());
            let error = watch.outcome(Err(LoadError::Interrupted)).expect_err("it was ended");
            assert_eq!(error.status(), status);
            assert_eq!(error.to_string(), format!("{name}: nothing was left behind"));
            // What else went wrong is not the signal's doing.
            let error = watch.outcome(Err(LoadError::Sharded { n_ranks: 2 }));
            assert_eq!(error.expect_err("it is refused").status(), 1);
            assert!(matches!(watch.outcome(Ok(())), Ok(())), "it was done before the signal");
        }
    }
}
