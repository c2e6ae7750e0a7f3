//! The decoded form of a kernel: what the executor steps through.

use crate::exec::access::{Load, Store};
use crate::exec::alu::AluFn;
use crate::exec::atomics::Atomic;
use crate::exec::barrier::BarrierOp;
use crate::exec::tensor::TensorOp;
use crate::exec::warp_ops::WarpOp;

/// A row of the file of registers up to 32 bits. Narrower values are zero-extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct R32(pub u16);

/// A row of the file of 64-bit registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct R64(pub u16);

/// A predicate: one bit for each lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pred(pub u16);

/// One instruction, decoded.
#[derive(Debug)]
pub struct Inst {
    pub op: Op,
    pub guard: Option<Guard>,
    /// Floating-point operations of each lane on the scalar units, in single precision.
    pub n_flops: u8,
    /// Line of the PTX text, from 1.
    pub line: u32,
}

/// Lanes run the instruction where the predicate is set, or where it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    pub predicate: Pred,
    pub negated: bool,
}

/// What an instruction does.
#[derive(Debug)]
pub enum Op {
    /// Lane-wise arithmetic between registers: rows of destination, then sources.
    Alu {
        run: AluFn,
        rows: [u16; 6],
    },
    /// Lanes under the guard go to an instruction's index.
    Branch {
        target: u32,
    },
    /// Each lane goes to the target that its index register names.
    BranchIndexed {
        index: R32,
        targets: Box<[u32]>,
    },
    Exit,
    Load(Box<Load>),
    Store(Box<Store>),
    Atomic(Box<Atomic>),
    /// Shuffles, votes, matches and reductions between lanes.
    Warp(Box<WarpOp>),
    Barrier(Box<BarrierOp>),
    /// Matrix, asynchronous-copy and transaction-barrier instructions.
    Tensor(Box<TensorOp>),
    /// Lets others run.
    Sleep,
    Trap,
    /// `__assertfail`: where in local memory the addresses of message and file stand, and the
    /// line.
    Assert {
        message: usize,
        file: usize,
        line: usize,
    },
    /// A counter of the machine.
    Clock {
        wide: Option<R64>,
        narrow: Option<R32>,
        kind: ClockKind,
    },
    Nop,
}

/// Which counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockKind {
    Cycles,
    CyclesHigh,
    Nanoseconds,
    NanosecondsHigh,
}

/// State spaces of memory instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Also `.const`: constants lie in device memory.
    Global,
    Shared,
    Local,
    Param,
    Generic,
}

/// Where a memory operand points, lane by lane: base and bytes to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub base: Base,
    pub offset: i64,
}

/// The register under an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Wide(R64),
    /// For shared memory, whose addresses fit 32 bits.
    Narrow(R32),
    /// The same for all lanes: the offset is the address.
    Absolute,
}
