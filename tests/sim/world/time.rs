//! The clock, which may jump, and whom nobody wants any more.

use scheduler::{Effect, FinishReason, Moment, RequestId};

use super::{Expected, World};

impl Expected {
    /// Until when it is wanted, and what its end is then.
    fn wanted_until(&self) -> Option<Moment> {
        let terms = &self.request.terms;
        let queued = terms.queue_deadline.filter(|_| !self.has_begun);
        terms.deadline.into_iter().chain(queued).min()
    }

    fn expiry(&self, latest: Moment) -> FinishReason {
        let is_past = self.request.terms.deadline.is_some_and(|deadline| deadline <= latest);
        if is_past { FinishReason::DeadlinePassed } else { FinishReason::QueueTimeout }
    }
}

impl World {
    /// A little later, as a rule.
    pub(super) fn tick(&mut self) {
        self.clock += self.random.within(0, 5) as u64;
    }

    /// The clock is set, forward or back.
    pub(super) fn jump(&mut self) {
        let by = self.random.within(1, 200) as u64;
        let is_back = self.random.one_in(2);
        self.clock = if is_back { self.clock.saturating_sub(by) } else { self.clock + by };
        self.sights.n_jumps += 1;
    }

    /// Whoever has expired was told so, in the order of the moments, and nobody else.
    pub(super) fn settle(&mut self) {
        let told = std::mem::take(&mut self.expired);
        let latest = Moment(self.latest);
        let expires = |(&id, one): (&RequestId, &Expected)| Some((one.wanted_until()?, id));
        let mut expired: Vec<_> =
            self.live.iter().filter_map(expires).filter(|&(until, _)| until <= latest).collect();
        expired.sort_unstable();
        let mut wanted = Vec::new();
        for (_, request) in expired {
            let one = self.live.remove(&request).expect("it lives");
            let reason = one.expiry(latest);
            match reason {
                FinishReason::QueueTimeout => self.sights.n_queue_timeouts += 1,
                _ => self.sights.n_deadlines += 1,
            }
            self.sights.n_expired_running += u64::from(one.runs);
            wanted.push(Effect::Finish { request, reason });
        }
        assert_eq!(told, wanted, "wrong: who expires by {latest:?}");
    }
}
