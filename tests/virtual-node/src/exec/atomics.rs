//! Atomic operations: `atom` and `red`.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::exec::WarpCx;
use crate::exec::alu::{Slot, Type};
use crate::exec::checks::AccessKind;
use crate::exec::context::lanes;
use crate::exec::fault::{Flow, Trap};
use crate::exec::inst::{Address, R32, R64, Space};
use crate::exec::numbers::{bf16_bits, bf16_value, f16_bits, f16_value};

/// An atomic operation.
#[derive(Debug)]
pub struct Atomic {
    pub space: Space,
    pub address: Address,
    pub operation: AtomicOp,
    pub ty: Type,
    pub n_elements: u8,
    /// Where the old values go; none for `red`.
    pub targets: Option<[u16; 4]>,
    /// First operands of the elements.
    pub rows: [u16; 4],
    /// What compare-and-swap writes.
    pub second: u16,
}

/// What becomes of the old value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomicOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Increment,
    Decrement,
    Exchange,
    CompareAndSwap,
}

impl AtomicOp {
    /// The operation of that name.
    pub fn parse(name: &str) -> Option<AtomicOp> {
        Some(match name {
            "add" => AtomicOp::Add,
            "min" => AtomicOp::Min,
            "max" => AtomicOp::Max,
            "and" => AtomicOp::And,
            "or" => AtomicOp::Or,
            "xor" => AtomicOp::Xor,
            "inc" => AtomicOp::Increment,
            "dec" => AtomicOp::Decrement,
            "exch" => AtomicOp::Exchange,
            "cas" => AtomicOp::CompareAndSwap,
            _ => return None,
        })
    }

    /// Whether there is such an operation on the type.
    pub fn accepts(self, ty: Type) -> bool {
        use Type::{B16, B32, B64, Bf16, Bf16x2, F16, F16x2, F32, F64, S32, S64, U32, U64};
        match self {
            AtomicOp::Add => {
                matches!(ty, U32 | S32 | U64 | S64 | F32 | F64 | F16 | F16x2 | Bf16 | Bf16x2)
            }
            AtomicOp::Min | AtomicOp::Max => {
                matches!(ty, U32 | S32 | U64 | S64 | F16 | F16x2 | Bf16 | Bf16x2)
            }
            AtomicOp::And | AtomicOp::Or | AtomicOp::Xor => matches!(ty, B32 | B64),
            AtomicOp::Increment | AtomicOp::Decrement => ty == U32,
            AtomicOp::Exchange => matches!(ty, B32 | B64 | U32 | S32 | U64 | S64 | F32),
            AtomicOp::CompareAndSwap => matches!(ty, B16 | B32 | B64 | U32 | S32 | U64 | S64),
        }
    }
}

impl WarpCx<'_> {
    /// Runs an atomic operation for the lanes of the mask, one after the other.
    pub(super) fn atomic(&mut self, atomic: &Atomic) -> Result<Flow, Trap> {
        if self.mask == 0 {
            return Ok(Flow::Next);
        }
        let addresses = self.addresses(&atomic.address);
        let element_bytes = atomic.ty.n_bytes();
        let n_elements = atomic.n_elements as usize;
        let n_bytes = element_bytes * n_elements;
        self.notice((atomic.space, AccessKind::Atomic), n_bytes, &addresses)?;
        let mut has_changed = false;
        for idx in 0..n_elements {
            let values = self.values(atomic.ty, atomic.rows[idx]);
            let seconds = self.values(atomic.ty, atomic.second);
            let mut old = [0; 32];
            for lane in lanes(self.mask) {
                let at = self.reach((atomic.space, true), lane, addresses[lane], n_bytes)?;
                let combine =
                    |old| combined((atomic.operation, atomic.ty), old, values[lane], seconds[lane]);
                // SAFETY: `reach` found the elements there, aligned to all of them.
                let (before, after) =
                    unsafe { update(at.add(idx * element_bytes), element_bytes, combine) };
                has_changed |= before != after;
                old[lane] = before;
            }
            if let Some(targets) = atomic.targets {
                self.put(atomic.ty, targets[idx], &old);
            }
        }
        if has_changed {
            self.warp.polls.reset();
        } else {
            // A lock that is taken, a flag that has not come.
            let first = addresses[self.mask.trailing_zeros() as usize];
            if self.warp.polls.is_spinning(self.inst.line, first) {
                return Ok(Flow::Yield);
            }
        }
        Ok(Flow::Next)
    }

    /// A register's lanes, widened.
    fn values(&self, ty: Type, row: u16) -> [u64; 32] {
        if ty.slot() == Slot::R64 {
            *self.warp.registers.r64(R64(row))
        } else {
            self.warp.registers.r32(R32(row)).map(u64::from)
        }
    }

    fn put(&mut self, ty: Type, row: u16, values: &[u64; 32]) {
        if ty.slot() == Slot::R64 {
            self.warp.registers.set_r64(R64(row), values, self.mask);
        } else {
            let values = values.map(|value| value as u32);
            self.warp.registers.set_r32(R32(row), &values, self.mask);
        }
    }
}

/// Changes an element; gives the values before and after.
///
/// # Safety
///
/// An aligned element of so many bytes lies there, which nobody holds a reference to.
unsafe fn update(at: NonNull<u8>, n_bytes: usize, combine: impl Fn(u64) -> u64) -> (u64, u64) {
    macro_rules! fetch {
        ($atomic:ty, $int:ty) => {{
            // SAFETY: the caller vouches for the element.
            let element = unsafe { <$atomic>::from_ptr(at.cast().as_ptr()) };
            let change = |old: $int| Some(combine(old.into()) as $int);
            let old = element
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, change)
                .unwrap_or_else(|old| old);
            (old.into(), combine(old.into()))
        }};
    }
    match n_bytes {
        2 => fetch!(AtomicU16, u16),
        4 => fetch!(AtomicU32, u32),
        _ => fetch!(AtomicU64, u64),
    }
}

/// The new value.
fn combined((operation, ty): (AtomicOp, Type), old: u64, a: u64, b: u64) -> u64 {
    match operation {
        AtomicOp::Add => sum(ty, old, a),
        AtomicOp::Min | AtomicOp::Max => extreme((operation, ty), old, a),
        AtomicOp::And => old & a,
        AtomicOp::Or => old | a,
        AtomicOp::Xor => old ^ a,
        AtomicOp::Increment => {
            if old as u32 >= a as u32 {
                0
            } else {
                old + 1
            }
        }
        AtomicOp::Decrement => {
            if old as u32 == 0 || old as u32 > a as u32 {
                a
            } else {
                old - 1
            }
        }
        AtomicOp::Exchange => a,
        AtomicOp::CompareAndSwap => {
            let mask = if ty.n_bytes() == 8 { !0 } else { (1u64 << (8 * ty.n_bytes())) - 1 };
            if old & mask == a & mask { b } else { old }
        }
    }
}

fn sum(ty: Type, old: u64, a: u64) -> u64 {
    match ty {
        Type::F32 => u64::from((f32::from_bits(old as u32) + f32::from_bits(a as u32)).to_bits()),
        Type::F64 => (f64::from_bits(old) + f64::from_bits(a)).to_bits(),
        Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 => halves(ty, old, a, |x, y| x + y),
        _ => old.wrapping_add(a),
    }
}

fn extreme((operation, ty): (AtomicOp, Type), old: u64, a: u64) -> u64 {
    let is_min = operation == AtomicOp::Min;
    let takes_a = match ty {
        Type::U32 => ((a as u32) < old as u32) == is_min,
        Type::S32 => ((a as i32) < old as i32) == is_min,
        Type::S64 => ((a as i64) < old as i64) == is_min,
        Type::U64 => (a < old) == is_min,
        _ if is_min => return halves(ty, old, a, f32::min),
        _ => return halves(ty, old, a, f32::max),
    };
    if takes_a { a } else { old }
}

/// An operation on each half.
fn halves(ty: Type, a: u64, b: u64, f: impl Fn(f32, f32) -> f32) -> u64 {
    let is_f16 = matches!(ty, Type::F16 | Type::F16x2);
    let n_halves = ty.n_bytes() / 2;
    (0..n_halves).fold(0, |out, idx| {
        let [a, b] = [a, b].map(|pair| (pair >> (16 * idx)) as u16);
        let half = if is_f16 {
            f16_bits(f(f16_value(a), f16_value(b)))
        } else {
            bf16_bits(f(bf16_value(a), bf16_value(b)))
        };
        out | u64::from(half) << (16 * idx)
    })
}
