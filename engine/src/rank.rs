//! What a rank is told, what it answers, and the worker that does it with the model.

use std::sync::Arc;

use parallel::{CollectiveError, Communicator, RankTime, RankWorker};
use scheduler::{SlotIdx, StepPlan, TokenId};
use thiserror::Error;
use weights::{Checkpoint, LoadError};

use crate::batch::EmitPoint;
use crate::device::{DeviceError, Exec};
use crate::guide::TokenSet;
use crate::kernels::sample::cuda::DeviceAnswer;
use crate::model::{Model, Sampling, StepRun, Submission};
use crate::request::{Request, TokenScore};
use crate::sampler::Sampler;

/// A command to every rank.
#[derive(Clone, Debug)]
pub enum RankCommand {
    /// Run a step, and answer with what came out of it.
    Step(Arc<StepInput>),
    /// Submit a step behind the one that was submitted last, and answer with what came out of that
    /// one, if it was not asked for. A row that follows another takes its token from where a
    /// device has drawn it. All its tokens are drawn by devices, and one at least.
    Submit(Arc<StepInput>),
    /// Answer with what came out of the step that was submitted last.
    Land,
    /// Run a plan and say its logits instead of sampling: for tests and benches.
    Probe(Arc<StepPlan>),
}

/// A rank's answer.
#[derive(Debug)]
pub enum RankReply {
    /// What came out of a step, if one has run; rank 0 says it.
    Stepped(Option<StepOutput>),
    /// The plan has run; rank 0 says the logits.
    Probed(Vec<Probed>),
}

/// Logits of one position that emits.
#[derive(Clone, Debug, PartialEq)]
pub struct Probed {
    /// Row of the plan.
    pub row_idx: usize,
    /// Position in the row's sequence.
    pub position: usize,
    /// `[vocab]`.
    pub logits: Vec<f32>,
}

/// A plan, and what sampling needs to know of sequences that enter a slot in it.
#[derive(Debug)]
pub struct StepInput {
    /// The plan.
    pub plan: StepPlan,
    /// One entry for each of the plan's admissions.
    pub entering: Vec<Entering>,
    /// Rows that sample among some tokens only, with these, in the plan's order.
    pub allowed: Vec<(usize, Arc<TokenSet>)>,
}

/// A sequence that enters a slot.
#[derive(Debug)]
pub struct Entering {
    /// Where.
    pub slot: SlotIdx,
    /// Its request.
    pub request: Arc<Request>,
    /// Tokens that it generated before (it was preempted), in order.
    pub generated: Vec<TokenId>,
    /// Which tokens it samples among may be said with each step.
    pub is_guided: bool,
}

/// What a step yields, a row at a time in the plan's order.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// One entry a row, and behind it one for each of its candidates: the plan's answers.
    pub rows: Vec<RowOutput>,
}

/// What a row yields, or one of its candidates.
#[derive(Clone, Debug, Default)]
pub struct RowOutput {
    /// The token after the row, where the row samples, or after a candidate that was right.
    pub token: Option<TokenId>,
    /// Its score, where the request wants one.
    pub score: Option<TokenScore>,
    /// Scores of the prompt's tokens after the row's positions, where they are wanted.
    pub prompt_scores: Vec<TokenScore>,
    /// Some logits were not finite: the model's weights are broken, and so is `token`.
    pub is_broken: bool,
}

impl RowOutput {
    /// A device has drawn the token.
    pub(crate) fn take(&mut self, answer: DeviceAnswer) {
        self.token = Some(TokenId(answer.token as u32));
        self.is_broken = answer.is_broken != 0;
    }
}

/// Why a rank could not run a step.
#[derive(Debug, Error)]
pub enum StepError {
    /// A kernel could not run.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The ranks could not exchange data.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// Weights are not what they were.
    #[error(transparent)]
    Weights(#[from] LoadError),
}

/// A rank that runs the model.
pub(crate) struct ModelWorker {
    /// Goes first: it uses the device until it is gone.
    pub(crate) communicator: Communicator,
    pub(crate) model: Model,
    pub(crate) exec: Exec,
    /// Rank 0 samples for all.
    pub(crate) sampler: Option<Sampler>,
    /// Where weights are read where they are mapped.
    pub(crate) mapped: Option<Checkpoint>,
}

impl Drop for ModelWorker {
    /// Before the communicator goes, which waits for what its device does.
    fn drop(&mut self) {
        self.model.let_go(&self.exec);
    }
}

impl RankWorker for ModelWorker {
    type Command = RankCommand;
    type Reply = RankReply;
    type Error = StepError;

    fn handle(&mut self, command: RankCommand) -> Result<RankReply, StepError> {
        let reply = match command {
            RankCommand::Step(input) => self.step(&input),
            RankCommand::Submit(input) => self.submit(&input),
            RankCommand::Land => self.land(),
            RankCommand::Probe(plan) => self.probe(&plan),
        }?;
        // Nobody gets a token of weights that were gone while it was computed.
        self.mapped.as_ref().map_or(Ok(()), Checkpoint::check_intact)?;
        Ok(reply)
    }

    fn take_device_time(&mut self) -> Option<RankTime> {
        self.model.take_device_time()
    }
}

impl ModelWorker {
    fn step(&mut self, input: &StepInput) -> Result<RankReply, StepError> {
        let ModelWorker { model, exec, communicator, sampler, .. } = self;
        let Some(sampler) = sampler else {
            let (plan, consume) = (&input.plan, &mut |_: &EmitPoint, _: &[f32]| {});
            let drawn = &mut |_: &EmitPoint, _| {};
            let sampling = Some(Sampling { entering: &input.entering, drawn });
            model.forward(StepRun { exec, communicator, plan, consume, sampling })?;
            return Ok(RankReply::Stepped(None));
        };
        for entering in &input.entering {
            sampler.enter(entering);
        }
        let mut output = StepOutput { rows: vec![RowOutput::default(); input.plan.n_answers()] };
        let mut drawn = Vec::new();
        let consume = &mut |point: &EmitPoint, logits: &[f32]| {
            let place = input.allowed.binary_search_by_key(&point.row_idx, |(row_idx, _)| *row_idx);
            let allowed = place.ok().map(|place| &*input.allowed[place].1);
            sampler.take(point, (logits, allowed), &mut output.rows[point.answer_idx]);
        };
        let take_drawn = &mut |point: &EmitPoint, answer| drawn.push((point.answer_idx, answer));
        let sampling = Some(Sampling { entering: &input.entering, drawn: take_drawn });
        let plan = &input.plan;
        model.forward(StepRun { exec, communicator, plan, consume, sampling })?;
        for (answer_idx, answer) in drawn {
            output.rows[answer_idx].take(answer);
        }
        Ok(RankReply::Stepped(Some(output)))
    }

    fn submit(&mut self, input: &StepInput) -> Result<RankReply, StepError> {
        let ModelWorker { model, exec, communicator, sampler, .. } = self;
        if let Some(sampler) = sampler {
            input.entering.iter().for_each(|entering| sampler.enter(entering));
        }
        let (plan, entering) = (&input.plan, &input.entering[..]);
        let n_behind = model.submit(Submission { exec, communicator, plan, entering })?;
        if n_behind == 0 { Ok(RankReply::Stepped(None)) } else { self.land() }
    }

    fn land(&mut self) -> Result<RankReply, StepError> {
        let ModelWorker { model, exec, communicator, sampler, .. } = self;
        let mut rows = Vec::new();
        model.land(exec, communicator, sampler.is_some().then_some(&mut rows))?;
        Ok(RankReply::Stepped(sampler.is_some().then_some(StepOutput { rows })))
    }

    fn probe(&mut self, plan: &StepPlan) -> Result<RankReply, StepError> {
        let ModelWorker { model, exec, communicator, .. } = self;
        let mut probed = Vec::new();
        let consume = &mut |point: &EmitPoint, logits: &[f32]| {
            let &EmitPoint { row_idx, position, .. } = point;
            probed.push(Probed { row_idx, position, logits: logits.to_vec() });
        };
        model.forward(StepRun { exec, communicator, plan, consume, sampling: None })?;
        Ok(RankReply::Probed(probed))
    }
}
