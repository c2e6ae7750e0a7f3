//! The registers of a warp: rows of 32 lanes in two files, and predicates as masks.

use crate::exec::inst::{Pred, R32, R64};
use crate::ptx::{Constants, RegisterCounts};

/// One register in 32 lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(align(64))]
pub struct Row32(pub [u32; 32]);

/// One 64-bit register in 32 lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(align(64))]
pub struct Row64(pub [u64; 32]);

/// Registers of one warp.
#[derive(Debug)]
pub struct Registers {
    pub(crate) r32: Vec<Row32>,
    pub(crate) r64: Vec<Row64>,
    pub(crate) predicates: Vec<u32>,
}

impl Registers {
    /// Zeroed, but for the constants. Nothing writes a constant's row, so they are set once.
    pub(crate) fn new(counts: RegisterCounts, constants: &Constants) -> Registers {
        let mut registers = Registers {
            r32: vec![Row32([0; 32]); counts.n_r32],
            r64: vec![Row64([0; 32]); counts.n_r64],
            predicates: vec![0; counts.n_predicates],
        };
        for (row, value) in &constants.r32 {
            registers.r32[row.0 as usize].0 = [*value; 32];
        }
        for (row, value) in &constants.r64 {
            registers.r64[row.0 as usize].0 = [*value; 32];
        }
        for (row, value) in &constants.predicates {
            registers.predicates[row.0 as usize] = if *value { !0 } else { 0 };
        }
        registers
    }

    pub fn r32(&self, row: R32) -> &[u32; 32] {
        &self.r32[row.0 as usize].0
    }

    pub fn r32_mut(&mut self, row: R32) -> &mut [u32; 32] {
        &mut self.r32[row.0 as usize].0
    }

    pub fn r64(&self, row: R64) -> &[u64; 32] {
        &self.r64[row.0 as usize].0
    }

    pub fn r64_mut(&mut self, row: R64) -> &mut [u64; 32] {
        &mut self.r64[row.0 as usize].0
    }

    /// One bit for each lane.
    pub fn predicate(&self, row: Pred) -> u32 {
        self.predicates[row.0 as usize]
    }

    /// Sets a predicate in the lanes of `mask`.
    pub fn set_predicate(&mut self, row: Pred, value: u32, mask: u32) {
        let predicate = &mut self.predicates[row.0 as usize];
        *predicate = (*predicate & !mask) | (value & mask);
    }

    /// Sets a register in the lanes of `mask`.
    pub fn set_r32(&mut self, row: R32, values: &[u32; 32], mask: u32) {
        for (lane, slot) in self.r32_mut(row).iter_mut().enumerate() {
            *slot = if mask >> lane & 1 != 0 { values[lane] } else { *slot };
        }
    }

    /// Sets a register in the lanes of `mask`.
    pub fn set_r64(&mut self, row: R64, values: &[u64; 32], mask: u32) {
        for (lane, slot) in self.r64_mut(row).iter_mut().enumerate() {
            *slot = if mask >> lane & 1 != 0 { values[lane] } else { *slot };
        }
    }
}
