//! What runs on a rank's thread: build the worker, serve commands, answer for every outcome.
//!
//! This is the only place that catches panics. A failure is written down before the other ranks
//! are released, so what they then report is never taken for the cause.

use std::any::Any;
use std::convert::Infallible;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Instant;

use crate::board::Board;
use crate::communicator::Seat;
use crate::error::{RankCause, RankError, SpawnError};
use crate::group::Group;
use crate::mailbox::Mailbox;
use crate::pool::RankWorker;
use crate::signal::Patience;
use crate::world::{Rank, World};

/// What the pool and its ranks share.
pub(crate) struct Shared<C, R> {
    pub(crate) group: Arc<Group>,
    /// Where each rank waits for commands, in rank order.
    pub(crate) inboxes: Vec<Mailbox<Order<C>>>,
    pub(crate) replies: Board<R, RankError>,
    /// Whose worker is gone, and whether it went in peace.
    pub(crate) exits: Board<Result<(), RankError>, Infallible>,
}

/// A command on its way to a rank.
pub(crate) struct Order<C> {
    pub(crate) command_idx: u64,
    pub(crate) command: C,
}

/// One rank's thread, from its first to its last line.
pub(crate) struct RankThread<W: RankWorker, E> {
    pub(crate) rank: Rank,
    pub(crate) shared: Arc<Shared<W::Command, W::Reply>>,
    pub(crate) built: Arc<Board<(), SpawnError<E>>>,
}

impl<C, R> Shared<C, R> {
    pub(crate) fn new(world: World, n_cores: usize) -> Shared<C, R> {
        // Ranks meet among themselves; commands and replies have the pool's holder on one end.
        let meeting = Patience::of(world.n_ranks(), n_cores);
        let patience = Patience::of(world.n_ranks() + 1, n_cores);
        Shared {
            group: Arc::new(Group::new(world, meeting)),
            inboxes: world.ranks().map(|_| Mailbox::new(patience)).collect(),
            replies: Board::new(world, patience),
            exits: Board::new(world, patience),
        }
    }
}

impl<W: RankWorker, E> RankThread<W, E> {
    pub(crate) fn run(self, seat: Seat, build: &dyn Fn(Seat) -> Result<W, E>) {
        let exit = match self.build(seat, build) {
            None => Ok(()),
            Some(mut worker) => {
                let n_served = self.serve(&mut worker);
                catch(|| drop(worker)).map_err(|message| self.panicked(n_served, message))
            }
        };
        self.shared.exits.fill(self.rank, exit);
    }

    fn build(&self, seat: Seat, build: &dyn Fn(Seat) -> Result<W, E>) -> Option<W> {
        let rank = self.rank;
        let failure = match catch(|| build(seat)) {
            Ok(Ok(worker)) => {
                self.shared.group.leave(rank);
                self.built.fill(rank, ());
                return Some(worker);
            }
            Ok(Err(source)) => SpawnError::Build { rank, source },
            Err(message) => SpawnError::Panicked { rank, message },
        };
        self.built.fail(failure);
        self.shared.group.abort();
        None
    }

    /// Serves until the pool closes the inbox or this rank fails. How many commands it served.
    fn serve(&self, worker: &mut W) -> u64 {
        let mut n_served = 0;
        while let Some(Order { command_idx, command }) = self.shared.inboxes[self.rank.idx()].take()
        {
            let clock = self.shared.group.clock(self.rank);
            let (began, before) = (Instant::now(), clock.read());
            let failure = match catch(|| worker.handle(command)) {
                Ok(Ok(reply)) => {
                    // Before the answer, so that whoever has it reads the sum with it.
                    match worker.take_device_time() {
                        None => clock.serve(began.elapsed()),
                        Some(time) => clock.add_device(time, before),
                    }
                    self.shared.group.leave(self.rank);
                    n_served = command_idx + 1;
                    self.shared.replies.fill(self.rank, reply);
                    continue;
                }
                Ok(Err(source)) => {
                    let cause = RankCause::Failed { source: Arc::new(source) };
                    RankError { rank: self.rank, command_idx, cause }
                }
                Err(message) => self.panicked(command_idx, message),
            };
            self.shared.replies.fail(failure);
            self.shared.group.abort();
            break;
        }
        n_served
    }

    fn panicked(&self, command_idx: u64, message: String) -> RankError {
        RankError { rank: self.rank, command_idx, cause: RankCause::Panicked { message } }
    }
}

/// Runs `work`; the message of its panic if it panics.
fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // Nothing that `work` may leave half done is used again: the worker is dropped, and the
    // group that it shares with other ranks is aborted.
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|payload| message(&*payload))
}

fn message(payload: &(dyn Any + Send)) -> String {
    if let Some(message) = payload.downcast_ref::<&str>() {
        return (*message).to_owned();
    }
    payload.downcast_ref::<String>().map_or("a value that is no text", String::as_str).to_owned()
}
