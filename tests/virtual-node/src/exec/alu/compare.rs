//! Comparisons: `setp` and `set`.

use crate::exec::alu::half::{Brain, Half, Ieee};
use crate::exec::alu::lane::Lane;
use crate::exec::alu::lift::{Alu, cold_test2, test2};
use crate::exec::alu::types::Type;

/// How a comparison is combined with another predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boolean {
    And,
    Or,
    Xor,
}

impl Boolean {
    pub fn parse(name: &str) -> Option<Boolean> {
        match name {
            "and" => Some(Boolean::And),
            "or" => Some(Boolean::Or),
            "xor" => Some(Boolean::Xor),
            _ => None,
        }
    }
}

/// What `set` writes for true: a number or all ones.
pub fn set_value(ty: Type) -> Option<u32> {
    match ty {
        Type::U32 | Type::S32 => Some(!0),
        Type::U16 | Type::S16 => Some(0xffff),
        Type::F32 => Some(1.0f32.to_bits()),
        Type::F16 => Some(0x3c00),
        Type::Bf16 => Some(0x3f80),
        _ => None,
    }
}

/// The comparison of that name between two values of a type.
pub fn compare(name: &str, ty: Type, is_flushed: bool) -> Option<Alu> {
    match ty.as_unsigned() {
        Type::U16 => integers::<u16>(name),
        Type::S16 => integers::<i16>(name),
        Type::U32 => integers::<u32>(name),
        Type::S32 => integers::<i32>(name),
        Type::U64 => integers::<u64>(name),
        Type::S64 => integers::<i64>(name),
        Type::F32 if is_flushed => {
            floats::<f32, _>(name, |a| if a.is_subnormal() { 0.0 } else { f64::from(a) })
        }
        Type::F32 => singles(name),
        Type::F64 => floats::<f64, _>(name, |a| a),
        Type::F16 => floats::<u16, _>(name, |a| f64::from(Ieee::value(a))),
        Type::Bf16 => floats::<u16, _>(name, |a| f64::from(Brain::value(a))),
        _ => None,
    }
}

fn integers<T: Lane + Ord>(name: &str) -> Option<Alu> {
    Some(match name {
        "eq" => test2(|a: T, b: T| a == b),
        "ne" => test2(|a: T, b: T| a != b),
        // `lo` and its like are the unsigned comparisons under other names.
        "lt" | "lo" => test2(|a: T, b: T| a < b),
        "le" | "ls" => test2(|a: T, b: T| a <= b),
        "gt" | "hi" => test2(|a: T, b: T| a > b),
        "ge" | "hs" => test2(|a: T, b: T| a >= b),
        _ => return None,
    })
}

/// Comparisons of f32, which are frequent.
fn singles(name: &str) -> Option<Alu> {
    Some(match name {
        "eq" => test2(|a: f32, b: f32| a == b),
        "lt" => test2(|a: f32, b: f32| a < b),
        "le" => test2(|a: f32, b: f32| a <= b),
        "gt" => test2(|a: f32, b: f32| a > b),
        "ge" => test2(|a: f32, b: f32| a >= b),
        "neu" => test2(|a: f32, b: f32| a != b),
        _ => return floats::<f32, _>(name, f64::from),
    })
}

/// Ordered comparisons are false with NaN, the ones whose name ends in `u` true.
fn floats<T, F>(name: &str, value: F) -> Option<Alu>
where
    T: Lane,
    F: Fn(T) -> f64 + Copy + 'static,
{
    Some(match name {
        "eq" => cold_test2(move |a: T, b: T| value(a) == value(b)),
        "ne" => cold_test2(move |a: T, b: T| value(a) < value(b) || value(a) > value(b)),
        "lt" => cold_test2(move |a: T, b: T| value(a) < value(b)),
        "le" => cold_test2(move |a: T, b: T| value(a) <= value(b)),
        "gt" => cold_test2(move |a: T, b: T| value(a) > value(b)),
        "ge" => cold_test2(move |a: T, b: T| value(a) >= value(b)),
        "equ" => cold_test2(move |a: T, b: T| !(value(a) < value(b) || value(a) > value(b))),
        "neu" => cold_test2(move |a: T, b: T| value(a) != value(b)),
        "ltu" => cold_test2(move |a: T, b: T| !matches!(order(value(a), value(b)), Some(0 | 1))),
        "leu" => cold_test2(move |a: T, b: T| !matches!(order(value(a), value(b)), Some(1))),
        "gtu" => cold_test2(move |a: T, b: T| !matches!(order(value(a), value(b)), Some(-1 | 0))),
        "geu" => cold_test2(move |a: T, b: T| !matches!(order(value(a), value(b)), Some(-1))),
        "num" => cold_test2(move |a: T, b: T| !(value(a).is_nan() || value(b).is_nan())),
        "nan" => cold_test2(move |a: T, b: T| value(a).is_nan() || value(b).is_nan()),
        _ => return None,
    })
}

/// -1, 0 or 1, or none with NaN.
#[inline(always)]
fn order(a: f64, b: f64) -> Option<i8> {
    a.partial_cmp(&b).map(|ordering| ordering as i8)
}
