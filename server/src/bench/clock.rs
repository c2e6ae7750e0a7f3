//! What time it is, and waiting until it is later. Everything here that measures asks a [`Clock`],
//! so that a test can hand it one on which time passes only while nothing else can happen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Time since the clock was made.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Real(Instant),
    Virtual(Arc<Mutex<Sleepers>>),
}

/// Who waits for which moment of a virtual clock.
#[derive(Debug, Default)]
struct Sleepers {
    now: Duration,
    n_slept: u64,
    waiting: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
}

impl Clock {
    /// The machine's.
    pub fn real() -> Clock {
        Clock(Kind::Real(Instant::now()))
    }

    /// One that stands still until [`advance`](Clock::advance).
    pub fn stopped() -> Clock {
        Clock(Kind::Virtual(Arc::default()))
    }

    /// Whether its time is the machine's.
    pub fn is_real(&self) -> bool {
        matches!(self.0, Kind::Real(_))
    }

    /// Time since the clock was made.
    pub fn now(&self) -> Duration {
        match &self.0 {
            Kind::Real(began) => began.elapsed(),
            Kind::Virtual(sleepers) => sleepers.lock().now,
        }
    }

    /// Waits for a moment; not at all for one that has passed.
    pub async fn sleep_until(&self, moment: Duration) {
        match &self.0 {
            Kind::Real(began) => tokio::time::sleep_until((*began + moment).into()).await,
            Kind::Virtual(sleepers) => {
                let woken = {
                    let mut sleepers = sleepers.lock();
                    if moment <= sleepers.now {
                        return;
                    }
                    let (sender, woken) = oneshot::channel();
                    sleepers.n_slept += 1;
                    let key = (moment, sleepers.n_slept);
                    sleepers.waiting.insert(key, sender);
                    woken
                };
                // The clock lives as long as this borrow of it.
                let _ = woken.await;
            }
        }
    }

    /// Lets a virtual clock jump to the next moment that somebody waits for. A runtime whose
    /// threads call this before they park (`on_thread_park`) runs in virtual time: it passes only
    /// while every task waits. Does nothing to the machine's clock.
    pub fn advance(&self) {
        let Kind::Virtual(sleepers) = &self.0 else { return };
        let mut sleepers = sleepers.lock();
        // Who gave up waiting is no reason to jump.
        while let Some(((moment, _), sender)) = sleepers.waiting.pop_first() {
            if !sender.is_closed() {
                sleepers.now = moment;
                let _ = sender.send(());
                return;
            }
        }
    }
}

/// Runs a future on a thread of its own in virtual time.
///
/// # Panics
/// The runtime does not start.
#[cfg(test)]
pub(super) fn in_virtual_time<F: Future>(run: impl FnOnce(Clock) -> F) -> F::Output {
    let clock = Clock::stopped();
    let parked = clock.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .on_thread_park(move || parked.advance())
        .build()
        .expect("a runtime starts");
    runtime.block_on(run(clock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_passes_from_sleeper_to_sleeper() {
        let woken = in_virtual_time(|clock| async move {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let mut tasks = Vec::new();
            for ms in [30, 10, 20, 10] {
                let (clock, seen) = (clock.clone(), Arc::clone(&seen));
                tasks.push(tokio::spawn(async move {
                    clock.sleep_until(Duration::from_millis(ms)).await;
                    seen.lock().push(clock.now().as_millis());
                }));
            }
            for task in tasks {
                task.await.expect("it does not panic");
            }
            clock.sleep_until(Duration::from_millis(5)).await;
            assert_eq!(clock.now(), Duration::from_millis(30), "the past is not waited for");
            Arc::into_inner(seen).expect("all tasks ended").into_inner()
        });
        assert_eq!(woken, [10, 10, 20, 30]);
    }

    #[test]
    fn who_gave_up_waiting_moves_no_time() {
        in_virtual_time(|clock| async move {
            let other = clock.clone();
            let task = tokio::spawn(async move { other.sleep_until(Duration::from_secs(9)).await });
            tokio::task::yield_now().await;
            task.abort();
            clock.sleep_until(Duration::from_secs(10)).await;
            assert_eq!(clock.now(), Duration::from_secs(10));
        });
    }
}
