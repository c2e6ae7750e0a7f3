//! The ranks' side of the loop: a step is started or submitted, and lands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parallel::{RankError, RankWorker};
use scheduler::{Emit, GroupIdx, PageMove, Row, StepPlan, TokenId};
use tracing::Span;

use super::EngineLoop;
use crate::live::Live;
use crate::model::sampling;
use crate::rank::{RankCommand, RankReply, StepInput, StepOutput};

/// What filters of the log call steps by.
pub(super) const STEP_TARGET: &str = "engine::step";

/// A step that the ranks were told to run.
pub(super) struct Running {
    pub(super) input: Arc<StepInput>,
    pub(super) began: Instant,
    /// The ranks have it behind them and are to be asked for what came out. If not, that is what
    /// their next answer is.
    pub(super) is_submitted: bool,
    /// What its plan took to make.
    pub(super) planned: Duration,
    /// For who subscribes to `tracing`; open until its results were seen.
    pub(super) span: Span,
}

/// What a step took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    /// The scheduler, to plan it.
    pub(super) planned: Duration,
    /// The ranks, to run it.
    pub(super) ran: Duration,
    /// When they were done.
    pub(super) ended: Instant,
}

/// A step that has run.
pub(super) struct Ran {
    pub(super) plan: StepPlan,
    pub(super) output: StepOutput,
    /// One entry an answer of the plan.
    pub(super) tokens: Vec<Option<TokenId>>,
    pub(super) took: Took,
    pub(super) span: Span,
}

impl<W> EngineLoop<W>
where
    W: RankWorker<Command = RankCommand, Reply = RankReply>,
{
    /// Whether a step may be submitted before the tokens of the one before it were seen: devices
    /// draw all that it yields. It yields something, for that is where its ranks meet at its end,
    /// and none of them begins the next while another is still at this one.
    pub(super) fn goes_ahead(&self, plan: &StepPlan) -> bool {
        let is_drawn = |row: &Row| {
            let live = self.live.get(&row.request);
            let is_drawn =
                |live: &Live| live.guiding.is_none() && sampling::is_of_device(&live.request);
            !row.emit.scores() && live.is_some_and(is_drawn)
        };
        let mut yielding = plan.rows.iter().filter(|row| row.emit != Emit::Nothing).peekable();
        self.shared.info.launches_ahead && yielding.peek().is_some() && yielding.all(is_drawn)
    }

    /// Puts a step behind the one that runs, if one does; what came out of that one.
    pub(super) fn submit(&mut self, input: StepInput) -> Result<Option<Ran>, RankError> {
        let is_behind = self.running.as_ref().is_some_and(|running| running.is_submitted);
        let mut ran = if is_behind { None } else { self.land()? };
        let span = self.span(&input.plan);
        let (input, began) = (Arc::new(input), Instant::now());
        let replies = self.pool.broadcast(RankCommand::Submit(Arc::clone(&input)))?;
        if let Some(running) = self.running.take() {
            ran = Some(self.ran(running, replies));
        }
        let planned = self.planned;
        self.running = Some(Running { input, began, is_submitted: true, planned, span });
        Ok(ran)
    }

    /// A step's span, which follows from those of the requests in it. Where nobody subscribes to
    /// it, that is found out by one load, and there is none.
    fn span(&self, plan: &StepPlan) -> Span {
        let step = plan.step.0;
        let span = tracing::trace_span!(target: STEP_TARGET, parent: None, "step", step);
        if !span.is_disabled() {
            for live in plan.rows.iter().filter_map(|row| self.live.get(&row.request)) {
                span.follows_from(&live.span);
            }
        }
        span
    }

    /// The next step, if there is something to run.
    pub(super) fn plan(&mut self) -> Option<StepInput> {
        let began = Instant::now();
        let plan = self.scheduler.plan()?;
        self.planned = began.elapsed();
        self.count_moved(&plan.moves);
        let entering = self.entering(&plan, Instant::now());
        let allowed = self.allowed(&plan);
        Some(StepInput { plan, entering, allowed })
    }

    /// Adds up what a plan moves to the host and back.
    fn count_moved(&self, moves: &[PageMove]) {
        if moves.is_empty() {
            return;
        }
        let n_bytes = |group: GroupIdx| self.shared.info.page_bytes[group.idx()];
        let mut stats = self.shared.stats.lock();
        for page in moves {
            match *page {
                PageMove::Out { group, .. } => stats.out_kv_bytes += n_bytes(group),
                PageMove::In { group, .. } => stats.in_kv_bytes += n_bytes(group),
                PageMove::Copy { .. } => {}
            }
        }
    }

    pub(super) fn start(&mut self, input: StepInput) -> Result<(), RankError> {
        let span = self.span(&input.plan);
        let input = Arc::new(input);
        // First, for ranks begin while the command is still being handed to the last of them.
        let (began, planned) = (Instant::now(), self.planned);
        self.pool.send(RankCommand::Step(Arc::clone(&input)))?;
        self.running = Some(Running { input, began, is_submitted: false, planned, span });
        Ok(())
    }

    /// Waits for the step that runs, if one does.
    pub(super) fn land(&mut self) -> Result<Option<Ran>, RankError> {
        let Some(running) = self.running.take() else { return Ok(None) };
        if running.is_submitted {
            self.pool.send(RankCommand::Land)?;
        }
        let replies = self.pool.receive()?;
        Ok(Some(self.ran(running, replies)))
    }

    /// A step that the ranks have answered.
    pub(super) fn ran(&mut self, running: Running, replies: Vec<RankReply>) -> Ran {
        let Running { input, began, planned, span, .. } = running;
        // A step that lay behind another ran from when that one was done.
        let began = began.max(std::mem::replace(&mut self.landed, Instant::now()));
        let took = Took { planned, ran: self.landed.duration_since(began), ended: self.landed };
        self.recorder.take_ranks(self.pool.rank_times());
        let output = replies
            .into_iter()
            .find_map(|reply| match reply {
                RankReply::Stepped(output) => output,
                RankReply::Probed(_) => unreachable!("nothing was probed"),
            })
            .expect("rank 0 says what came out");
        let StepInput { plan, .. } =
            Arc::into_inner(input).expect("ranks drop the plan before they answer");
        assert_eq!(output.rows.len(), plan.n_answers(), "one output an answer");
        let tokens = output.rows.iter().map(|row| row.token).collect();
        Ran { plan, output, tokens, took, span }
    }
}
