//! Where ranks meet while they load: they say what they want, learn who reads what, and hand each
//! other windows of what they share.
//!
//! A window is filled by one rank and taken by all that want something of it. There are a few, in
//! turns: the next filling waits until the last one has been taken by all. A rank waits only
//! for windows before the one that it needs, and all go through them in the same order, so none
//! waits for ever; one that gives up calls the others off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};

use super::LoadingError;
use super::schedule::{Schedule, Want};

/// Windows for each rank: one is filled while others are taken. The more there are, the less often
/// a rank waits for another.
const N_WINDOWS_PER_RANK: usize = 4;

/// Shared by the ranks of an engine that is being built.
pub(crate) struct Meeting {
    agreement: Watched<Agreement>,
    places: Vec<Place>,
    is_called_off: AtomicBool,
}

/// What each rank wants, until all have said so, and what follows from it.
struct Agreement {
    wants: Vec<Option<Vec<Want>>>,
    schedule: Option<Arc<Schedule>>,
}

/// Where windows are, one after the other.
struct Place {
    slot: Watched<Slot>,
    bytes: RwLock<Vec<u8>>,
}

/// What is in a window.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Which window it holds, counted from 1.
    filled: usize,
    /// Ranks that have yet to take it.
    n_left: usize,
}

/// A value that ranks wait for. Each place has its own, so that a window wakes those who want it
/// and nobody else.
struct Watched<T> {
    value: Mutex<T>,
    changed: Condvar,
}

/// A rank's place. Whoever leaves it without having finished calls the others off.
pub(crate) struct LoadingSeat<'a> {
    meeting: &'a Meeting,
    rank_idx: usize,
    is_finished: bool,
}

impl Meeting {
    pub(crate) fn new(n_ranks: usize) -> Meeting {
        let agreement = Agreement { wants: (0..n_ranks).map(|_| None).collect(), schedule: None };
        let place =
            |_| Place { slot: Watched::new(Slot::default()), bytes: RwLock::new(Vec::new()) };
        Meeting {
            agreement: Watched::new(agreement),
            places: (0..n_ranks * N_WINDOWS_PER_RANK).map(place).collect(),
            is_called_off: AtomicBool::new(false),
        }
    }

    /// The place of a rank, which must take it before anything can fail.
    pub(crate) fn seat(&self, rank_idx: usize) -> LoadingSeat<'_> {
        LoadingSeat { meeting: self, rank_idx, is_finished: false }
    }

    /// Waits until `until` has an answer, or the meeting is called off.
    fn wait<T, A>(
        &self,
        watched: &Watched<T>,
        until: impl Fn(&T) -> Option<A>,
    ) -> Result<A, LoadingError> {
        let mut value = watched.value.lock();
        loop {
            if self.is_called_off.load(Ordering::Acquire) {
                return Err(LoadingError::CalledOff);
            }
            if let Some(found) = until(&value) {
                return Ok(found);
            }
            watched.changed.wait(&mut value);
        }
    }

    fn call_off(&self) {
        self.is_called_off.store(true, Ordering::Release);
        // Who waits has looked before, or sees it when it has the lock.
        self.agreement.wake();
        self.places.iter().for_each(|place| place.slot.wake());
    }
}

impl<T> Watched<T> {
    fn new(value: T) -> Watched<T> {
        Watched { value: Mutex::new(value), changed: Condvar::new() }
    }

    /// Changes it; all who wait for it look again where `is_news`.
    fn change(&self, change: impl FnOnce(&mut T), is_news: impl FnOnce(&T) -> bool) {
        let mut value = self.value.lock();
        change(&mut value);
        let is_news = is_news(&value);
        drop(value);
        if is_news {
            self.changed.notify_all();
        }
    }

    fn wake(&self) {
        self.change(|_| (), |_| true);
    }
}

impl Slot {
    /// Whether the window before the one asked for has been there and is taken.
    fn is_free_for(&self, window_idx: usize, n_slots: usize) -> bool {
        self.n_left == 0 && self.filled == (window_idx + 1).saturating_sub(n_slots)
    }
}

impl LoadingSeat<'_> {
    pub(super) fn rank_idx(&self) -> usize {
        self.rank_idx
    }

    pub(super) fn n_ranks(&self) -> usize {
        self.meeting.places.len() / N_WINDOWS_PER_RANK
    }

    /// Says what this rank wants, and waits until all have said so.
    pub(super) fn agree(&self, wants: Vec<Want>) -> Result<Arc<Schedule>, LoadingError> {
        let agreement = &self.meeting.agreement;
        let say = |agreement: &mut Agreement| {
            agreement.wants[self.rank_idx] = Some(wants);
            if agreement.wants.iter().all(Option::is_some) {
                let wants = agreement.wants.iter_mut().filter_map(Option::take).collect();
                agreement.schedule = Some(Arc::new(Schedule::new(wants)));
            }
        };
        agreement.change(say, |agreement| agreement.schedule.is_some());
        self.meeting.wait(agreement, |agreement| agreement.schedule.clone())
    }

    /// Whether a window can be filled without waiting.
    pub(super) fn can_fill(&self, window_idx: usize) -> bool {
        let n_slots = self.meeting.places.len();
        self.place(window_idx).slot.value.lock().is_free_for(window_idx, n_slots)
    }

    /// Has `fill` write a window's `n_bytes` for `n_takers` ranks.
    pub(super) fn fill(
        &self,
        window_idx: usize,
        n_bytes: usize,
        n_takers: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), LoadingError>,
    ) -> Result<(), LoadingError> {
        let Place { slot, bytes } = self.place(window_idx);
        let n_slots = self.meeting.places.len();
        self.meeting.wait(slot, |slot| slot.is_free_for(window_idx, n_slots).then_some(()))?;
        {
            let mut window = bytes.write();
            if window.len() < n_bytes {
                window.resize(n_bytes, 0);
            }
            fill(&mut window[..n_bytes])?;
        }
        slot.change(|slot| *slot = Slot { filled: window_idx + 1, n_left: n_takers }, |_| true);
        Ok(())
    }

    /// Shows a window to `take`, once it is filled.
    pub(super) fn take(
        &self,
        window_idx: usize,
        take: impl FnOnce(&[u8]) -> Result<(), LoadingError>,
    ) -> Result<(), LoadingError> {
        let Place { slot, bytes } = self.place(window_idx);
        self.meeting.wait(slot, |slot| (slot.filled == window_idx + 1).then_some(()))?;
        take(&bytes.read())?;
        let taken = |slot: &mut Slot| {
            slot.n_left = slot.n_left.checked_sub(1).expect("as many take it as was said");
        };
        slot.change(taken, |slot| slot.n_left == 0);
        Ok(())
    }

    fn place(&self, window_idx: usize) -> &Place {
        &self.meeting.places[window_idx % self.meeting.places.len()]
    }

    /// This rank has all that it wants, and gave what it had to give.
    pub(crate) fn finish(mut self) {
        self.is_finished = true;
    }
}

impl Drop for LoadingSeat<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            self.meeting.call_off();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_reach_every_rank_in_order_though_there_are_fewer_than_it_takes() {
        const N_RANKS: usize = 3;
        const N_WINDOWS: usize = 100;
        let meeting = Meeting::new(N_RANKS);
        let run = |rank_idx: usize| {
            let seat = meeting.seat(rank_idx);
            for window_idx in 0..N_WINDOWS {
                let mark = window_idx as u8;
                if window_idx % N_RANKS == rank_idx {
                    seat.fill(window_idx, 1 + window_idx, N_RANKS, |out| {
                        out.fill(mark);
                        Ok(())
                    })?;
                }
                seat.take(window_idx, |window| {
                    assert!(window[..=window_idx].iter().all(|&byte| byte == mark));
                    Ok(())
                })?;
            }
            seat.finish();
            Ok::<(), LoadingError>(())
        };
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..N_RANKS).map(|idx| scope.spawn(move || run(idx))).collect();
            ranks.into_iter().for_each(|rank| rank.join().expect("no panic").expect("no error"));
        });
    }

    #[test]
    fn one_who_gives_up_calls_the_others_off_wherever_they_wait() {
        let meeting = Meeting::new(3);
        let refused = std::thread::scope(|scope| {
            let waits = [
                scope.spawn(|| meeting.seat(0).agree(Vec::new()).map(drop)),
                scope.spawn(|| meeting.seat(1).take(0, |_| Ok(()))),
            ];
            drop(meeting.seat(2));
            waits.map(|wait| wait.join().expect("no panic"))
        });
        assert!(refused.iter().all(|refused| matches!(refused, Err(LoadingError::CalledOff))));
    }
}
