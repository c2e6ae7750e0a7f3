//! Sampling on a device: the slots' state, and the answers of a step.
//!
//! Every rank gathers all logits and draws alike, so that each knows the token that its next step
//! looks up. Requests that want scores, that are guided, or that have more biases than a slot has
//! room for, take the host's way: their rows are padding here.

use parallel::{Communicator, DeviceElement, DeviceSlice};
use scheduler::{SlotIdx, TokenId};

use super::device::DeviceLogits;
use super::outbox::Outbox;
use crate::device::DeviceError;
use crate::device::cuda::{CudaExec, DevicePtr, Pinned};
use crate::kernels::sample::cuda::{
    self as sample, DeviceAnswer, DeviceBias, DeviceSlot, Enter, Launch, State,
};
use crate::loading::Carve;
use crate::rank::{Entering, StepError};
use crate::request::Request;

/// Biases that a slot has room for.
const N_BIASES_MAX: usize = 512;

/// Stop tokens that a slot has room for.
const N_STOPS_MAX: usize = 256;

/// What decides how large the memory is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SamplingSizes {
    pub(crate) n_slots: usize,
    pub(crate) n_vocab: usize,
    pub(crate) n_local: usize,
    pub(crate) n_logit_rows: usize,
    pub(crate) n_ranks: usize,
    pub(crate) n_context: usize,
}

/// Where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SamplingPlaces {
    state: State,
    /// f32 `[n_ranks][n_rows, n_local]`; this rank's own logits where it is alone.
    gathered: Option<DevicePtr>,
    answers: DevicePtr,
    /// i32 `[n_context]` and `[N_STOPS_MAX]`: of a sequence that enters.
    tokens: DevicePtr,
    stops: DevicePtr,
}

/// What samples.
pub(crate) struct DeviceSampling {
    sizes: SamplingSizes,
    places: SamplingPlaces,
    /// Answers of steps that take turns: one may run while those of the one before it are read.
    read_back: [Pinned; 2],
    /// Slots whose rows the host samples.
    of_host: Vec<bool>,
}

impl SamplingSizes {
    /// Bytes that a step sends where a sequence enters every slot, one of them with penalties.
    pub(crate) fn n_sent_bytes(self) -> usize {
        let n_words = self.n_context + N_STOPS_MAX;
        self.n_slots * size_of::<DeviceSlot>()
            + N_BIASES_MAX * size_of::<DeviceBias>()
            + n_words * size_of::<i32>()
    }

    /// Ranks' parts of a vocabulary must be alike to be gathered.
    pub(crate) fn is_possible(&self) -> bool {
        self.n_local * self.n_ranks == self.n_vocab
            && self.n_ranks * self.n_local.div_ceil(sample::TILE_TOKENS) <= sample::N_TILES_MAX
    }
}

impl SamplingPlaces {
    pub(crate) fn carve(sizes: SamplingSizes, last_tokens: DevicePtr, carve: &mut Carve) -> Self {
        let SamplingSizes { n_slots, n_vocab, n_logit_rows, n_ranks, n_context, .. } = sizes;
        let state = State {
            slots: carve.take(n_slots * size_of::<DeviceSlot>()),
            facts: carve.take(n_slots * n_vocab * size_of::<u32>()),
            biases: carve.take(n_slots * N_BIASES_MAX * size_of::<DeviceBias>()),
            n_biases_max: N_BIASES_MAX,
            last_tokens,
            n_vocab,
        };
        let n_gathered_bytes = n_logit_rows * n_vocab * size_of::<f32>();
        SamplingPlaces {
            state,
            gathered: (n_ranks > 1).then(|| carve.take(n_gathered_bytes)),
            answers: carve.take(n_logit_rows * size_of::<DeviceAnswer>()),
            tokens: carve.take(n_context * size_of::<i32>()),
            stops: carve.take(N_STOPS_MAX * size_of::<i32>()),
        }
    }
}

impl DeviceSampling {
    pub(crate) fn new(
        exec: &CudaExec,
        sizes: SamplingSizes,
        places: SamplingPlaces,
    ) -> Result<DeviceSampling, DeviceError> {
        let answers = || exec.alloc_pinned(sizes.n_logit_rows * size_of::<DeviceAnswer>());
        Ok(DeviceSampling {
            sizes,
            places,
            read_back: [answers()?, answers()?],
            of_host: vec![true; sizes.n_slots],
        })
    }

    /// Whether the device samples the rows of `slot`.
    pub(super) fn samples(&self, slot: SlotIdx) -> bool {
        !self.of_host[slot.idx()]
    }

    /// A sequence takes a slot.
    pub(super) fn enter(
        &mut self,
        (exec, outbox): (&CudaExec, &mut Outbox),
        entering: &Entering,
    ) -> Result<(), DeviceError> {
        let (request, slot_idx) = (&*entering.request, entering.slot.idx());
        self.of_host[slot_idx] = entering.is_guided || !is_of_device(request);
        if self.of_host[slot_idx] {
            return Ok(());
        }
        let biases = sample::biases(&request.sampling);
        let State { slots, biases: all_biases, .. } = self.places.state;
        let slot = DeviceSlot::new(&request.sampling, entering.generated.len(), false);
        outbox.send(exec, slots.offset(slot_idx * size_of::<DeviceSlot>()), &[slot])?;
        if !sample::uses_facts(&request.sampling) {
            return Ok(());
        }
        let at = all_biases.offset(slot_idx * N_BIASES_MAX * size_of::<DeviceBias>());
        outbox.send(exec, at, &biases)?;
        let words = |tokens: &[TokenId]| tokens.iter().map(|token| token.0 as i32).collect();
        let stops: Vec<i32> = words(&request.stop_tokens);
        let mut tokens: Vec<i32> = words(&request.prompt);
        tokens.extend::<Vec<i32>>(words(&entering.generated));
        assert!(tokens.len() <= self.sizes.n_context, "{} tokens enter", tokens.len());
        outbox.send(exec, self.places.tokens, &tokens)?;
        outbox.send(exec, self.places.stops, &stops)?;
        sample::enter(
            exec,
            &Enter {
                state: self.places.state,
                slot_idx,
                tokens: self.places.tokens,
                n_prompt: request.prompt.len(),
                n_generated: entering.generated.len(),
                stops: self.places.stops,
                n_stops: stops.len(),
                n_biases: biases.len(),
            },
        )
    }

    /// Submits the draw of `n_rows` rows, whose slots `slots` has.
    pub(super) fn submit(
        &self,
        exec: &CudaExec,
        communicator: &mut Communicator,
        logits: &DeviceLogits,
        (slots, n_rows): (DevicePtr, usize),
    ) -> Result<(), StepError> {
        let n_local = self.sizes.n_local;
        if let Some(gathered) = self.places.gathered {
            let mine = DeviceSlice {
                address: logits.first.0,
                n_elements: n_rows * n_local,
                element: DeviceElement::F32,
            };
            let stream = exec.stream().for_collectives();
            communicator.all_gather_on_device(mine, gathered.0, stream)?;
        }
        let launch = Launch {
            state: self.places.state,
            logits: self.places.gathered.unwrap_or(logits.first),
            row_stride: n_local,
            rank_stride: n_rows * n_local,
            n_ranks: self.sizes.n_ranks,
            n_local,
            rows: slots,
            n_rows,
            answers: self.places.answers,
        };
        Ok(sample::sample(exec, &launch)?)
    }

    /// Submits the copy of the answers for `n_rows` rows to where the step whose turn it is has
    /// them.
    pub(super) fn read_back(
        &self,
        exec: &CudaExec,
        turn: usize,
        n_rows: usize,
    ) -> Result<(), DeviceError> {
        let n_bytes = n_rows * size_of::<DeviceAnswer>();
        exec.stream().copy_out(&self.read_back[turn], 0, self.places.answers, n_bytes)
    }

    /// What was drawn for row `row_idx`, once the stream has got there.
    pub(super) fn answer(&self, turn: usize, row_idx: usize) -> DeviceAnswer {
        let mut answer = [DeviceAnswer::default()];
        self.read_back[turn].read(row_idx * size_of::<DeviceAnswer>(), &mut answer);
        answer[0]
    }
}

/// Whether a device draws a request's tokens. Where the host does, a row of the request starts
/// only when the host has seen the token before it.
pub(crate) fn is_of_device(request: &Request) -> bool {
    let wants_scores = request.n_logprobs.is_some() || request.n_prompt_logprobs.is_some();
    !wants_scores
        && request.sampling.logit_bias.len() <= N_BIASES_MAX
        && request.stop_tokens.len() <= N_STOPS_MAX
}
