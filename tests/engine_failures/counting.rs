//! An engine whose model counts, and whose ranks fail as they are told to.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use engine::rank::{RankCommand, RankReply, RowOutput, StepOutput};
use engine::{Engine, EngineInfo, TokenId};
use parallel::{PoolConfig, RankPool, RankWorker, Seat, World};
use scheduler::{GroupLimits, Limits, Priorities, SlotIdx, StepPlan};

const VOCAB_SIZE: usize = 100;

/// Nothing takes longer that comes at all, on any machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// What a slow rank takes for a step at least.
pub(super) const SLOW: Duration = Duration::from_millis(2);

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    None,
    /// Rank 1 panics at its fifth command.
    Panic,
    /// Rank 1 returns an error at its fifth command.
    Fail,
    /// Rank 1 works at every step for [`SLOW`].
    Slow,
    /// Rank 0 never answers its first command. None is before it that would have to be in time, and
    /// of ranks that are equally far the first is named, so it does not matter how far rank 1 is.
    Hang,
}

pub(super) type Gate = Arc<RwLock<()>>;

/// A model that counts: the token after `t` is `t + 1`.
pub(super) struct Counting {
    seat: Seat,
    fault: Fault,
    /// A step waits while the test holds it for writing: nothing ends before the test says so.
    gate: Gate,
    n_commands: usize,
    /// What each slot drew last, as devices keep it.
    last: HashMap<SlotIdx, u32>,
    /// The step that was submitted and has not landed.
    behind: Option<StepPlan>,
}

#[derive(Debug, thiserror::Error)]
#[error("the planted failure")]
pub(super) struct Planted;

impl RankWorker for Counting {
    type Command = RankCommand;
    type Reply = RankReply;
    type Error = Planted;

    fn handle(&mut self, command: RankCommand) -> Result<RankReply, Planted> {
        self.n_commands += 1;
        match (self.fault, self.seat.rank.idx(), self.n_commands) {
            (Fault::Panic, 1, 5) => panic!("the planted panic"),
            (Fault::Fail, 1, 5) => return Err(Planted),
            (Fault::Hang, 0, 1) => loop {
                std::thread::park();
            },
            _ => {}
        }
        let output = match command {
            RankCommand::Step(input) => {
                assert!(self.behind.is_none(), "a step that was submitted has not landed");
                Some(self.step(&input.plan, false)?)
            }
            RankCommand::Submit(input) => self
                .behind
                .replace(input.plan.clone())
                .map(|plan| self.step(&plan, true))
                .transpose()?,
            RankCommand::Land => {
                let plan = self.behind.take().expect("a step was submitted");
                Some(self.step(&plan, true)?)
            }
            RankCommand::Probe(_) => return Err(Planted),
        };
        Ok(RankReply::Stepped(output.filter(|_| self.seat.rank.idx() == 0)))
    }
}

impl Counting {
    /// A row that follows another takes its token from its slot where steps are submitted: the
    /// plan does not have it then.
    fn step(&mut self, plan: &StepPlan, is_submitted: bool) -> Result<StepOutput, Planted> {
        drop(self.gate.read());
        let began = Instant::now();
        while matches!(self.fault, Fault::Slow)
            && self.seat.rank.idx() == 1
            && began.elapsed() < SLOW
        {
            std::thread::yield_now();
        }
        // As the model does: no rank gets past a step without the others.
        self.seat.communicator.all_reduce_sum(&mut [0.0]).map_err(|_| Planted)?;
        let rows = plan.rows.iter().map(|row| {
            let last = match row.follows {
                Some(_) if is_submitted => self.last[&row.slot],
                _ => plan.row_tokens(row).last().expect("a row has tokens").0,
            };
            let next = (last + 1) % VOCAB_SIZE as u32;
            self.last.insert(row.slot, next);
            let token = row.emit.samples().then_some(TokenId(next));
            RowOutput { token, ..RowOutput::default() }
        });
        Ok(StepOutput { rows: rows.collect() })
    }
}

/// How steps follow each other: every rule holds for all ways.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Way {
    OneAfterAnother,
    /// The next is planned while one runs.
    Planned,
    /// And submitted.
    Submitted,
}

pub(super) const WAYS: [Way; 3] = [Way::OneAfterAnother, Way::Planned, Way::Submitted];

pub(super) fn engine(fault: Fault, way: Way) -> Engine {
    gated(fault, way, Gate::default())
}

pub(super) fn gated(fault: Fault, way: Way, gate: Gate) -> Engine {
    let config = PoolConfig {
        world: World::new(2),
        n_floats_max: 1,
        build_deadline: PATIENCE,
        deadline: match fault {
            Fault::Hang => Duration::from_millis(50),
            _ => PATIENCE,
        },
    };
    let build = move |seat| {
        let (gate, last) = (Arc::clone(&gate), HashMap::new());
        Ok::<_, Planted>(Counting { seat, fault, gate, n_commands: 0, last, behind: None })
    };
    let pool = RankPool::spawn(config, build).expect("the ranks start");
    let limits = Limits {
        n_slots: 2,
        n_waiting_max: 4,
        n_tokens_per_step: 16,
        n_context_tokens: 64,
        page_tokens: 16,
        priorities: Priorities::single(),
        n_tenants: 1,
        latency: None,
        prefix_cache: None,
        host_tier: None,
        speculation: None,
        groups: vec![GroupLimits { n_pages: 8, window: None }],
    };
    let spec = Arc::new(weights::presets::preset("tiny").expect("a preset"));
    let info = EngineInfo {
        spec,
        groups: Vec::new(),
        device: engine::DeviceKind::Cpu,
        n_context_tokens: 64,
        vocab_size: VOCAB_SIZE,
        n_slots: 2,
        n_waiting_max: 4,
        n_tokens_per_step: 16,
        page_tokens: 16,
        n_ranks: 2,
        overlaps_steps: way != Way::OneAfterAnother,
        launches_ahead: way == Way::Submitted,
        policy: engine::Policy::plain(),
        page_bytes: vec![1],
        host_kv_bytes: 0,
    };
    Engine::start(pool, limits, info)
}
