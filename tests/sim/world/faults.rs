//! What goes wrong around the scheduler: readers leave, rows yield no numbers, a rank fails.

use scheduler::{Effect, Event, FinishReason, RequestId, Scheduler};

use super::{N_HELD_MAX, World};
use crate::model::Rank;

impl World {
    /// Somebody's reader leaves; now and then one's that has ended, or never was.
    pub(super) fn cancel_any(&mut self) {
        let any = RequestId(self.random.next() % (self.n_requests + 2));
        let live = self.live.keys().nth(self.random.within(0, 6)).copied();
        self.cancel(live.unwrap_or(any));
    }

    fn cancel(&mut self, request: RequestId) {
        let planned = self.flight.iter().map(|flight| &flight.plan).chain(&self.next);
        let was_in_flight = planned.flat_map(|plan| &plan.rows).any(|row| row.request == request);
        let effects = self.apply(Event::Cancel(request));
        match self.live.remove(&request) {
            None => assert_eq!(effects, [], "wrong: {request:?} does not live"),
            Some(one) => {
                let reason = FinishReason::Cancelled;
                assert_eq!(effects, [Effect::Finish { request, reason }], "wrong: cancel");
                self.sights.n_cancelled_in_flight += u64::from(was_in_flight);
                let waited = !was_in_flight && one.n_computed == 0;
                self.sights.n_cancelled_waiting += u64::from(waited);
            }
        }
        self.settle();
    }

    /// A row of the step that runs yields no numbers: its request ends with the step, as the engine
    /// ends it.
    pub(super) fn fail_row(&mut self) {
        let Some(flight) = &self.flight else { return };
        let row_idx = self.random.within(0, flight.plan.rows.len() - 1);
        let request = flight.plan.rows[row_idx].request;
        self.advance();
        self.cancel(request);
        self.sights.n_failed_rows += 1;
    }

    /// A rank fails: steps in flight never land, every request is told, and the server begins anew.
    pub(super) fn fail_rank(&mut self) {
        self.sights.n_failed_in_flight += u64::from(self.flight.is_some());
        (self.flight, self.next) = (None, None);
        while let Some(&request) = self.live.keys().next() {
            self.cancel(request);
        }
        assert_eq!(self.n_pages_used(), 0, "wrong: nobody lives, and pages are held");
        self.note_counters();
        self.scheduler = Scheduler::new(self.limits.clone());
        self.rank = Rank::new(&self.limits);
        self.turns = Default::default();
        // What another process was told, this one does not know.
        self.latest = 0;
    }

    /// Says of some requests what may follow their last tokens: of each after some turns.
    pub(super) fn allow_some(&mut self) {
        let mut allowed = Vec::new();
        for (&request, expected) in &mut self.live {
            let Some(n_turns) = &mut expected.held else { continue };
            *n_turns += 1;
            if *n_turns > N_HELD_MAX || self.random.one_in(2) {
                expected.held = None;
                allowed.push(request);
            }
        }
        for request in allowed {
            let effects = self.apply(Event::Allow(request));
            assert_eq!(effects, [], "wrong: {request:?} is only allowed to go on");
            self.settle();
        }
    }
}
