//! Where the ranks of a communicator meet: at its initialization, and at each collective.
//!
//! The n-th collective that one rank's stream runs is the n-th of every other. Whoever comes last
//! does the work for all; the others sleep. Ranks that ask for different things are told so at
//! once, where the real library would hang or hand out garbage. An abort releases only the rank
//! that asks for it, as in the real library: its peers see `ncclRemoteError` when they look, and
//! must abort themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::faults::{self, What};
use super::types::{NcclError, NcclResult, invalid_argument, invalid_usage};

/// A rank that waits this long for another says so, once.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one rank brings to a collective, besides what all must agree on.
pub trait Request: Clone {
    /// `None` if it goes together with another rank's, else what differs.
    fn conflict(&self, other: &Self) -> Option<String>;
    /// For messages.
    fn name(&self) -> String;
}

/// The ranks of one communicator.
pub struct World<R> {
    state: Mutex<State<R>>,
    changed: Condvar,
}

struct State<R> {
    seats: Vec<Seat>,
    meetings: BTreeMap<u64, Meeting<R>>,
    /// What ended the communicator for all ranks.
    failure: Option<NcclError>,
}

/// One rank's place.
#[derive(Debug, Clone, Default)]
struct Seat {
    /// The device, once the rank is there.
    device: Option<usize>,
    n_calls: u64,
    is_aborted: bool,
    /// What went wrong for this rank alone.
    failure: Option<NcclError>,
}

struct Meeting<R> {
    requests: Vec<Option<R>>,
    is_done: bool,
    n_gone: usize,
}

/// How a rank left a collective.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The rank was aborted: nothing was written.
    Aborted,
    Failed(NcclError),
}

impl<R: Request> World<R> {
    pub fn new(n_ranks: usize) -> Arc<World<R>> {
        let state = State {
            seats: vec![Seat::default(); n_ranks],
            meetings: BTreeMap::new(),
            failure: None,
        };
        Arc::new(World { state: Mutex::new(state), changed: Condvar::new() })
    }

    pub fn n_ranks(&self) -> usize {
        self.state.lock().seats.len()
    }

    /// The rank takes its seat. It does not wait for the others.
    pub fn join(&self, rank: usize, n_ranks: usize, device: usize) -> Result<(), NcclError> {
        if faults::has(rank, None, What::Absent) {
            return Ok(());
        }
        let mut state = self.state.lock();
        let world_size = state.seats.len();
        let taken = state.seats.iter().position(|seat| seat.device == Some(device));
        let problem = if n_ranks != world_size {
            Some(invalid_argument(format!("rank {rank} says {n_ranks} ranks, not {world_size}")))
        } else if rank >= n_ranks {
            Some(invalid_argument(format!("rank {rank} of {n_ranks}")))
        } else if state.seats[rank].device.is_some() {
            Some(invalid_argument(format!("two ranks call themselves {rank}")))
        } else {
            taken.map(|other| {
                let reason = format!("ranks {rank} and {other} are both on device {device}");
                invalid_usage(reason)
            })
        };
        match problem {
            Some(problem) => state.failure = Some(problem),
            None => state.seats[rank].device = Some(device),
        }
        self.changed.notify_all();
        state.failure.clone().map_or(Ok(()), Err)
    }

    /// What the communicator is doing, as this rank sees it.
    pub fn status(&self, rank: usize) -> NcclResult {
        let state = self.state.lock();
        match state.problem(rank) {
            Some(problem) => problem.result,
            None if state.is_complete() => NcclResult::Success,
            None => NcclResult::InProgress,
        }
    }

    /// What is wrong with the communicator, as this rank sees it.
    pub fn problem(&self, rank: usize) -> Option<NcclError> {
        self.state.lock().problem(rank)
    }

    /// Waits until all ranks are there.
    pub fn wait_ready(&self, rank: usize) -> Result<(), NcclError> {
        let mut state = self.state.lock();
        let mut says_so = true;
        while !state.is_complete() && state.problem(rank).is_none() {
            let is_late = self.changed.wait_for(&mut state, PATIENCE).timed_out();
            if is_late && std::mem::take(&mut says_so) && !state.is_complete() {
                let missing = state.missing(|seat| seat.device.is_none());
                eprintln!("virtual-node: nccl: rank {rank} waits for rank {missing} to join");
            }
        }
        // The first to be ready may have failed in a collective before the last hears that all are
        // there: its initialization went well all the same.
        let problem = match state.is_complete() {
            true => state.failure.clone(),
            false => state.problem(rank),
        };
        problem.map_or(Ok(()), Err)
    }

    /// The rank leaves, without regard to what it is doing.
    pub fn abort(&self, rank: usize) {
        let mut state = self.state.lock();
        let n_ranks = state.seats.len();
        for (other, seat) in state.seats.iter_mut().enumerate() {
            if other == rank {
                seat.is_aborted = true;
            } else if n_ranks > 1 && seat.failure.is_none() {
                let reason = format!("rank {rank} was aborted");
                seat.failure = Some(NcclError { result: NcclResult::RemoteError, reason });
            }
        }
        self.changed.notify_all();
    }

    /// Takes part in the rank's next collective. The last to come runs `work` with all requests,
    /// in the order of ranks.
    pub fn meet(
        &self,
        rank: usize,
        request: &R,
        work: impl FnOnce(&[R]) -> Result<(), NcclError>,
    ) -> Outcome {
        let mut state = self.state.lock();
        let call = state.seats[rank].n_calls;
        state.seats[rank].n_calls += 1;
        if let Some(outcome) = self.faulty(&mut state, rank, call + 1) {
            return outcome;
        }
        if let Some(problem) = state.enter(rank, call, request) {
            eprintln!("virtual-node: nccl: {problem}");
            state.failure = Some(problem);
            self.changed.notify_all();
        }
        if state.meetings[&call].requests.iter().all(Option::is_some) && state.failure.is_none() {
            let requests = &mut state.meetings.get_mut(&call).expect("just entered").requests;
            let requests: Vec<R> = requests.iter().flatten().cloned().collect();
            let result = MutexGuard::unlocked(&mut state, || work(&requests));
            state.meetings.get_mut(&call).expect("nobody left yet").is_done = true;
            if let Err(problem) = result {
                eprintln!("virtual-node: nccl: {problem}");
                state.failure = Some(problem);
            }
            self.changed.notify_all();
        }
        self.wait_done(&mut state, rank, call)
    }

    fn wait_done(&self, state: &mut MutexGuard<'_, State<R>>, rank: usize, call: u64) -> Outcome {
        let mut says_so = true;
        let outcome = loop {
            if let Some(problem) = &state.failure {
                break Outcome::Failed(problem.clone());
            }
            if state.meetings[&call].is_done {
                break Outcome::Done;
            }
            if state.seats[rank].is_aborted {
                break Outcome::Aborted;
            }
            let is_late = self.changed.wait_for(state, PATIENCE).timed_out();
            if is_late && std::mem::take(&mut says_so) {
                state.complain(rank, call);
            }
        };
        let n_ranks = state.seats.len();
        let meeting = state.meetings.get_mut(&call).expect("it ends when all have left");
        meeting.n_gone += 1;
        if meeting.n_gone == n_ranks {
            state.meetings.remove(&call);
        }
        outcome
    }

    /// A failure that was asked for: waits until the rank is aborted.
    fn faulty(
        &self,
        state: &mut MutexGuard<'_, State<R>>,
        rank: usize,
        call: u64,
    ) -> Option<Outcome> {
        let fails = faults::has(rank, Some(call), What::AsyncError);
        if !fails && !faults::has(rank, Some(call), What::Absent) {
            return None;
        }
        if fails {
            for (other, seat) in state.seats.iter_mut().enumerate() {
                let result =
                    if other == rank { NcclResult::SystemError } else { NcclResult::RemoteError };
                let reason = format!("call {call} of rank {rank} failed on request");
                seat.failure = Some(NcclError { result, reason });
            }
            self.changed.notify_all();
        }
        while !state.seats[rank].is_aborted && state.failure.is_none() {
            self.changed.wait(state);
        }
        Some(Outcome::Aborted)
    }
}

impl<R: Request> State<R> {
    fn is_complete(&self) -> bool {
        self.seats.iter().all(|seat| seat.device.is_some())
    }

    fn problem(&self, rank: usize) -> Option<NcclError> {
        let of_rank = self.seats.get(rank).and_then(|seat| seat.failure.clone());
        self.failure.clone().or(of_rank)
    }

    /// Puts a request down, and says how it contradicts another's.
    fn enter(&mut self, rank: usize, call: u64, request: &R) -> Option<NcclError> {
        let n_ranks = self.seats.len();
        let meeting = self.meetings.entry(call).or_insert_with(|| Meeting {
            requests: vec![None; n_ranks],
            is_done: false,
            n_gone: 0,
        });
        let others = meeting.requests.iter().enumerate();
        let conflict = others
            .filter_map(|(other, theirs)| Some((other, request.conflict(theirs.as_ref()?)?)))
            .next();
        meeting.requests[rank] = Some(request.clone());
        conflict.map(|(other, what)| {
            let call = call + 1;
            invalid_usage(format!("collective {call} of ranks {rank} and {other}: {what}"))
        })
    }

    fn missing(&self, is_missing: impl Fn(&Seat) -> bool) -> String {
        let ranks = self.seats.iter().enumerate().filter(|(_, seat)| is_missing(seat));
        ranks.map(|(rank, _)| rank.to_string()).collect::<Vec<_>>().join(", ")
    }

    fn complain(&self, rank: usize, call: u64) {
        let meeting = &self.meetings[&call];
        let name = meeting.requests[rank].as_ref().map_or_else(String::new, Request::name);
        let missing = self.missing(|seat| seat.n_calls <= call);
        let call = call + 1;
        eprintln!(
            "virtual-node: nccl: rank {rank} waits in {name}, its collective {call}, for {missing}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Number(u32);

    impl Request for Number {
        fn conflict(&self, other: &Self) -> Option<String> {
            (self.0 != other.0).then(|| format!("{} and {}", self.0, other.0))
        }

        fn name(&self) -> String {
            format!("number {}", self.0)
        }
    }

    fn complete(n_ranks: usize) -> Arc<World<Number>> {
        let world = World::new(n_ranks);
        for rank in 0..n_ranks {
            world.join(rank, n_ranks, rank).unwrap();
        }
        world
    }

    /// All ranks meet with their numbers, on a thread each.
    fn meet_all(world: &Arc<World<Number>>, numbers: &[u32]) -> (Vec<Outcome>, u32) {
        let n_runs = Mutex::new(0);
        let outcomes = std::thread::scope(|scope| {
            let ranks: Vec<_> = numbers
                .iter()
                .enumerate()
                .map(|(rank, number)| {
                    let n_runs = &n_runs;
                    scope.spawn(move || {
                        world.meet(rank, &Number(*number), |_| {
                            *n_runs.lock() += 1;
                            Ok(())
                        })
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        (outcomes, n_runs.into_inner())
    }

    #[test]
    fn the_last_to_come_works_for_all_and_nothing_is_left_behind() {
        let world = complete(8);
        for number in 0..50 {
            let (outcomes, n_runs) = meet_all(&world, &[number; 8]);
            assert_eq!((outcomes, n_runs), (vec![Outcome::Done; 8], 1));
        }
        assert!(world.state.lock().meetings.is_empty());
    }

    #[test]
    fn ranks_that_differ_are_all_told() {
        let (outcomes, n_runs) = meet_all(&complete(3), &[5, 5, 6]);
        assert_eq!(n_runs, 0);
        for outcome in outcomes {
            let Outcome::Failed(problem) = outcome else { panic!("{outcome:?}") };
            assert_eq!(problem.result, NcclResult::InvalidUsage);
            assert!(problem.reason.contains("collective 1 of ranks"), "{problem}");
        }
    }

    #[test]
    fn it_is_in_progress_until_all_are_there() {
        let world = World::<Number>::new(2);
        world.join(0, 2, 0).unwrap();
        assert_eq!(world.status(0), NcclResult::InProgress);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| world.wait_ready(0));
            world.join(1, 2, 1).unwrap();
            assert_eq!(waiting.join().unwrap(), Ok(()));
        });
        assert_eq!(world.status(0), NcclResult::Success);
    }

    #[test]
    fn what_fails_after_the_last_has_come_is_no_failure_to_come() {
        let world = complete(2);
        world.abort(1);
        assert_eq!(world.wait_ready(0), Ok(()), "it heard late that all are there");
        assert_eq!(world.status(0), NcclResult::RemoteError);
        let world = World::<Number>::new(3);
        world.join(0, 3, 0).unwrap();
        world.abort(1);
        let problem = world.wait_ready(0).unwrap_err();
        assert_eq!(problem.result, NcclResult::RemoteError, "not all have come");
    }

    #[test]
    fn wrong_seats_are_refused_for_all() {
        for (rank, n_ranks, device, word) in [
            (0, 2, 1, "call themselves 0"),
            (1, 2, 0, "both on device 0"),
            (2, 2, 1, "rank 2 of 2"),
            (1, 3, 1, "says 3 ranks"),
        ] {
            let world = World::<Number>::new(2);
            world.join(0, 2, 0).unwrap();
            let problem = world.join(rank, n_ranks, device).unwrap_err();
            assert!(problem.reason.contains(word), "{problem}");
            assert_eq!(world.wait_ready(0), Err(problem), "the other is told too");
        }
    }

    #[test]
    fn an_abort_releases_its_own_rank_and_the_others_see_it() {
        let world = complete(3);
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..2)
                .map(|rank| {
                    let world = &world;
                    scope.spawn(move || world.meet(rank, &Number(1), |_| Ok(())))
                })
                .collect();
            world.abort(2);
            assert_eq!(world.status(0), NcclResult::RemoteError);
            std::thread::sleep(Duration::from_millis(20));
            assert!(waiting.iter().all(|rank| !rank.is_finished()), "as on a real node");
            world.abort(0);
            world.abort(1);
            for rank in waiting {
                assert_eq!(rank.join().unwrap(), Outcome::Aborted);
            }
        });
    }

    #[test]
    fn work_that_fails_fails_everybody() {
        let world = complete(2);
        let fail = |_: &[Number]| Err(invalid_argument("no such memory"));
        std::thread::scope(|scope| {
            let other = scope.spawn(|| world.meet(1, &Number(1), fail));
            let outcomes = [world.meet(0, &Number(1), fail), other.join().unwrap()];
            for outcome in outcomes {
                assert_eq!(outcome, Outcome::Failed(invalid_argument("no such memory")));
            }
        });
    }
}
