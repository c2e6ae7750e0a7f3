//! Who waits, and whose turn it is.
//!
//! - **Levels.** Who waits rises by one level in so many steps ([`Priorities`]), up to the first.
//!   The higher level goes first, and in a level whoever was preempted, who has work to lose.
//! - **Shares.** Among newcomers of a level it is the turn of the tenant that was served least; of
//!   equals, of who waits longest. What is counted is tokens computed for it, once: what the cache
//!   had and what a preemption threw away is nobody's. A tenant that comes back has no claim to
//!   what it left unused: it is counted as served as much as the one whose turn it was last. This
//!   is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models"
//!   (OSDI 2024), with levels. While one tenant alone waits it gets everything.
//! - **Within a tenant** turns are those of arrival, a level being worth the steps that it takes to
//!   rise by it.
//!
//! Two tenants that both wait at the first level all the time are served tokens that differ by at
//! most twice those of all sequences that have begun: a turn is never given to who is ahead, and
//! who has begun may go on. So nobody waits for ever: after its rise nobody of its own tenant that
//! came later passes it, and others only until they are ahead.
//!
//! It does not know slots, pages or steps' contents.

use std::collections::{BTreeMap, BTreeSet};

use crate::limits::Priorities;
use crate::sequence::Sequence;
use crate::turn::Turn;
use crate::{Limits, TenantId};

/// Every sequence without a slot.
#[derive(Debug)]
pub(crate) struct Queue {
    priorities: Priorities,
    tenants: Vec<Tenant>,
    /// Of which somebody waits who has never had a slot.
    in_line: BTreeSet<TenantId>,
    /// Who has had a slot.
    preempted: BTreeMap<Turn, Sequence>,
    /// By level as asked for, the first level first.
    n_by_level: Vec<usize>,
    n_waiting: usize,
    /// What the tenant had been served whose turn it was last.
    n_served_last: u64,
    /// How often somebody joined or left it otherwise than by his turn.
    n_changes: u64,
}

#[derive(Debug, Default)]
struct Tenant {
    /// Tokens.
    n_served: u64,
    newcomers: BTreeMap<Turn, Sequence>,
}

/// Where in the queue a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueuePlace {
    /// Among those that have had a slot.
    Preempted(Turn),
    /// Among its tenant's newcomers.
    New(TenantId, Turn),
}

impl Queue {
    pub(crate) fn new(limits: &Limits) -> Queue {
        Queue {
            priorities: limits.priorities,
            tenants: (0..limits.n_tenants).map(|_| Tenant::default()).collect(),
            in_line: BTreeSet::new(),
            preempted: BTreeMap::new(),
            n_by_level: vec![0; limits.priorities.n_levels as usize],
            n_waiting: 0,
            n_served_last: 0,
            n_changes: 0,
        }
    }

    /// Takes in a sequence that has no slot, or none any more.
    pub(crate) fn join(&mut self, sequence: Sequence) {
        self.n_waiting += 1;
        self.n_changes += 1;
        self.n_by_level[sequence.level() as usize - 1] += 1;
        let (tenant, turn) = (sequence.tenant(), sequence.turn());
        let twin = match sequence.has_begun() {
            true => self.preempted.insert(turn, sequence),
            false => {
                let Tenant { n_served, newcomers } = &mut self.tenants[tenant.idx()];
                if self.in_line.insert(tenant) {
                    *n_served = self.n_served_last.max(*n_served);
                }
                newcomers.insert(turn, sequence)
            }
        };
        assert!(twin.is_none(), "{turn:?} is two sequences'");
    }

    /// Whose turn it is after `n_steps`.
    pub(crate) fn next(&self, n_steps: u64) -> Option<QueuePlace> {
        let level = |turn: Turn| self.priorities.n_levels_below_first(turn.due(), n_steps);
        let newcomer = |&tenant: &TenantId| {
            let Tenant { n_served, newcomers } = &self.tenants[tenant.idx()];
            let (&turn, _) = newcomers.first_key_value().expect("it is in line");
            (level(turn), *n_served, turn, tenant)
        };
        let newcomer = self.in_line.iter().map(newcomer).min();
        match (self.preempted.keys().next(), newcomer) {
            (Some(&turn), Some((new_level, ..))) if new_level >= level(turn) => {
                Some(QueuePlace::Preempted(turn))
            }
            (_, Some((_, _, turn, tenant))) => Some(QueuePlace::New(tenant, turn)),
            (turn, None) => turn.map(|&turn| QueuePlace::Preempted(turn)),
        }
    }

    /// A sequence leaves because it is its turn.
    pub(crate) fn take(&mut self, place: QueuePlace) -> Sequence {
        if let QueuePlace::New(tenant, _) = place {
            self.n_served_last = self.n_served_last.max(self.tenants[tenant.idx()].n_served);
        }
        self.remove(place)
    }

    /// A sequence leaves because it has ended.
    pub(crate) fn leave(&mut self, place: QueuePlace) -> Sequence {
        self.n_changes += 1;
        self.remove(place)
    }

    fn remove(&mut self, place: QueuePlace) -> Sequence {
        let sequence = match place {
            QueuePlace::Preempted(turn) => self.preempted.remove(&turn),
            QueuePlace::New(tenant, turn) => {
                let newcomers = &mut self.tenants[tenant.idx()].newcomers;
                let sequence = newcomers.remove(&turn);
                if newcomers.is_empty() {
                    self.in_line.remove(&tenant);
                }
                sequence
            }
        };
        let sequence = sequence.expect("it was found there");
        self.n_waiting -= 1;
        self.n_by_level[sequence.level() as usize - 1] -= 1;
        sequence
    }

    /// Tokens are computed for a tenant that never were before.
    pub(crate) fn serve(&mut self, tenant: TenantId, n_tokens: usize) {
        self.tenants[tenant.idx()].n_served += n_tokens as u64;
    }

    /// Where a sequence is that waits.
    pub(crate) fn find(&self, tenant: TenantId, turn: Turn) -> QueuePlace {
        match self.preempted.contains_key(&turn) {
            true => QueuePlace::Preempted(turn),
            false => QueuePlace::New(tenant, turn),
        }
    }

    /// The sequence at a place that was found.
    pub(crate) fn at(&self, place: QueuePlace) -> &Sequence {
        let sequence = match place {
            QueuePlace::Preempted(turn) => self.preempted.get(&turn),
            QueuePlace::New(tenant, turn) => self.tenants[tenant.idx()].newcomers.get(&turn),
        };
        sequence.expect("a request that has not ended runs or waits")
    }

    /// The sequence at a place that was found.
    pub(crate) fn at_mut(&mut self, place: QueuePlace) -> &mut Sequence {
        let sequence = match place {
            QueuePlace::Preempted(turn) => self.preempted.get_mut(&turn),
            QueuePlace::New(tenant, turn) => self.tenants[tenant.idx()].newcomers.get_mut(&turn),
        };
        sequence.expect("a request that has not ended runs or waits")
    }

    /// Sequences that wait.
    pub(crate) fn len(&self) -> usize {
        self.n_waiting
    }

    /// Sequences that wait, by the level that they asked for.
    pub(crate) fn n_by_level(&self) -> &[usize] {
        &self.n_by_level
    }

    /// Changes when there may be somebody else to ask.
    pub(crate) fn n_changes(&self) -> u64 {
        self.n_changes
    }

    /// Who has had a slot and waits for another.
    pub(crate) fn preempted(&self) -> impl Iterator<Item = &Sequence> {
        self.preempted.values()
    }

    /// All, those that have had a slot first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        let newcomers = self.tenants.iter().flat_map(|tenant| tenant.newcomers.values());
        self.preempted.values().chain(newcomers)
    }

    /// Asserts that its counts are those of what it holds.
    pub(crate) fn check(&self) {
        assert_eq!(self.iter().count(), self.n_waiting, "sequences that wait");
        for (level_idx, &n_waiting) in self.n_by_level.iter().enumerate() {
            let is_of = |sequence: &&Sequence| sequence.level() as usize == level_idx + 1;
            assert_eq!(self.iter().filter(is_of).count(), n_waiting, "level {}", level_idx + 1);
        }
        for (tenant, Tenant { newcomers, .. }) in (0..).map(TenantId).zip(&self.tenants) {
            assert_eq!(self.in_line.contains(&tenant), !newcomers.is_empty(), "{tenant:?} in line");
        }
        for (&turn, sequence) in &self.preempted {
            assert_eq!(sequence.turn(), turn, "{:?} waits elsewhere", sequence.id());
        }
    }
}
