//! A rank's inbox: one command at a time.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::signal::{Patience, Signal};

/// Holds at most one value on its way from the pool to a rank.
pub(crate) struct Mailbox<T> {
    letter: Mutex<Letter<T>>,
    /// Whether there is a reason to look at the letter; lets the reader wait without the lock.
    news: AtomicBool,
    signal: Signal,
}

enum Letter<T> {
    None,
    Some(T),
    Closed,
}

impl<T> Mailbox<T> {
    pub(crate) fn new(patience: Patience) -> Mailbox<T> {
        Mailbox {
            letter: Mutex::new(Letter::None),
            news: AtomicBool::new(false),
            signal: Signal::new(patience),
        }
    }

    /// Leaves a value for the reader.
    ///
    /// # Panics
    /// If the last one was not taken, or the mailbox is closed.
    pub(crate) fn put(&self, value: T) {
        let before = std::mem::replace(&mut *self.letter.lock(), Letter::Some(value));
        assert!(matches!(before, Letter::None), "a mailbox holds one value and stays closed");
        self.announce();
    }

    /// Ends the reader's wait for good. A value that was not taken is dropped.
    pub(crate) fn close(&self) {
        *self.letter.lock() = Letter::Closed;
        self.announce();
    }

    /// Waits for a value; `None` once the mailbox is closed.
    pub(crate) fn take(&self) -> Option<T> {
        self.signal.wait(|| self.news.load(Ordering::Acquire));
        let mut letter = self.letter.lock();
        match std::mem::replace(&mut *letter, Letter::Closed) {
            Letter::Closed => None,
            Letter::None => unreachable!("news without a letter"),
            Letter::Some(value) => {
                *letter = Letter::None;
                self.news.store(false, Ordering::Relaxed);
                Some(value)
            }
        }
    }

    fn announce(&self) {
        self.news.store(true, Ordering::Release);
        self.signal.notify();
    }
}
