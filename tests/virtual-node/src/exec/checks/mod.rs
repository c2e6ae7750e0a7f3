//! Checks that are made on request: races, uninitialised reads, sectors, bank conflicts.
//! The executor calls in here only where a flag is set.

use thiserror::Error;

use crate::exec::fault::Trap;
use crate::exec::inst::Space;
use crate::exec::{BlockCx, WarpCx};

/// Which checks a launch makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checks {
    /// Accesses to shared memory that no barrier orders.
    pub races: bool,
    /// Reads of memory that nothing wrote.
    pub init: bool,
    /// Counts sectors of global accesses.
    pub sectors: bool,
    /// Counts bank conflicts of shared accesses.
    pub banks: bool,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Finding {}

/// One warp-wide access, seen before it happens.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// Never `Generic`: lanes are sorted by space first.
    pub space: Space,
    pub kind: AccessKind,
    /// Of each lane, vectors included.
    pub n_bytes: usize,
    /// In shared memory: offsets into the block's window.
    pub addresses: &'a [u64; 32],
    pub mask: u32,
}

/// How memory is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    Read,
    Write,
    Atomic,
}

/// What the checks remember of a block.
#[derive(Debug, Default)]
pub struct BlockChecks {}

impl Checks {
    /// Whether [`observe`] wants to see accesses to a space.
    pub fn watches(&self, space: Space) -> bool {
        match space {
            Space::Shared => self.races || self.init || self.banks,
            Space::Global => self.init || self.sectors,
            _ => false,
        }
    }
}

impl BlockChecks {
    /// A new block begins.
    pub fn reset(&mut self, _checks: &Checks, _shared_bytes: usize) {}
}

/// Sees an access, before bounds are checked.
pub fn observe(_cx: &mut WarpCx<'_>, _access: &Access<'_>) -> Result<(), Trap> {
    Ok(())
}

/// All threads of a block met at a barrier; with `warps` the ones that did (bit by warp).
pub fn observe_barrier(_cx: &mut BlockCx<'_>, _warps: u64) {}
