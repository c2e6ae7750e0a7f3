//! The phases of an mbarrier: a 64-bit object in shared memory that counts arrivals and bytes.
//!
//! Programs may not look into it, so the layout is ours: bits 0–19 arrivals still pending, 20–39
//! arrivals of a whole phase, 40–60 bytes still expected (signed), 61 parity of the phase that
//! is under way, 62–63 a mark that tells a barrier from memory that was never made one.

use thiserror::Error;

/// Most arrivals of a phase, and most bytes that may be expected at a time.
pub const COUNT_MAX: u32 = (1 << 20) - 1;

/// Neither zeros nor the patterns of fresh memory begin so.
const MARK: u64 = 0b10;

/// The state of one barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mbarrier {
    n_pending: u32,
    n_expected: u32,
    pending_bytes: i32,
    parity: bool,
}

/// What may not be done to a barrier.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MbarrierError {
    /// The memory was never initialised as a barrier, was overwritten, or was invalidated.
    #[error("there is no mbarrier here: it holds {bits:#018x}")]
    NotABarrier {
        /// What the memory holds.
        bits: u64,
    },
    /// A count outside of 1 … 2²⁰ − 1.
    #[error("an mbarrier counts 1 to {COUNT_MAX} arrivals, not {count}")]
    Count {
        /// The count that was asked for.
        count: u32,
    },
    /// More arrivals than the phase has left.
    #[error("{count} arrivals at an mbarrier that waits for {n_pending} more in this phase")]
    TooManyArrivals {
        /// Arrivals at once.
        count: u32,
        /// Arrivals that the phase still waits for.
        n_pending: u32,
    },
    /// The count of bytes left the range that the hardware has for it.
    #[error("the bytes that an mbarrier expects run over: {bytes}")]
    TooManyBytes {
        /// What the count would become.
        bytes: i64,
    },
    /// `.noComplete` on the last arrival.
    #[error("an arrival with .noComplete would complete the phase")]
    WouldComplete,
}

impl Mbarrier {
    /// A barrier whose phases take `count` arrivals.
    pub fn new(count: u32) -> Result<Mbarrier, MbarrierError> {
        if count == 0 || count > COUNT_MAX {
            return Err(MbarrierError::Count { count });
        }
        Ok(Mbarrier { n_pending: count, n_expected: count, pending_bytes: 0, parity: false })
    }

    /// Reads a barrier from its memory.
    pub fn from_bits(bits: u64) -> Result<Mbarrier, MbarrierError> {
        if bits >> 62 != MARK {
            return Err(MbarrierError::NotABarrier { bits });
        }
        Ok(Mbarrier {
            n_pending: bits as u32 & COUNT_MAX,
            n_expected: (bits >> 20) as u32 & COUNT_MAX,
            // The 21 bits are moved to the top and back down, which extends their sign.
            pending_bytes: (bits >> 40 << 11) as i32 >> 11,
            parity: bits >> 61 & 1 == 1,
        })
    }

    /// What its memory holds. The same bits are the token that arriving returns.
    pub fn bits(self) -> u64 {
        let bytes = self.pending_bytes as u64 & 0x1f_ffff;
        u64::from(self.n_pending)
            | u64::from(self.n_expected) << 20
            | bytes << 40
            | u64::from(self.parity) << 61
            | MARK << 62
    }

    /// Takes `count` arrivals off the phase; tells whether that completed it.
    pub fn arrive(&mut self, count: u32) -> Result<bool, MbarrierError> {
        if count == 0 || count > self.n_pending {
            return Err(MbarrierError::TooManyArrivals { count, n_pending: self.n_pending });
        }
        self.n_pending -= count;
        Ok(self.complete_phase())
    }

    /// The same where the program promises that it is not the last arrival.
    pub fn arrive_without_completing(&mut self, count: u32) -> Result<(), MbarrierError> {
        if self.arrive(count)? { Err(MbarrierError::WouldComplete) } else { Ok(()) }
    }

    /// One more arrival is pending in this phase than it began with.
    pub fn add_pending(&mut self) -> Result<(), MbarrierError> {
        let count = self.n_pending + 1;
        if count > COUNT_MAX {
            return Err(MbarrierError::Count { count });
        }
        self.n_pending = count;
        Ok(())
    }

    /// Takes `count` arrivals off this phase and off all that follow.
    pub fn drop_arrivals(&mut self, count: u32) -> Result<bool, MbarrierError> {
        if count > self.n_expected {
            let n_pending = self.n_expected;
            return Err(MbarrierError::TooManyArrivals { count, n_pending });
        }
        self.n_expected -= count;
        self.arrive(count)
    }

    /// The phase waits for `n_bytes` more, and does not complete by that.
    pub fn expect_bytes(&mut self, n_bytes: u32) -> Result<(), MbarrierError> {
        self.add_bytes(i64::from(n_bytes))
    }

    /// `n_bytes` have landed; tells whether that completed the phase. Bytes may land before they
    /// are expected.
    pub fn complete_bytes(&mut self, n_bytes: u32) -> Result<bool, MbarrierError> {
        self.add_bytes(-i64::from(n_bytes))?;
        Ok(self.complete_phase())
    }

    /// Whether the phase of this parity is over: the phase under way has the other one.
    pub fn is_over(self, parity: bool) -> bool {
        self.parity != parity
    }

    /// Whether the phase is over that was under way when `token` was returned.
    pub fn is_over_since(self, token: u64) -> Result<bool, MbarrierError> {
        Ok(self.is_over(Mbarrier::from_bits(token)?.parity))
    }

    /// Arrivals that a token says were pending.
    pub fn n_pending(self) -> u32 {
        self.n_pending
    }

    fn add_bytes(&mut self, bytes: i64) -> Result<(), MbarrierError> {
        let bytes = i64::from(self.pending_bytes) + bytes;
        if bytes.abs() > i64::from(COUNT_MAX) {
            return Err(MbarrierError::TooManyBytes { bytes });
        }
        self.pending_bytes = bytes as i32;
        Ok(())
    }

    fn complete_phase(&mut self) -> bool {
        let over = self.n_pending == 0 && self.pending_bytes == 0;
        if over {
            self.n_pending = self.n_expected;
            self.parity = !self.parity;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn barrier(count: u32) -> Mbarrier {
        Mbarrier::new(count).expect("a legal count")
    }

    #[test]
    fn phases_alternate() {
        let mut at = barrier(2);
        assert!(!at.is_over(false), "nobody has arrived in phase 0");
        assert!(at.is_over(true), "the phase before the first counts as over");
        assert_eq!(at.arrive(1), Ok(false));
        let token = at.bits();
        assert_eq!(at.is_over_since(token), Ok(false));
        assert_eq!(at.arrive(1), Ok(true));
        assert_eq!(at.is_over_since(token), Ok(true));
        assert!(at.is_over(false) && !at.is_over(true));
        assert_eq!(at.arrive(2), Ok(true));
        assert!(!at.is_over(false) && at.is_over(true));
    }

    #[test]
    fn bytes_hold_a_phase_open() {
        let mut at = barrier(1);
        at.expect_bytes(4096).expect("in range");
        assert_eq!(at.arrive(1), Ok(false));
        assert_eq!(at.complete_bytes(4080), Ok(false));
        assert_eq!(at.complete_bytes(16), Ok(true));
    }

    #[test]
    fn bytes_may_land_before_they_are_expected() {
        let mut at = barrier(1);
        assert_eq!(at.complete_bytes(64), Ok(false));
        at = Mbarrier::from_bits(at.bits()).expect("its own bits");
        at.expect_bytes(64).expect("in range");
        assert_eq!(at.arrive(1), Ok(true));
    }

    #[test]
    fn participants_come_and_go() {
        let mut at = barrier(3);
        assert_eq!(at.drop_arrivals(1), Ok(false));
        at.add_pending().expect("in range");
        assert_eq!((at.arrive(2), at.arrive(1)), (Ok(false), Ok(true)));
        assert_eq!(at.arrive(2), Ok(true), "two are left for the next phase");
    }

    #[test]
    fn bits_keep_everything() {
        let mut at = barrier(COUNT_MAX);
        at.arrive(COUNT_MAX).expect("all of them");
        at.arrive(7).expect("some");
        for bytes in [0, 1, 12345, COUNT_MAX] {
            at.pending_bytes = bytes as i32;
            assert_eq!(Mbarrier::from_bits(at.bits()), Ok(at));
            at.pending_bytes = -(bytes as i32);
            assert_eq!(Mbarrier::from_bits(at.bits()), Ok(at));
        }
    }

    #[test]
    fn misuse_is_named() {
        assert_eq!(Mbarrier::new(0), Err(MbarrierError::Count { count: 0 }));
        assert_eq!(Mbarrier::new(1 << 20), Err(MbarrierError::Count { count: 1 << 20 }));
        for bits in [0, u64::MAX, 0x7fff_7fff_7fff_7fff] {
            assert_eq!(Mbarrier::from_bits(bits), Err(MbarrierError::NotABarrier { bits }));
        }
        let too_many = MbarrierError::TooManyArrivals { count: 3, n_pending: 2 };
        assert_eq!(barrier(2).arrive(3), Err(too_many));
        let too_many = MbarrierError::TooManyBytes { bytes: 1 << 20 };
        assert_eq!(barrier(2).expect_bytes(1 << 20), Err(too_many));
        assert_eq!(barrier(1).arrive_without_completing(1), Err(MbarrierError::WouldComplete));
    }
}
