//! Integer arithmetic.

use crate::exec::alu::lift::{Alu, carry, cold1, cold2, cold3, lift1, lift2, lift3, lift4};
use crate::exec::alu::types::Type;

/// One lift for each of the integer types.
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
        ("dp4a", [a]) => dot_products(a, ty),
        _ => bit_counts(opcode, modifiers, ty).or_else(|| fields(opcode, modifiers, ty)),
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
                (u64::from(low24(a)) * u64::from(low24(b)) >> 16) as u32
            })),
            Type::S32 => Some(lift2(|a: i32, b: i32| {
                (i64::from(low24s(a)) * i64::from(low24s(b)) >> 16) as i32
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
            ((i64::from(a) * i64::from(b) >> 32) as i32).saturating_add(c)
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
            let sum = (u64::from(a) * u64::from(b) >> 32) + u64::from(c) + u64::from(carried);
            (sum as u32, sum >> 32 != 0)
        })),
        ("lo", Type::U64 | Type::S64) => Some(carry(|a: u64, b: u64, c: u64, carried: bool| {
            let sum = u128::from(a.wrapping_mul(b)) + u128::from(c) + u128::from(carried);
            (sum as u64, sum >> 64 != 0)
        })),
        ("hi", Type::U64) => Some(carry(|a: u64, b: u64, c: u64, carried: bool| {
            let sum = (u128::from(a) * u128::from(b) >> 64) + u128::from(c) + u128::from(carried);
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

fn bit_counts(opcode: &str, modifiers: &[&str], ty: Type) -> Option<Alu> {
    match (opcode, modifiers, ty.as_unsigned()) {
        ("popc", [], Type::U32) => Some(cold1(|a: u32| a.count_ones())),
        ("popc", [], Type::U64) => Some(cold1(|a: u64| a.count_ones())),
        ("clz", [], Type::U32) => Some(cold1(|a: u32| a.leading_zeros())),
        ("clz", [], Type::U64) => Some(cold1(|a: u64| a.leading_zeros())),
        ("brev", [], Type::U32) => Some(cold1(|a: u32| a.reverse_bits())),
        ("brev", [], Type::U64) => Some(cold1(|a: u64| a.reverse_bits())),
        ("bfind", [], Type::U32) => Some(cold1(|a: u32| highest(a.into(), 32, false))),
        ("bfind", [], Type::U64) => Some(cold1(|a: u64| highest(a, 64, false))),
        ("bfind", [], Type::S32) => Some(cold1(|a: i32| highest(magnitude(a.into()), 32, false))),
        ("bfind", [], Type::S64) => Some(cold1(|a: i64| highest(magnitude(a), 64, false))),
        ("bfind", ["shiftamt"], Type::U32) => Some(cold1(|a: u32| highest(a.into(), 32, true))),
        ("bfind", ["shiftamt"], Type::U64) => Some(cold1(|a: u64| highest(a, 64, true))),
        ("bfind", ["shiftamt"], Type::S32) => {
            Some(cold1(|a: i32| highest(magnitude(a.into()), 32, true)))
        }
        ("bfind", ["shiftamt"], Type::S64) => Some(cold1(|a: i64| highest(magnitude(a), 64, true))),
        _ => None,
    }
}

/// Bits of a negative number that are not copies of its sign, as ones.
#[inline(always)]
fn magnitude(value: i64) -> u64 {
    (if value < 0 { !value } else { value }) as u64
}

/// Position of the highest one, or the shift that brings it to the top; all ones if there is none.
#[inline(always)]
fn highest(value: u64, n_bits: u32, as_shift: bool) -> u32 {
    if value == 0 {
        return !0;
    }
    let position = 63 - value.leading_zeros();
    if as_shift { n_bits - 1 - position } else { position }
}

/// Bit fields and byte dot products.
fn fields(opcode: &str, modifiers: &[&str], ty: Type) -> Option<Alu> {
    match (opcode, modifiers, ty) {
        ("bfe", [], Type::U32) => {
            Some(lift3(|a: u32, at: u32, n: u32| extract(a.into(), at & 255, n & 255, 32) as u32))
        }
        ("bfe", [], Type::U64) => {
            Some(lift3(|a: u64, at: u32, n: u32| extract(a, at & 255, n & 255, 64)))
        }
        ("bfe", [], Type::S32) => Some(lift3(|a: i32, at: u32, n: u32| {
            extract_signed(a.into(), at & 255, n & 255, 32) as i32
        })),
        ("bfe", [], Type::S64) => {
            Some(lift3(|a: i64, at: u32, n: u32| extract_signed(a, at & 255, n & 255, 64)))
        }
        ("bfi", [], Type::B32) => Some(lift4(|a: u32, b: u32, at: u32, n: u32| {
            insert(a.into(), b.into(), (at & 255, n & 255), 32) as u32
        })),
        ("bfi", [], Type::B64) => {
            Some(lift4(|a: u64, b: u64, at: u32, n: u32| insert(a, b, (at & 255, n & 255), 64)))
        }
        ("bmsk", ["clamp"], Type::B32) => {
            Some(lift2(|at: u32, n: u32| (ones(n) << at.min(32)) as u32))
        }
        ("bmsk", ["wrap"], Type::B32) => {
            Some(lift2(|at: u32, n: u32| (ones(n & 31) << (at & 31)) as u32))
        }
        ("szext", ["clamp"], Type::U32) => Some(lift2(|a: u32, n: u32| a & ones(n) as u32)),
        ("szext", ["clamp"], Type::S32) => {
            Some(lift2(|a: i32, n: u32| extract_signed(a.into(), 0, n, 32) as i32))
        }
        _ => None,
    }
}

/// As many ones as fit into 64 bits.
#[inline(always)]
fn ones(n: u32) -> u64 {
    if n > 63 { !0 } else { (1 << n) - 1 }
}

#[inline(always)]
fn extract(value: u64, at: u32, n: u32, n_bits: u32) -> u64 {
    if at >= n_bits { 0 } else { value >> at & ones(n) }
}

/// The field, with its own highest bit copied upwards; beyond the register stands its sign.
#[inline(always)]
fn extract_signed(value: i64, at: u32, n: u32, n_bits: u32) -> i64 {
    if n == 0 {
        return 0;
    }
    // `value` is sign-extended already, so bits beyond the register read as its sign.
    let field = value >> at.min(n_bits - 1);
    let unused = 64 - n.min(64);
    field << unused >> unused
}

#[inline(always)]
fn insert(field: u64, into: u64, (at, n): (u32, u32), n_bits: u32) -> u64 {
    if at >= n_bits {
        return into;
    }
    let mask = ones(n) << at;
    into & !mask | field << at & mask
}

/// Four products of bytes, added up.
fn dot_products(a_type: &str, b_type: Type) -> Option<Alu> {
    match (a_type, b_type) {
        ("u32", Type::U32) => Some(lift3(|a: u32, b: u32, c: u32| dot(a, b, c, u8_at, u8_at))),
        ("u32", Type::S32) => Some(lift3(|a: u32, b: u32, c: u32| dot(a, b, c, u8_at, s8_at))),
        ("s32", Type::U32) => Some(lift3(|a: u32, b: u32, c: u32| dot(a, b, c, s8_at, u8_at))),
        ("s32", Type::S32) => Some(lift3(|a: u32, b: u32, c: u32| dot(a, b, c, s8_at, s8_at))),
        _ => None,
    }
}

#[inline(always)]
fn u8_at(value: u32, byte: u32) -> i32 {
    i32::from((value >> (8 * byte)) as u8)
}

#[inline(always)]
fn s8_at(value: u32, byte: u32) -> i32 {
    i32::from((value >> (8 * byte)) as i8)
}

#[inline(always)]
fn dot(
    a: u32,
    b: u32,
    c: u32,
    a_at: impl Fn(u32, u32) -> i32,
    b_at: impl Fn(u32, u32) -> i32,
) -> u32 {
    (0..4).fold(c, |sum, byte| sum.wrapping_add((a_at(a, byte) * b_at(b, byte)) as u32))
}
