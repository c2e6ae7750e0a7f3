//! Every way in which a rank can fail, and that nothing ever waits for it.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fixture::{Answer, Failure, IMPATIENT, PATIENT, Scripted, config, script, scripted};
use crate::{
    CollectiveError, Communicator, PoolConfig, RankCause, RankError, RankPool, RankWorker,
};
use crate::{Seat, SpawnError};

fn impatient(n_ranks: usize) -> PoolConfig {
    PoolConfig { deadline: IMPATIENT, ..config(n_ranks, 8) }
}

/// Waits for what the ranks must come to, however long that takes them.
fn until(holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENT;
    while !holds() {
        assert!(Instant::now() < deadline, "the ranks never came to it");
        thread::yield_now();
    }
}

/// Whether all other ranks wait in a meeting to which this one has not come.
fn is_waited_for<W: RankWorker>(pool: &RankPool<W>, rank_idx: usize) -> bool {
    let n_arrived = |rank| pool.shared.group.n_arrived(rank);
    let late = pool.world.rank(rank_idx);
    pool.world.ranks().all(|rank| rank == late || n_arrived(rank) > n_arrived(late))
}

/// One collective: where ranks are while a peer fails.
fn sum(seat: &mut Seat) -> Answer {
    let mut data = vec![1.0];
    seat.communicator.all_reduce_sum(&mut data)?;
    Ok(data)
}

fn panic_message(error: &RankError) -> &str {
    let RankCause::Panicked { message } = &error.cause else { panic!("{error}") };
    message
}

#[test]
fn replies_come_in_rank_order() {
    let mut pool = scripted(config(8, 1));
    for turn in 0..100 {
        let replies = pool.broadcast(script(move |seat| {
            // Later ranks answer first.
            (seat.rank.idx()..seat.world.n_ranks()).for_each(|_| thread::yield_now());
            Ok(vec![seat.rank.idx() as f32, turn as f32])
        }));
        let expected: Vec<_> = (0..8).map(|rank| vec![rank as f32, turn as f32]).collect();
        assert_eq!(replies.expect("nothing fails"), expected);
    }
    pool.shutdown().expect("all ranks stop");
}

#[test]
fn a_panic_is_named_and_peers_are_released() {
    let n_released = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&n_released);
    let mut pool = scripted(config(4, 8));
    pool.broadcast(script(sum)).expect("nothing fails");
    let error = pool
        .broadcast(script(move |seat| {
            assert!(seat.rank.idx() != 3, "no luck with {}", seat.rank);
            let answer = sum(seat);
            assert!(matches!(answer, Err(Failure::Collective(CollectiveError::Aborted))));
            counter.fetch_add(1, Ordering::Relaxed);
            answer
        }))
        .expect_err("rank 3 panics");
    assert_eq!((error.rank.idx(), error.command_idx), (3, 1));
    assert_eq!(panic_message(&error), "no luck with 3");
    assert_eq!(error.to_string(), "rank 3, command 1: panicked: no luck with 3");
    // The pool answers at once; its peers are released without its help.
    until(|| n_released.load(Ordering::Relaxed) == 3);
}

#[test]
fn a_command_is_served_while_nobody_waits_for_it() {
    let mut pool = scripted(config(2, 8));
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock();
    pool.send(script({
        let gate = Arc::clone(&gate);
        move |seat| {
            drop(gate.lock());
            sum(seat)
        }
    }))
    .expect("the ranks begin");
    // It would not return while the ranks are held.
    drop(held);
    assert_eq!(pool.receive().expect("the ranks are done").len(), 2);

    let second = catch_unwind(AssertUnwindSafe(|| pool.receive().map(drop)));
    assert!(second.is_err(), "nothing was sent");
    pool.send(script(sum)).expect("the ranks begin");
    let second = catch_unwind(AssertUnwindSafe(|| pool.send(script(sum))));
    assert!(second.is_err(), "the first was not received");
}

#[test]
fn a_late_rank_works_while_its_peers_wait() {
    const LATE: Duration = Duration::from_millis(20);
    let mut pool = scripted(config(4, 8));
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock();
    pool.send(script({
        let gate = Arc::clone(&gate);
        move |seat| {
            if seat.rank.idx() == 2 {
                drop(gate.lock());
            }
            sum(seat)
        }
    }))
    .expect("the ranks begin");
    until(|| is_waited_for(&pool, 2));
    let began = Instant::now();
    until(|| began.elapsed() >= LATE);
    drop(held);
    pool.receive().expect("the ranks are done");
    for (idx, time) in pool.rank_times().enumerate() {
        assert!(time.waited <= time.exchanged && time.exchanged <= time.served, "{idx}: {time:?}");
        let told = if idx == 2 { time.served - time.waited } else { time.waited };
        assert!(told >= LATE, "{idx}: {time:?}");
    }
}

#[test]
fn a_panic_while_a_peer_reads_is_named() {
    let mut pool = scripted(config(4, 8));
    let error = pool
        .broadcast(script(|seat| {
            let me = seat.rank;
            seat.communicator.all_gather(&[0.0], &mut |rank, _| {
                assert!(me.idx() != 1 || rank.idx() != 2, "seen enough");
            })?;
            sum(seat)
        }))
        .expect_err("rank 1 panics");
    assert_eq!((error.rank.idx(), panic_message(&error)), (1, "seen enough"));
}

#[test]
fn an_error_is_reported_as_the_cause_not_its_consequences() {
    for _ in 0..200 {
        let mut pool = scripted(config(4, 8));
        let error = pool
            .broadcast(script(|seat| {
                if seat.rank.idx() == 2 {
                    return Err(Failure::OutOfPages);
                }
                sum(seat)
            }))
            .expect_err("rank 2 fails");
        assert_eq!(error.to_string(), "rank 2, command 0: failed: out of pages");
        let RankCause::Failed { source } = &error.cause else { panic!("{error}") };
        assert!(matches!(source.downcast_ref(), Some(Failure::OutOfPages)));
    }
}

#[test]
fn a_hanging_rank_is_named_not_the_ones_that_wait_for_it() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    let mut pool = scripted(impatient(4));
    let (passed, is_held) = (Arc::clone(&gate), Arc::new(AtomicBool::new(false)));
    let holds = Arc::clone(&is_held);
    pool.send(script(move |seat| {
        sum(seat)?;
        if seat.rank.idx() == 2 {
            holds.store(true, Ordering::Release);
            drop(passed.lock());
        }
        sum(seat)
    }))
    .expect("the ranks begin");
    until(|| is_held.load(Ordering::Acquire) && is_waited_for(&pool, 2));
    let error = pool.receive().expect_err("rank 2 hangs");
    assert_eq!(error.rank.idx(), 2);
    assert!(matches!(error.cause, RankCause::Hung { waited: IMPATIENT }), "{error}");
    let started = Instant::now();
    drop(pool);
    assert!(started.elapsed() < PATIENT, "the hanging rank is left behind");
    drop(closed);
}

#[test]
fn a_rank_that_hangs_alone_is_named() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    let passed = Arc::clone(&gate);
    let mut pool = scripted(impatient(3));
    pool.send(script(move |seat| {
        if seat.rank.idx() == 1 {
            drop(passed.lock());
        }
        Ok(Vec::new())
    }))
    .expect("the ranks begin");
    until(|| pool.shared.replies.missing().eq([pool.world.rank(1)]));
    let error = pool.receive().expect_err("rank 1 hangs");
    assert_eq!(error.to_string(), "rank 1, command 0: no answer after 500ms");
    let stopped = pool.shutdown().expect_err("the pool had failed");
    assert_eq!(stopped.to_string(), error.to_string());
    drop(closed);
}

#[test]
fn a_failed_pool_stays_failed() {
    let mut pool = scripted(config(3, 8));
    let first = pool.broadcast(script(|_| panic!("{}", "once"))).expect_err("all ranks panic");
    let n_runs = Arc::new(AtomicUsize::new(0));
    for _ in 0..3 {
        let counter = Arc::clone(&n_runs);
        let later = pool.broadcast(script(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(Vec::new())
        }));
        assert_eq!(later.expect_err("the pool has failed").to_string(), first.to_string());
    }
    assert_eq!(n_runs.load(Ordering::Relaxed), 0);
    assert_eq!(pool.shutdown().expect_err("the pool has failed").to_string(), first.to_string());
}

/// The error of a pool in which rank 2 builds as `build` says and the others wait for it.
fn spawn_error(build: fn() -> Result<(), Failure>) -> SpawnError<Failure> {
    let spawned = RankPool::spawn(config(4, 8), move |mut seat| {
        if seat.rank.idx() == 2 {
            build()?;
        }
        sum(&mut seat)?;
        Ok(Scripted { seat })
    });
    spawned.err().expect("rank 2 is not built")
}

#[test]
fn a_rank_that_cannot_be_built_fails_the_spawn() {
    let error = spawn_error(|| Err(Failure::OutOfPages));
    assert_eq!(error.to_string(), "rank 2: out of pages");
    assert!(matches!(error, SpawnError::Build { source: Failure::OutOfPages, .. }));
}

#[test]
fn a_panic_while_building_fails_the_spawn() {
    let error = spawn_error(|| panic!("bad shard"));
    assert_eq!(error.to_string(), "rank 2: panicked while it was built: bad shard");
}

#[test]
fn a_rank_that_hangs_while_it_is_built_fails_the_spawn() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    let passed = Arc::clone(&gate);
    let started = RankPool::start(config(2, 8), move |mut seat| {
        if seat.rank.idx() == 1 {
            drop(passed.lock());
        }
        sum(&mut seat)?;
        Ok::<_, Failure>(Scripted { seat })
    });
    let (pool, built) = started.expect("the threads are started");
    until(|| is_waited_for(&pool, 1));
    let error = pool.await_built(&built, IMPATIENT).expect_err("rank 1 is not built");
    assert_eq!(error.to_string(), "rank 1: not built after 500ms");
    drop(closed);
}

#[test]
fn a_failed_spawn_leaves_a_hanging_rank_behind() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    let passed = Arc::clone(&gate);
    let started = Instant::now();
    let long = 10 * PATIENT;
    let config = PoolConfig { build_deadline: long, deadline: long, ..config(3, 8) };
    let spawned = RankPool::spawn(config, move |seat| match seat.rank.idx() {
        0 => Err(Failure::OutOfPages),
        1 => {
            drop(passed.lock());
            Ok(Scripted { seat })
        }
        _ => Ok(Scripted { seat }),
    });
    assert_eq!(spawned.err().expect("rank 0 is not built").to_string(), "rank 0: out of pages");
    assert!(started.elapsed() < PATIENT, "{:?}", started.elapsed());
    drop(closed);
}

/// Lives on one thread only, and may panic when it goes.
struct Local {
    home: thread::ThreadId,
    n_served: Rc<AtomicUsize>,
    n_gone: Arc<AtomicUsize>,
    stumbles: bool,
}

impl RankWorker for Local {
    type Command = ();
    type Reply = usize;
    type Error = Infallible;

    fn handle(&mut self, (): ()) -> Result<usize, Infallible> {
        assert_eq!(thread::current().id(), self.home);
        Ok(self.n_served.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        assert_eq!(thread::current().id(), self.home);
        self.n_gone.fetch_add(1, Ordering::Relaxed);
        assert!(!self.stumbles, "stumbled");
    }
}

fn local(n_gone: &Arc<AtomicUsize>, stumbler: Option<usize>) -> RankPool<Local> {
    let n_gone = Arc::clone(n_gone);
    RankPool::spawn(config(3, 8), move |seat| {
        let name = format!("rank {}", seat.rank);
        assert_eq!(thread::current().name(), Some(&*name));
        Ok::<_, Infallible>(Local {
            home: thread::current().id(),
            n_served: Rc::new(AtomicUsize::new(0)),
            n_gone: Arc::clone(&n_gone),
            stumbles: stumbler == Some(seat.rank.idx()),
        })
    })
    .expect("nothing fails")
}

#[test]
fn workers_live_and_die_on_their_threads() {
    let n_gone = Arc::new(AtomicUsize::new(0));
    let mut pool = local(&n_gone, None);
    assert_eq!(pool.broadcast(()).expect("nothing fails"), [0; 3]);
    assert_eq!(pool.broadcast(()).expect("nothing fails"), [1; 3]);
    drop(pool);
    assert_eq!(n_gone.load(Ordering::Relaxed), 3);
}

#[test]
fn an_idle_pool_can_be_dropped() {
    let n_gone = Arc::new(AtomicUsize::new(0));
    drop(local(&n_gone, None));
    assert_eq!(n_gone.load(Ordering::Relaxed), 3);
}

#[test]
fn a_worker_that_panics_as_it_goes_is_named() {
    let n_gone = Arc::new(AtomicUsize::new(0));
    let mut pool = local(&n_gone, Some(1));
    pool.broadcast(()).expect("nothing fails");
    let error = pool.shutdown().expect_err("rank 1 stumbles");
    assert_eq!(error.to_string(), "rank 1, command 1: panicked: stumbled");
    assert_eq!(n_gone.load(Ordering::Relaxed), 3, "the others went all the same");
}

#[test]
fn a_pool_moves_between_threads_whatever_its_workers_are() {
    let n_gone = Arc::new(AtomicUsize::new(0));
    let mut pool = local(&n_gone, None);
    let served = thread::spawn(move || pool.broadcast(()).expect("nothing fails")).join();
    assert_eq!(served.expect("no panic"), [0; 3]);
}

#[test]
fn a_rank_alone_needs_no_line_to_others() {
    let mut pool = scripted(config(1, 0));
    let replies = pool.broadcast(script(|seat| {
        assert!(matches!(seat.communicator, Communicator::Solo));
        sum(seat)
    }));
    assert_eq!(replies.expect("nothing fails"), [[1.0]]);
}
