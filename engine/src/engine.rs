//! The loop: plan, run, apply. One thread drives the scheduler and all ranks.
//!
//! Where steps overlap, the next one is planned while one runs. If devices draw all its tokens it
//! is *submitted* at once: it lies behind the step that runs, takes the tokens that it lacks from
//! where that one leaves them, and the device does not wait for the host in between. Otherwise it
//! waits until that one is done, has its tokens written into the plan, and starts. Either way the
//! results of a step are looked at and delivered while the next one runs.

mod guiding;
mod inbox;
mod recording;
mod steps;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guiding::Guided;
use parallel::{RankError, RankPool, RankWorker};
use scheduler::{
    Effect, Event, Limits, Moment, RequestId, Scheduler, StepPlan, StepResult, TokenId,
};

use crate::handle::{EngineHandle, EngineInfo, RunState, Shared};
use crate::live::Live;
use crate::rank::{Entering, RankCommand, RankReply, RowOutput};
use crate::request::{EndReason, Output};
use recording::Recorder;
use steps::{Ran, Running};

/// A running engine. Dropping it stops its threads; requests that still run end as cancelled.
pub struct Engine {
    handle: EngineHandle,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the loop over ranks that are ready.
    pub fn start<W>(pool: RankPool<W>, limits: Limits, info: EngineInfo) -> Engine
    where
        W: RankWorker<Command = RankCommand, Reply = RankReply> + 'static,
    {
        let shared = Shared::new(info);
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || EngineLoop::new(pool, limits, shared).run()
            })
            .expect("a thread can be started");
        Engine { handle: EngineHandle::new(Arc::clone(&shared)), shared, thread: Some(thread) }
    }

    /// A way to submit requests.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Ends what still runs as cancelled and waits for the threads.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.shared.set_state(RunState::Stopped);
        if let Some(thread) = self.thread.take() {
            // The loop catches its panics; there is nothing to add here.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

struct EngineLoop<W: RankWorker> {
    pool: RankPool<W>,
    scheduler: Scheduler,
    shared: Arc<Shared>,
    /// What moments count from.
    booted: Instant,
    live: HashMap<RequestId, Live>,
    effects: Vec<Effect>,
    /// The step that runs, between two turns of the loop only where steps overlap.
    running: Option<Running>,
    guided: Guided,
    /// Nothing runs or can be planned before something comes into the inbox.
    is_idle: bool,
    /// When the last step was done.
    landed: Instant,
    recorder: Recorder,
    /// What the last plan took to make.
    planned: Duration,
}

impl<W> EngineLoop<W>
where
    W: RankWorker<Command = RankCommand, Reply = RankReply>,
{
    fn new(pool: RankPool<W>, limits: Limits, shared: Arc<Shared>) -> EngineLoop<W> {
        let n_ranks = pool.world().n_ranks();
        EngineLoop {
            pool,
            scheduler: Scheduler::new(limits),
            shared,
            booted: Instant::now(),
            live: HashMap::new(),
            effects: Vec::new(),
            running: None,
            guided: Guided::default(),
            is_idle: false,
            landed: Instant::now(),
            recorder: Recorder::new(n_ranks),
            planned: Duration::ZERO,
        }
    }

    fn run(mut self) {
        // Who watches sees the pages before the first request comes.
        self.publish_stats();
        // A panic here is a bug of ours; requests are told, and the server says why it is down.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let cause = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(format!("the engine panicked: {}", panic_message(&*panic))),
        };
        self.end_all(cause);
    }

    fn serve(&mut self) -> Result<(), RankError> {
        while self.take_inbox() {
            self.turn()?;
        }
        // Ranks are not stopped in the middle of a step.
        self.land().map(drop)
    }

    /// A turn of the loop: plan, run, apply. What is planned here, while a step runs, runs next.
    fn turn(&mut self) -> Result<(), RankError> {
        let next = self.plan();
        let has_next = next.is_some();
        let ran = match next {
            Some(next) if self.goes_ahead(&next.plan) => self.submit(next)?,
            next => {
                let ran = self.land()?;
                if let Some(mut next) = next {
                    if let Some(ran) = &ran {
                        next.plan.settle(&ran.tokens);
                    }
                    self.start(next)?;
                }
                ran
            }
        };
        self.is_idle = !has_next && ran.is_none();
        if let Some(ran) = ran {
            self.apply_results(ran);
        }
        if !self.shared.info.overlaps_steps
            && let Some(ran) = self.land()?
        {
            self.apply_results(ran);
        }
        Ok(())
    }

    fn entering(&mut self, plan: &StepPlan, now: Instant) -> Vec<Entering> {
        let mut entering = Vec::with_capacity(plan.admitted.len());
        for admission in &plan.admitted {
            let live = self.live.get_mut(&admission.request).expect("who is admitted is live");
            if live.admitted.is_none() {
                let n_cached = admission.n_cached;
                (live.admitted, live.n_cached) = (Some(now), n_cached);
                // Whose reader is gone is told with the first token.
                let _ = (live.deliver)(Output::Admitted { n_cached });
            }
            let (_, generated) = self
                .scheduler
                .request_tokens(admission.request)
                .expect("the scheduler knows whom it admitted");
            entering.push(Entering {
                slot: admission.slot,
                request: Arc::clone(&live.request),
                generated: generated.to_vec(),
                is_guided: live.guiding.is_some(),
            });
        }
        entering
    }

    fn apply_results(&mut self, ran: Ran) {
        let Ran { plan, mut output, tokens, took, span } = ran;
        let mut gone = Vec::new();
        for row in &plan.rows {
            let Some(live) = self.live.get_mut(&row.request) else { continue };
            let answers = &mut output.rows[row.answer_range()];
            let is_broken = answers.iter().any(|answer| answer.is_broken);
            let output = &mut answers[0];
            if is_broken {
                tracing::error!(request = row.request.0, "logits are not finite");
                live.end = Some(EndReason::EngineFailed);
                gone.push(row.request);
            } else if !output.prompt_scores.is_empty() {
                let scores = std::mem::take(&mut output.prompt_scores);
                if (live.deliver)(Output::PromptScores(scores)).is_err() {
                    gone.push(row.request);
                }
            }
        }
        // First, so that whoever has read a token finds the step that it came of.
        span.in_scope(|| self.record_step(&plan, &took));
        let took_us = took.ran.as_micros() as u64;
        let result = StepResult { step: plan.step, tokens, took_us };
        self.apply(Event::Complete(result), &mut output.rows);
        for request in gone {
            self.apply(Event::Cancel(request), &mut []);
        }
        self.scheduler.recycle(plan);
    }

    /// Applies an event and carries out its effects; `rows` belong to a completed plan.
    fn apply(&mut self, event: Event, rows: &mut [RowOutput]) {
        let mut effects = std::mem::take(&mut self.effects);
        let now = self.moment(Instant::now());
        self.scheduler.apply(event, now, &mut effects);
        // First, so that whoever has read an end sees its pages given back.
        self.publish_stats();
        let mut gone = Vec::new();
        for effect in effects.drain(..) {
            match effect {
                Effect::Token { request, token, answer_idx } => {
                    if self.deliver_token(request, token, &mut rows[answer_idx]).is_err() {
                        gone.push(request);
                    }
                }
                Effect::Finish { request, reason } => self.finish(request, reason.into()),
                Effect::Refuse { request, refusal } => {
                    // The handle keeps out what the scheduler would refuse.
                    tracing::error!(request = request.0, ?refusal, "refused after admission");
                    self.finish(request, EndReason::EngineFailed);
                }
            }
        }
        self.effects = effects;
        for request in gone {
            self.apply(Event::Cancel(request), &mut []);
        }
        self.ask_guides();
    }

    fn deliver_token(
        &mut self,
        request: RequestId,
        token: TokenId,
        row: &mut RowOutput,
    ) -> Result<(), crate::ReaderGone> {
        let Some(live) = self.live.get_mut(&request) else { return Ok(()) };
        if live.end.is_some() {
            return Ok(());
        }
        live.first_token.get_or_insert_with(Instant::now);
        live.n_generated += 1;
        self.guided.remember(live, (request, token));
        let step_idx = self.recorder.last_idx();
        (live.deliver)(Output::Token { token, score: row.score.take().map(Box::new), step_idx })
    }

    fn finish(&mut self, request: RequestId, reason: EndReason) {
        let Some(mut live) = self.live.remove(&request) else { return };
        self.guided.leave(&mut live);
        // First, so that whoever has read the end finds room for one more.
        self.shared.n_live.fetch_sub(1, Ordering::Relaxed);
        // A reader that is gone needs no end.
        let _ = live.finish(reason);
    }

    fn moment(&self, instant: Instant) -> Moment {
        Moment(instant.saturating_duration_since(self.booted).as_micros() as u64)
    }

    /// Ends every request: cancelled, or failed with `cause`.
    fn end_all(&mut self, cause: Option<String>) {
        let reason = match cause {
            Some(cause) => {
                tracing::error!(cause, "the engine has failed");
                self.shared.set_state(RunState::Failed { cause });
                EndReason::EngineFailed
            }
            None => EndReason::Cancelled,
        };
        // Nothing is submitted any more: the state says so.
        let arrivals = std::mem::take(&mut self.shared.inbox.lock().arrivals);
        for arrival in arrivals {
            let (id, live) = Live::new(arrival);
            self.guided.enter(&live);
            self.live.insert(id, live);
        }
        let requests: Vec<RequestId> = self.live.keys().copied().collect();
        for request in requests {
            self.finish(request, reason);
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    if let Some(message) = panic.downcast_ref::<&str>() {
        message
    } else if let Some(message) = panic.downcast_ref::<String>() {
        message
    } else {
        "no message"
    }
}
