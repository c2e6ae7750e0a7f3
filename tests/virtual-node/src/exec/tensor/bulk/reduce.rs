//! The reductions that a bulk copy can make on its way: element by element, atomically.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use half::{bf16, f16};

use super::super::operands::unsupported;
use crate::ptx::{Lowered, Mnemonic};

/// What is done to each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reduction {
    operation: Operation,
    /// From the instruction; a tensor copy has it from its map instead.
    element: Option<Number>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Add,
    Min,
    Max,
    Increment,
    Decrement,
    And,
    Or,
    Xor,
}

/// How the bits of an element are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    F32,
    F64,
}

impl Number {
    fn parse(name: &str) -> Option<Number> {
        Some(match name {
            "u32" | "b32" => Number::U32,
            "s32" => Number::S32,
            "u64" | "b64" => Number::U64,
            "s64" => Number::S64,
            "f16" => Number::F16,
            "bf16" => Number::Bf16,
            "f32" => Number::F32,
            "f64" => Number::F64,
            _ => return None,
        })
    }

    /// By the number that a tensor map has for the type of its elements.
    pub(super) fn of_map(element_type: u8) -> Option<Number> {
        Some(match element_type {
            2 => Number::U32,
            3 => Number::S32,
            4 => Number::U64,
            5 => Number::S64,
            6 => Number::F16,
            7 => Number::F32,
            9 => Number::F64,
            10 => Number::Bf16,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Number::F16 | Number::Bf16 => 2,
            Number::U32 | Number::S32 | Number::F32 => 4,
            Number::U64 | Number::S64 | Number::F64 => 8,
        }
    }
}

impl Reduction {
    pub(super) fn parse(mnemonic: &Mnemonic) -> Lowered<Reduction> {
        let operations = [
            ("add", Operation::Add),
            ("min", Operation::Min),
            ("max", Operation::Max),
            ("inc", Operation::Increment),
            ("dec", Operation::Decrement),
            ("and", Operation::And),
            ("or", Operation::Or),
            ("xor", Operation::Xor),
        ];
        let Some((_, operation)) = operations.iter().find(|(name, _)| mnemonic.has(name)) else {
            return unsupported(mnemonic);
        };
        let element = mnemonic.modifiers().iter().find_map(|part| Number::parse(part));
        Ok(Reduction { operation: *operation, element })
    }

    /// The type of the elements: the instruction's, or else `of_map`.
    pub(super) fn element(&self, of_map: Option<Number>) -> Option<Number> {
        self.element.or(of_map)
    }

    /// Reduces `values` into the memory at `to`, which must be as long, live and aligned to the
    /// elements.
    pub(super) fn apply(&self, element: Number, to: NonNull<u8>, values: &[u8]) {
        let n_bytes = element.bytes();
        for (idx, value) in values.chunks_exact(n_bytes).enumerate() {
            let mut wide = [0; 8];
            wide[..n_bytes].copy_from_slice(value);
            let value = u64::from_le_bytes(wide);
            // SAFETY: the caller vouches for the memory, and other threads reach it atomically.
            unsafe { self.apply_one(element, to.add(idx * n_bytes), value) };
        }
    }

    /// # Safety
    ///
    /// `at` must point at a live, aligned element that is only accessed atomically meanwhile.
    unsafe fn apply_one(&self, element: Number, at: NonNull<u8>, value: u64) {
        let next = |before: u64| Some(self.combine(element, before, value));
        // SAFETY: as the caller vouches.
        unsafe {
            match element.bytes() {
                2 => {
                    let cell = AtomicU16::from_ptr(at.as_ptr().cast());
                    let next = |before| next(u64::from(before)).map(|bits| bits as u16);
                    let _ = cell.fetch_update(Relaxed, Relaxed, next);
                }
                4 => {
                    let cell = AtomicU32::from_ptr(at.as_ptr().cast());
                    let next = |before| next(u64::from(before)).map(|bits| bits as u32);
                    let _ = cell.fetch_update(Relaxed, Relaxed, next);
                }
                _ => {
                    let cell = AtomicU64::from_ptr(at.as_ptr().cast());
                    let _ = cell.fetch_update(Relaxed, Relaxed, next);
                }
            }
        }
    }

    fn combine(&self, element: Number, x: u64, y: u64) -> u64 {
        let operation = self.operation;
        match element {
            Number::U32 => u64::from(combine_u32(operation, x as u32, y as u32)),
            Number::S32 => {
                let (x, y) = (x as i32, y as i32);
                u64::from(combine_signed(operation, i64::from(x), i64::from(y)) as u32)
            }
            Number::U64 => combine_u64(operation, x, y),
            Number::S64 => combine_signed(operation, x as i64, y as i64) as u64,
            Number::F16 => {
                let value = |bits: u64| f16::from_bits(bits as u16).to_f64();
                u64::from(f16::from_f64(combine_float(operation, value(x), value(y))).to_bits())
            }
            Number::Bf16 => {
                let value = |bits: u64| bf16::from_bits(bits as u16).to_f64();
                u64::from(bf16::from_f64(combine_float(operation, value(x), value(y))).to_bits())
            }
            Number::F32 => {
                let (x, y) = (f32::from_bits(x as u32), f32::from_bits(y as u32));
                // Rounding twice is harmless: a double holds the sum of two singles well enough.
                u64::from((combine_float(operation, f64::from(x), f64::from(y)) as f32).to_bits())
            }
            Number::F64 => combine_float(operation, f64::from_bits(x), f64::from_bits(y)).to_bits(),
        }
    }
}

fn combine_u32(operation: Operation, x: u32, y: u32) -> u32 {
    match operation {
        Operation::Add => x.wrapping_add(y),
        Operation::Increment => {
            if x >= y {
                0
            } else {
                x + 1
            }
        }
        Operation::Decrement => {
            if x == 0 || x > y {
                y
            } else {
                x - 1
            }
        }
        _ => combine_u64(operation, u64::from(x), u64::from(y)) as u32,
    }
}

fn combine_u64(operation: Operation, x: u64, y: u64) -> u64 {
    match operation {
        Operation::Min => x.min(y),
        Operation::Max => x.max(y),
        Operation::And => x & y,
        Operation::Or => x | y,
        Operation::Xor => x ^ y,
        _ => x.wrapping_add(y),
    }
}

fn combine_signed(operation: Operation, x: i64, y: i64) -> i64 {
    match operation {
        Operation::Min => x.min(y),
        Operation::Max => x.max(y),
        _ => combine_u64(operation, x as u64, y as u64) as i64,
    }
}

fn combine_float(operation: Operation, x: f64, y: f64) -> f64 {
    match operation {
        Operation::Min => x.min(y),
        Operation::Max => x.max(y),
        _ => x + y,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn combined(operation: Operation, element: Number, x: u64, y: u64) -> u64 {
        Reduction { operation, element: Some(element) }.combine(element, x, y)
    }

    #[test]
    fn operations() {
        use Number::{Bf16, F16, F32, S32, U32};
        let one = u64::from(1f32.to_bits());
        assert_eq!(combined(Operation::Add, F32, one, one), u64::from(2f32.to_bits()));
        assert_eq!(combined(Operation::Add, F16, 0x3c00, 0x3c00), 0x4000);
        assert_eq!(combined(Operation::Add, Bf16, 0x3f80, 0x3f80), 0x4000);
        assert_eq!(combined(Operation::Min, S32, 0xffff_ffff, 1), 0xffff_ffff);
        assert_eq!(combined(Operation::Min, U32, 0xffff_ffff, 1), 1);
        assert_eq!(combined(Operation::Increment, U32, 3, 3), 0);
        assert_eq!(combined(Operation::Decrement, U32, 0, 3), 3);
        assert_eq!(combined(Operation::Xor, U32, 5, 6), 3);
    }

    #[test]
    fn every_element_is_reduced() {
        let mut memory = [1u32, 2, 3, 4];
        let values: Vec<u8> = [10u32, 20, 30, 40].iter().flat_map(|v| v.to_le_bytes()).collect();
        let reduction = Reduction { operation: Operation::Add, element: Some(Number::U32) };
        reduction.apply(Number::U32, NonNull::from(&mut memory[0]).cast(), &values);
        assert_eq!(memory, [11, 22, 33, 44]);
    }
}
