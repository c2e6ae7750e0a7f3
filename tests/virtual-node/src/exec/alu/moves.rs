//! Copies, selections and changes of width.

use crate::exec::alu::lane::Slot;
use crate::exec::alu::lift::{Alu, choose, lift1, lift2, lift3, lift4, test1};
use crate::exec::alu::types::Type;
use crate::exec::inst::Space;
use crate::exec::{CLUSTER_SHIFT, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};

/// The function of a copying opcode.
pub(super) fn select(opcode: &str, modifiers: &[&str], ty: Type) -> Option<Alu> {
    if opcode == "slct" {
        return slct(modifiers, ty);
    }
    if !modifiers.is_empty() {
        return None;
    }
    match (opcode, ty.n_bytes()) {
        ("mov", 2) => Some(lift1(|a: u16| a)),
        ("mov", 4) => Some(lift1(|a: u32| a)),
        ("mov", 8) => Some(lift1(|a: u64| a)),
        ("selp", 2 | 4) => Some(choose(|a: u32, b: u32, p: bool| if p { a } else { b })),
        ("selp", 8) => Some(choose(|a: u64, b: u64, p: bool| if p { a } else { b })),
        _ => None,
    }
}

/// The second type of `slct` is that of the value whose sign chooses.
fn slct(modifiers: &[&str], chooser: Type) -> Option<Alu> {
    let (ty, is_flushed) = match modifiers {
        [ty] => (Type::parse(ty)?, false),
        ["ftz", ty] => (Type::parse(ty)?, true),
        _ => return None,
    };
    match (ty.n_bytes(), chooser) {
        (2 | 4, Type::S32) => Some(lift3(|a: u32, b: u32, c: i32| if c >= 0 { a } else { b })),
        (8, Type::S32) => Some(lift3(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b })),
        (2 | 4, Type::F32) if is_flushed => {
            Some(lift3(|a: u32, b: u32, c: f32| if c >= 0.0 || c.is_subnormal() { a } else { b }))
        }
        (2 | 4, Type::F32) => Some(lift3(|a: u32, b: u32, c: f32| if c >= 0.0 { a } else { b })),
        (8, Type::F32) => Some(lift3(|a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b })),
        _ => None,
    }
}

/// The low half of a 64-bit register.
pub fn truncate() -> Alu {
    lift1(|a: u64| a as u32)
}

/// A register up to 32 bits in a 64-bit one, of whose bits so many count.
pub fn zero_extend(n_bytes: usize) -> Alu {
    match n_bytes {
        1 => lift1(|a: u8| u64::from(a)),
        2 => lift1(|a: u16| u64::from(a)),
        _ => lift1(|a: u32| u64::from(a)),
    }
}

/// As [`zero_extend`], with the sign copied upwards.
pub fn sign_extend_to_64(n_bytes: usize) -> Alu {
    match n_bytes {
        1 => lift1(|a: i8| i64::from(a)),
        2 => lift1(|a: i16| i64::from(a)),
        _ => lift1(|a: i32| i64::from(a)),
    }
}

/// One of two registers up to 32 bits, as a predicate says.
pub fn select32() -> Alu {
    choose(|a: u32, b: u32, p: bool| if p { a } else { b })
}

/// A part of a register that is cut into `n_parts`.
pub fn element(slot: Slot, n_parts: usize, part: usize) -> Alu {
    match (slot, n_parts, part) {
        (Slot::R32, 2, 0) => lift1(|a: u32| a & 0xffff),
        (Slot::R32, 2, _) => lift1(|a: u32| a >> 16),
        (Slot::R32, _, 0) => lift1(|a: u32| a & 0xff),
        (Slot::R32, _, 1) => lift1(|a: u32| a >> 8 & 0xff),
        (Slot::R32, _, 2) => lift1(|a: u32| a >> 16 & 0xff),
        (Slot::R32, _, _) => lift1(|a: u32| a >> 24),
        (_, 2, 0) => lift1(|a: u64| a as u32),
        (_, 2, _) => lift1(|a: u64| (a >> 32) as u32),
        (_, _, 0) => lift1(|a: u64| a as u32 & 0xffff),
        (_, _, 1) => lift1(|a: u64| (a >> 16) as u32 & 0xffff),
        (_, _, 2) => lift1(|a: u64| (a >> 32) as u32 & 0xffff),
        (_, _, _) => lift1(|a: u64| (a >> 48) as u32),
    }
}

/// A register made of two parts or four.
pub fn pack(slot: Slot, n_parts: usize) -> Option<Alu> {
    Some(match (slot, n_parts) {
        (Slot::R32, 2) => lift2(|a: u32, b: u32| a & 0xffff | b << 16),
        (Slot::R32, 4) => lift4(|a: u8, b: u8, c: u8, d: u8| u32::from_le_bytes([a, b, c, d])),
        (Slot::R64, 2) => lift2(|a: u32, b: u32| u64::from(a) | u64::from(b) << 32),
        (Slot::R64, 4) => lift4(|a: u16, b: u16, c: u16, d: u16| {
            u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(d) << 48
        }),
        _ => return None,
    })
}

/// `a | b`, of 64 bits.
pub fn or64() -> Alu {
    lift2(|a: u64, b: u64| a | b)
}

/// A generic address as one of its own space.
pub fn to_space() -> Alu {
    lift1(|a: u64| a & 0xffff_ffff)
}

/// Whether a generic address lies in a space.
pub fn is_in_space(space: Space) -> Alu {
    match space {
        Space::Shared => test1(|a: u64| a & !0xffff_ffff == SHARED_WINDOW),
        Space::Local => test1(|a: u64| a & !0xffff_ffff == LOCAL_WINDOW),
        Space::Param => test1(|a: u64| a & !0xffff_ffff == PARAM_WINDOW),
        Space::Global | Space::Generic => test1(|a: u64| a < SHARED_WINDOW),
    }
}

/// The same place in the shared memory of another block of the cluster: address, rank.
pub fn map_shared(slot: Slot) -> Alu {
    match slot {
        Slot::R64 => lift2(|a: u64, rank: u32| {
            let own = a & !(0xff << CLUSTER_SHIFT);
            own | u64::from(rank.wrapping_add(1) << CLUSTER_SHIFT)
        }),
        _ => lift2(|a: u32, rank: u32| {
            a & ((1 << CLUSTER_SHIFT) - 1) | rank.wrapping_add(1) << CLUSTER_SHIFT
        }),
    }
}

/// The rank of the block that a shared address belongs to: address, one's own rank.
pub fn shared_rank(slot: Slot) -> Alu {
    match slot {
        Slot::R64 => {
            lift2(|a: u64, own: u32| (a as u32 >> CLUSTER_SHIFT).checked_sub(1).unwrap_or(own))
        }
        _ => lift2(|a: u32, own: u32| (a >> CLUSTER_SHIFT).checked_sub(1).unwrap_or(own)),
    }
}
