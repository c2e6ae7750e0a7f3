//! Steps that are submitted before the one before them was seen to be done. Nothing in them waits
//! for the host: tokens that it lacks lie where the step before leaves them on the device.

use std::time::Duration;

use parallel::Communicator;

use super::{DeviceSteps, Rig, cuda, gpu, row_of};
use crate::blocks::Scratch;
use crate::device::cuda::{CudaExec, Event};
use crate::device::{DeviceError, Exec};
use crate::model::{Network, Submission};
use crate::rank::{RowOutput, StepError};

/// Steps that were submitted and have not landed, at most: one that runs, one behind it. Two
/// halves of pinned memory take turns, for what is sent and for what is read back.
const N_FLIGHTS: usize = 2;

/// Steps on their way through the device.
pub(super) struct Flights {
    /// They take turns.
    flights: [Flight; N_FLIGHTS],
    n_submitted: usize,
    n_landed: usize,
}

/// A step on its way through the device.
struct Flight {
    /// Nothing of it has run.
    began: Event,
    /// All of it has run.
    done: Event,
    /// Answers of its plan.
    n_answers: usize,
    /// Of every token that is drawn: the answer of the plan, and the row of what is read back.
    drawn: Vec<(usize, usize)>,
}

impl Flights {
    pub(super) fn new(exec: &CudaExec, n_slots: usize) -> Result<Flights, DeviceError> {
        let flight = || {
            let (began, done) = (exec.new_timed_event()?, exec.new_timed_event()?);
            let drawn = Vec::with_capacity(n_slots);
            Ok::<_, DeviceError>(Flight { began, done, n_answers: 0, drawn })
        };
        Ok(Flights { flights: [flight()?, flight()?], n_submitted: 0, n_landed: 0 })
    }

    /// Steps that have not landed.
    pub(super) fn n_up(&self) -> usize {
        self.n_submitted - self.n_landed
    }

    /// For a step that is waited for at once: where it begins.
    pub(super) fn began(&self) -> &Event {
        &self.flights[0].began
    }

    /// And where it is done.
    pub(super) fn done(&self) -> &Event {
        &self.flights[0].done
    }

    /// What the step of `turn` took, which is done.
    pub(super) fn took(&self, turn: usize) -> Result<Duration, DeviceError> {
        self.flights[turn].done.since(&self.flights[turn].began)
    }
}

impl DeviceSteps {
    /// Submits a step behind what was submitted before; how many steps before it have not landed.
    pub(in crate::model) fn submit(
        &mut self,
        network: &mut Network,
        scratch: &mut Scratch,
        step: Submission<'_>,
    ) -> Result<usize, StepError> {
        let Submission { exec, communicator, plan, entering } = step;
        let n_behind = self.flights.n_up();
        assert!(n_behind < N_FLIGHTS, "{n_behind} steps have not landed");
        let mut rig = Rig { network, scratch, exec, communicator };
        self.late.clear();
        let following = plan.rows.iter().filter(|row| row.follows.is_some());
        self.late.extend(following.map(|row| (row.token_idx, row.slot)));
        let turn = self.flights.n_submitted % N_FLIGHTS;
        cuda(rig.exec).stream().record(&self.flights.flights[turn].began)?;
        gpu(rig.exec).laps.begin(turn);
        let graph_idx = self.begin(&mut rig, plan, entering, true)?;
        let n_emits = self.batch.emits.len();
        assert!((1..=self.logits.n_rows).contains(&n_emits), "{n_emits} tokens are drawn at once");
        assert!(!self.drawn.contains(&false), "the host draws in a step that is a device's");
        if graph_idx.is_none() {
            rig.project(&self.inputs, &self.logits, 0..n_emits)?;
            self.sample(&mut rig, (0, n_emits))?;
        }
        let n_padded = graph_idx.map(|idx| self.graphs[idx].0);
        self.read_answers(&rig, turn, n_padded.unwrap_or(n_emits))?;
        self.mark(cuda(rig.exec), turn, &self.flights.flights[turn].done)?;
        let flight = &mut self.flights.flights[turn];
        flight.n_answers = plan.n_answers();
        flight.drawn.clear();
        flight.drawn.extend(self.batch.emits.iter().enumerate().map(|(emit_idx, point)| {
            (point.answer_idx, row_of(&self.batch, emit_idx, 0, graph_idx.is_some()))
        }));
        self.flights.n_submitted += 1;
        Ok(n_behind)
    }

    /// This rank is given up. What was submitted, all of a step or a part, may wait for a peer that
    /// never submits its own: it would keep the device from being closed.
    pub(in crate::model) fn let_go(&self, exec: &CudaExec) {
        let Some(peers) = &self.peers else { return };
        match exec.stream().record(self.flights.done()) {
            Ok(()) => peers.let_go_until(self.flights.done()),
            Err(error) => tracing::warn!(%error, "a device that failed is left to its end"),
        }
    }

    /// Waits for the oldest step that was submitted; what its rows yield.
    pub(in crate::model) fn land(
        &mut self,
        exec: &Exec,
        communicator: &mut Communicator,
        rows: Option<&mut Vec<RowOutput>>,
    ) -> Result<(), StepError> {
        assert!(self.flights.n_up() > 0, "no step was submitted that has not landed");
        let turn = self.flights.n_landed % N_FLIGHTS;
        let flight = &self.flights.flights[turn];
        self.pass(&flight.done, communicator)?;
        if let (Some(rows), Some(sampling)) = (rows, &self.sampling) {
            rows.resize(flight.n_answers, RowOutput::default());
            for &(answer_idx, row_idx) in &flight.drawn {
                rows[answer_idx].take(sampling.answer(turn, row_idx));
            }
        }
        self.flights.n_landed += 1;
        self.count(exec, turn)
    }
}
