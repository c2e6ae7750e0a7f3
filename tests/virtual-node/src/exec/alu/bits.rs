//! Counting and finding bits, bit fields, and dot products of bytes.

use crate::exec::alu::lift::{Alu, cold1, lift2, lift3, lift4};
use crate::exec::alu::types::Type;

/// The function of an opcode on bits and bytes.
pub(super) fn select(opcode: &str, modifiers: &[&str], ty: Type) -> Option<Alu> {
    match (opcode, modifiers) {
        ("dp4a", [a]) => dot_products(a, ty),
        _ => bit_counts(opcode, modifiers, ty).or_else(|| fields(opcode, modifiers, ty)),
    }
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
