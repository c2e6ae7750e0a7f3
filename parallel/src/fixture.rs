//! What the tests share: a worker whose commands are closures, and random numbers with a seed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::{CollectiveError, PoolConfig, RankPool, RankWorker, Seat, World};

/// Long enough never to pass on a busy machine.
pub(crate) const PATIENT: Duration = Duration::from_secs(300);

/// Short enough to wait for. What must be done before it passes has been seen to be done.
pub(crate) const IMPATIENT: Duration = Duration::from_millis(500);

/// What a rank of [`Scripted`] does for a command.
pub(crate) type Script = Arc<dyn Fn(&mut Seat) -> Answer + Send + Sync>;

pub(crate) type Answer = Result<Vec<f32>, Failure>;

/// Why a script fails.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error("out of pages")]
    OutOfPages,
}

/// Runs scripts.
pub(crate) struct Scripted {
    pub(crate) seat: Seat,
}

impl RankWorker for Scripted {
    type Command = Script;
    type Reply = Vec<f32>;
    type Error = Failure;

    fn handle(&mut self, script: Script) -> Answer {
        script(&mut self.seat)
    }
}

pub(crate) fn script(run: impl Fn(&mut Seat) -> Answer + Send + Sync + 'static) -> Script {
    Arc::new(run)
}

pub(crate) fn config(n_ranks: usize, n_floats_max: usize) -> PoolConfig {
    let world = World::new(n_ranks);
    PoolConfig { world, n_floats_max, build_deadline: PATIENT, deadline: PATIENT }
}

pub(crate) fn scripted(config: PoolConfig) -> RankPool<Scripted> {
    RankPool::spawn(config, |seat| Ok::<_, Infallible>(Scripted { seat })).expect("nothing fails")
}

/// splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Between -1 and 1 times a power of two, so that the order of a sum shows in its bits.
    pub(crate) fn float(&mut self) -> f32 {
        let mantissa = (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        mantissa * 2f32.powi(self.below(16) as i32)
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}
