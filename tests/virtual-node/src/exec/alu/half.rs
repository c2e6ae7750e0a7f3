//! Arithmetic on f16 and bf16, alone and in pairs.
//!
//! Sums and products of two halves are exact in f32 or rounded there once more than needed,
//! which does no harm with so many bits to spare; a fused multiply-add goes through f64.

use crate::exec::alu::float::{maximum, minimum, nan_or, saturate};
use crate::exec::alu::lane::Lane;
use crate::exec::alu::lift::{Alu, cold1, cold2, cold3, lift2};
use crate::exec::alu::types::Type;
use crate::exec::numbers::{
    BF16, F16, Rounding, bf16_bits, bf16_value, exact_f32, f16_bits, f16_value, fma_odd,
};

/// A 16-bit number.
pub(super) trait Half: Copy + 'static {
    fn value(bits: u16) -> f32;
    fn round(value: f32) -> u16;
    /// `a * b + c`, rounded once.
    fn fma(a: f32, b: f32, c: f32) -> f32;
}

/// IEEE half precision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ieee;

/// The upper half of an f32.
#[derive(Debug, Clone, Copy)]
pub(super) struct Brain;

impl Half for Ieee {
    #[inline(always)]
    fn value(bits: u16) -> f32 {
        f16_value(bits)
    }
    #[inline(always)]
    fn round(value: f32) -> u16 {
        f16_bits(value)
    }
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        let exact = fma_odd(a.into(), b.into(), c.into());
        exact_f32(F16.round(exact, Rounding::NearestEven))
    }
}

impl Half for Brain {
    #[inline(always)]
    fn value(bits: u16) -> f32 {
        bf16_value(bits)
    }
    #[inline(always)]
    fn round(value: f32) -> u16 {
        bf16_bits(value)
    }
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        let exact = fma_odd(a.into(), b.into(), c.into());
        exact_f32(BF16.round(exact, Rounding::NearestEven))
    }
}

/// The function of an opcode on halves.
pub(super) fn select(opcode: &str, modifiers: &[&str], ty: Type) -> Option<Alu> {
    match ty {
        Type::F16 => typed::<Ieee, u16>(opcode, modifiers),
        Type::F16x2 => typed::<Ieee, u32>(opcode, modifiers),
        Type::Bf16 => typed::<Brain, u16>(opcode, modifiers),
        Type::Bf16x2 => typed::<Brain, u32>(opcode, modifiers),
        _ => None,
    }
}

/// A register with one half or two.
trait Packed: Lane {
    fn map1(a: Self, f: impl Fn(u16) -> u16) -> Self;
    fn map2(a: Self, b: Self, f: impl Fn(u16, u16) -> u16) -> Self;
    fn map3(a: Self, b: Self, c: Self, f: impl Fn(u16, u16, u16) -> u16) -> Self;
}

impl Packed for u16 {
    #[inline(always)]
    fn map1(a: u16, f: impl Fn(u16) -> u16) -> u16 {
        f(a)
    }
    #[inline(always)]
    fn map2(a: u16, b: u16, f: impl Fn(u16, u16) -> u16) -> u16 {
        f(a, b)
    }
    #[inline(always)]
    fn map3(a: u16, b: u16, c: u16, f: impl Fn(u16, u16, u16) -> u16) -> u16 {
        f(a, b, c)
    }
}

#[inline(always)]
fn high(value: u32) -> u16 {
    (value >> 16) as u16
}

#[inline(always)]
fn join(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

impl Packed for u32 {
    #[inline(always)]
    fn map1(a: u32, f: impl Fn(u16) -> u16) -> u32 {
        join(f(a as u16), f(high(a)))
    }
    #[inline(always)]
    fn map2(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
        join(f(a as u16, b as u16), f(high(a), high(b)))
    }
    #[inline(always)]
    fn map3(a: u32, b: u32, c: u32, f: impl Fn(u16, u16, u16) -> u16) -> u32 {
        join(f(a as u16, b as u16, c as u16), f(high(a), high(b), high(c)))
    }
}

/// f32 functions as functions of packed halves.
fn one<H: Half, P: Packed>(f: impl Fn(f32) -> f32 + Copy + 'static) -> Alu {
    cold1(move |a: P| P::map1(a, |a| H::round(f(H::value(a)))))
}

fn two_rare<H: Half, P: Packed>(f: impl Fn(f32, f32) -> f32 + Copy + 'static) -> Alu {
    cold2(move |a: P, b: P| P::map2(a, b, |a, b| H::round(f(H::value(a), H::value(b)))))
}

fn two<H: Half, P: Packed>(f: impl Fn(f32, f32) -> f32 + Copy + 'static) -> Alu {
    lift2(move |a: P, b: P| P::map2(a, b, |a, b| H::round(f(H::value(a), H::value(b)))))
}

fn three<H: Half, P: Packed>(f: impl Fn(f32, f32, f32) -> f32 + Copy + 'static) -> Alu {
    cold3(move |a: P, b: P, c: P| {
        P::map3(a, b, c, |a, b, c| H::round(f(H::value(a), H::value(b), H::value(c))))
    })
}

/// NaN as it is, negative numbers as 0.
#[inline(always)]
fn relu(value: f32) -> f32 {
    if value <= 0.0 { 0.0 } else { value }
}

fn typed<H: Half, P: Packed>(opcode: &str, modifiers: &[&str]) -> Option<Alu> {
    let n_flops = size_of::<P>() as u8 / 2;
    let modifiers: Vec<&str> = modifiers.iter().copied().filter(|m| *m != "rn").collect();
    Some(match (opcode, modifiers.as_slice()) {
        ("add", []) => two::<H, P>(|a, b| a + b).flops(n_flops),
        ("sub", []) => two::<H, P>(|a, b| a - b).flops(n_flops),
        ("mul", []) => two::<H, P>(|a, b| a * b).flops(n_flops),
        ("add", ["sat"]) => two_rare::<H, P>(|a, b| saturate(a + b)).flops(n_flops),
        ("sub", ["sat"]) => two_rare::<H, P>(|a, b| saturate(a - b)).flops(n_flops),
        ("mul", ["sat"]) => two_rare::<H, P>(|a, b| saturate(a * b)).flops(n_flops),
        ("fma", []) => three::<H, P>(H::fma).flops(2 * n_flops),
        ("fma", ["sat"]) => three::<H, P>(|a, b, c| saturate(H::fma(a, b, c))).flops(2 * n_flops),
        ("fma", ["relu"]) => three::<H, P>(|a, b, c| relu(H::fma(a, b, c))).flops(2 * n_flops),
        ("min", []) => two_rare::<H, P>(minimum),
        ("max", []) => two_rare::<H, P>(maximum),
        ("min", ["NaN"]) => two_rare::<H, P>(|a, b| nan_or(a, b, minimum(a, b))),
        ("max", ["NaN"]) => two_rare::<H, P>(|a, b| nan_or(a, b, maximum(a, b))),
        ("abs", []) => cold1(|a: P| P::map1(a, |a| a & 0x7fff)),
        ("neg", []) => cold1(|a: P| P::map1(a, |a| a ^ 0x8000)),
        ("ex2", ["approx"] | ["approx", "ftz"]) => one::<H, P>(|a| a.exp2()).flops(n_flops),
        ("tanh", ["approx"]) => one::<H, P>(|a| a.tanh()).flops(n_flops),
        _ => return None,
    })
}
