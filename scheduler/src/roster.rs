//! Who lives, and where: slots, the running sequences, the waiting queue.
//!
//! **The running sequences followed by the waiting ones are in order of arrival**, always: whoever
//! is admitted is the oldest that waits, whoever is preempted is the youngest that runs. So age
//! needs no sorting, both ends of both lists are where the work happens, and an arrival number is
//! found by halving. It does not know pages, steps or effects.
//!
//! Priorities would order both lists by class before arrival, and nothing else here.

use std::collections::{BTreeMap, VecDeque};

use crate::expiry::Expiry;
use crate::sequence::{Arrival, Sequence};
use crate::{Limits, Moment, Request, RequestId, Row, SlotIdx};

/// Every sequence that has not ended.
#[derive(Debug)]
pub(crate) struct Roster {
    slots: Vec<Option<Sequence>>,
    free_slots: Vec<SlotIdx>,
    /// By age, oldest first.
    running: Vec<SlotIdx>,
    /// By age, oldest first, and younger than all that run.
    waiting: VecDeque<Sequence>,
    /// Requests that have not ended. Not touched by a step in which nobody arrives or ends.
    arrivals: BTreeMap<RequestId, Arrival>,
    expiry: Expiry,
    n_arrivals: u64,
    /// Rows in flight of sequences that have ended.
    n_orphan_rows: usize,
}

/// Where a request that has not ended is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In this slot.
    Running(SlotIdx),
    /// At this position of the queue.
    Waiting(usize),
}

impl Roster {
    pub(crate) fn new(limits: &Limits) -> Roster {
        Roster {
            slots: (0..limits.n_slots).map(|_| None).collect(),
            free_slots: (0..limits.n_slots as u32).rev().map(SlotIdx).collect(),
            running: Vec::with_capacity(limits.n_slots),
            waiting: VecDeque::new(),
            arrivals: BTreeMap::new(),
            expiry: Expiry::default(),
            n_arrivals: 0,
            n_orphan_rows: 0,
        }
    }

    /// Queues a request behind all others.
    pub(crate) fn arrive(&mut self, request: Request, limits: &Limits) {
        let arrival = Arrival(self.n_arrivals);
        self.n_arrivals += 1;
        let twin = self.arrivals.insert(request.id, arrival);
        assert!(twin.is_none(), "{:?} arrives twice", request.id);
        let sequence = Sequence::new(request, arrival, limits);
        self.expiry.watch(sequence.id(), sequence.wanted_until());
        self.waiting.push_back(sequence);
    }

    /// Gives the oldest waiting sequence a slot, if both exist.
    pub(crate) fn admit(&mut self) -> Option<SlotIdx> {
        if self.waiting.is_empty() {
            return None;
        }
        let slot = self.free_slots.pop()?;
        let mut sequence = self.waiting.pop_front()?;
        self.expiry.forget(sequence.id(), sequence.wanted_until());
        sequence.enter();
        self.expiry.watch(sequence.id(), sequence.wanted_until());
        self.slots[slot.idx()] = Some(sequence);
        self.running.push(slot);
        Some(slot)
    }

    /// Sends the youngest running sequence back to the head of the queue, also while rows of it are
    /// in flight. Returns its slot and how many of its tokens are to be computed again. Its pages
    /// must be forfeited.
    pub(crate) fn preempt_youngest(&mut self) -> (SlotIdx, usize) {
        let slot = self.running.pop().expect("somebody runs");
        let mut sequence = self.slots[slot.idx()].take().expect("a running slot is taken");
        let n_lost = sequence.rewind();
        self.free_slots.push(slot);
        self.waiting.push_front(sequence);
        (slot, n_lost)
    }

    /// A request has ended: it is unknown from now on, and rows of it in flight are nobody's. The
    /// slot that it had is free; its pages must be forfeited.
    pub(crate) fn end(&mut self, place: Place) {
        let sequence = match place {
            Place::Waiting(queue_idx) => self.waiting.remove(queue_idx),
            Place::Running(slot) => {
                let order_idx = self.order_idx(self.sequence(slot).arrival());
                self.running.remove(order_idx.expect("it runs"));
                self.free_slots.push(slot);
                self.slots[slot.idx()].take()
            }
        };
        let sequence = sequence.expect("it was found there");
        self.arrivals.remove(&sequence.id());
        self.expiry.forget(sequence.id(), sequence.wanted_until());
        self.n_orphan_rows += sequence.n_rows_in_flight();
    }

    /// Where the sequence is whose row has run; `None` if it ended meanwhile. Asked once a row.
    pub(crate) fn landing(&mut self, row: &Row) -> Option<Place> {
        let in_slot = self.slots[row.slot.idx()].as_ref();
        if in_slot.is_some_and(|sequence| sequence.id() == row.request) {
            return Some(Place::Running(row.slot));
        }
        let place = self.find(row.request);
        if place.is_none() {
            self.n_orphan_rows -= 1;
        }
        place
    }

    /// The sequence in a taken slot.
    pub(crate) fn sequence(&self, slot: SlotIdx) -> &Sequence {
        self.slots[slot.idx()].as_ref().expect("the slot is taken")
    }

    /// The sequence in a taken slot.
    pub(crate) fn sequence_mut(&mut self, slot: SlotIdx) -> &mut Sequence {
        self.slots[slot.idx()].as_mut().expect("the slot is taken")
    }

    /// Slots of running sequences, oldest first.
    pub(crate) fn running(&self) -> &[SlotIdx] {
        &self.running
    }

    /// A request that nobody wants any more.
    pub(crate) fn expired(&self, now: Moment) -> Option<RequestId> {
        self.expiry.expired(now)
    }

    /// The oldest waiting sequence.
    pub(crate) fn next_waiting(&self) -> Option<&Sequence> {
        self.waiting.front()
    }

    pub(crate) fn has_free_slot(&self) -> bool {
        !self.free_slots.is_empty()
    }

    /// Whether some sequence is held until it is known what may follow its last token.
    pub(crate) fn holds_any(&self) -> bool {
        let running = self.running.iter().map(|&slot| self.sequence(slot));
        running.chain(&self.waiting).any(Sequence::is_held)
    }

    pub(crate) fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requests that have not ended.
    pub(crate) fn n_live(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// Where a request is, unless it has ended or is unknown.
    pub(crate) fn find(&self, request: RequestId) -> Option<Place> {
        let arrival = *self.arrivals.get(&request)?;
        if let Some(order_idx) = self.order_idx(arrival) {
            return Some(Place::Running(self.running[order_idx]));
        }
        let queue_idx = self.waiting.binary_search_by_key(&arrival, Sequence::arrival);
        Some(Place::Waiting(queue_idx.expect("a request that has not ended runs or waits")))
    }

    /// The sequence at a place that [`Roster::find`] found.
    pub(crate) fn at(&self, place: Place) -> &Sequence {
        match place {
            Place::Running(slot) => self.sequence(slot),
            Place::Waiting(queue_idx) => &self.waiting[queue_idx],
        }
    }

    /// The sequence at a place that was found.
    pub(crate) fn at_mut(&mut self, place: Place) -> &mut Sequence {
        match place {
            Place::Running(slot) => self.sequence_mut(slot),
            Place::Waiting(queue_idx) => &mut self.waiting[queue_idx],
        }
    }

    fn order_idx(&self, arrival: Arrival) -> Option<usize> {
        self.running.binary_search_by_key(&arrival, |&slot| self.sequence(slot).arrival()).ok()
    }

    /// Asserts that every sequence is in one place, and in order.
    pub(crate) fn check(&self, limits: &Limits) {
        let taken = self.slots.iter().flatten();
        let n_taken = taken.clone().count();
        assert_eq!(n_taken + self.free_slots.len(), limits.n_slots, "slots taken + free");
        for (n_before, slot) in self.free_slots.iter().enumerate() {
            assert!(self.slots[slot.idx()].is_none(), "{slot:?} is free and taken");
            assert!(!self.free_slots[..n_before].contains(slot), "{slot:?} is free twice");
        }
        assert_eq!(self.running.len(), n_taken, "whoever has a slot runs");
        assert!(self.n_live() <= limits.n_live_max(), "{} live", self.n_live());
        assert_eq!(self.n_live(), self.arrivals.len(), "live requests are those in the map");

        let running = self.running.iter().map(|&slot| self.sequence(slot));
        let (mut last, mut n_watched) = (None, 0);
        for sequence in running.chain(&self.waiting) {
            let arrival = Some(sequence.arrival());
            assert!(last < arrival, "{:?} is out of order", sequence.id());
            last = arrival;
            assert_eq!(self.arrivals.get(&sequence.id()).copied(), arrival);
            let (id, until) = (sequence.id(), sequence.wanted_until());
            assert!(self.expiry.watches(id, until), "{id:?} is not watched until {until:?}");
            n_watched += usize::from(until.is_some());
        }
        assert_eq!(self.expiry.len(), n_watched, "only those that live can expire");
        taken.for_each(Sequence::check);
        for sequence in &self.waiting {
            sequence.check();
            assert_eq!(sequence.n_planned(), 0, "{:?} waits with tokens computed", sequence.id());
        }
    }

    /// Positions that a slot's pages must hold: computed, and reserved for planned rows.
    pub(crate) fn span(&self, slot: SlotIdx) -> Option<(usize, usize)> {
        let sequence = self.slots[slot.idx()].as_ref()?;
        Some((sequence.n_computed(), sequence.n_planned()))
    }

    /// Rows in flight: of those that run, of those that were preempted, and nobody's.
    pub(crate) fn n_rows_in_flight(&self) -> usize {
        let alive = self.slots.iter().flatten().chain(&self.waiting);
        self.n_orphan_rows + alive.map(Sequence::n_rows_in_flight).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            n_slots: 2,
            n_waiting_max: 3,
            n_tokens_per_step: 4,
            n_context_tokens: 16,
            page_tokens: 4,
            prefix_cache: None,
            speculation: None,
            groups: Vec::new(),
        }
    }

    fn roster(n_requests: u64) -> Roster {
        let mut roster = Roster::new(&limits());
        for id in 0..n_requests {
            let request = Request {
                id: RequestId(id),
                prompt: [crate::TokenId(1)].into(),
                n_new_max: 1,
                stop_tokens: [].into(),
                scores_prompt: false,
                cache_salt: None,
                is_guided: false,
                terms: crate::Terms::ordinary(),
            };
            roster.arrive(request, &limits());
        }
        roster
    }

    fn place(roster: &Roster, id: u64) -> Option<Place> {
        roster.check(&limits());
        roster.find(RequestId(id))
    }

    #[test]
    fn the_oldest_is_admitted_the_youngest_preempted() {
        let mut roster = roster(4);
        assert_eq!(roster.admit(), Some(SlotIdx(0)));
        assert_eq!(roster.admit(), Some(SlotIdx(1)));
        assert_eq!(roster.admit(), None, "no slot is free");
        assert_eq!(place(&roster, 1), Some(Place::Running(SlotIdx(1))));
        assert_eq!(roster.preempt_youngest(), (SlotIdx(1), 0));
        assert_eq!(place(&roster, 1), Some(Place::Waiting(0)), "before those that came later");
        assert_eq!(place(&roster, 3), Some(Place::Waiting(2)));
    }

    #[test]
    fn the_ended_are_unknown() {
        let mut roster = roster(3);
        roster.admit();
        roster.end(Place::Waiting(0));
        assert_eq!(place(&roster, 1), None);
        assert_eq!(place(&roster, 2), Some(Place::Waiting(0)));
        roster.end(Place::Running(SlotIdx(0)));
        assert_eq!(place(&roster, 0), None);
        assert_eq!(roster.n_live(), 1);
    }
}
