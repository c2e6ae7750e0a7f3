//! `cvt` between floating-point types.

use crate::exec::alu::convert::Mode;
use crate::exec::alu::float::saturate;
use crate::exec::alu::half::{Brain, Half, Ieee};
use crate::exec::alu::lift::{Alu, cold1, cold2, lift1, lift2};
use crate::exec::alu::types::Type;
use crate::exec::numbers::{
    BF16, F16, F32, Format, Rounding, TF32, bf16_bits, e4m3_bits, e4m3_value, e5m2_bits,
    e5m2_value, exact_f32, f16_bits,
};

/// The function of a conversion between two such types.
pub(super) fn select(target: Type, source: Type, mode: Mode) -> Option<Alu> {
    match source {
        Type::F32 => from_f32(target, mode),
        Type::F64 => from_f64(target, mode),
        Type::F16 => from_half::<Ieee>(target, mode),
        Type::Bf16 => from_half::<Brain>(target, mode),
        Type::F16x2 => from_f16_pair(target, mode),
        Type::E4m3x2 if target == Type::F16x2 && !mode.relu => {
            Some(lift1(|a: u16| widen(a, e4m3_value)))
        }
        Type::E5m2x2 if target == Type::F16x2 && !mode.relu => {
            Some(cold1(|a: u16| widen(a, e5m2_value)))
        }
        Type::E4m3x2 if target == Type::F16x2 => {
            Some(cold1(|a: u16| widen(a, |bits| relu(e4m3_value(bits)))))
        }
        Type::E5m2x2 if target == Type::F16x2 => {
            Some(cold1(|a: u16| widen(a, |bits| relu(e5m2_value(bits)))))
        }
        _ => None,
    }
}

/// Two 8-bit numbers as f16, which holds them exactly.
#[inline(always)]
fn widen(pair: u16, value: impl Fn(u8) -> f32) -> u32 {
    let [low, high] = pair.to_le_bytes().map(|bits| u32::from(f16_bits(value(bits))));
    low | high << 16
}

/// Negative numbers as 0; NaN as it is.
#[inline(always)]
fn relu(value: f32) -> f32 {
    if value <= 0.0 { 0.0 } else { value }
}

#[inline(always)]
fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

fn from_f32(target: Type, mode: Mode) -> Option<Alu> {
    match target {
        Type::F32 if mode.to_integral || mode.rounding.is_none() => f32_to_f32(mode),
        Type::F64 if mode.is_flushed => Some(cold1(|a: f32| f64::from(flush(a)))),
        Type::F64 => Some(cold1(|a: f32| f64::from(a))),
        Type::F16 | Type::Bf16 => to_half(target, mode),
        Type::F16x2 | Type::Bf16x2 => to_half_pair(target, mode),
        Type::E4m3x2 if mode.is_finite && mode.relu => {
            Some(cold2(|a: f32, b: f32| join8(e4m3_bits(relu(b)), e4m3_bits(relu(a)))))
        }
        Type::E4m3x2 if mode.is_finite => {
            Some(lift2(|a: f32, b: f32| join8(e4m3_bits(b), e4m3_bits(a))))
        }
        Type::E5m2x2 if mode.is_finite && mode.relu => {
            Some(cold2(|a: f32, b: f32| join8(e5m2_bits(relu(b)), e5m2_bits(relu(a)))))
        }
        Type::E5m2x2 if mode.is_finite => {
            Some(cold2(|a: f32, b: f32| join8(e5m2_bits(b), e5m2_bits(a))))
        }
        Type::Tf32 if mode.away => Some(cold1(|a: f32| {
            // Ties away from zero: half a unit is added, and the rest cut off.
            let rounded = a.to_bits().wrapping_add(0x1000) & !0x1fff;
            if a.is_nan() { 0x7fff_ffff } else { rounded }
        })),
        Type::Tf32 if mode.rounding == Some(Rounding::NearestEven) => {
            Some(cold1(|a: f32| exact_f32(TF32.round(a.into(), Rounding::NearestEven))))
        }
        Type::Tf32 if mode.rounding == Some(Rounding::Zero) => {
            Some(cold1(|a: f32| exact_f32(TF32.round(a.into(), Rounding::Zero))))
        }
        _ => None,
    }
}

#[inline(always)]
fn join8(low: u8, high: u8) -> u16 {
    u16::from_le_bytes([low, high])
}

fn f32_to_f32(mode: Mode) -> Option<Alu> {
    /// Under `.ftz` and `.sat`.
    fn modes(mode: Mode, f: impl Fn(f32) -> f32 + Copy + 'static) -> Alu {
        match (mode.is_flushed, mode.is_saturated) {
            (false, false) => cold1(f),
            (true, false) => cold1(move |a: f32| f(flush(a))),
            (false, true) => cold1(move |a: f32| saturate(f(a))),
            (true, true) => cold1(move |a: f32| saturate(f(flush(a)))),
        }
    }
    Some(match mode.rounding {
        None => modes(mode, |a| a),
        Some(Rounding::NearestEven) => modes(mode, f32::round_ties_even),
        Some(Rounding::Zero) => modes(mode, f32::trunc),
        Some(Rounding::Down) => modes(mode, f32::floor),
        Some(Rounding::Up) => modes(mode, f32::ceil),
    })
}

fn to_half(target: Type, mode: Mode) -> Option<Alu> {
    let rounding = mode.rounding.filter(|_| !mode.to_integral)?;
    let alu = match (target, rounding, mode.relu, mode.is_finite) {
        (Type::F16, Rounding::NearestEven, false, false) => lift1(f16_bits),
        (Type::F16, Rounding::NearestEven, true, false) => cold1(|a: f32| f16_bits(relu(a))),
        (Type::F16, Rounding::Zero, false, false) => cold1(|a: f32| toward_zero(a, F16, f16_bits)),
        (Type::F16, Rounding::NearestEven, false, true) => {
            cold1(|a: f32| f16_bits(keep_finite(a, 65504.0)))
        }
        (Type::Bf16, Rounding::NearestEven, false, false) => lift1(bf16_bits),
        (Type::Bf16, Rounding::NearestEven, true, false) => cold1(|a: f32| bf16_bits(relu(a))),
        (Type::Bf16, Rounding::Zero, false, false) => {
            cold1(|a: f32| toward_zero(a, BF16, bf16_bits))
        }
        (Type::Bf16, Rounding::NearestEven, false, true) => {
            cold1(|a: f32| bf16_bits(keep_finite(a, BF16.max as f32)))
        }
        _ => return None,
    };
    (!mode.is_saturated).then_some(alu)
}

#[inline(always)]
fn toward_zero(value: f32, format: Format, bits: impl Fn(f32) -> u16) -> u16 {
    bits(exact_f32(format.round(value.into(), Rounding::Zero)))
}

#[inline(always)]
fn keep_finite(value: f32, max: f32) -> f32 {
    if value > max {
        max
    } else if value < -max {
        -max
    } else {
        value
    }
}

/// The first source goes into the upper half.
fn to_half_pair(target: Type, mode: Mode) -> Option<Alu> {
    fn pair(bits: impl Fn(f32) -> u16 + Copy + 'static) -> Alu {
        lift2(move |a: f32, b: f32| u32::from(bits(b)) | u32::from(bits(a)) << 16)
    }
    if mode.to_integral || mode.is_saturated {
        return None;
    }
    let (is_f16, relu_first) = (target == Type::F16x2, mode.relu);
    Some(match (is_f16, mode.rounding?, relu_first, mode.is_finite) {
        (true, Rounding::NearestEven, false, false) => pair(f16_bits),
        (true, Rounding::NearestEven, true, false) => pair(|a| f16_bits(relu(a))),
        (true, Rounding::NearestEven, false, true) => pair(|a| f16_bits(keep_finite(a, 65504.0))),
        (true, Rounding::Zero, false, false) => pair(|a| toward_zero(a, F16, f16_bits)),
        (false, Rounding::NearestEven, false, false) => pair(bf16_bits),
        (false, Rounding::NearestEven, true, false) => pair(|a| bf16_bits(relu(a))),
        (false, Rounding::NearestEven, false, true) => {
            pair(|a| bf16_bits(keep_finite(a, BF16.max as f32)))
        }
        (false, Rounding::Zero, false, false) => pair(|a| toward_zero(a, BF16, bf16_bits)),
        _ => return None,
    })
}

fn from_f64(target: Type, mode: Mode) -> Option<Alu> {
    Some(match (target, mode.to_integral, mode.rounding) {
        (Type::F32, false, Some(Rounding::NearestEven)) if mode.is_flushed => {
            cold1(|a: f64| flush(a as f32))
        }
        (Type::F32, false, Some(Rounding::NearestEven)) => cold1(|a: f64| a as f32),
        (Type::F32, false, Some(Rounding::Zero)) => {
            cold1(|a: f64| exact_f32(F32.round(a, Rounding::Zero)))
        }
        (Type::F32, false, Some(Rounding::Down)) => {
            cold1(|a: f64| exact_f32(F32.round(a, Rounding::Down)))
        }
        (Type::F32, false, Some(Rounding::Up)) => {
            cold1(|a: f64| exact_f32(F32.round(a, Rounding::Up)))
        }
        (Type::F16, false, Some(Rounding::NearestEven)) => {
            cold1(|a: f64| f16_bits(exact_f32(F16.round(a, Rounding::NearestEven))))
        }
        (Type::Bf16, false, Some(Rounding::NearestEven)) => {
            cold1(|a: f64| bf16_bits(exact_f32(BF16.round(a, Rounding::NearestEven))))
        }
        (Type::F64, true, Some(Rounding::NearestEven)) => cold1(|a: f64| a.round_ties_even()),
        (Type::F64, true, Some(Rounding::Zero)) => cold1(|a: f64| a.trunc()),
        (Type::F64, true, Some(Rounding::Down)) => cold1(|a: f64| a.floor()),
        (Type::F64, true, Some(Rounding::Up)) => cold1(|a: f64| a.ceil()),
        (Type::F64, false, None) => cold1(|a: f64| a),
        _ => return None,
    })
}

fn from_half<H: Half>(target: Type, mode: Mode) -> Option<Alu> {
    Some(match (target, mode.to_integral, mode.rounding) {
        (Type::F32, false, None) if mode.is_flushed => cold1(|a: u16| flush(H::value(a))),
        (Type::F32, false, None) if mode.is_saturated => cold1(|a: u16| saturate(H::value(a))),
        (Type::F32, false, None) => lift1(|a: u16| H::value(a)),
        (Type::F64, false, None) => cold1(|a: u16| f64::from(H::value(a))),
        (Type::F16, false, Some(Rounding::NearestEven)) => cold1(|a: u16| f16_bits(H::value(a))),
        (Type::Bf16, false, Some(Rounding::NearestEven)) => cold1(|a: u16| bf16_bits(H::value(a))),
        (Type::F16 | Type::Bf16, true, Some(Rounding::NearestEven)) => {
            cold1(|a: u16| H::round(H::value(a).round_ties_even()))
        }
        (Type::F16 | Type::Bf16, true, Some(Rounding::Zero)) => {
            cold1(|a: u16| H::round(H::value(a).trunc()))
        }
        (Type::F16 | Type::Bf16, true, Some(Rounding::Down)) => {
            cold1(|a: u16| H::round(H::value(a).floor()))
        }
        (Type::F16 | Type::Bf16, true, Some(Rounding::Up)) => {
            cold1(|a: u16| H::round(H::value(a).ceil()))
        }
        _ => return None,
    })
}

/// To 8-bit pairs from f16 pairs.
fn from_f16_pair(target: Type, mode: Mode) -> Option<Alu> {
    fn narrow(bits: impl Fn(f32) -> u8 + Copy + 'static) -> Alu {
        cold1(move |a: u32| join8(bits(Ieee::value(a as u16)), bits(Ieee::value((a >> 16) as u16))))
    }
    if !mode.is_finite || mode.rounding != Some(Rounding::NearestEven) {
        return None;
    }
    Some(match (target, mode.relu) {
        (Type::E4m3x2, false) => narrow(e4m3_bits),
        (Type::E4m3x2, true) => narrow(|a| e4m3_bits(relu(a))),
        (Type::E5m2x2, false) => narrow(e5m2_bits),
        (Type::E5m2x2, true) => narrow(|a| e5m2_bits(relu(a))),
        _ => return None,
    })
}
