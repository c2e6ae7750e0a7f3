//! Steps on a device: inputs sent in one copy, decoding from recorded graphs, logits read back.

mod ahead;
mod meter;

use std::ops::Range;

use parallel::{Communicator, Rank};
use scheduler::{SlotIdx, StepPlan};
use weights::ModelSpec;

use super::inputs::{DeviceInputs, InputSizes, SentRows};
use super::logits::Logits;
use super::outbox::Outbox;
use super::sampling::DeviceSampling;
use super::{N_LOGIT_ROWS, Network, Sampling, StepRun};
use crate::batch::{Batch, EmitPoint, Inputs};
use crate::blocks::{Scratch, StepCx};
use crate::cache::PageTables;
use crate::device::cuda::{CudaExec, Event, Graph, Pinned};
use crate::device::{DeviceError, DevicePtr, DeviceView, Element, Exec, Gpu, ViewMut};
use crate::kernels::reduce_norm::Pending;
use crate::peers::Peers;
use crate::rank::{Entering, StepError};
use ahead::Flights;
use meter::Meter;

/// What a device needs for a step besides the model.
pub(crate) struct DeviceSteps {
    batch: Batch,
    /// A device finds its pages itself.
    no_tables: PageTables,
    inputs: DeviceInputs,
    outbox: Outbox,
    logits: DeviceLogits,
    host_logits: Logits,
    flights: Flights,
    meter: Meter,
    peers: Option<Peers>,
    sampling: Option<DeviceSampling>,
    /// Of the batch's emitting tokens: whether the device draws what follows them.
    drawn: Vec<bool>,
    /// Places of tokens that only a device knows, and whose they are.
    late: Vec<(usize, SlotIdx)>,
    /// Recorded steps of decoding, by how many rows they have, fewest first.
    graphs: Vec<(usize, Graph)>,
}

/// Where a device puts this rank's logits, f32 `[n_rows, n_local]`, and where they are read back.
pub(crate) struct DeviceLogits {
    pub(crate) first: DevicePtr,
    pub(crate) n_rows: usize,
    pub(crate) n_local: usize,
    pub(crate) host: Pinned,
}

/// What [`DeviceSteps::new`] takes.
pub(crate) struct DeviceStepsConfig<'a> {
    pub(crate) spec: &'a ModelSpec,
    pub(crate) rank: Rank,
    pub(crate) n_ranks: usize,
    pub(crate) logits: DeviceLogits,
    pub(crate) inputs: DeviceInputs,
    pub(crate) outbox: Outbox,
    pub(crate) peers: Option<Peers>,
    pub(crate) sampling: Option<DeviceSampling>,
}

/// A rank's model and its line to device and peers.
struct Rig<'a> {
    network: &'a mut Network,
    scratch: &'a mut Scratch,
    exec: &'a mut Exec,
    communicator: &'a mut Communicator,
}

/// Numbers of rows that steps of decoding are recorded for: a step of fewer is padded.
fn buckets(n_slots: usize) -> Vec<usize> {
    let sizes = [1, 2, 4].into_iter().chain((8..64).step_by(8)).chain((64..).step_by(32));
    let mut buckets: Vec<usize> = sizes.take_while(|&size| size < n_slots).collect();
    buckets.push(n_slots);
    buckets
}

/// Steps of decoding that are recorded.
pub(crate) fn n_recorded(n_slots: usize) -> usize {
    buckets(n_slots).len()
}

impl DeviceSteps {
    pub(crate) fn new(
        exec: &CudaExec,
        config: DeviceStepsConfig<'_>,
    ) -> Result<DeviceSteps, DeviceError> {
        let DeviceStepsConfig { spec, rank, n_ranks, .. } = config;
        let InputSizes { n_tokens, n_slots, .. } = config.inputs.sizes();
        Ok(DeviceSteps {
            batch: Batch::new(0, n_tokens, n_slots),
            no_tables: PageTables::new(0, 0, 0),
            inputs: config.inputs,
            outbox: config.outbox,
            host_logits: Logits::new(spec, config.logits.n_local, n_ranks, rank),
            logits: config.logits,
            flights: Flights::new(exec, n_slots)?,
            meter: Meter::default(),
            peers: config.peers,
            sampling: config.sampling,
            drawn: Vec::with_capacity(n_tokens),
            late: Vec::with_capacity(n_slots),
            graphs: Vec::new(),
        })
    }

    pub(super) fn forward(
        &mut self,
        network: &mut Network,
        scratch: &mut Scratch,
        run: StepRun<'_>,
    ) -> Result<(), StepError> {
        let StepRun { exec, communicator, plan, consume, sampling } = run;
        assert_eq!(self.flights.n_up(), 0, "a step that was submitted has not landed");
        let (entering, mut drawn) = match sampling {
            Some(Sampling { entering, drawn }) => (entering, Some(drawn)),
            None => (&[][..], None),
        };
        let mut rig = Rig { network, scratch, exec, communicator };
        self.late.clear();
        cuda(rig.exec).stream().record(self.flights.began())?;
        gpu(rig.exec).laps.begin(0);
        let graph_idx = self.begin(&mut rig, plan, entering, drawn.is_some())?;
        let n_padded = graph_idx.map(|idx| self.graphs[idx].0);
        let n_emits = self.batch.emits.len();
        for first in (0..n_emits).step_by(self.logits.n_rows) {
            let emits = first..n_emits.min(first + self.logits.n_rows);
            if graph_idx.is_none() {
                rig.project(&self.inputs, &self.logits, emits.clone())?;
                self.sample(&mut rig, (emits.start, emits.len()))?;
            }
            let is_for_host = self.drawn[emits.clone()].contains(&false);
            if is_for_host {
                self.logits.read_back(cuda(rig.exec), n_padded.unwrap_or(emits.len()))?;
            }
            self.read_answers(&rig, 0, n_padded.unwrap_or(emits.len()))?;
            self.wait(&mut rig)?;
            if is_for_host {
                self.hand_out(&mut rig, emits.clone(), graph_idx.is_some(), consume)?;
            }
            if let (Some(sampling), Some(drawn)) = (&self.sampling, &mut drawn) {
                for emit_idx in emits.clone().filter(|&emit_idx| self.drawn[emit_idx]) {
                    let row_idx = row_of(&self.batch, emit_idx, emits.start, graph_idx.is_some());
                    drawn(&self.batch.emits[emit_idx], sampling.answer(0, row_idx));
                }
            }
        }
        if n_emits == 0 {
            self.wait(&mut rig)?;
        }
        self.count(rig.exec, 0)
    }

    /// Lays a plan out, sends it, and submits it up to the states that the head projects, or to the
    /// draw where the step was recorded: the graph's index then.
    fn begin(
        &mut self,
        rig: &mut Rig<'_>,
        plan: &StepPlan,
        entering: &[Entering],
        draws: bool,
    ) -> Result<Option<usize>, StepError> {
        self.batch.fill(plan, &self.no_tables);
        let graph_idx = self.graph_of_batch();
        let n_padded = graph_idx.map(|idx| self.graphs[idx].0);
        self.outbox.begin();
        if let Some(sampling) = &mut self.sampling {
            for entering in entering {
                sampling.enter((cuda(rig.exec), &mut self.outbox), entering)?;
            }
        }
        self.drawn.clear();
        for point in &self.batch.emits {
            let is_of_device = self.sampling.as_ref().is_some_and(|one| one.samples(point.slot));
            self.drawn.push(draws && point.samples && is_of_device);
        }
        let rows = SentRows { n_padded, drawn: &self.drawn, late: &self.late };
        let outbox = (cuda(rig.exec), &mut self.outbox);
        self.inputs.send(outbox, &self.batch, &plan.pages, rows)?;
        rig.network.move_pages(rig.exec, &plan.moves)?;
        match graph_idx {
            Some(idx) => cuda(rig.exec).stream().launch(&self.graphs[idx].1)?,
            None => rig.run(&self.inputs)?,
        }
        Ok(graph_idx)
    }

    /// Submits the copy of what was drawn for `n_rows` rows, to where the step of `turn` reads it.
    fn read_answers(&self, rig: &Rig<'_>, turn: usize, n_rows: usize) -> Result<(), DeviceError> {
        match &self.sampling {
            Some(sampling) if self.drawn.contains(&true) => {
                sampling.read_back(cuda(rig.exec), turn, n_rows)
            }
            _ => Ok(()),
        }
    }

    /// Records a step of decoding for every bucket, after one that is run: libraries set up at
    /// their first call what cannot be recorded. All ranks do this, in the same order.
    pub(super) fn record(
        &mut self,
        network: &mut Network,
        scratch: &mut Scratch,
        exec: &mut Exec,
        communicator: &mut Communicator,
    ) -> Result<(), StepError> {
        let mut rig = Rig { network, scratch, exec, communicator };
        for n_rows in buckets(self.batch.n_rows_max()) {
            self.batch.clear();
            let rows = SentRows { n_padded: Some(n_rows), drawn: &[], late: &[] };
            self.outbox.begin();
            let outbox = (cuda(rig.exec), &mut self.outbox);
            self.inputs.send(outbox, &self.batch, &[], rows)?;
            rig.run(&self.inputs)?;
            rig.project(&self.inputs, &self.logits, 0..n_rows)?;
            self.sample(&mut rig, (0, n_rows))?;
            self.wait(&mut rig)?;
            cuda(rig.exec).stream().begin_capture()?;
            let run = rig
                .run(&self.inputs)
                .and_then(|()| rig.project(&self.inputs, &self.logits, 0..n_rows))
                .and_then(|()| self.sample(&mut rig, (0, n_rows)));
            let graph = cuda(rig.exec).stream().end_capture();
            run?;
            self.graphs.push((n_rows, graph?));
        }
        self.meter.begin(self.exchanges_ns(0).unwrap_or_default());
        Ok(())
    }

    /// Submits the draw for rows of logits: the emitting tokens from `first` on, or every row of a
    /// step that is being recorded.
    fn sample(&self, rig: &mut Rig<'_>, (first, n_rows): (usize, usize)) -> Result<(), StepError> {
        let Some(sampling) = &self.sampling else { return Ok(()) };
        let slots = self.inputs.sampled(first);
        sampling.submit(cuda(rig.exec), rig.communicator, &self.logits, (slots, n_rows))
    }

    /// The smallest recorded step that holds the batch, where every row is one token.
    fn graph_of_batch(&self) -> Option<usize> {
        let n_rows = self.batch.spans.len();
        let is_decoding = n_rows == self.batch.n_tokens() && n_rows > 0;
        is_decoding.then(|| self.graphs.iter().position(|(bucket, _)| *bucket >= n_rows))?
    }

    /// Waits until all that was submitted has run.
    fn wait(&self, rig: &mut Rig<'_>) -> Result<(), StepError> {
        let done = self.flights.done();
        self.mark(cuda(rig.exec), 0, done)?;
        self.pass(done, rig.communicator)
    }

    /// Waits for a point in the stream.
    fn pass(&self, point: &Event, communicator: &mut Communicator) -> Result<(), StepError> {
        match &self.peers {
            None => Ok(point.synchronize()?),
            Some(peers) => peers.wait(point, communicator),
        }
    }

    /// Gathers the logits of `emits` over the ranks, a few at a time, and hands them out. Recorded
    /// steps have a row a token; others have them packed.
    fn hand_out(
        &mut self,
        rig: &mut Rig<'_>,
        emits: Range<usize>,
        is_recorded: bool,
        consume: &mut dyn FnMut(&EmitPoint, &[f32]),
    ) -> Result<(), StepError> {
        let n_local = self.logits.n_local;
        for first in emits.clone().step_by(N_LOGIT_ROWS) {
            let chunk = first..emits.end.min(first + N_LOGIT_ROWS);
            let local = self.host_logits.local_mut(chunk.len()).chunks_exact_mut(n_local);
            for (emit_idx, local) in chunk.clone().zip(local) {
                let row_idx = row_of(&self.batch, emit_idx, emits.start, is_recorded);
                self.logits.host.read(row_idx * n_local * size_of::<f32>(), local);
            }
            self.host_logits.gather(rig.communicator, chunk.len())?;
            for (row_idx, point) in self.batch.emits[chunk.clone()].iter().enumerate() {
                if self.drawn[chunk.start + row_idx] {
                    continue;
                }
                if let Some(logits) = self.host_logits.row(rig.communicator, row_idx) {
                    consume(point, logits);
                }
            }
        }
        Ok(())
    }
}

impl DeviceLogits {
    /// Bytes of `n_rows`.
    pub(crate) fn n_bytes(n_rows: usize, n_local: usize) -> usize {
        n_rows * n_local * size_of::<f32>()
    }

    /// Submits the copy of `n_rows` to the host.
    fn read_back(&self, exec: &CudaExec, n_rows: usize) -> Result<(), DeviceError> {
        exec.stream().copy_out(
            &self.host,
            0,
            self.first,
            DeviceLogits::n_bytes(n_rows, self.n_local),
        )
    }
}

impl Rig<'_> {
    /// Submits everything up to the states that the head projects.
    fn run(&mut self, inputs: &DeviceInputs) -> Result<(), StepError> {
        let norm_eps = self.network.norm_eps;
        let mut cx = StepCx {
            exec: self.exec,
            communicator: self.communicator,
            inputs: Inputs::Device(inputs),
            scratch: self.scratch,
            pending: Pending::default(),
            norm_eps,
        };
        let rows = cx.inputs.emitting();
        self.network.run(&mut cx, rows)
    }

    /// Submits the head for `rows` of these states.
    fn project(
        &mut self,
        inputs: &DeviceInputs,
        logits: &DeviceLogits,
        rows: Range<usize>,
    ) -> Result<(), StepError> {
        let (n_rows, n_cols) = (rows.len(), logits.n_local);
        let view = DeviceView {
            first: logits.first,
            element: Element::F32,
            n_rows,
            n_cols,
            stride: n_cols,
        };
        let mut cx = StepCx {
            exec: self.exec,
            communicator: self.communicator,
            inputs: Inputs::Device(inputs),
            scratch: self.scratch,
            pending: Pending::default(),
            norm_eps: self.network.norm_eps,
        };
        self.network.project(&mut cx, rows, ViewMut::Device(view))
    }
}

/// The row of logits of an emitting token: recorded steps have a row a token, others have those
/// of the emitting tokens from `first` on.
fn row_of(batch: &Batch, emit_idx: usize, first: usize, is_recorded: bool) -> usize {
    match is_recorded {
        true => batch.emitting[emit_idx] as usize,
        false => emit_idx - first,
    }
}

/// The device.
fn gpu(exec: &Exec) -> &Gpu {
    match exec {
        Exec::Cpu(_) => panic!("steps of a device on the processor"),
        Exec::Cuda(gpu) => gpu,
    }
}

/// Its executor.
fn cuda(exec: &Exec) -> &CudaExec {
    &gpu(exec).exec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_every_number_of_rows_without_much_padding() {
        assert_eq!(buckets(1), [1]);
        assert_eq!(buckets(8), [1, 2, 4, 8]);
        for n_slots in 1..=300 {
            let buckets = buckets(n_slots);
            assert!(buckets.is_sorted() && *buckets.last().expect("one at least") == n_slots);
            for n_rows in 1..=n_slots {
                let bucket = buckets.iter().find(|&&bucket| bucket >= n_rows).expect("it fits");
                assert!(bucket - n_rows < n_rows.clamp(8, 32), "{n_rows} in {bucket}");
            }
        }
    }
}
