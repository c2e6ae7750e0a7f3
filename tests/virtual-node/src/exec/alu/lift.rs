//! From a closure over one lane to a function over a warp.
//!
//! Each lift computes all 32 lanes, whatever the mask, and writes the active ones: a loop without
//! branches, which the compiler vectorises. So closures must be total: no lane's garbage may make
//! them panic. Every loop is compiled twice, for any x86-64 and for AVX2 with FMA, and the
//! processor chooses; both give the same bits. What is rare, or calls a library for each lane, is
//! lifted `cold`: a short loop over the active lanes, compiled once.

#![expect(clippy::needless_range_loop, reason = "one lane's number is the place in many rows")]

use crate::exec::alu::lane::{Bits, Lane, Slot};
use crate::exec::context::lanes;
use crate::exec::registers::Registers;

/// Rows of an instruction: target, four sources, second target.
pub type Rows = [u16; 6];

/// Runs an instruction for the lanes of a mask.
///
/// # Safety
///
/// Every row that the function's slots name must lie in its file, and the processor must have
/// the features for which the function was chosen.
pub type AluFn = unsafe fn(&mut Registers, &Rows, u32);

/// An instruction's function and what it takes.
#[derive(Debug, Clone, Copy)]
pub struct Alu {
    pub run: AluFn,
    pub target: Slot,
    pub sources: [Option<Slot>; 4],
    /// Floating-point operations of each lane.
    pub n_flops: u8,
}

impl Alu {
    /// How many sources it takes.
    pub fn n_sources(&self) -> usize {
        self.sources.iter().flatten().count()
    }

    /// With so many floating-point operations for each lane.
    pub(super) fn flops(self, n_flops: u8) -> Alu {
        Alu { n_flops, ..self }
    }
}

/// The closure, which is nothing but its type.
#[inline(always)]
fn closure<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "an instruction's closure captures nothing") };
    // SAFETY: a value without bytes, of a type that is Copy and of which the lift was given one.
    unsafe { std::mem::zeroed() }
}

/// Writes the active lanes.
///
/// # Safety
///
/// `target` is a row of a live file.
#[inline(always)]
unsafe fn write<B: Bits>(target: *mut [B; 32], values: &[B; 32], mask: u32) {
    // SAFETY: the caller vouches for the row; `values` is not part of a file.
    let target = unsafe { &mut *target };
    if mask == !0 {
        *target = *values;
    } else {
        blend(target, values, mask);
    }
}

#[inline(never)]
fn blend<B: Bits>(target: &mut [B; 32], values: &[B; 32], mask: u32) {
    for (lane, slot) in target.iter_mut().enumerate() {
        *slot = if mask >> lane & 1 != 0 { values[lane] } else { *slot };
    }
}

/// Whether the functions for AVX2 may run here.
fn is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Defines a lift: a loop that is compiled for both kinds of processor.
macro_rules! lifts {
    ($(
        $(#[$doc:meta])*
        fn $name:ident<$($lane:ident),+>(Fn($($arg:ty),+) -> $result:ty)
            $target:expr, [$($source:expr),+];
        |$registers:ident, $rows:ident, $mask:ident, $f:ident| $body:block
    )+) => {$(
        $(#[$doc])*
        pub(super) fn $name<$($lane: Lane,)+ F>(_: F) -> Alu
        where
            F: Fn($($arg),+) -> $result + Copy + 'static,
        {
            // SAFETY: as `AluFn`.
            #[inline(always)]
            unsafe fn each<$($lane: Lane,)+ F>($registers: &mut Registers, $rows: &Rows, $mask: u32)
            where
                F: Fn($($arg),+) -> $result + Copy + 'static,
            {
                let $f = closure::<F>();
                $body
            }
            /// # Safety
            ///
            /// As [`AluFn`].
            unsafe fn plain<$($lane: Lane,)+ F>(registers: &mut Registers, rows: &Rows, mask: u32)
            where
                F: Fn($($arg),+) -> $result + Copy + 'static,
            {
                // SAFETY: the caller vouches for the rows.
                unsafe { each::<$($lane,)+ F>(registers, rows, mask) }
            }
            /// # Safety
            ///
            /// As [`AluFn`].
            // SAFETY: it may only be called where the processor has these features.
            #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
            unsafe fn fast<$($lane: Lane,)+ F>(registers: &mut Registers, rows: &Rows, mask: u32)
            where
                F: Fn($($arg),+) -> $result + Copy + 'static,
            {
                // SAFETY: the caller vouches for the rows.
                unsafe { each::<$($lane,)+ F>(registers, rows, mask) }
            }
            let run: AluFn = if is_fast() {
                fast::<$($lane,)+ F>
            } else {
                plain::<$($lane,)+ F>
            };
            let mut sources = [None; 4];
            for (slot, source) in sources.iter_mut().zip([$($source),+]) {
                *slot = Some(source);
            }
            Alu { run, target: $target, sources, n_flops: 0 }
        }
    )+};
}

/// What a lane's type is kept in.
const fn slot<L: Lane>() -> Slot {
    L::Bits::SLOT
}

/// A row to read. It may be the target's row, too: lanes are read before they are written.
macro_rules! row {
    ($lane:ty, $registers:ident, $rows:ident[$idx:literal]) => {{
        // SAFETY: the caller of an `AluFn` vouches for its rows, and nothing else holds them.
        unsafe { &*<$lane as Lane>::Bits::row($registers, $rows[$idx]) }
    }};
}

macro_rules! put {
    ($lane:ty, $registers:ident, $rows:ident[$idx:literal], $out:ident, $mask:ident) => {{
        // SAFETY: as in `row`.
        unsafe {
            write(<$lane as Lane>::Bits::row($registers, $rows[$idx]), &$out, $mask);
        }
    }};
}

lifts! {
    /// An instruction of one source.
    fn lift1<A, D>(Fn(A) -> D) slot::<D>(), [slot::<A>()];
    |registers, rows, mask, f| {
        let a = row!(A, registers, rows[1]);
        let mut out = [D::Bits::ZERO; 32];
        for lane in 0..32 {
            out[lane] = f(A::of(a[lane])).bits();
        }
        put!(D, registers, rows[0], out, mask);
    }

    /// An instruction of two sources.
    fn lift2<A, B, D>(Fn(A, B) -> D) slot::<D>(), [slot::<A>(), slot::<B>()];
    |registers, rows, mask, f| {
        let a = row!(A, registers, rows[1]);
        let b = row!(B, registers, rows[2]);
        let mut out = [D::Bits::ZERO; 32];
        for lane in 0..32 {
            out[lane] = f(A::of(a[lane]), B::of(b[lane])).bits();
        }
        put!(D, registers, rows[0], out, mask);
    }

    /// An instruction of three sources.
    fn lift3<A, B, C, D>(Fn(A, B, C) -> D)
        slot::<D>(), [slot::<A>(), slot::<B>(), slot::<C>()];
    |registers, rows, mask, f| {
        let a = row!(A, registers, rows[1]);
        let b = row!(B, registers, rows[2]);
        let c = row!(C, registers, rows[3]);
        let mut out = [D::Bits::ZERO; 32];
        for lane in 0..32 {
            out[lane] = f(A::of(a[lane]), B::of(b[lane]), C::of(c[lane])).bits();
        }
        put!(D, registers, rows[0], out, mask);
    }

    /// An instruction of four sources.
    fn lift4<A, B, C, E, D>(Fn(A, B, C, E) -> D)
        slot::<D>(), [slot::<A>(), slot::<B>(), slot::<C>(), slot::<E>()];
    |registers, rows, mask, f| {
        let a = row!(A, registers, rows[1]);
        let b = row!(B, registers, rows[2]);
        let c = row!(C, registers, rows[3]);
        let e = row!(E, registers, rows[4]);
        let mut out = [D::Bits::ZERO; 32];
        for lane in 0..32 {
            out[lane] =
                f(A::of(a[lane]), B::of(b[lane]), C::of(c[lane]), E::of(e[lane])).bits();
        }
        put!(D, registers, rows[0], out, mask);
    }

    /// A question about one value.
    fn test1<A>(Fn(A) -> bool) Slot::Pred, [slot::<A>()];
    |registers, rows, mask, f| {
        let a = row!(A, registers, rows[1]);
        let mut out = 0;
        for lane in 0..32 {
            out |= u32::from(f(A::of(a[lane]))) << lane;
        }
        registers.set_predicate(crate::exec::inst::Pred(rows[0]), out, mask);
    }

    /// A comparison of two values.
    fn test2<A, B>(Fn(A, B) -> bool) Slot::Pred, [slot::<A>(), slot::<B>()];
    |registers, rows, mask, f| {
        let a = row!(A, registers, rows[1]);
        let b = row!(B, registers, rows[2]);
        let mut out = 0;
        for lane in 0..32 {
            out |= u32::from(f(A::of(a[lane]), B::of(b[lane]))) << lane;
        }
        registers.set_predicate(crate::exec::inst::Pred(rows[0]), out, mask);
    }

    /// Takes one of two values, as a predicate says.
    fn choose<A>(Fn(A, A, bool) -> A) slot::<A>(), [slot::<A>(), slot::<A>(), Slot::Pred];
    |registers, rows, mask, f| {
        let a = row!(A, registers, rows[1]);
        let b = row!(A, registers, rows[2]);
        let predicate = registers.predicates[rows[3] as usize];
        let mut out = [A::Bits::ZERO; 32];
        for lane in 0..32 {
            out[lane] = f(A::of(a[lane]), A::of(b[lane]), predicate >> lane & 1 != 0).bits();
        }
        put!(A, registers, rows[0], out, mask);
    }

    /// Arithmetic of three values with a carry into it (row 4) and one out of it (row 5).
    fn carry<A>(Fn(A, A, A, bool) -> (A, bool))
        slot::<A>(), [slot::<A>(), slot::<A>(), slot::<A>(), Slot::Pred];
    |registers, rows, mask, f| {
        let a = row!(A, registers, rows[1]);
        let b = row!(A, registers, rows[2]);
        let c = row!(A, registers, rows[3]);
        let carry_in = registers.predicates[rows[4] as usize];
        let mut out = [A::Bits::ZERO; 32];
        let mut carry_out = 0;
        for lane in 0..32 {
            let is_carried = carry_in >> lane & 1 != 0;
            let (sum, carried) = f(A::of(a[lane]), A::of(b[lane]), A::of(c[lane]), is_carried);
            out[lane] = sum.bits();
            carry_out |= u32::from(carried) << lane;
        }
        put!(A, registers, rows[0], out, mask);
        registers.set_predicate(crate::exec::inst::Pred(rows[5]), carry_out, mask);
    }
}

/// Defines a cold lift.
macro_rules! cold_lifts {
    ($(
        fn $name:ident<$($lane:ident),+; $result:ident>($($idx:literal),+);
    )+) => {$(
        /// A rare instruction of as many sources as its name says.
        pub(super) fn $name<$($lane: Lane,)+ $result: Lane, F>(_: F) -> Alu
        where
            F: Fn($($lane),+) -> $result + Copy + 'static,
        {
            /// # Safety
            ///
            /// As [`AluFn`].
            unsafe fn run<$($lane: Lane,)+ $result: Lane, F>(
                registers: &mut Registers,
                rows: &Rows,
                mask: u32,
            ) where
                F: Fn($($lane),+) -> $result + Copy + 'static,
            {
                let f = closure::<F>();
                // SAFETY: the caller vouches for the rows. A lane is read before it is written.
                unsafe {
                    let sources = ($(<$lane::Bits>::row(registers, rows[$idx]),)+);
                    let target = <$result::Bits>::row(registers, rows[0]);
                    for lane in lanes(mask) {
                        #[expect(non_snake_case, reason = "a source is named as its type")]
                        let ($($lane,)+) = sources;
                        (*target)[lane] = f($($lane::of((*$lane)[lane])),+).bits();
                    }
                }
            }
            let mut sources = [None; 4];
            for (slot, source) in sources.iter_mut().zip([$(slot::<$lane>()),+]) {
                *slot = Some(source);
            }
            let run: AluFn = run::<$($lane,)+ $result, F>;
            Alu { run, target: slot::<$result>(), sources, n_flops: 0 }
        }
    )+};
}

cold_lifts! {
    fn cold1<A; D>(1);
    fn cold2<A, B; D>(1, 2);
    fn cold3<A, B, C; D>(1, 2, 3);
}

/// A rare comparison of two values.
pub(super) fn cold_test2<A: Lane, B: Lane, F>(_: F) -> Alu
where
    F: Fn(A, B) -> bool + Copy + 'static,
{
    let run: AluFn = |registers, rows, mask| {
        let f = closure::<F>();
        let a = row!(A, registers, rows[1]);
        let b = row!(B, registers, rows[2]);
        let yes = lanes(mask).filter(|lane| f(A::of(a[*lane]), B::of(b[*lane])));
        let out = yes.fold(0, |out, lane| out | 1 << lane);
        registers.set_predicate(crate::exec::inst::Pred(rows[0]), out, mask);
    };
    let sources = [Some(slot::<A>()), Some(slot::<B>()), None, None];
    Alu { run, target: Slot::Pred, sources, n_flops: 0 }
}

/// An instruction between predicates: whole masks at once.
pub(super) fn masks(run: AluFn, n_sources: usize) -> Alu {
    let mut sources = [None; 4];
    sources[..n_sources].fill(Some(Slot::Pred));
    Alu { run, target: Slot::Pred, sources, n_flops: 0 }
}
