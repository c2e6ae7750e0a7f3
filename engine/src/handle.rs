//! The engine as its users hold it: submit, watch, drain. Cheap to clone, safe from any thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use scheduler::RequestId;
use weights::ModelSpec;

use crate::cache::CacheGroup;
use crate::config::{DeviceKind, Policy};
use crate::error::SubmitError;
use crate::guide::{Answer, Guide};
use crate::request::{Output, Request};
use crate::stats::EngineStats;
use crate::watch::{DeliverStep, StepLog, StepRecord, StepTracing};

/// Log-probabilities reported with a token at most.
pub const N_LOGPROBS_MAX: usize = 20;

/// The reader of a request's outputs is gone.
#[derive(Debug)]
pub struct ReaderGone;

/// Takes a request's outputs on the engine's thread. It must not block: give it a channel with
/// room for the slot, `n_new_max` tokens, the prompt's scores and the end. An error cancels the
/// request.
pub type Deliver = Box<dyn FnMut(Output) -> Result<(), ReaderGone> + Send>;

/// What the engine serves and within which bounds. Fixed at boot.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// The model.
    pub spec: Arc<ModelSpec>,
    /// Which of its blocks share page tables.
    pub groups: Vec<CacheGroup>,
    /// Where it runs.
    pub device: DeviceKind,
    /// Tokens of prompt and answer that a sequence may hold.
    pub n_context_tokens: usize,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Sequences that may run at once.
    pub n_slots: usize,
    /// Requests that may wait.
    pub n_waiting_max: usize,
    /// Tokens a step.
    pub n_tokens_per_step: usize,
    /// Tokens a page.
    pub page_tokens: usize,
    /// Ranks.
    pub n_ranks: usize,
    /// Whether a step is planned while the one before it runs.
    pub overlaps_steps: bool,
    /// Whose turn it is, and how long anybody waits.
    pub policy: Policy,
    /// Whether it is submitted to devices before that one's tokens are seen, where devices draw
    /// them.
    pub launches_ahead: bool,
    /// Bytes of a page of each cache group, over all ranks.
    pub page_bytes: Vec<u64>,
    /// Bytes that KV on the host takes at most, over all ranks.
    pub host_kv_bytes: u64,
}

/// A way to reach a running engine.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

/// A submitted request. Dropping it cancels the request, if it still runs.
pub struct Ticket {
    shared: Arc<Shared>,
    request: RequestId,
}

/// What handle, tickets and the engine's thread share.
pub(crate) struct Shared {
    pub(crate) info: EngineInfo,
    /// Requests submitted and not yet ended.
    pub(crate) n_live: AtomicUsize,
    pub(crate) inbox: Mutex<Inbox>,
    pub(crate) wake: Condvar,
    pub(crate) stats: Mutex<EngineStats>,
    pub(crate) steps: StepLog,
    pub(crate) step_tracing: OnceLock<StepTracing>,
}

/// What the engine's thread has not seen yet. Bounded: arrivals and answers by `n_live`, cancels by
/// the tickets that exist.
pub(crate) struct Inbox {
    pub(crate) n_submitted: u64,
    pub(crate) arrivals: VecDeque<Arrival>,
    pub(crate) cancels: Vec<RequestId>,
    /// What guides said.
    pub(crate) answers: Vec<Answer>,
    pub(crate) state: RunState,
}

/// Whether the engine takes requests.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RunState {
    Running,
    Draining,
    /// Time to end: what still runs is cancelled.
    Stopped,
    Failed {
        cause: String,
    },
}

pub(crate) struct Arrival {
    pub(crate) id: RequestId,
    pub(crate) request: Request,
    pub(crate) guide: Option<Guide>,
    pub(crate) deliver: Deliver,
    pub(crate) arrived: Instant,
    /// Where it was submitted; steps that serve it follow from that.
    pub(crate) span: tracing::Span,
}

impl Shared {
    pub(crate) fn new(info: EngineInfo) -> Arc<Shared> {
        Arc::new(Shared {
            steps: StepLog::new(info.n_ranks),
            step_tracing: OnceLock::new(),
            info,
            n_live: AtomicUsize::new(0),
            inbox: Mutex::new(Inbox {
                n_submitted: 0,
                arrivals: VecDeque::new(),
                cancels: Vec::new(),
                answers: Vec::new(),
                state: RunState::Running,
            }),
            wake: Condvar::new(),
            stats: Mutex::new(EngineStats::default()),
        })
    }

    /// Changes the state, unless the engine has already failed, and wakes its thread.
    pub(crate) fn set_state(&self, state: RunState) {
        let mut inbox = self.inbox.lock();
        if !matches!(inbox.state, RunState::Failed { .. }) {
            inbox.state = state;
        }
        self.wake.notify_one();
    }
}

impl EngineHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> EngineHandle {
        EngineHandle { shared }
    }

    /// What the engine serves.
    pub fn info(&self) -> &EngineInfo {
        &self.shared.info
    }

    /// Counters and gauges as of the last step.
    pub fn stats(&self) -> EngineStats {
        self.shared.stats.lock().clone()
    }

    /// The steps from the `first`th on that are still kept ([`crate::N_STEPS_KEPT`] of them),
    /// oldest first. The engine waits for no reader.
    pub fn steps_since(&self, first: u64) -> Vec<StepRecord> {
        self.shared.steps.since(first)
    }

    /// From now on tells `deliver` of a share of the steps, in [0, 1]: those that served a request
    /// [with a span](crate::Terms::span). It is called on the engine's thread and must not wait.
    /// Only who comes first is told.
    pub fn trace_steps(&self, share: f64, deliver: DeliverStep) {
        // Whoever comes second is not told.
        let _ = self.shared.step_tracing.set(StepTracing::new(share, deliver));
    }

    /// Requests submitted and not yet ended.
    pub fn n_live(&self) -> usize {
        self.shared.n_live.load(Ordering::Relaxed)
    }

    /// `Ok` while requests are taken, else why they are not.
    pub fn ready(&self) -> Result<(), SubmitError> {
        refusal(&self.shared.inbox.lock().state).map_or(Ok(()), Err)
    }

    /// Takes no more requests; those that run go on. [`EngineHandle::n_live`] falls to zero.
    pub fn drain(&self) {
        self.shared.set_state(RunState::Draining);
    }

    /// Queues a request; its outputs go to `deliver`. Never blocks. Who subscribes to `tracing`
    /// finds the steps that serve it (target `engine::step`) to follow from the span that is
    /// current here.
    ///
    /// # Errors
    /// What the request breaks, [`SubmitError::QueueFull`], or why the engine takes none.
    pub fn submit(&self, request: Request, deliver: Deliver) -> Result<Ticket, SubmitError> {
        self.submit_guided(request, None, deliver)
    }

    /// The same for a request whose every token is one that `guide` allows, if there is one.
    ///
    /// # Errors
    /// As for [`EngineHandle::submit`].
    pub fn submit_guided(
        &self,
        request: Request,
        guide: Option<Guide>,
        deliver: Deliver,
    ) -> Result<Ticket, SubmitError> {
        self.check(&request)?;
        let info = &self.shared.info;
        let n_max = info.n_slots + info.n_waiting_max;
        let mut inbox = self.shared.inbox.lock();
        if let Some(refusal) = refusal(&inbox.state) {
            return Err(refusal);
        }
        if self.shared.n_live.load(Ordering::Relaxed) >= n_max {
            return Err(SubmitError::QueueFull { n_max });
        }
        self.shared.n_live.fetch_add(1, Ordering::Relaxed);
        let id = RequestId(inbox.n_submitted);
        inbox.n_submitted += 1;
        let (arrived, span) = (Instant::now(), tracing::Span::current());
        inbox.arrivals.push_back(Arrival { id, request, guide, deliver, arrived, span });
        drop(inbox);
        self.shared.wake.notify_one();
        Ok(Ticket { shared: Arc::clone(&self.shared), request: id })
    }

    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let info = &self.shared.info;
        let n_prompt = request.prompt.len();
        if n_prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if n_prompt + usize::from(request.n_new_max > 0) > info.n_context_tokens {
            return Err(SubmitError::PromptTooLong { n_prompt, n_max: info.n_context_tokens });
        }
        let biased = request.sampling.logit_bias.iter().map(|(token, _)| token);
        for &token in request.prompt.iter().chain(biased) {
            if token.idx() >= info.vocab_size {
                let vocab_size = info.vocab_size;
                return Err(SubmitError::TokenOutOfVocabulary { token: token.0, vocab_size });
            }
        }
        for asked in [request.n_logprobs, request.n_prompt_logprobs].into_iter().flatten() {
            if asked > N_LOGPROBS_MAX {
                return Err(SubmitError::TooManyLogprobs { asked, n_max: N_LOGPROBS_MAX });
            }
        }
        Ok(request.sampling.check()?)
    }
}

fn refusal(state: &RunState) -> Option<SubmitError> {
    match state {
        RunState::Running => None,
        RunState::Draining | RunState::Stopped => Some(SubmitError::ShuttingDown),
        RunState::Failed { cause } => Some(SubmitError::EngineFailed { cause: cause.clone() }),
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // A request that has ended is unknown to the scheduler by then, which is fine.
        self.shared.inbox.lock().cancels.push(self.request);
        self.shared.wake.notify_one();
    }
}
