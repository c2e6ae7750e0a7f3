//! What the loop does for guided requests: it tells their guides each token, and holds their rows
//! to what those say.

use std::sync::Arc;

use parallel::RankWorker;
use scheduler::{Event, RequestId, StepPlan, TokenId};

use super::EngineLoop;
use crate::guide::{Allowed, Answer, GuideThreads, TokenSet};
use crate::live::{Guiding, Live};
use crate::rank::{RankCommand, RankReply};
use crate::request::EndReason;

/// What the loop remembers of guided requests besides themselves.
#[derive(Default)]
pub(super) struct Guided {
    threads: GuideThreads,
    /// Those that are live.
    n_live: usize,
    /// Tokens that guides have not been told: one a row of a step at most.
    untold: Vec<(RequestId, TokenId)>,
}

impl Guided {
    /// A request got a token.
    pub(super) fn remember(&mut self, live: &Live, token: (RequestId, TokenId)) {
        if live.guiding.is_some() {
            self.untold.push(token);
        }
    }

    /// A request becomes live.
    pub(super) fn enter(&mut self, live: &Live) {
        self.n_live += usize::from(live.guiding.is_some());
    }

    /// A request has ended. Its guide may be large, and is let go elsewhere.
    pub(super) fn leave(&mut self, live: &mut Live) {
        let Some(guiding) = live.guiding.take() else { return };
        self.n_live -= 1;
        self.threads.let_go(guiding.next);
    }
}

impl<W> EngineLoop<W>
where
    W: RankWorker<Command = RankCommand, Reply = RankReply>,
{
    /// A request has arrived: one that may not say anything has ended.
    pub(super) fn begin_guiding(&mut self, request: RequestId) {
        let guiding = self.live.get(&request).and_then(|live| live.guiding.as_ref());
        if let Some(Guiding { allowed: Allowed::Nothing { cause }, .. }) = guiding {
            let cause = cause.clone();
            self.give_up(request, &cause);
        }
    }

    /// What guided requests may say in a step, where that is not anything.
    pub(super) fn allowed(&self, plan: &StepPlan) -> Vec<(usize, Arc<TokenSet>)> {
        let mut allowed = Vec::new();
        if self.guided.n_live == 0 {
            return allowed;
        }
        for (row_idx, row) in plan.rows.iter().enumerate().filter(|(_, row)| row.emit.samples()) {
            let Some(guiding) = self.live.get(&row.request).and_then(|live| live.guiding.as_ref())
            else {
                continue;
            };
            assert!(guiding.next.is_some(), "{:?} samples while its guide is asked", row.request);
            if let Allowed::Only(set) = &guiding.allowed {
                allowed.push((row_idx, Arc::clone(set)));
            }
        }
        allowed
    }

    /// Tells guides the tokens of requests that go on.
    pub(super) fn ask_guides(&mut self) {
        for (request, token) in self.guided.untold.drain(..) {
            let guiding = self.live.get_mut(&request).and_then(|live| live.guiding.as_mut());
            if let Some(next) = guiding.and_then(|guiding| guiding.next.take()) {
                self.guided.threads.ask(&self.shared, next, (request, token));
            }
        }
    }

    /// A guide has said what may follow.
    pub(super) fn take_answer(&mut self, answer: Answer) {
        let Answer { request, next, allowed } = answer;
        let Some(live) = self.live.get_mut(&request) else { return };
        if let Allowed::Nothing { cause } = &allowed {
            return self.give_up(request, cause);
        }
        live.guiding = Some(Guiding { allowed, next: Some(next) });
        self.apply(Event::Allow(request), &mut []);
    }

    fn give_up(&mut self, request: RequestId, cause: &str) {
        tracing::error!(request = request.0, cause, "a guide cannot go on");
        if let Some(live) = self.live.get_mut(&request) {
            live.end = Some(EndReason::GuideFailed);
        }
        self.apply(Event::Cancel(request), &mut []);
    }
}
