//! What a rank's time on its device goes into, by the device's own clock: the stream notes when a
//! step began and when it was done, and kernels what they took to meet other ranks. The host reads
//! it with the step's answers, and waits for nothing more.

use std::time::Duration;

use parallel::RankTime;

use super::{DeviceSteps, gpu};
use crate::device::cuda::{CudaExec, Event};
use crate::device::{DeviceError, Exec};
use crate::rank::StepError;

/// Of steps that have landed.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Since it was last asked.
    time: RankTime,
    /// What exchanges had taken, and waited, before; in nanoseconds.
    before_ns: [u64; 2],
}

impl Meter {
    /// Counts from here.
    pub(super) fn begin(&mut self, exchanges_ns: [u64; 2]) {
        *self = Meter { time: RankTime::default(), before_ns: exchanges_ns };
    }

    /// A step took `took`, of which sums of a library took `summed`, and by the end of which
    /// exchanges had taken and waited so much; nothing on a rank that meets nobody.
    pub(super) fn count(&mut self, [took, summed]: [Duration; 2], exchanges_ns: Option<[u64; 2]>) {
        self.time.served += took;
        self.time.exchanged += summed;
        let Some(now_ns) = exchanges_ns else { return };
        // Begins and ends may be read by different processors of a device, whose clock is coarse:
        // what seems to have taken less than nothing took nothing.
        let since = |idx: usize| {
            let ns = now_ns[idx].wrapping_sub(self.before_ns[idx]).cast_signed();
            Duration::from_nanos(ns.max(0).cast_unsigned())
        };
        self.time.exchanged += since(0);
        self.time.waited += since(1);
        self.before_ns = now_ns;
    }

    /// What was counted since this was last asked.
    pub(super) fn take(&mut self) -> RankTime {
        std::mem::take(&mut self.time)
    }
}

impl DeviceSteps {
    /// What its device's time went into since this was last asked.
    pub(in crate::model) fn take_time(&mut self) -> RankTime {
        self.meter.take()
    }

    /// What exchanges took by the end of the step that had this turn, if ranks meet.
    pub(super) fn exchanges_ns(&self, turn: usize) -> Option<[u64; 2]> {
        self.peers.as_ref().map(|peers| peers.spent_ns(turn))
    }

    /// Counts what the step of this turn took, which is done.
    pub(super) fn count(&mut self, exec: &Exec, turn: usize) -> Result<(), StepError> {
        let times = [self.flights.took(turn)?, gpu(exec).laps.took(turn)?];
        self.meter.count(times, self.exchanges_ns(turn));
        Ok(())
    }

    /// Marks the end of a step, with what its exchanges took.
    pub(super) fn mark(
        &self,
        exec: &CudaExec,
        turn: usize,
        done: &Event,
    ) -> Result<(), DeviceError> {
        if let Some(peers) = &self.peers {
            peers.read_back(exec, turn)?;
        }
        exec.stream().record(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_is_not_counted_and_nothing_twice() {
        let time = |served, exchanged, waited| {
            let [served, exchanged, waited] = [served, exchanged, waited].map(Duration::from_nanos);
            RankTime { served, exchanged, waited }
        };
        let mut meter = Meter::default();
        meter.begin([1000, 500]);
        meter.count([90, 0].map(Duration::from_nanos), Some([1040, 510]));
        meter.count([80, 7].map(Duration::from_nanos), Some([1070, 530]));
        assert_eq!(meter.take(), time(170, 77, 30));
        assert_eq!(meter.take(), time(0, 0, 0));
        meter.count([9, 0].map(Duration::from_nanos), Some([1069, 535]));
        assert_eq!(meter.take(), time(9, 0, 5));
        meter.count([5, 0].map(Duration::from_nanos), None);
        assert_eq!(meter.take(), time(5, 0, 0));
    }
}
