//! Integer arithmetic.

use crate::exec::alu::bits;
use crate::exec::alu::lift::{Alu, carry, cold2, cold3, lift1, lift2, lift3};
use crate::exec::alu::types::Type;

/// One lift for each of the integer types that there is arithmetic on.
macro_rules! integers {
    ($ty:expr, $t:ident => $alu:expr) => {
        match $ty {
            Type::U16 => {
                type $t = u16;
                Some($alu)
            }
            Type::S16 => {
                type $t = i16;
                Some($alu)
            }
            Type::U32 => {
                type $t = u32;
                Some($alu)
            }
            Type::S32 => {
                type $t = i32;
                Some($alu)
            }
            Type::U64 => {
                type $t = u64;
                Some($alu)
            }
            Type::S64 => {
                type $t = i64;
                Some($alu)
            }
            _ => None,
        }
    };
}
pub(super) use integers;

/// One lift for each of the signed types.
macro_rules! signed {
    ($ty:expr, $t:ident => $alu:expr) => {
        match $ty {
            Type::S16 => {
                type $t = i16;
                Some($alu)
            }
            Type::S32 => {
                type $t = i32;
                Some($alu)
            }
            Type::S64 => {
                type $t = i64;
                Some($alu)
            }
            _ => None,
        }
    };
}

/// One lift for each of the types, with the type of the double width.
macro_rules! widening {
    ($ty:expr, $t:ident, $wide:ident => $alu:expr) => {
        match $ty {
            Type::U16 => {
                type $t = u16;
                type $wide = u32;
                Some($alu)
            }
            Type::S16 => {
                type $t = i16;
                type $wide = i32;
                Some($alu)
            }
            Type::U32 => {
                type $t = u32;
                type $wide = u64;
                Some($alu)
            }
            Type::S32 => {
                type $t = i32;
                type $wide = i64;
                Some($alu)
            }
            _ => None,
        }
    };
}

/// As `widening`, with 64 bits as well: their products stay inside of one lane's computation.
macro_rules! high_halves {
    ($ty:expr, $t:ident, $wide:ident => $alu:expr) => {
        match $ty {
            Type::U64 => { type $t = u64; type $wide = u128; Some($alu) }
            Type::S64 => { type $t = i64; type $wide = i128; Some($alu) }
            _ => widening!($ty, $t, $wide => $alu),
        }
    };
}

/// The function of an integer opcode.
pub(super) fn select(opcode: &str, modifiers: &[&str], ty: Type) -> Option<Alu> {
    match (opcode, modifiers) {
        ("add" | "sub" | "addc" | "subc", _) => sums(opcode, modifiers, ty),
        ("mul" | "mul24", [half]) => products(opcode, half, ty),
        ("mad" | "mad24" | "madc", [half, rest @ ..]) => multiply_adds((opcode, half, rest), ty),
        ("sad", []) => integers!(ty, T => cold3(|a: T, b: T, c: T| {
            c.wrapping_add((if a < b { b.wrapping_sub(a) } else { a.wrapping_sub(b) }) as T)
        })),
        ("div", []) => integers!(ty, T => cold2(|a: T, b: T| {
            // What the machine answers to a division by zero: all ones.
            if b == 0 { !0 } else { a.wrapping_div(b) }
        })),
        ("rem", []) => integers!(ty, T => cold2(|a: T, b: T| {
            if b == 0 { a } else { a.wrapping_rem(b) }
        })),
        ("abs", []) => signed!(ty, T => lift1(|a: T| a.wrapping_abs())),
        ("neg", []) => signed!(ty, T => lift1(|a: T| a.wrapping_neg())),
        ("min" | "max", _) => extremes(opcode, modifiers, ty),
        _ => bits::select(opcode, modifiers, ty),
    }
}

fn sums(opcode: &str, modifiers: &[&str], ty: Type) -> Option<Alu> {
    match (opcode, modifiers) {
        ("add", []) => integers!(ty, T => lift2(|a: T, b: T| a.wrapping_add(b)))
            .or_else(|| halves(ty, |a, b| a.wrapping_add(b))),
        ("sub", []) => integers!(ty, T => lift2(|a: T, b: T| a.wrapping_sub(b))),
        ("add", ["sat"]) if ty == Type::S32 => Some(lift2(|a: i32, b: i32| a.saturating_add(b))),
        ("sub", ["sat"]) if ty == Type::S32 => Some(lift2(|a: i32, b: i32| a.saturating_sub(b))),
        // The third source of a sum is not used: the lowering puts zero there.
        ("add" | "addc", [] | ["cc"]) => match ty {
            Type::U32 | Type::S32 => Some(carry(|a: u32, b: u32, _: u32, c: bool| {
                let sum = u64::from(a) + u64::from(b) + u64::from(c);
                (sum as u32, sum >> 32 != 0)
            })),
            Type::U64 | Type::S64 => Some(carry(|a: u64, b: u64, _: u64, c: bool| {
                let (sum, over) = a.overflowing_add(b);
                let (sum, over_again) = sum.overflowing_add(u64::from(c));
                (sum, over | over_again)
            })),
            _ => None,
        },
        ("sub" | "subc", [] | ["cc"]) => match ty {
            Type::U32 | Type::S32 => Some(carry(|a: u32, b: u32, _: u32, borrow: bool| {
                let (difference, under) = a.overflowing_sub(b);
                let (difference, under_again) = difference.overflowing_sub(u32::from(borrow));
                (difference, under | under_again)
            })),
            Type::U64 | Type::S64 => Some(carry(|a: u64, b: u64, _: u64, borrow: bool| {
                let (difference, under) = a.overflowing_sub(b);
                let (difference, under_again) = difference.overflowing_sub(u64::from(borrow));
                (difference, under | under_again)
            })),
            _ => None,
        },
        _ => None,
    }
}

fn products(opcode: &str, half: &str, ty: Type) -> Option<Alu> {
    match (opcode, half) {
        ("mul", "lo") => integers!(ty, T => lift2(|a: T, b: T| a.wrapping_mul(b))),
        ("mul", "hi") => high_halves!(ty, T, W => cold2(|a: T, b: T| {
            ((a as W).wrapping_mul(b as W) >> T::BITS) as T
        })),
        ("mul", "wide") => widening!(ty, T, W => lift2(|a: T, b: T| {
            W::from(a).wrapping_mul(W::from(b))
        })),
        ("mul24", "lo") => match ty {
            Type::U32 => Some(lift2(|a: u32, b: u32| low24(a).wrapping_mul(low24(b)))),
            Type::S32 => Some(lift2(|a: i32, b: i32| low24s(a).wrapping_mul(low24s(b)))),
            _ => None,
        },
        ("mul24", "hi") => match ty {
            Type::U32 => Some(lift2(|a: u32, b: u32| {
                ((u64::from(low24(a)) * u64::from(low24(b))) >> 16) as u32
            })),
            Type::S32 => Some(lift2(|a: i32, b: i32| {
                ((i64::from(low24s(a)) * i64::from(low24s(b))) >> 16) as i32
            })),
            _ => None,
        },
        _ => None,
    }
}

#[inline(always)]
fn low24(value: u32) -> u32 {
    value & 0xff_ffff
}

#[inline(always)]
fn low24s(value: i32) -> i32 {
    value << 8 >> 8
}

fn multiply_adds((opcode, half, rest): (&str, &str, &[&str]), ty: Type) -> Option<Alu> {
    match (opcode, half, rest) {
        ("mad", "lo", []) => {
            integers!(ty, T => lift3(|a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c)))
        }
        ("mad", "hi", []) => high_halves!(ty, T, W => cold3(|a: T, b: T, c: T| {
            (((a as W).wrapping_mul(b as W) >> T::BITS) as T).wrapping_add(c)
        })),
        ("mad", "hi", ["sat"]) if ty == Type::S32 => Some(lift3(|a: i32, b: i32, c: i32| {
            (((i64::from(a) * i64::from(b)) >> 32) as i32).saturating_add(c)
        })),
        ("mad", "wide", []) => widening!(ty, T, W => lift3(|a: T, b: T, c: W| {
            W::from(a).wrapping_mul(W::from(b)).wrapping_add(c)
        })),
        ("mad24", "lo", []) => match ty {
            Type::U32 => Some(lift3(|a: u32, b: u32, c: u32| {
                low24(a).wrapping_mul(low24(b)).wrapping_add(c)
            })),
            Type::S32 => Some(lift3(|a: i32, b: i32, c: i32| {
                low24s(a).wrapping_mul(low24s(b)).wrapping_add(c)
            })),
            _ => None,
        },
        ("mad" | "madc", "lo" | "hi", [] | ["cc"]) => carried_products(half, ty),
        _ => None,
    }
}

fn carried_products(half: &str, ty: Type) -> Option<Alu> {
    match (half, ty) {
        ("lo", Type::U32 | Type::S32) => Some(carry(|a: u32, b: u32, c: u32, carried: bool| {
            let sum = u64::from(a.wrapping_mul(b)) + u64::from(c) + u64::from(carried);
            (sum as u32, sum >> 32 != 0)
        })),
        ("hi", Type::U32) => Some(carry(|a: u32, b: u32, c: u32, carried: bool| {
            let sum = ((u64::from(a) * u64::from(b)) >> 32) + u64::from(c) + u64::from(carried);
            (sum as u32, sum >> 32 != 0)
        })),
        ("lo", Type::U64 | Type::S64) => Some(carry(|a: u64, b: u64, c: u64, carried: bool| {
            let sum = u128::from(a.wrapping_mul(b)) + u128::from(c) + u128::from(carried);
            (sum as u64, sum >> 64 != 0)
        })),
        ("hi", Type::U64) => Some(carry(|a: u64, b: u64, c: u64, carried: bool| {
            let sum = ((u128::from(a) * u128::from(b)) >> 64) + u128::from(c) + u128::from(carried);
            (sum as u64, sum >> 64 != 0)
        })),
        _ => None,
    }
}

fn extremes(opcode: &str, modifiers: &[&str], ty: Type) -> Option<Alu> {
    match (opcode, modifiers) {
        ("min", []) => integers!(ty, T => lift2(|a: T, b: T| a.min(b))).or_else(|| match ty {
            Type::U16x2 => halves(ty, |a, b| a.min(b)),
            _ => halves(ty, |a, b| (a as i16).min(b as i16) as u16),
        }),
        ("max", []) => integers!(ty, T => lift2(|a: T, b: T| a.max(b))).or_else(|| match ty {
            Type::U16x2 => halves(ty, |a, b| a.max(b)),
            _ => halves(ty, |a, b| (a as i16).max(b as i16) as u16),
        }),
        ("min", ["relu"]) if ty == Type::S32 => Some(lift2(|a: i32, b: i32| a.min(b).max(0))),
        ("max", ["relu"]) if ty == Type::S32 => Some(lift2(|a: i32, b: i32| a.max(b).max(0))),
        ("min", ["relu"]) if ty == Type::S16x2 => {
            halves(ty, |a, b| (a as i16).min(b as i16).max(0) as u16)
        }
        ("max", ["relu"]) if ty == Type::S16x2 => {
            halves(ty, |a, b| (a as i16).max(b as i16).max(0) as u16)
        }
        _ => None,
    }
}

/// An operation on both halves of a register.
fn halves<F>(ty: Type, f: F) -> Option<Alu>
where
    F: Fn(u16, u16) -> u16 + Copy + 'static,
{
    matches!(ty, Type::U16x2 | Type::S16x2).then(|| {
        lift2(move |a: u32, b: u32| {
            let low = f(a as u16, b as u16);
            let high = f((a >> 16) as u16, (b >> 16) as u16);
            u32::from(low) | u32::from(high) << 16
        })
    })
}
