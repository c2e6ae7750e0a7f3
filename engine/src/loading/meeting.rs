//! Where ranks meet while they load: they say what they want, learn who reads what, and hand each
//! other windows of what they share.
//!
//! A window is filled by one rank and taken by all that want something of it. There are a few, in
//! turns: the next filling waits until the last one has been taken by all. A rank waits only
//! for windows before the one that it needs, and all go through them in the same order, so none
//! waits for ever; one that gives up calls the others off.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex, RwLock};

use super::LoadingError;
use super::schedule::{Schedule, Want};

/// Windows for each rank: one is filled while the other is taken.
const N_WINDOWS_PER_RANK: usize = 2;

/// Shared by the ranks of an engine that is being built.
pub(crate) struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
    windows: Vec<RwLock<Vec<u8>>>,
}

struct State {
    /// What each rank wants, until all have said so.
    wants: Vec<Option<Vec<Want>>>,
    schedule: Option<Arc<Schedule>>,
    slots: Vec<Slot>,
    is_called_off: bool,
}

/// What is in a window.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Which window it holds, counted from 1.
    filled: usize,
    /// Ranks that have yet to take it.
    n_left: usize,
}

/// A rank's place. Whoever leaves it without having finished calls the others off.
pub(crate) struct LoadingSeat<'a> {
    meeting: &'a Meeting,
    rank_idx: usize,
    is_finished: bool,
}

impl Meeting {
    pub(crate) fn new(n_ranks: usize) -> Meeting {
        let n_slots = n_ranks * N_WINDOWS_PER_RANK;
        let state = State {
            wants: (0..n_ranks).map(|_| None).collect(),
            schedule: None,
            slots: vec![Slot::default(); n_slots],
            is_called_off: false,
        };
        let windows = (0..n_slots).map(|_| RwLock::new(Vec::new())).collect();
        Meeting { state: Mutex::new(state), changed: Condvar::new(), windows }
    }

    /// The place of a rank, which must take it before anything can fail.
    pub(crate) fn seat(&self, rank_idx: usize) -> LoadingSeat<'_> {
        LoadingSeat { meeting: self, rank_idx, is_finished: false }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state.lock());
        self.changed.notify_all();
        changed
    }

    fn wait<T>(&self, until: impl Fn(&State) -> Option<T>) -> Result<T, LoadingError> {
        let mut state = self.state.lock();
        loop {
            if state.is_called_off {
                return Err(LoadingError::CalledOff);
            }
            if let Some(found) = until(&state) {
                return Ok(found);
            }
            self.changed.wait(&mut state);
        }
    }
}

impl State {
    /// Whether the window before the one asked for has been there and is taken.
    fn is_free(&self, window_idx: usize) -> bool {
        let n_slots = self.slots.len();
        let slot = self.slots[window_idx % n_slots];
        slot.n_left == 0 && slot.filled == (window_idx + 1).saturating_sub(n_slots)
    }
}

impl LoadingSeat<'_> {
    pub(super) fn rank_idx(&self) -> usize {
        self.rank_idx
    }

    pub(super) fn n_ranks(&self) -> usize {
        self.meeting.windows.len() / N_WINDOWS_PER_RANK
    }

    /// Says what this rank wants, and waits until all have said so.
    pub(super) fn agree(&self, wants: Vec<Want>) -> Result<Arc<Schedule>, LoadingError> {
        self.meeting.change(|state| {
            state.wants[self.rank_idx] = Some(wants);
            if state.wants.iter().all(Option::is_some) {
                let wants = state.wants.iter_mut().filter_map(Option::take).collect();
                state.schedule = Some(Arc::new(Schedule::new(wants)));
            }
        });
        self.meeting.wait(|state| state.schedule.clone())
    }

    /// Whether a window can be filled without waiting.
    pub(super) fn can_fill(&self, window_idx: usize) -> bool {
        self.meeting.state.lock().is_free(window_idx)
    }

    /// Has `fill` write a window's `n_bytes` for `n_takers` ranks.
    pub(super) fn fill(
        &self,
        window_idx: usize,
        n_bytes: usize,
        n_takers: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), LoadingError>,
    ) -> Result<(), LoadingError> {
        self.meeting.wait(|state| state.is_free(window_idx).then_some(()))?;
        let slot_idx = window_idx % self.meeting.windows.len();
        {
            let mut window = self.meeting.windows[slot_idx].write();
            if window.len() < n_bytes {
                window.resize(n_bytes, 0);
            }
            fill(&mut window[..n_bytes])?;
        }
        let filled = Slot { filled: window_idx + 1, n_left: n_takers };
        self.meeting.change(|state| state.slots[slot_idx] = filled);
        Ok(())
    }

    /// Shows a window to `take`, once it is filled.
    pub(super) fn take(
        &self,
        window_idx: usize,
        take: impl FnOnce(&[u8]) -> Result<(), LoadingError>,
    ) -> Result<(), LoadingError> {
        let slot_idx = window_idx % self.meeting.windows.len();
        let is_filled = |state: &State| state.slots[slot_idx].filled == window_idx + 1;
        self.meeting.wait(|state| is_filled(state).then_some(()))?;
        take(&self.meeting.windows[slot_idx].read())?;
        let mut state = self.meeting.state.lock();
        let slot = &mut state.slots[slot_idx];
        slot.n_left = slot.n_left.checked_sub(1).expect("as many take it as was said");
        if slot.n_left == 0 {
            self.meeting.changed.notify_all();
        }
        Ok(())
    }

    /// This rank has all that it wants, and gave what it had to give.
    pub(crate) fn finish(mut self) {
        self.is_finished = true;
    }
}

impl Drop for LoadingSeat<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            self.meeting.change(|state| state.is_called_off = true);
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
