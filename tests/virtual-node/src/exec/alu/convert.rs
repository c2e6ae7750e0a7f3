//! `cvt`: conversions between types.

use crate::exec::alu::float::to_integral;
use crate::exec::alu::half::{Brain, Half, Ieee};
use crate::exec::alu::integer::integers as wide_integers;
use crate::exec::alu::lane::Lane;
use crate::exec::alu::lift::{Alu, cold1, cold2, lift1};
use crate::exec::alu::reals;
use crate::exec::alu::types::Type;
use crate::exec::numbers::{BF16, F16, F32, Rounding, bf16_bits, exact_f32, f16_bits};

/// Modifiers of a conversion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mode {
    pub(super) rounding: Option<Rounding>,
    /// To an integral value, if it is a floating-point type that is converted to.
    pub(super) to_integral: bool,
    /// `rna`: ties away from zero.
    pub(super) away: bool,
    pub(super) is_flushed: bool,
    pub(super) is_saturated: bool,
    /// `.satfinite`
    pub(super) is_finite: bool,
    pub(super) relu: bool,
}

impl Mode {
    fn parse(modifiers: &[&str]) -> Option<Mode> {
        let mut mode = Mode::default();
        for modifier in modifiers {
            match *modifier {
                "ftz" => mode.is_flushed = true,
                "sat" => mode.is_saturated = true,
                "satfinite" => mode.is_finite = true,
                "relu" => mode.relu = true,
                "rna" => mode.away = true,
                other => {
                    mode.rounding = Some(match other {
                        "rn" | "rni" => Rounding::NearestEven,
                        "rz" | "rzi" => Rounding::Zero,
                        "rm" | "rmi" => Rounding::Down,
                        "rp" | "rpi" => Rounding::Up,
                        _ => return None,
                    });
                    mode.to_integral = other.len() == 3;
                }
            }
        }
        Some(mode)
    }
}

/// The function of `cvt` with these modifiers, the last but one of which is the target's type.
pub(super) fn select(modifiers: &[&str], source: &str) -> Option<Alu> {
    let (target, modifiers) = modifiers.split_last()?;
    if *target == "pack" || modifiers.first() == Some(&"pack") {
        return pack(&[modifiers, &[*target, source]].concat());
    }
    let (target, source) = (Type::parse(target)?, Type::parse(source)?);
    let mode = Mode::parse(modifiers)?;
    if let Some(alu) = frequent(target, source, mode) {
        return Some(alu);
    }
    match (is_integer(target), is_integer(source)) {
        (true, true) => integers(target, source, mode),
        (true, false) => to_integers(target, source, mode),
        (false, true) => from_integers(target, source, mode),
        (false, false) => reals::select(target, source, mode),
    }
}

/// What kernels do all the time.
fn frequent(target: Type, source: Type, mode: Mode) -> Option<Alu> {
    let plain = Mode::default();
    let nearest = Mode { rounding: Some(Rounding::NearestEven), ..plain };
    let integral = Mode { to_integral: true, ..nearest };
    let truncated = Mode { rounding: Some(Rounding::Zero), ..integral };
    Some(match (target, source) {
        (Type::U64 | Type::S64, Type::U32) if mode == plain => lift1(|a: u32| u64::from(a)),
        (Type::U64 | Type::S64, Type::S32) if mode == plain => lift1(|a: i32| i64::from(a)),
        (Type::U32 | Type::S32, Type::U64 | Type::S64) if mode == plain => lift1(|a: u64| a as u32),
        (Type::U32 | Type::S32, Type::U16) if mode == plain => lift1(|a: u16| u32::from(a)),
        (Type::U32 | Type::S32, Type::S16) if mode == plain => lift1(|a: i16| i32::from(a)),
        (Type::U32 | Type::S32, Type::U8) if mode == plain => lift1(|a: u8| u32::from(a)),
        (Type::U16, Type::U32 | Type::S32) if mode == plain => lift1(|a: u32| a as u16),
        (Type::F32, Type::S32) if mode == nearest => lift1(|a: i32| a as f32),
        (Type::F32, Type::U32) if mode == nearest => lift1(|a: u32| a as f32),
        (Type::F32, Type::F32) if mode == integral => lift1(f32::round_ties_even),
        (Type::S32, Type::F32) if mode == truncated => lift1(|a: f32| a as i32),
        _ => return None,
    })
}

fn is_integer(ty: Type) -> bool {
    use Type::{S8, S16, S32, S64, U8, U16, U32, U64};
    matches!(ty, U8 | U16 | U32 | U64 | S8 | S16 | S32 | S64)
}

/// One lift for each of the integer types of the source.
macro_rules! any_integer {
    ($ty:expr, $t:ident => $alu:expr) => {
        match $ty {
            Type::U8 => {
                type $t = u8;
                Some($alu)
            }
            Type::S8 => {
                type $t = i8;
                Some($alu)
            }
            wider => wide_integers!(wider, $t => $alu),
        }
    };
}

fn integers(target: Type, source: Type, mode: Mode) -> Option<Alu> {
    if mode.rounding.is_some() || mode.relu || mode.is_finite {
        return None;
    }
    if mode.is_saturated {
        any_integer!(source, S => any_integer!(target, D => cold1(|a: S| {
            (a as i128).clamp(D::MIN as i128, D::MAX as i128) as D
        }))?)
    } else {
        any_integer!(source, S => any_integer!(target, D => cold1(|a: S| a as D))?)
    }
}

/// Rounds and clamps; NaN becomes 0, as the ISA wants for these types.
fn to_integers(target: Type, source: Type, mode: Mode) -> Option<Alu> {
    if !mode.to_integral {
        return None;
    }
    match source {
        Type::F32 if mode.is_flushed => {
            float_to_integer::<f32, _>(
                target,
                mode,
                |a| {
                    if a.is_subnormal() { 0.0 } else { a.into() }
                },
            )
        }
        Type::F32 => float_to_integer::<f32, _>(target, mode, f64::from),
        Type::F64 => float_to_integer::<f64, _>(target, mode, |a| a),
        Type::F16 => float_to_integer::<u16, _>(target, mode, |a| Ieee::value(a).into()),
        Type::Bf16 => float_to_integer::<u16, _>(target, mode, |a| Brain::value(a).into()),
        _ => None,
    }
}

fn float_to_integer<S: Lane, F>(target: Type, mode: Mode, value: F) -> Option<Alu>
where
    F: Fn(S) -> f64 + Copy + 'static,
{
    match mode.rounding? {
        Rounding::NearestEven => any_integer!(target, D => cold1(move |a: S| {
            to_integral(value(a), Rounding::NearestEven) as D
        })),
        Rounding::Zero => any_integer!(target, D => cold1(move |a: S| value(a) as D)),
        Rounding::Down => any_integer!(target, D => cold1(move |a: S| {
            to_integral(value(a), Rounding::Down) as D
        })),
        Rounding::Up => any_integer!(target, D => cold1(move |a: S| {
            to_integral(value(a), Rounding::Up) as D
        })),
    }
}

fn from_integers(target: Type, source: Type, mode: Mode) -> Option<Alu> {
    let rounding = mode.rounding?;
    if mode.to_integral || mode.relu || mode.is_finite || mode.is_saturated {
        return None;
    }
    match (target, rounding) {
        (Type::F32, Rounding::NearestEven) => any_integer!(source, S => cold1(|a: S| a as f32)),
        (Type::F64, Rounding::NearestEven) => any_integer!(source, S => cold1(|a: S| a as f64)),
        (Type::F32, Rounding::Zero) => any_integer!(source, S => cold1(|a: S| {
            round_integer(a as i128, Rounding::Zero)
        })),
        (Type::F32, Rounding::Down) => any_integer!(source, S => cold1(|a: S| {
            round_integer(a as i128, Rounding::Down)
        })),
        (Type::F32, Rounding::Up) => any_integer!(source, S => cold1(|a: S| {
            round_integer(a as i128, Rounding::Up)
        })),
        (Type::F16, Rounding::NearestEven) => any_integer!(source, S => cold1(|a: S| {
            f16_bits(exact_f32(F16.round(integer_odd(a as i128), Rounding::NearestEven)))
        })),
        (Type::Bf16, Rounding::NearestEven) => any_integer!(source, S => cold1(|a: S| {
            bf16_bits(exact_f32(BF16.round(integer_odd(a as i128), Rounding::NearestEven)))
        })),
        _ => None,
    }
}

fn round_integer(value: i128, rounding: Rounding) -> f32 {
    exact_f32(F32.round(integer_odd(value), rounding))
}

/// An integer of up to 64 bits as f64, rounded to odd.
fn integer_odd(value: i128) -> f64 {
    let nearest = value as f64;
    crate::exec::numbers::to_odd(nearest, (value - nearest as i128) as f64)
}

/// `cvt.pack.sat`: two integers saturated and packed. Only to 16 bits; the narrower ones shift
/// a third source in.
fn pack(modifiers: &[&str]) -> Option<Alu> {
    match modifiers {
        ["pack", "sat", "s16", "s32"] => Some(cold2(|a: i32, b: i32| {
            let [a, b] = [a, b].map(|v| v.clamp(i16::MIN.into(), i16::MAX.into()) as u32);
            a << 16 | b & 0xffff
        })),
        ["pack", "sat", "u16", "s32"] => Some(cold2(|a: i32, b: i32| {
            let [a, b] = [a, b].map(|v| v.clamp(0, u16::MAX.into()) as u32);
            a << 16 | b
        })),
        _ => None,
    }
}
