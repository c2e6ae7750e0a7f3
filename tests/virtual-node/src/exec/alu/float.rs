//! Arithmetic on f32 and f64.
//!
//! The approximate functions (`ex2.approx` and the like) are computed to f32's precision, which
//! is within the error that the PTX ISA allows them.

use crate::exec::alu::lift::{Alu, cold1, cold2, cold3, lift1, lift2, lift3, test1};
use crate::exec::alu::types::Type;
use crate::exec::numbers::{self, F32, Rounding, add_odd, div_odd, exact_f32, fma_odd, sqrt_odd};

/// Modifiers of an f32 instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mode {
    /// Subnormal sources and results are zero.
    is_flushed: bool,
    /// The result is clamped to [0, 1], NaN to 0.
    is_saturated: bool,
    rounding: Option<Rounding>,
    is_approximate: bool,
    is_full: bool,
    nan: bool,
    xor_sign: bool,
}

impl Mode {
    fn parse(modifiers: &[&str]) -> Option<Mode> {
        let mut mode = Mode::default();
        for modifier in modifiers {
            match *modifier {
                "ftz" => mode.is_flushed = true,
                "sat" => mode.is_saturated = true,
                "approx" => mode.is_approximate = true,
                "full" => mode.is_full = true,
                "NaN" => mode.nan = true,
                "xorsign" => mode.xor_sign = true,
                "abs" if mode.xor_sign => {}
                "rn" => mode.rounding = Some(Rounding::NearestEven),
                "rz" => mode.rounding = Some(Rounding::Zero),
                "rm" => mode.rounding = Some(Rounding::Down),
                "rp" => mode.rounding = Some(Rounding::Up),
                _ => return None,
            }
        }
        Some(mode)
    }

    fn rounding(&self) -> Rounding {
        self.rounding.unwrap_or(Rounding::NearestEven)
    }
}

/// Zero of the same sign, if the number is subnormal.
#[inline(always)]
fn flush(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

/// Clamped to [0, 1]; NaN and -0 become 0.
#[inline(always)]
pub(super) fn saturate(value: f32) -> f32 {
    if value > 0.0 { if value < 1.0 { value } else { 1.0 } } else { 0.0 }
}

/// Lifts an f32 function under `.ftz` and `.sat`; what saturates is rare.
macro_rules! modes {
    ($mode:expr, $lift:ident, $cold:ident, |$($arg:ident),+| $body:expr) => {
        match ($mode.is_flushed, $mode.is_saturated) {
            (false, false) => $lift(|$($arg: f32),+| -> f32 { $body }),
            (true, false) => $lift(|$($arg: f32),+| -> f32 {
                $(let $arg = flush($arg);)+
                flush($body)
            }),
            (false, true) => $cold(|$($arg: f32),+| -> f32 { saturate($body) }),
            (true, true) => $cold(|$($arg: f32),+| -> f32 {
                $(let $arg = flush($arg);)+
                saturate(flush($body))
            }),
        }
    };
}

/// Lifts an f32 function in all rounding modes: to the nearest by the processor, else from an
/// f64 that was rounded to odd.
macro_rules! rounded {
    ($mode:expr, $lift:ident, $cold:ident, |$($arg:ident),+| $nearest:expr, $odd:expr) => {
        match $mode.rounding() {
            Rounding::NearestEven => modes!($mode, $lift, $cold, |$($arg),+| $nearest),
            Rounding::Zero => rounded!(@ Zero, $mode, $cold, |$($arg),+| $odd),
            Rounding::Down => rounded!(@ Down, $mode, $cold, |$($arg),+| $odd),
            Rounding::Up => rounded!(@ Up, $mode, $cold, |$($arg),+| $odd),
        }
    };
    (@ $rounding:ident, $mode:expr, $lift:ident, |$($arg:ident),+| $odd:expr) => {
        modes!($mode, $lift, $lift, |$($arg),+| {
            $(let $arg = f64::from($arg);)+
            exact_f32(F32.round($odd, Rounding::$rounding))
        })
    };
}

/// The function of a floating-point opcode.
pub(super) fn select(opcode: &str, modifiers: &[&str], ty: Type) -> Option<Alu> {
    if opcode == "copysign" && modifiers.is_empty() {
        // The first source gives the sign.
        return Some(match ty {
            Type::F32 => lift2(|a: f32, b: f32| b.copysign(a)),
            _ => lift2(|a: f64, b: f64| b.copysign(a)),
        });
    }
    if opcode == "testp" {
        return tests(modifiers, ty);
    }
    let mode = Mode::parse(modifiers)?;
    match ty {
        Type::F32 => arithmetic(opcode, mode).or_else(|| functions(opcode, mode)),
        _ => double(opcode, mode),
    }
}

fn arithmetic(opcode: &str, mode: Mode) -> Option<Alu> {
    Some(match opcode {
        "add" => rounded!(mode, lift2, cold2, |a, b| a + b, add_odd(a, b)).flops(1),
        "sub" => rounded!(mode, lift2, cold2, |a, b| a - b, add_odd(a, -b)).flops(1),
        "mul" => rounded!(mode, lift2, cold2, |a, b| a * b, a * b).flops(1),
        "fma" | "mad" => {
            rounded!(mode, lift3, cold3, |a, b, c| a.mul_add(b, c), fma_odd(a, b, c)).flops(2)
        }
        "div" if mode.is_approximate || mode.is_full => {
            modes!(mode, lift2, cold2, |a, b| a / b).flops(1)
        }
        "div" => rounded!(mode, lift2, cold2, |a, b| a / b, div_odd(a, b)).flops(1),
        "min" if mode.nan => modes!(mode, lift2, cold2, |a, b| nan_or(a, b, minimum(a, b))),
        "max" if mode.nan => modes!(mode, lift2, cold2, |a, b| nan_or(a, b, maximum(a, b))),
        "min" if mode.xor_sign => {
            modes!(mode, cold2, cold2, |a, b| with_xor_sign(a, b, minimum(a.abs(), b.abs())))
        }
        "max" if mode.xor_sign => {
            modes!(mode, cold2, cold2, |a, b| with_xor_sign(a, b, maximum(a.abs(), b.abs())))
        }
        "min" => modes!(mode, lift2, cold2, |a, b| minimum(a, b)),
        "max" => modes!(mode, lift2, cold2, |a, b| maximum(a, b)),
        "abs" => modes!(mode, lift1, cold1, |a| a.abs()),
        "neg" => modes!(mode, lift1, cold1, |a| -a),
        _ => return None,
    })
}

fn functions(opcode: &str, mode: Mode) -> Option<Alu> {
    let rounding = mode.rounding;
    Some(match opcode {
        "rcp" if mode.is_approximate => modes!(mode, lift1, cold1, |a| 1.0 / a).flops(1),
        "rcp" if rounding.is_some() => {
            rounded!(mode, lift1, cold1, |a| 1.0 / a, div_odd(1.0, a)).flops(1)
        }
        "sqrt" if mode.is_approximate => modes!(mode, lift1, cold1, |a| a.sqrt()).flops(1),
        "sqrt" if rounding.is_some() => {
            rounded!(mode, lift1, cold1, |a| a.sqrt(), sqrt_odd(a)).flops(1)
        }
        "rsqrt" if mode.is_approximate => {
            modes!(mode, lift1, cold1, |a| (1.0 / f64::from(a).sqrt()) as f32).flops(1)
        }
        "ex2" if mode.is_approximate => modes!(mode, cold1, cold1, |a| a.exp2()).flops(1),
        "lg2" if mode.is_approximate => modes!(mode, cold1, cold1, |a| a.log2()).flops(1),
        "sin" if mode.is_approximate => modes!(mode, cold1, cold1, |a| a.sin()).flops(1),
        "cos" if mode.is_approximate => modes!(mode, cold1, cold1, |a| a.cos()).flops(1),
        "tanh" if mode.is_approximate => modes!(mode, cold1, cold1, |a| a.tanh()).flops(1),
        _ => return None,
    })
}

/// The smaller number; the number, if one is NaN; -0 is smaller than +0.
#[inline(always)]
pub(super) fn minimum(a: f32, b: f32) -> f32 {
    let smaller = if a < b { a } else { b };
    let ordered = if a == b { f32::from_bits(a.to_bits() | b.to_bits()) } else { smaller };
    pick_number(a, b, ordered)
}

/// The larger number; the number, if one is NaN; +0 is larger than -0.
#[inline(always)]
pub(super) fn maximum(a: f32, b: f32) -> f32 {
    let larger = if a > b { a } else { b };
    let ordered = if a == b { f32::from_bits(a.to_bits() & b.to_bits()) } else { larger };
    pick_number(a, b, ordered)
}

#[inline(always)]
fn pick_number(a: f32, b: f32, ordered: f32) -> f32 {
    let nan = f32::from_bits(0x7fff_ffff);
    let without_a = if b.is_nan() { nan } else { b };
    let without_b = if b.is_nan() { a } else { ordered };
    if a.is_nan() { without_a } else { without_b }
}

#[inline(always)]
pub(super) fn nan_or(a: f32, b: f32, otherwise: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::from_bits(0x7fff_ffff) } else { otherwise }
}

/// Gives a magnitude the product of two signs.
#[inline(always)]
fn with_xor_sign(a: f32, b: f32, magnitude: f32) -> f32 {
    let sign = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
    f32::from_bits(magnitude.to_bits() & 0x7fff_ffff | sign)
}

/// f64, to the nearest; other modes where they are exact to do.
fn double(opcode: &str, mode: Mode) -> Option<Alu> {
    if !matches!(mode.rounding, None | Some(Rounding::NearestEven)) || mode.is_saturated {
        return None;
    }
    Some(match opcode {
        "add" => cold2(|a: f64, b: f64| a + b),
        "sub" => cold2(|a: f64, b: f64| a - b),
        "mul" => cold2(|a: f64, b: f64| a * b),
        "fma" | "mad" => cold3(|a: f64, b: f64, c: f64| a.mul_add(b, c)),
        "div" => cold2(|a: f64, b: f64| a / b),
        "min" => cold2(|a: f64, b: f64| if a == b && a.is_sign_negative() { a } else { a.min(b) }),
        "max" => cold2(|a: f64, b: f64| if a == b && a.is_sign_positive() { a } else { a.max(b) }),
        "abs" => cold1(|a: f64| a.abs()),
        "neg" => cold1(|a: f64| -a),
        "rcp" => cold1(|a: f64| 1.0 / a),
        "sqrt" => cold1(|a: f64| a.sqrt()),
        "rsqrt" => cold1(|a: f64| 1.0 / a.sqrt()),
        _ => return None,
    })
}

fn tests(modifiers: &[&str], ty: Type) -> Option<Alu> {
    let [question] = modifiers else { return None };
    Some(match (*question, ty) {
        ("finite", Type::F32) => test1(|a: f32| a.is_finite()),
        ("infinite", Type::F32) => test1(|a: f32| a.is_infinite()),
        ("number", Type::F32) => test1(|a: f32| !a.is_nan()),
        ("notanumber", Type::F32) => test1(|a: f32| a.is_nan()),
        ("normal", Type::F32) => test1(|a: f32| a.is_normal()),
        ("subnormal", Type::F32) => test1(|a: f32| a.is_subnormal()),
        ("finite", Type::F64) => test1(|a: f64| a.is_finite()),
        ("infinite", Type::F64) => test1(|a: f64| a.is_infinite()),
        ("number", Type::F64) => test1(|a: f64| !a.is_nan()),
        ("notanumber", Type::F64) => test1(|a: f64| a.is_nan()),
        ("normal", Type::F64) => test1(|a: f64| a.is_normal()),
        ("subnormal", Type::F64) => test1(|a: f64| a.is_subnormal()),
        _ => return None,
    })
}

/// `value` to an integral number.
#[inline(always)]
pub(super) fn to_integral(value: f64, rounding: numbers::Rounding) -> f64 {
    match rounding {
        Rounding::NearestEven => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}
