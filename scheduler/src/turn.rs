//! A sequence's place in the order in which turns are taken.

/// Who goes before whom: the smaller, the sooner. A lower level is as if a request had come later:
/// whoever comes after that is behind it whatever its level, so that nobody is passed for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    due: u64,
    number: u64,
}

impl Turn {
    /// Of what came as number `number`, and has risen to the first level at step `due`.
    pub(crate) fn new(due: u64, number: u64) -> Turn {
        Turn { due, number }
    }

    /// The step at which it has risen to the first level.
    pub(crate) fn due(self) -> u64 {
        self.due
    }
}
