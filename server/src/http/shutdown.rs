//! The end of serving, as a value: who holds it sees how far the shutdown has come, and waits.
//!
//! It knows no server and no engine. [`Shutdown::on_signals`] is the only place that knows of
//! SIGTERM and SIGINT; tests call [`Shutdown::begin`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How far the shutdown has come. It only moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Requests are taken.
    Serving,
    /// So they are, but health checks learn that it is not ready any more.
    Leaving,
    /// What runs may finish; nothing new is taken.
    Draining,
    /// Stop at once.
    Forced,
}

/// The shutdown, shared by all who must know of it. Cheap to clone.
#[derive(Clone)]
pub struct Shutdown {
    phase: Arc<watch::Sender<Phase>>,
    notice: Duration,
}

impl Shutdown {
    /// Not shutting down. For `notice`, once that begins, whoever sends requests is told, and those
    /// that come nevertheless are taken.
    pub fn new(notice: Duration) -> Shutdown {
        Shutdown { phase: Arc::new(watch::Sender::new(Phase::Serving)), notice }
    }

    /// How long it is told before it is done.
    pub fn notice(&self) -> Duration {
        self.notice
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// The first call gives notice, if there is any to give, and drains; the second stops at once.
    pub fn begin(&self) {
        self.phase.send_modify(|phase| {
            *phase = match phase {
                Phase::Serving if self.notice.is_zero() => Phase::Draining,
                Phase::Serving => Phase::Leaving,
                Phase::Leaving | Phase::Draining | Phase::Forced => Phase::Forced,
            };
        });
    }

    /// Notice was given: from now on nothing new is taken.
    pub fn drain(&self) {
        self.phase.send_modify(|phase| *phase = Phase::Draining.max(*phase));
    }

    /// Comes back once the shutdown is at `phase` or beyond.
    pub async fn reached(&self, phase: Phase) {
        let mut watched = self.phase.subscribe();
        // The sender lives as long as `self`.
        let _ = watched.wait_for(|&now| now >= phase).await;
    }

    /// From now on SIGTERM and SIGINT begin the shutdown; the second one forces it.
    ///
    /// # Errors
    /// The system does not let signals be caught.
    pub fn on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                shutdown.begin();
                tracing::info!(phase = ?shutdown.phase(), "signal received");
            }
        });
        Ok(())
    }
}

/// Counts what is in flight, so that a drain can wait for it. Cheap to clone.
#[derive(Clone)]
pub struct InFlight {
    n: Arc<watch::Sender<usize>>,
}

/// One that is in flight, until dropped.
#[derive(Debug)]
pub struct Passage {
    n: Arc<watch::Sender<usize>>,
}

impl InFlight {
    /// Nothing yet.
    pub fn new() -> InFlight {
        InFlight { n: Arc::new(watch::Sender::new(0)) }
    }

    /// One more.
    pub fn enter(&self) -> Passage {
        self.n.send_modify(|n| *n += 1);
        Passage { n: Arc::clone(&self.n) }
    }

    /// How many there are.
    pub fn n(&self) -> usize {
        *self.n.borrow()
    }

    /// Comes back at a moment when there is none.
    pub async fn none_left(&self) {
        let mut watched = self.n.subscribe();
        // The sender lives as long as `self`.
        let _ = watched.wait_for(|&n| n == 0).await;
    }
}

impl Default for InFlight {
    fn default() -> InFlight {
        InFlight::new()
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.n.send_modify(|n| *n -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_call_drains_and_the_second_forces() {
        let shutdown = Shutdown::new(Duration::ZERO);
        assert_eq!(shutdown.phase(), Phase::Serving);
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.reached(Phase::Forced).await }
        });
        shutdown.begin();
        assert_eq!(shutdown.phase(), Phase::Draining);
        shutdown.reached(Phase::Draining).await;
        assert!(!waiting.is_finished());
        shutdown.begin();
        waiting.await.unwrap();
    }

    #[test]
    fn with_notice_the_first_call_gives_it() {
        let shutdown = Shutdown::new(Duration::from_secs(1));
        shutdown.begin();
        assert_eq!(shutdown.phase(), Phase::Leaving);
        shutdown.drain();
        assert_eq!(shutdown.phase(), Phase::Draining);
        shutdown.begin();
        shutdown.drain();
        assert_eq!(shutdown.phase(), Phase::Forced, "nothing leads back");
        let hasty = Shutdown::new(Duration::from_secs(1));
        hasty.begin();
        hasty.begin();
        assert_eq!(hasty.phase(), Phase::Forced);
    }

    #[tokio::test]
    async fn a_drain_waits_for_the_last_passage() {
        let in_flight = InFlight::new();
        in_flight.none_left().await;
        let passages = [in_flight.enter(), in_flight.enter()];
        let waiting = tokio::spawn({
            let in_flight = in_flight.clone();
            async move { in_flight.none_left().await }
        });
        let [first, last] = passages;
        drop(first);
        assert_eq!(in_flight.n(), 1);
        assert!(!waiting.is_finished());
        drop(last);
        waiting.await.unwrap();
    }
}
