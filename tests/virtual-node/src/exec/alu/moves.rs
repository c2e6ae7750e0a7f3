//! Copies, selections and changes of width.

use crate::exec::alu::lift::{Alu, choose, lift1, lift3};
use crate::exec::alu::types::Type;

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

/// Copies a register up to 32 bits as it is.
pub fn copy() -> Alu {
    lift1(|a: u32| a)
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
