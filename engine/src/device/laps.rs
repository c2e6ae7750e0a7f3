//! What sums take that the devices' library carries: events before and after each. Kernels that
//! sum tell it themselves. Where a step is recorded there are none: an event would be a node.

use std::cell::Cell;
use std::time::Duration;

use super::DeviceError;
use super::cuda::{CudaExec, Event};
use crate::rank::StepError;

/// Of the steps that may be under way, which take turns.
pub struct Laps {
    turns: [Turn; 2],
    /// Whose step is submitted; nobody's before the first.
    turn: Cell<Option<usize>>,
}

/// Of a step.
struct Turn {
    /// Before and after each sum.
    events: Vec<[Event; 2]>,
    n_sums: Cell<usize>,
}

impl Laps {
    /// For steps of up to `n_sums`.
    pub fn new(exec: &CudaExec, n_sums: usize) -> Result<Laps, DeviceError> {
        let pair = || Ok([exec.new_timed_event()?, exec.new_timed_event()?]);
        let turn = || {
            let events = (0..n_sums).map(|_| pair()).collect::<Result<_, DeviceError>>()?;
            Ok::<_, DeviceError>(Turn { events, n_sums: Cell::new(0) })
        };
        Ok(Laps { turns: [turn()?, turn()?], turn: Cell::new(None) })
    }

    /// What follows is the step's of `turn`.
    pub fn begin(&self, turn: usize) {
        self.turns[turn].n_sums.set(0);
        self.turn.set(Some(turn));
    }

    /// Has `sum` submit a sum between two events.
    ///
    /// # Errors
    /// What `sum` or the driver says.
    pub fn around(
        &self,
        exec: &CudaExec,
        sum: impl FnOnce() -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        let turn = self.turn.get().map(|turn| &self.turns[turn]);
        // A rank alone has none, and nothing to sum.
        let Some(turn) = turn.filter(|turn| !turn.events.is_empty()) else { return sum() };
        let sum_idx = turn.n_sums.replace(turn.n_sums.get() + 1);
        let [before, after] = &turn.events[sum_idx];
        exec.stream().record(before)?;
        sum()?;
        Ok(exec.stream().record(after)?)
    }

    /// What the sums of the step of `turn` took, which is done.
    ///
    /// # Errors
    /// What the driver says.
    pub fn took(&self, turn: usize) -> Result<Duration, DeviceError> {
        let Turn { events, n_sums } = &self.turns[turn];
        events[..n_sums.get()].iter().map(|[before, after]| after.since(before)).sum()
    }
}
