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

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn mailbox<T>() -> Mailbox<T> {
        Mailbox::new(Patience::of(2, 2))
    }

    #[test]
    fn values_arrive_in_order_until_it_closes() {
        let (there, back) = (mailbox(), mailbox());
        thread::scope(|scope| {
            scope.spawn(|| {
                while let Some(value) = there.take() {
                    back.put(value);
                }
                back.close();
            });
            for value in 0..1000 {
                there.put(value);
                assert_eq!(back.take(), Some(value));
            }
            there.close();
            assert_eq!(back.take(), None);
            assert_eq!(back.take(), None, "it stays closed");
        });
    }

    #[test]
    fn closing_drops_what_was_not_taken() {
        let mailbox = mailbox();
        mailbox.put(1);
        mailbox.close();
        assert_eq!(mailbox.take(), None);
    }

    #[test]
    fn it_holds_one_value() {
        let mailbox = mailbox();
        mailbox.put(1);
        let second = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mailbox.put(2)));
        assert!(second.is_err());
    }
}
