//! Who lives, and where: slots, the running sequences, those that wait.
//!
//! **The running sequences are in the order of their turns**, and those that were preempted are
//! behind them all: whoever is preempted is the last that runs, and a place is found by halving. It
//! does not know pages, steps or effects; whose turn it is of those that wait is the queue's
//! business.

use std::collections::BTreeMap;

use crate::expiry::Expiry;
use crate::queue::{Queue, QueuePlace};
use crate::sequence::Sequence;
use crate::turn::Turn;
use crate::{Limits, Moment, Request, RequestId, Row, SlotIdx, TenantId};

/// Every sequence that has not ended.
#[derive(Debug)]
pub(crate) struct Roster {
    slots: Vec<Option<Sequence>>,
    free_slots: Vec<SlotIdx>,
    /// By turn.
    running: Vec<SlotIdx>,
    queue: Queue,
    /// Requests that have not ended. Not touched by a step in which nobody arrives or ends.
    turns: BTreeMap<RequestId, (TenantId, Turn)>,
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
    /// At this place of the queue.
    Waiting(QueuePlace),
}

impl Roster {
    pub(crate) fn new(limits: &Limits) -> Roster {
        Roster {
            slots: (0..limits.n_slots).map(|_| None).collect(),
            free_slots: (0..limits.n_slots as u32).rev().map(SlotIdx).collect(),
            running: Vec::with_capacity(limits.n_slots),
            queue: Queue::new(limits),
            turns: BTreeMap::new(),
            expiry: Expiry::default(),
            n_arrivals: 0,
            n_orphan_rows: 0,
        }
    }

    /// Queues a request that comes after `n_steps`.
    pub(crate) fn arrive(&mut self, request: Request, n_steps: u64, limits: &Limits) {
        let level = limits.priorities.level(request.terms.priority);
        let turn = Turn::new(limits.priorities.due(n_steps, level), self.n_arrivals);
        self.n_arrivals += 1;
        let sequence = Sequence::new(request, turn, limits);
        let id = sequence.id();
        let twin = self.turns.insert(id, (sequence.tenant(), turn));
        assert!(twin.is_none(), "{id:?} arrives twice");
        self.expiry.watch(id, sequence.wanted_until());
        self.queue.join(sequence);
    }

    /// Gives a sequence that waits a slot. One must be free.
    pub(crate) fn admit(&mut self, place: QueuePlace) -> SlotIdx {
        let slot = self.free_slots.pop().expect("a slot is free");
        let mut sequence = self.queue.take(place);
        self.expiry.forget(sequence.id(), sequence.wanted_until());
        sequence.enter();
        self.expiry.watch(sequence.id(), sequence.wanted_until());
        let is_before = |&other: &SlotIdx| self.sequence(other).turn() < sequence.turn();
        let order_idx = self.running.partition_point(is_before);
        self.running.insert(order_idx, slot);
        self.slots[slot.idx()] = Some(sequence);
        slot
    }

    /// Sends the last running sequence back to the queue, also while rows of it are in flight.
    /// Returns its slot and how many of its tokens are to be computed again. Its pages must be
    /// forfeited.
    pub(crate) fn preempt_last(&mut self) -> (SlotIdx, usize) {
        let slot = self.running.pop().expect("somebody runs");
        let mut sequence = self.slots[slot.idx()].take().expect("a running slot is taken");
        let n_lost = sequence.rewind();
        self.free_slots.push(slot);
        self.queue.join(sequence);
        (slot, n_lost)
    }

    /// Planned rows compute a sequence's positions before `end`: its tenant was served what was
    /// never computed before.
    pub(crate) fn serve(&mut self, slot: SlotIdx, end: usize) {
        let sequence = self.sequence_mut(slot);
        let (tenant, n_new) = (sequence.tenant(), sequence.serve(end));
        self.queue.serve(tenant, n_new);
    }

    /// A request has ended: it is unknown from now on, and rows of it in flight are nobody's. The
    /// slot that it had is free; its pages must be forfeited.
    pub(crate) fn end(&mut self, place: Place) {
        let sequence = match place {
            Place::Waiting(place) => self.queue.leave(place),
            Place::Running(slot) => {
                let order_idx = self.order_idx(self.sequence(slot).turn());
                self.running.remove(order_idx.expect("it runs"));
                self.free_slots.push(slot);
                self.slots[slot.idx()].take().expect("a running slot is taken")
            }
        };
        self.turns.remove(&sequence.id());
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

    /// Slots of running sequences, by turn.
    pub(crate) fn running(&self) -> &[SlotIdx] {
        &self.running
    }

    /// A request that nobody wants any more.
    pub(crate) fn expired(&self, now: Moment) -> Option<RequestId> {
        self.expiry.expired(now)
    }

    /// Who waits.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(crate) fn has_free_slot(&self) -> bool {
        !self.free_slots.is_empty()
    }

    /// Whether some sequence is held until it is known what may follow its last token.
    pub(crate) fn holds_any(&self) -> bool {
        let running = self.running.iter().map(|&slot| self.sequence(slot));
        // A newcomer has no last token.
        running.chain(self.queue.preempted()).any(Sequence::is_held)
    }

    /// Requests that have not ended.
    pub(crate) fn n_live(&self) -> usize {
        self.running.len() + self.queue.len()
    }

    /// Where a request is, unless it has ended or is unknown.
    pub(crate) fn find(&self, request: RequestId) -> Option<Place> {
        let &(tenant, turn) = self.turns.get(&request)?;
        Some(match self.order_idx(turn) {
            Some(order_idx) => Place::Running(self.running[order_idx]),
            None => Place::Waiting(self.queue.find(tenant, turn)),
        })
    }

    /// The sequence at a place that [`Roster::find`] found.
    pub(crate) fn at(&self, place: Place) -> &Sequence {
        match place {
            Place::Running(slot) => self.sequence(slot),
            Place::Waiting(place) => self.queue.at(place),
        }
    }

    /// The sequence at a place that was found.
    pub(crate) fn at_mut(&mut self, place: Place) -> &mut Sequence {
        match place {
            Place::Running(slot) => self.sequence_mut(slot),
            Place::Waiting(place) => self.queue.at_mut(place),
        }
    }

    fn order_idx(&self, turn: Turn) -> Option<usize> {
        self.running.binary_search_by_key(&turn, |&slot| self.sequence(slot).turn()).ok()
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
        assert_eq!(self.n_live(), self.turns.len(), "live requests are those in the map");
        self.queue.check();

        let running = self.running.iter().map(|&slot| self.sequence(slot));
        let (mut last, mut n_watched) = (None, 0);
        for sequence in running.clone().chain(self.queue.preempted()) {
            let turn = Some(sequence.turn());
            assert!(last < turn, "{:?} is out of order", sequence.id());
            last = turn;
        }
        for sequence in running.chain(self.queue.iter()) {
            sequence.check();
            let (id, until) = (sequence.id(), sequence.wanted_until());
            assert_eq!(self.turns.get(&id), Some(&(sequence.tenant(), sequence.turn())));
            assert!(self.expiry.watches(id, until), "{id:?} is not watched until {until:?}");
            n_watched += usize::from(until.is_some());
        }
        assert_eq!(self.expiry.len(), n_watched, "only those that live can expire");
        for sequence in self.queue.iter() {
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
        let alive = self.slots.iter().flatten().chain(self.queue.iter());
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
            priorities: crate::Priorities::single(),
            n_tenants: 1,
            latency: None,
            prefix_cache: None,
            host_tier: None,
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
            roster.arrive(request, 0, &limits());
        }
        roster
    }

    fn place(roster: &Roster, id: u64) -> Option<Place> {
        roster.check(&limits());
        roster.find(RequestId(id))
    }

    fn admit_next(roster: &mut Roster, n_steps: u64) -> SlotIdx {
        let next = roster.queue().next(n_steps).expect("somebody waits");
        roster.admit(next)
    }

    #[test]
    fn the_first_in_turn_is_admitted_the_last_preempted() {
        let mut roster = roster(4);
        assert_eq!(admit_next(&mut roster, 0), SlotIdx(0));
        assert_eq!(admit_next(&mut roster, 0), SlotIdx(1));
        assert!(!roster.has_free_slot());
        assert_eq!(place(&roster, 1), Some(Place::Running(SlotIdx(1))));
        assert_eq!(roster.preempt_last(), (SlotIdx(1), 0));
        let turn = Turn::new(0, 1);
        assert_eq!(place(&roster, 1), Some(Place::Waiting(QueuePlace::Preempted(turn))));
        assert_eq!(roster.queue().next(0), Some(QueuePlace::Preempted(turn)));
        let waits = QueuePlace::New(TenantId(0), Turn::new(0, 3));
        assert_eq!(place(&roster, 3), Some(Place::Waiting(waits)));
    }

    #[test]
    fn the_ended_are_unknown() {
        let mut roster = roster(3);
        admit_next(&mut roster, 0);
        roster.end(Place::Waiting(QueuePlace::New(TenantId(0), Turn::new(0, 1))));
        assert_eq!(place(&roster, 1), None);
        let waits = QueuePlace::New(TenantId(0), Turn::new(0, 2));
        assert_eq!(place(&roster, 2), Some(Place::Waiting(waits)));
        roster.end(Place::Running(SlotIdx(0)));
        assert_eq!(place(&roster, 0), None);
        assert_eq!(roster.n_live(), 1);
    }
}
