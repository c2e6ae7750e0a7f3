//! What `wgmma.mma_async` says: shape, types, where its operands lie and how they are turned.

use std::sync::Arc;

use super::super::descriptor::Major;
use super::super::element::Element;
use super::super::multiply::Sum;
use super::super::operands::{constant, operand, sources32, targets32, unsupported};
use crate::exec::inst::{Pred, R32, R64};
use crate::ptx::{Instruction, Lowered, Lowering, Operand};

/// Rows that a warpgroup multiplies: 16 of each warp.
pub(super) const N_ROWS: usize = 64;

/// Bytes of K that one instruction takes from each row.
const K_BYTES: usize = 32;

/// `wgmma.mma_async`, the same for the four warps.
#[derive(Debug, PartialEq)]
pub struct WarpgroupMma {
    pub(super) n_cols: usize,
    pub(super) k: usize,
    pub(super) sum: Sum,
    pub(super) a: Left,
    pub(super) b: R64,
    pub(super) a_side: Side,
    pub(super) b_side: Side,
    /// Whether the product is added to what the accumulators hold.
    pub(super) adds: Pred,
    pub(super) accumulators: Box<[R32]>,
}

/// Where operand A lies.
#[derive(Debug, PartialEq)]
pub(super) enum Left {
    Shared(R64),
    /// Four registers, as `mma.sync` has them.
    Registers(Box<[R32]>),
}

/// How an operand is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Side {
    pub(super) element: Element,
    pub(super) negated: bool,
    pub(super) major: Major,
}

/// Decodes `wgmma.mma_async.sync.aligned.m64nNkK{.satfinite}.D.A.B d, a, b, scale-d{, …}`.
pub(in super::super) fn decode(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
) -> Lowered<Arc<WarpgroupMma>> {
    let mnemonic = &inst.mnemonic;
    let modifiers: Vec<&str> = mnemonic.modifiers().iter().map(String::as_str).collect();
    let ["mma_async", "sync", "aligned", shape, .., d_type, a_type, b_type] = modifiers[..] else {
        return unsupported(mnemonic);
    };
    let (Some((n_cols, k)), Some(a_element), Some(b_element), Some(sum)) = (
        parse_shape(shape),
        Element::parse(a_type),
        Element::parse(b_type),
        Sum::parse(d_type, mnemonic.has("satfinite")),
    ) else {
        return unsupported(mnemonic);
    };
    let bytes = a_element.bytes();
    let is_integer = matches!(sum, Sum::S32 { .. });
    let is_legal = bytes == b_element.bytes()
        && k * bytes == K_BYTES
        && a_element.is_integer() == is_integer
        && (sum != Sum::F16 || !matches!(a_element, Element::Bf16 | Element::Tf32));
    if !is_legal {
        return unsupported(mnemonic);
    }
    let a = match operand(inst, 1)? {
        Operand::Vector(_) => Left::Registers(sources32(cx, inst, 1, 4)?),
        descriptor => Left::Shared(cx.source64(descriptor)?),
    };
    let turns = Turns::decode(cx, inst, &a, bytes, is_integer)?;
    Ok(Arc::new(WarpgroupMma {
        n_cols,
        k,
        sum,
        a,
        b: cx.source64(operand(inst, 2)?)?,
        a_side: Side { element: a_element, negated: turns.negates_a, major: turns.a },
        b_side: Side { element: b_element, negated: turns.negates_b, major: turns.b },
        adds: cx.source_predicate(operand(inst, 3)?)?,
        accumulators: targets32(cx, inst, 0, n_cols / 2 / sum.n_per_register())?,
    }))
}

/// The immediate operands at the end.
struct Turns {
    negates_a: bool,
    negates_b: bool,
    a: Major,
    b: Major,
}

impl Turns {
    /// `scale-a, scale-b` unless integers, then `trans-a` for A in shared memory and `trans-b`,
    /// for 16-bit elements alone.
    fn decode(
        cx: &mut Lowering<'_>,
        inst: &Instruction,
        a: &Left,
        bytes: usize,
        is_integer: bool,
    ) -> Lowered<Turns> {
        let n_scales = if is_integer { 0 } else { 2 };
        let n_transposes = match (bytes, a) {
            (2, Left::Shared(_)) => 2,
            (2, Left::Registers(_)) => 1,
            _ => 0,
        };
        if inst.operands.len() != 4 + n_scales + n_transposes {
            return unsupported(&inst.mnemonic);
        }
        let mut turns = Turns { negates_a: false, negates_b: false, a: Major::K, b: Major::K };
        if n_scales > 0 {
            turns.negates_a = constant(cx, inst, 4)? == -1;
            turns.negates_b = constant(cx, inst, 5)? == -1;
        }
        let major = |flag: i64| if flag == 0 { Major::K } else { Major::Mn };
        if n_transposes == 2 {
            turns.a = major(constant(cx, inst, 6)?);
        }
        if n_transposes > 0 {
            turns.b = major(constant(cx, inst, inst.operands.len() - 1)?);
        }
        Ok(turns)
    }
}

/// N and K of `m64nNkK`.
fn parse_shape(shape: &str) -> Option<(usize, usize)> {
    let (n_cols, k) = shape.strip_prefix("m64n")?.split_once('k')?;
    let (n_cols, k): (usize, usize) = (n_cols.parse().ok()?, k.parse().ok()?);
    let is_legal = n_cols.is_multiple_of(8) && (8..=256).contains(&n_cols);
    is_legal.then_some((n_cols, k))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        assert_eq!(parse_shape("m64n8k16"), Some((8, 16)));
        assert_eq!(parse_shape("m64n256k32"), Some((256, 32)));
        for wrong in ["m64n12k16", "m64n264k16", "m64n0k16", "m16n8k16", "m64n8"] {
            assert_eq!(parse_shape(wrong), None, "{wrong}");
        }
    }
}
