//! How the loop hears of the world: requests arrive, readers are gone, guides answer.

use std::sync::Arc;
use std::time::Duration;

use parallel::RankWorker;
use scheduler::Event;

use super::EngineLoop;
use crate::handle::{Arrival, RunState};
use crate::live::Live;
use crate::rank::{RankCommand, RankReply};

impl<W> EngineLoop<W>
where
    W: RankWorker<Command = RankCommand, Reply = RankReply>,
{
    /// Takes what has arrived; sleeps while there is nothing to do. False when it is time to stop.
    pub(super) fn take_inbox(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut inbox = shared.inbox.lock();
        while inbox.arrivals.is_empty()
            && inbox.cancels.is_empty()
            && inbox.answers.is_empty()
            && (self.live.is_empty() || self.is_idle)
            && self.running.is_none()
            && inbox.state != RunState::Stopped
        {
            shared.wake.wait(&mut inbox);
        }
        if inbox.state == RunState::Stopped {
            return false;
        }
        let arrivals = std::mem::take(&mut inbox.arrivals);
        let cancels = std::mem::take(&mut inbox.cancels);
        let answers = std::mem::take(&mut inbox.answers);
        drop(inbox);
        for arrival in arrivals {
            self.arrive(arrival);
        }
        for request in cancels {
            self.apply(Event::Cancel(request), &mut []);
        }
        for answer in answers {
            self.take_answer(answer);
        }
        true
    }

    fn arrive(&mut self, arrival: Arrival) {
        let (id, live) = Live::new(arrival);
        let request = &live.request;
        let after = |timeout: Option<Duration>| {
            // What no clock can say is never.
            timeout.and_then(|timeout| live.arrived.checked_add(timeout)).map(|at| self.moment(at))
        };
        let default = self.shared.info.policy.queue_timeout;
        let queue_timeout = request.terms.queue_timeout.or(default);
        let event = Event::Arrive(scheduler::Request {
            id,
            prompt: Arc::clone(&request.prompt),
            n_new_max: request.n_new_max,
            stop_tokens: Arc::clone(&request.stop_tokens),
            scores_prompt: request.n_prompt_logprobs.is_some(),
            cache_salt: request.cache_salt.clone(),
            is_guided: live.guiding.is_some(),
            terms: scheduler::Terms {
                priority: request.terms.priority,
                tenant: request.terms.tenant,
                queue_deadline: after(queue_timeout),
                deadline: after(request.terms.timeout),
            },
        });
        self.guided.enter(&live);
        self.live.insert(id, live);
        self.apply(event, &mut []);
        self.begin_guiding(id);
    }
}
