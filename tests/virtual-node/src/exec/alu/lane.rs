//! A lane's value as it is computed with, and as it lies in a register.

use crate::exec::registers::Registers;

/// Which register file an operand lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    R32,
    R64,
    Pred,
}

/// How a value is kept in a register.
pub(super) trait Bits: Copy {
    const SLOT: Slot;
    const ZERO: Self;
    /// # Safety
    ///
    /// The row must lie in its file.
    unsafe fn row(registers: &mut Registers, row: u16) -> *mut [Self; 32];
}

impl Bits for u32 {
    const SLOT: Slot = Slot::R32;
    const ZERO: u32 = 0;

    // SAFETY: as the trait asks for.
    #[inline(always)]
    unsafe fn row(registers: &mut Registers, row: u16) -> *mut [u32; 32] {
        debug_assert!((row as usize) < registers.r32.len());
        // SAFETY: the caller vouches for the row.
        unsafe { &raw mut (*registers.r32.as_mut_ptr().add(row as usize)).0 }
    }
}

impl Bits for u64 {
    const SLOT: Slot = Slot::R64;
    const ZERO: u64 = 0;

    // SAFETY: as the trait asks for.
    #[inline(always)]
    unsafe fn row(registers: &mut Registers, row: u16) -> *mut [u64; 32] {
        debug_assert!((row as usize) < registers.r64.len());
        // SAFETY: the caller vouches for the row.
        unsafe { &raw mut (*registers.r64.as_mut_ptr().add(row as usize)).0 }
    }
}

/// A type of a lane's value.
pub(super) trait Lane: Copy + 'static {
    type Bits: Bits;
    fn of(bits: Self::Bits) -> Self;
    fn bits(self) -> Self::Bits;
}

macro_rules! lane {
    ($type:ty, $bits:ty, |$b:ident| $of:expr, |$v:ident| $to:expr) => {
        impl Lane for $type {
            type Bits = $bits;
            #[inline(always)]
            fn of($b: $bits) -> $type {
                $of
            }
            #[inline(always)]
            fn bits(self) -> $bits {
                let $v = self;
                $to
            }
        }
    };
}

lane!(u8, u32, |b| b as u8, |v| u32::from(v));
lane!(i8, u32, |b| b as i8, |v| i32::from(v) as u32);
lane!(u16, u32, |b| b as u16, |v| u32::from(v));
lane!(i16, u32, |b| b as i16, |v| i32::from(v) as u32);
lane!(u32, u32, |b| b, |v| v);
lane!(i32, u32, |b| b as i32, |v| v as u32);
lane!(f32, u32, |b| f32::from_bits(b), |v| v.to_bits());
lane!(u64, u64, |b| b, |v| v);
lane!(i64, u64, |b| b as i64, |v| v as u64);
lane!(f64, u64, |b| f64::from_bits(b), |v| v.to_bits());
