//! Open connections: how many there are, and who gives way when there is no seat left.
//!
//! A connection is busy while a request of it is being answered, else idle: waiting for a request,
//! or in the middle of a head that may never be complete. Where all seats are taken, the
//! connection that has been idle for longest is let go for a newcomer, so that those who only hold
//! connections open keep nobody out. It knows no protocol.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

/// All seats, shared by the connections that have one.
pub(super) struct Seats {
    n_max: usize,
    table: Mutex<Table>,
    /// A seat became free.
    freed: Notify,
}

#[derive(Default)]
struct Table {
    n_taken: usize,
    /// Counts how often a connection became idle.
    clock: u64,
    /// Those that are idle, longest first.
    idle: BTreeMap<u64, Arc<Seat>>,
}

/// A connection's seat. It is free once [`Held`] is dropped.
pub(super) struct Seat {
    seats: Arc<Seats>,
    state: Mutex<SeatState>,
    /// It is to give way. A semaphore that is closed then: whoever asks later hears of it too.
    goes: Semaphore,
    /// It is to give way, and nothing of it is under way any more.
    rests: Notify,
}

struct SeatState {
    n_busy: usize,
    /// Where it stands among the idle.
    idle_since: Option<u64>,
}

/// What the connection's task holds.
pub(super) struct Held {
    seat: Arc<Seat>,
}

/// A request of the connection is being answered, until dropped.
pub(super) struct Busy {
    seat: Arc<Seat>,
}

impl Seats {
    /// For so many connections.
    pub(super) fn new(n_max: usize) -> Arc<Seats> {
        let (table, freed) = (Mutex::default(), Notify::new());
        Arc::new(Seats { n_max, table, freed })
    }

    /// Takes a seat; where there is none, waits for the idle one that is let go for this, or for
    /// one that becomes free.
    pub(super) async fn take(self: &Arc<Self>) -> Held {
        let mut has_asked = false;
        loop {
            let freed = self.freed.notified();
            if let Some(held) = self.try_take() {
                return held;
            }
            // One goes for one that comes; who is idle only later is found later.
            has_asked = has_asked || self.let_one_go();
            freed.await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Held> {
        let mut table = self.table.lock();
        if table.n_taken == self.n_max {
            return None;
        }
        table.n_taken += 1;
        let state = Mutex::new(SeatState { n_busy: 0, idle_since: None });
        let (goes, rests) = (Semaphore::new(0), Notify::new());
        let seat = Arc::new(Seat { seats: Arc::clone(self), state, goes, rests });
        table.seat_idle(&seat, &mut seat.state.lock());
        Some(Held { seat })
    }

    fn let_one_go(&self) -> bool {
        let longest = self.table.lock().idle.pop_first();
        if let Some((_, seat)) = &longest {
            seat.goes.close();
        }
        longest.is_some()
    }
}

impl Table {
    fn seat_idle(&mut self, seat: &Arc<Seat>, state: &mut SeatState) {
        self.clock += 1;
        state.idle_since = Some(self.clock);
        self.idle.insert(self.clock, Arc::clone(seat));
    }
}

impl Held {
    /// The seat, for those that make it busy.
    pub(super) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }

    /// Comes back when the connection is to give way. What began before it was told, or while
    /// somebody was telling it, is brought to its end: an answer may wait for its client to take
    /// it, or a request have come.
    pub(super) async fn gives_way(&self) {
        // Nobody adds permits: this ends with the semaphore's being closed.
        let _ = self.seat.goes.acquire().await;
        while self.seat.state.lock().n_busy > 0 {
            self.seat.rests.notified().await;
        }
    }
}

impl Seat {
    /// Something of the connection's is under way.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        let mut table = self.seats.table.lock();
        let mut state = self.state.lock();
        state.n_busy += 1;
        if let Some(since) = state.idle_since.take() {
            table.idle.remove(&since);
        }
        Busy { seat: Arc::clone(self) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let seats = &self.seat.seats;
        let mut table = seats.table.lock();
        let mut state = self.seat.state.lock();
        state.n_busy -= 1;
        if state.n_busy > 0 {
            return;
        }
        if self.seat.goes.is_closed() {
            self.seat.rests.notify_one();
            return;
        }
        table.seat_idle(&self.seat, &mut state);
        if table.n_taken == seats.n_max {
            // Somebody may be waiting for one that can go.
            seats.freed.notify_one();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let seats = &self.seat.seats;
        let mut table = seats.table.lock();
        // Nothing of it may come back among the idle.
        self.seat.goes.close();
        if let Some(since) = self.seat.state.lock().idle_since.take() {
            table.idle.remove(&since);
        }
        table.n_taken -= 1;
        seats.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a future has come to its end already.
    async fn is_ready(future: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = future => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn who_was_idle_for_longest_gives_way() {
        let seats = Seats::new(3);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(seats.take().await);
        }
        // The first has worked since, so the second is the one that has been idle for longest.
        drop(held[0].seat().busy());
        let newcomer = tokio::spawn({
            let seats = Arc::clone(&seats);
            async move { drop(seats.take().await) }
        });
        held[1].gives_way().await;
        assert!(!is_ready(held[0].gives_way()).await && !is_ready(held[2].gives_way()).await);
        assert!(!newcomer.is_finished());
        drop(held.remove(1));
        newcomer.await.expect("it has a seat");
        assert_eq!(seats.table.lock().n_taken, 2);
    }

    #[tokio::test]
    async fn who_is_busy_stays_until_it_is_idle() {
        let seats = Seats::new(1);
        let held = seats.take().await;
        let [first, second] = [held.seat().busy(), held.seat().busy()];
        let newcomer = tokio::spawn({
            let seats = Arc::clone(&seats);
            async move { drop(seats.take().await) }
        });
        tokio::task::yield_now().await;
        drop(first);
        assert!(!is_ready(held.gives_way()).await);
        drop(second);
        held.gives_way().await;
        drop(held);
        newcomer.await.expect("it has a seat");
        let table = seats.table.lock();
        assert_eq!((table.n_taken, table.idle.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_begins_while_it_is_told_to_go_is_brought_to_its_end() {
        let seats = Seats::new(1);
        let held = seats.take().await;
        let newcomer = tokio::spawn({
            let seats = Arc::clone(&seats);
            async move { drop(seats.take().await) }
        });
        held.gives_way().await;
        let busy = held.seat().busy();
        assert!(!is_ready(held.gives_way()).await);
        drop(busy);
        held.gives_way().await;
        drop(held);
        newcomer.await.expect("it has a seat");
    }

    #[tokio::test]
    async fn a_connection_that_ends_leaves_nothing_behind() {
        let seats = Seats::new(2);
        let held = seats.take().await;
        let busy = held.seat().busy();
        drop(held);
        drop(busy);
        let table = seats.table.lock();
        assert_eq!((table.n_taken, table.idle.len()), (0, 0));
    }
}
