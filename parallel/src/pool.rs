//! The ranks of an engine: threads that build a worker each and serve commands in step.
//!
//! Whoever holds the pool decides; the ranks obey. The pool is also the watchdog: it waits for
//! answers with a deadline, and names the rank that misses it. After a failure nothing is
//! repaired: the meetings of the ranks are called off, and the pool only repeats its error.

use std::marker::PhantomData;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::board::{Board, Waited};
use crate::clock::RankTime;
use crate::communicator::{Communicator, Seat};
use crate::error::{RankCause, RankError, SpawnError};
use crate::host::{Buffers, HostCommunicator};
use crate::mailbox::Mailbox;
use crate::rank::{Order, RankThread, Shared};
use crate::signal::Patience;
use crate::world::{Rank, World};

/// How long a failed pool waits for its ranks before it leaves them behind. They were released
/// from every meeting, so whoever is not done by then is not coming.
const GRACE: Duration = Duration::from_secs(1);

/// Where ranks say that they are built, or why they are not.
type Built<E> = Arc<Board<(), SpawnError<E>>>;

/// What a rank does with a command.
pub trait RankWorker {
    /// What the pool may ask for. Every rank gets a clone.
    type Command: Clone + Send + 'static;
    /// What a rank answers.
    type Reply: Send + 'static;
    /// Why it cannot.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Serves one command. All ranks serve the same commands in the same order.
    ///
    /// # Errors
    /// Any error ends the pool. A [`crate::CollectiveError`] is passed on as it is.
    fn handle(&mut self, command: Self::Command) -> Result<Self::Reply, Self::Error>;

    /// What its device's time went into since this was last asked; asked after every command. Who
    /// has no device is timed by its thread.
    fn take_device_time(&mut self) -> Option<RankTime> {
        None
    }
}

/// How a pool is made.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// The ranks.
    pub world: World,
    /// Floats of the largest collective, on one rank.
    pub n_floats_max: usize,
    /// How long the ranks may take to build their workers.
    pub build_deadline: Duration,
    /// How long the ranks may take to serve a command, or to stop.
    pub deadline: Duration,
}

/// Threads that each own a worker `W`. Dropping the pool stops them.
pub struct RankPool<W: RankWorker> {
    world: World,
    shared: Arc<Shared<W::Command, W::Reply>>,
    /// In rank order; emptied when the pool stops.
    threads: Vec<JoinHandle<()>>,
    deadline: Duration,
    n_commands: u64,
    /// When the command was sent whose replies were not received.
    sent: Option<Instant>,
    /// Workers live and die on their threads, so the pool may move whatever `W` is.
    worker: PhantomData<fn() -> W>,
}

impl<W: RankWorker + 'static> RankPool<W> {
    /// Starts a thread a rank and has `build` make each worker on its own thread. Returns when all
    /// are built. Workers may meet in collectives while they are built.
    ///
    /// # Errors
    /// The first rank that got no thread, failed, panicked or was not done in time.
    pub fn spawn<E: Send + 'static>(
        config: PoolConfig,
        build: impl Fn(Seat) -> Result<W, E> + Send + Sync + 'static,
    ) -> Result<RankPool<W>, SpawnError<E>> {
        let build_deadline = config.build_deadline;
        let (pool, built) = RankPool::start(config, build)?;
        pool.await_built(&built, build_deadline)?;
        Ok(pool)
    }

    /// As [`RankPool::spawn`], but returns at once, with the board on which the ranks say that
    /// they are built.
    fn start<E: Send + 'static>(
        config: PoolConfig,
        build: impl Fn(Seat) -> Result<W, E> + Send + Sync + 'static,
    ) -> Result<(RankPool<W>, Built<E>), SpawnError<E>> {
        let PoolConfig { world, n_floats_max, deadline, .. } = config;
        let n_cores = thread::available_parallelism().map_or(1, |n_cores| n_cores.get());
        let mut pool = RankPool {
            world,
            shared: Arc::new(Shared::new(world, n_cores)),
            threads: Vec::with_capacity(world.n_ranks()),
            deadline,
            n_commands: 0,
            sent: None,
            worker: PhantomData,
        };
        let buffers = Arc::new(Buffers::new(world, n_floats_max));
        let built = Arc::new(Board::new(world, Patience::of(world.n_ranks() + 1, n_cores)));
        let build = Arc::new(build);
        for rank in world.ranks() {
            let seat = pool.seat(rank, &buffers);
            let shared = Arc::clone(&pool.shared);
            let thread = RankThread { rank, shared, built: Arc::clone(&built) };
            let build = Arc::clone(&build);
            let started = thread::Builder::new()
                .name(format!("rank {rank}"))
                .spawn(move || thread.run(seat, &*build));
            pool.threads.push(started.map_err(|source| SpawnError::Thread { rank, source })?);
        }
        Ok((pool, built))
    }
}

impl<W: RankWorker> RankPool<W> {
    /// The ranks.
    pub fn world(&self) -> World {
        self.world
    }

    /// What the ranks' time went into, in rank order, as of the last replies.
    pub fn rank_times(&self) -> impl Iterator<Item = RankTime> {
        self.world.ranks().map(|rank| self.shared.group.clock(rank).read())
    }

    /// Has every rank serve `command`; their replies in rank order.
    ///
    /// # Errors
    /// As [`RankPool::receive`].
    pub fn broadcast(&mut self, command: W::Command) -> Result<Vec<W::Reply>, RankError> {
        self.send(command)?;
        self.receive()
    }

    /// Has every rank begin to serve `command`, and does not wait for it. The deadline runs from
    /// here.
    ///
    /// # Errors
    /// The failure of the pool, if it has failed before.
    ///
    /// # Panics
    /// If the replies to the last command were not received.
    pub fn send(&mut self, command: W::Command) -> Result<(), RankError> {
        assert!(self.sent.is_none(), "ranks serve one command at a time");
        if let Some(error) = self.shared.replies.failure() {
            return Err(error);
        }
        let command_idx = self.n_commands;
        self.n_commands += 1;
        self.sent = Some(Instant::now());
        for inbox in &self.shared.inboxes {
            inbox.put(Order { command_idx, command: command.clone() });
        }
        Ok(())
    }

    /// Waits for the replies to the command that was sent; in rank order.
    ///
    /// # Errors
    /// The rank that failed, panicked or did not answer in time. The pool has then failed for
    /// good: every later command gets the same error.
    ///
    /// # Panics
    /// If no command was sent.
    pub fn receive(&mut self) -> Result<Vec<W::Reply>, RankError> {
        let sent = self.sent.take().expect("a command was sent");
        let replies = &self.shared.replies;
        if replies.wait_until(sent + self.deadline) == Waited::TimedOut {
            let rank = self.last_of(replies.missing());
            let cause = RankCause::Hung { waited: self.deadline };
            replies.fail(RankError { rank, command_idx: self.n_commands - 1, cause });
            self.shared.group.abort();
        }
        match replies.failure() {
            Some(error) => Err(error),
            None => Ok(replies.take_all()),
        }
    }

    /// Stops the ranks and waits until their workers are gone.
    ///
    /// # Errors
    /// The rank that had failed before, panicked while its worker was dropped, or did not stop.
    pub fn shutdown(mut self) -> Result<(), RankError> {
        let failed_before = self.shared.replies.failure();
        let stopped = self.stop();
        failed_before.map_or(stopped, Err)
    }

    fn seat(&self, rank: Rank, buffers: &Arc<Buffers>) -> Seat {
        let communicator = match self.world {
            World::SOLO => Communicator::Solo,
            _ => {
                let group = Arc::clone(&self.shared.group);
                Communicator::Host(HostCommunicator::new(rank, group, Arc::clone(buffers)))
            }
        };
        Seat { rank, world: self.world, communicator }
    }

    fn await_built<E>(&self, built: &Built<E>, deadline: Duration) -> Result<(), SpawnError<E>> {
        if built.wait_until(Instant::now() + deadline) == Waited::TimedOut {
            built.fail(SpawnError::Hung { rank: self.last_of(built.missing()), waited: deadline });
            self.shared.group.abort();
        }
        built.take_failure().map_or(Ok(()), Err)
    }

    /// The rank that holds up the others: of those without an answer, the one that has met them
    /// least often. Ranks that wait in a collective are ahead of the one they wait for.
    fn last_of(&self, missing: impl Iterator<Item = Rank>) -> Rank {
        let last = missing.min_by_key(|&rank| (self.shared.group.n_arrived(rank), rank));
        // All may have answered since the deadline passed; one rank was late, whichever it was.
        last.unwrap_or_else(|| self.world.rank(0))
    }

    /// Ends all threads. One that does not end in time is left behind, for it cannot be forced.
    fn stop(&mut self) -> Result<(), RankError> {
        let Shared { group, inboxes, exits, .. } = &*self.shared;
        let waited = if group.is_aborted() { GRACE.min(self.deadline) } else { self.deadline };
        group.abort();
        inboxes.iter().for_each(Mailbox::close);
        for rank in self.world.ranks().skip(self.threads.len()) {
            exits.fill(rank, Ok(()));
        }
        if exits.wait_until(Instant::now() + waited) != Waited::TimedOut {
            // Leaving its exit is the last thing that a thread does.
            self.threads.drain(..).for_each(|thread| drop(thread.join()));
            return exits.take_all().into_iter().collect();
        }
        self.threads.clear();
        let rank = self.last_of(exits.missing());
        Err(RankError { rank, command_idx: self.n_commands, cause: RankCause::Hung { waited } })
    }
}

impl<W: RankWorker> Drop for RankPool<W> {
    fn drop(&mut self) {
        if self.threads.is_empty() {
            return;
        }
        if let Err(error) = self.stop() {
            tracing::error!(%error, "a rank did not stop as it should");
        }
    }
}

#[cfg(test)]
mod tests;
