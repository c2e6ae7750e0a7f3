//! `mma.sync`: a warp multiplies a tile that lies in its registers.

use half::f16;

use super::element::Element;
use super::fragment::{a_place, a_place_of_8, accumulator_place, b_place};
use super::operands::{sources32, sources64, targets32, targets64, unsupported};
use super::tile;
use crate::exec::fault::{Cause, Flow, Trap};
use crate::exec::inst::{R32, R64};
use crate::exec::{Registers, WarpCx};
use crate::ptx::{Instruction, Lowered, Lowering};

/// How products are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// In single precision, one register for each value.
    F32,
    /// In single precision, rounded to halves at the end, two values to a register.
    F16,
    /// In 32-bit integers.
    S32 {
        /// Sums stop at the ends of the range instead of wrapping.
        saturate: bool,
    },
}

impl Sum {
    /// Reads the PTX's name of an accumulator's type.
    pub(super) fn parse(name: &str, saturate: bool) -> Option<Sum> {
        match name {
            "f32" => Some(Sum::F32),
            "f16" => Some(Sum::F16),
            "s32" => Some(Sum::S32 { saturate }),
            _ => None,
        }
    }

    /// Values that share a register.
    pub(super) fn n_per_register(self) -> usize {
        if self == Sum::F16 { 2 } else { 1 }
    }
}

/// `mma.sync` on elements of up to 32 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Mma {
    n_rows: usize,
    k: usize,
    a_element: Element,
    b_element: Element,
    sum: Sum,
    d: Box<[R32]>,
    a: Box<[R32]>,
    b: Box<[R32]>,
    c: Box<[R32]>,
}

/// `mma.sync` on doubles.
#[derive(Clone, Debug, PartialEq)]
pub struct MmaF64 {
    n_rows: usize,
    k: usize,
    d: Box<[R64]>,
    a: Box<[R64]>,
    b: Box<[R64]>,
    c: Box<[R64]>,
}

/// What `mma.sync` decodes to.
pub(super) enum Decoded {
    Narrow(Mma),
    Double(MmaF64),
}

/// Shapes with their element sizes: rows, K, bytes of an element. All have 8 columns.
const SHAPES: &[(&str, usize, usize, &[usize])] = &[
    ("m16n8k4", 16, 4, &[4, 8]),
    ("m16n8k8", 16, 8, &[2, 4, 8]),
    ("m16n8k16", 16, 16, &[1, 2, 8]),
    ("m16n8k32", 16, 32, &[1]),
    ("m8n8k4", 8, 4, &[8]),
    ("m8n8k16", 8, 16, &[1]),
];

/// Decodes `mma.sync.aligned.SHAPE.row.col{.satfinite}.D.A.B.C`.
pub(super) fn decode(cx: &mut Lowering<'_>, inst: &Instruction) -> Lowered<Decoded> {
    let mnemonic = &inst.mnemonic;
    let modifiers: Vec<&str> = mnemonic.modifiers().iter().map(String::as_str).collect();
    let saturate = mnemonic.has("satfinite");
    let [.., d_type, a_type, b_type, c_type] = modifiers.as_slice() else {
        return unsupported(mnemonic);
    };
    let shape = SHAPES.iter().find(|(name, ..)| mnemonic.has(name));
    let (Some((_, n_rows, k, sizes)), Some(a_element), Some(b_element)) =
        (shape, Element::parse(a_type), Element::parse(b_type))
    else {
        return unsupported(mnemonic);
    };
    let (n_rows, k, bytes) = (*n_rows, *k, a_element.bytes());
    let is_plain = mnemonic.has("row") && mnemonic.has("col") && d_type == c_type;
    if !is_plain || !sizes.contains(&bytes) || bytes != b_element.bytes() {
        return unsupported(mnemonic);
    }
    if a_element == Element::F64 {
        let (n_a, n_c) = (n_rows / 8 * k / 4, n_rows / 4);
        return Ok(Decoded::Double(MmaF64 {
            n_rows,
            k,
            d: targets64(cx, inst, 0, n_c)?,
            a: sources64(cx, inst, 1, n_a)?,
            b: sources64(cx, inst, 2, k / 4)?,
            c: sources64(cx, inst, 3, n_c)?,
        }));
    }
    let sum = Sum::parse(d_type, saturate);
    let Some(sum) = sum.filter(|sum| a_element.is_integer() == matches!(sum, Sum::S32 { .. }))
    else {
        return unsupported(mnemonic);
    };
    let n_b = k * bytes / 16;
    let n_c = n_rows / 4 / sum.n_per_register();
    Ok(Decoded::Narrow(Mma {
        n_rows,
        k,
        a_element,
        b_element,
        sum,
        d: targets32(cx, inst, 0, n_c)?,
        a: sources32(cx, inst, 1, n_b * n_rows / 8)?,
        b: sources32(cx, inst, 2, n_b)?,
        c: sources32(cx, inst, 3, n_c)?,
    }))
}

/// All 32 lanes must come together.
pub(super) fn check_converged(cx: &WarpCx<'_>) -> Result<(), Trap> {
    if cx.mask == !0 {
        return Ok(());
    }
    Err(Cause::Unconverged { active: cx.mask, expected: !0 }.at(cx.mask.trailing_zeros() as usize))
}

const N_COLS: usize = 8;

/// Runs it: sums run over K in order, in single precision (products are exact there).
pub(super) fn execute(mma: &Mma, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    check_converged(cx)?;
    let registers = &mut cx.warp.registers;
    let mut a = [0f32; 16 * 32];
    let mut b = [0f32; 32 * N_COLS];
    gather_a(&mut a, mma, registers);
    gather_b(&mut b, mma, registers);
    let mut sums = [0f32; 16 * N_COLS];
    if let Sum::S32 { saturate } = mma.sum {
        tile::multiply(&a, &b, &mut sums, mma.k, N_COLS);
        let c: Vec<[u32; 32]> = mma.c.iter().map(|c| *registers.r32(*c)).collect();
        for (value_idx, (d, c)) in mma.d.iter().zip(c).enumerate() {
            *registers.r32_mut(*d) = std::array::from_fn(|lane| {
                let place = accumulator_place(lane, value_idx);
                // At most 32 × 255², which an f32 holds exactly.
                let product = sums[place.row * N_COLS + place.col] as i32;
                add_integers(c[lane] as i32, product, saturate) as u32
            });
        }
    } else {
        load_sums(&mut sums, N_COLS, &mma.c, mma.sum, registers);
        tile::multiply(&a[..mma.n_rows * mma.k], &b, &mut sums, mma.k, N_COLS);
        store_sums(&sums, N_COLS, &mma.d, mma.sum, registers);
    }
    let n_flops = 2 * (mma.n_rows * N_COLS * mma.k) as u64;
    count_flops(cx, mma.a_element, n_flops);
    Ok(Flow::Next)
}

pub(super) fn add_integers(sum: i32, product: i32, saturate: bool) -> i32 {
    if saturate { sum.saturating_add(product) } else { sum.wrapping_add(product) }
}

/// Adds to the count of the unit that works on these elements.
pub(super) fn count_flops(cx: &mut WarpCx<'_>, element: Element, n_flops: u64) {
    let flops = &mut cx.cx.counters.flops;
    match element {
        Element::F16 | Element::Bf16 => flops.tensor_f16 += n_flops,
        Element::E4m3 | Element::E5m2 => flops.tensor_f8 += n_flops,
        _ => flops.tensor_other += n_flops,
    }
}

fn gather_a(a: &mut [f32], mma: &Mma, registers: &Registers) {
    let n_per_register = 4 / mma.a_element.bytes();
    let place = if mma.n_rows == 8 { a_place_of_8 } else { a_place };
    let bits = 8 * mma.a_element.bytes() as u32;
    for (register_idx, register) in mma.a.iter().enumerate() {
        for (lane, word) in registers.r32(*register).iter().enumerate() {
            for part in 0..n_per_register {
                let place = place(lane, register_idx, part, n_per_register);
                let value = mma.a_element.value(word >> (bits * part as u32));
                a[place.row * mma.k + place.col] = value;
            }
        }
    }
}

fn gather_b(b: &mut [f32], mma: &Mma, registers: &Registers) {
    let n_per_register = 4 / mma.b_element.bytes();
    let bits = 8 * mma.b_element.bytes() as u32;
    for (register_idx, register) in mma.b.iter().enumerate() {
        for (lane, word) in registers.r32(*register).iter().enumerate() {
            for part in 0..n_per_register {
                let place = b_place(lane, register_idx, part, n_per_register);
                let value = mma.b_element.value(word >> (bits * part as u32));
                b[place.row * N_COLS + place.col] = value;
            }
        }
    }
}

/// Reads floating-point accumulators into a tile of `n_cols` columns.
pub(super) fn load_sums(
    sums: &mut [f32],
    n_cols: usize,
    from: &[R32],
    sum: Sum,
    registers: &Registers,
) {
    let n_per_register = sum.n_per_register();
    for (register_idx, register) in from.iter().enumerate() {
        for (lane, word) in registers.r32(*register).iter().enumerate() {
            for part in 0..n_per_register {
                let place = accumulator_place(lane, register_idx * n_per_register + part);
                sums[place.row * n_cols + place.col] = match sum {
                    Sum::F16 => f16::from_bits((word >> (16 * part)) as u16).to_f32(),
                    _ => f32::from_bits(*word),
                };
            }
        }
    }
}

/// Writes a tile back into accumulators.
pub(super) fn store_sums(
    sums: &[f32],
    n_cols: usize,
    to: &[R32],
    sum: Sum,
    registers: &mut Registers,
) {
    let n_per_register = sum.n_per_register();
    for (register_idx, register) in to.iter().enumerate() {
        let value = |lane: usize, part: usize| {
            let place = accumulator_place(lane, register_idx * n_per_register + part);
            sums[place.row * n_cols + place.col]
        };
        let half = |lane, part| u32::from(f16::from_f32(value(lane, part)).to_bits());
        *registers.r32_mut(*register) = std::array::from_fn(|lane| match sum {
            Sum::F16 => half(lane, 0) | half(lane, 1) << 16,
            _ => value(lane, 0).to_bits(),
        });
    }
}

/// Runs the shapes of doubles: fused multiply-adds over K in order.
pub(super) fn execute_f64(mma: &MmaF64, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    check_converged(cx)?;
    let registers = &mut cx.warp.registers;
    let mut a = [[0f64; 16]; 16];
    let mut b = [[0f64; N_COLS]; 16];
    let a_of = if mma.n_rows == 8 { a_place_of_8 } else { a_place };
    for lane in 0..32 {
        for (register_idx, register) in mma.a.iter().enumerate() {
            let place = a_of(lane, register_idx, 0, 1);
            a[place.row][place.col] = f64::from_bits(registers.r64(*register)[lane]);
        }
        for (register_idx, register) in mma.b.iter().enumerate() {
            let place = b_place(lane, register_idx, 0, 1);
            b[place.row][place.col] = f64::from_bits(registers.r64(*register)[lane]);
        }
    }
    let c: Vec<[u64; 32]> = mma.c.iter().map(|c| *registers.r64(*c)).collect();
    for (value_idx, (d, c)) in mma.d.iter().zip(c).enumerate() {
        *registers.r64_mut(*d) = std::array::from_fn(|lane| {
            let place = accumulator_place(lane, value_idx);
            let start = f64::from_bits(c[lane]);
            let dot = |sum, k: usize| a[place.row][k].mul_add(b[k][place.col], sum);
            (0..mma.k).fold(start, dot).to_bits()
        });
    }
    let n_flops = 2 * (mma.n_rows * N_COLS * mma.k) as u64;
    count_flops(cx, Element::F64, n_flops);
    Ok(Flow::Next)
}
