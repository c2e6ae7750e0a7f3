//! Bitwise logic, shifts and permutations, and logic between predicates.

use crate::exec::alu::lift::{Alu, AluFn, lift1, lift2, lift3, lift4, masks};
use crate::exec::alu::types::Type;
use crate::exec::inst::Pred;

/// The function of a bitwise opcode.
pub(super) fn select(opcode: &str, modifiers: &[&str], ty: Type) -> Option<Alu> {
    match (opcode, modifiers, ty) {
        ("and", [], Type::B16 | Type::B32) => Some(lift2(|a: u32, b: u32| a & b)),
        ("and", [], Type::B64) => Some(lift2(|a: u64, b: u64| a & b)),
        ("or", [], Type::B16 | Type::B32) => Some(lift2(|a: u32, b: u32| a | b)),
        ("or", [], Type::B64) => Some(lift2(|a: u64, b: u64| a | b)),
        ("xor", [], Type::B16 | Type::B32) => Some(lift2(|a: u32, b: u32| a ^ b)),
        ("xor", [], Type::B64) => Some(lift2(|a: u64, b: u64| a ^ b)),
        ("not", [], Type::B16) => Some(lift1(|a: u16| !a)),
        ("not", [], Type::B32) => Some(lift1(|a: u32| !a)),
        ("not", [], Type::B64) => Some(lift1(|a: u64| !a)),
        ("cnot", [], Type::B16) => Some(lift1(|a: u16| u16::from(a == 0))),
        ("cnot", [], Type::B32) => Some(lift1(|a: u32| u32::from(a == 0))),
        ("cnot", [], Type::B64) => Some(lift1(|a: u64| u64::from(a == 0))),
        ("lop3", [], Type::B32) => Some(lift4(lookup)),
        ("shl" | "shr", [], _) => shifts(opcode, ty),
        ("shf", [direction, mode], Type::B32) => funnel_shifts(direction, mode),
        _ => None,
    }
}

/// Any function of three bits, bit by bit: `table` has its eight values.
#[inline(always)]
fn lookup(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let mut out = 0;
    for minterm in 0..8 {
        let a = if minterm & 4 != 0 { a } else { !a };
        let b = if minterm & 2 != 0 { b } else { !b };
        let c = if minterm & 1 != 0 { c } else { !c };
        let is_in = 0u32.wrapping_sub(table >> minterm & 1);
        out |= a & b & c & is_in;
    }
    out
}

/// Shifts by a 32-bit amount, which clamps.
fn shifts(opcode: &str, ty: Type) -> Option<Alu> {
    match (opcode, ty) {
        ("shl", Type::B16) => Some(lift2(|a: u16, n: u32| if n > 15 { 0 } else { a << n })),
        ("shl", Type::B32) => Some(lift2(|a: u32, n: u32| if n > 31 { 0 } else { a << n })),
        ("shl", Type::B64) => Some(lift2(|a: u64, n: u32| if n > 63 { 0 } else { a << n })),
        ("shr", Type::B16 | Type::U16) => {
            Some(lift2(|a: u16, n: u32| if n > 15 { 0 } else { a >> n }))
        }
        ("shr", Type::B32 | Type::U32) => {
            Some(lift2(|a: u32, n: u32| if n > 31 { 0 } else { a >> n }))
        }
        ("shr", Type::B64 | Type::U64) => {
            Some(lift2(|a: u64, n: u32| if n > 63 { 0 } else { a >> n }))
        }
        ("shr", Type::S16) => Some(lift2(|a: i16, n: u32| a >> n.min(15))),
        ("shr", Type::S32) => Some(lift2(|a: i32, n: u32| a >> n.min(31))),
        ("shr", Type::S64) => Some(lift2(|a: i64, n: u32| a >> n.min(63))),
        _ => None,
    }
}

/// Shifts of the pair `b:a`.
fn funnel_shifts(direction: &str, mode: &str) -> Option<Alu> {
    match (direction, mode) {
        ("l", "clamp") => Some(lift3(|a: u32, b: u32, n: u32| left(a, b, n.min(32)))),
        ("l", "wrap") => Some(lift3(|a: u32, b: u32, n: u32| left(a, b, n & 31))),
        ("r", "clamp") => Some(lift3(|a: u32, b: u32, n: u32| right(a, b, n.min(32)))),
        ("r", "wrap") => Some(lift3(|a: u32, b: u32, n: u32| right(a, b, n & 31))),
        _ => None,
    }
}

#[inline(always)]
fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[inline(always)]
fn left(a: u32, b: u32, n: u32) -> u32 {
    (pair(a, b) << n >> 32) as u32
}

#[inline(always)]
fn right(a: u32, b: u32, n: u32) -> u32 {
    (pair(a, b) >> n) as u32
}

/// `prmt.b32.mode`: here the type stands first.
pub(super) fn permutation(modifiers: &[&str]) -> Option<Alu> {
    let ["b32", mode @ ..] = modifiers else { return None };
    match mode {
        [] => Some(lift3(|a: u32, b: u32, selector: u32| {
            gather(pair(a, b), |at| selector >> (4 * at) & 15)
        })),
        ["f4e"] => Some(lift3(|a: u32, b: u32, s: u32| gather(pair(a, b), |at| (s & 3) + at))),
        ["b4e"] => Some(lift3(|a: u32, b: u32, s: u32| {
            gather(pair(a, b), |at| (s & 3).wrapping_sub(at) & 7)
        })),
        ["rc8"] => Some(lift3(|a: u32, b: u32, s: u32| gather(pair(a, b), |_| s & 3))),
        ["ecl"] => Some(lift3(|a: u32, b: u32, s: u32| gather(pair(a, b), |at| at.max(s & 3)))),
        ["ecr"] => Some(lift3(|a: u32, b: u32, s: u32| gather(pair(a, b), |at| at.min(s & 3)))),
        ["rc16"] => {
            Some(lift3(|a: u32, b: u32, s: u32| gather(pair(a, b), |at| (s & 1) * 2 + (at & 1))))
        }
        _ => None,
    }
}

/// Four bytes of the pair. A selector's highest bit asks for the byte's sign eight times.
#[inline(always)]
fn gather(bytes: u64, selector: impl Fn(u32) -> u32) -> u32 {
    let mut out = 0;
    for at in 0..4 {
        let selected = selector(at);
        let byte = (bytes >> (8 * (selected & 7))) as u8;
        let byte = if selected & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
        out |= u32::from(byte) << (8 * at);
    }
    out
}

/// The function of an opcode between predicates.
pub(super) fn select_predicate(opcode: &str, modifiers: &[&str]) -> Option<Alu> {
    if !modifiers.is_empty() {
        return None;
    }
    match opcode {
        "mov" => Some(copy_predicate()),
        "and" => Some(and_predicates()),
        "or" => Some(or_predicates()),
        "xor" => Some(xor_predicates()),
        "not" => Some(not_predicate()),
        _ => None,
    }
}

/// `a and b`
pub fn and_predicates() -> Alu {
    two_masks::<1>(2)
}

/// `a or b`
pub fn or_predicates() -> Alu {
    two_masks::<2>(2)
}

/// `a xor b`
pub fn xor_predicates() -> Alu {
    two_masks::<3>(2)
}

/// `not a`
pub fn not_predicate() -> Alu {
    two_masks::<4>(1)
}

/// `a`
pub fn copy_predicate() -> Alu {
    two_masks::<0>(1)
}

fn two_masks<const KIND: u8>(n_sources: usize) -> Alu {
    let run: AluFn = |registers, rows, mask| {
        let a = registers.predicate(Pred(rows[1]));
        let b = registers.predicate(Pred(rows[2]));
        let value = match KIND {
            0 => a,
            1 => a & b,
            2 => a | b,
            3 => a ^ b,
            _ => !a,
        };
        registers.set_predicate(Pred(rows[0]), value, mask);
    };
    masks(run, n_sources)
}
