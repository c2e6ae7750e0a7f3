//! Lane-wise arithmetic: from an opcode's text to a function over the 32 lanes of a warp.
//!
//! An instruction's meaning is a closure over one lane's values, typed as the PTX types are;
//! `lift` makes of it a loop over rows of registers that the compiler vectorises.

mod bits;
mod compare;
mod convert;
mod float;
mod half;
mod integer;
mod lane;
mod lift;
mod logic;
mod moves;
mod reals;
mod types;

pub use compare::{Boolean, compare, set_value};
pub use lane::Slot;
pub use lift::{Alu, AluFn, Rows};
pub use logic::{and_predicates, copy_predicate, not_predicate, or_predicates, xor_predicates};
pub use moves::{
    element, is_in_space, map_shared, or64, pack, select32, shared_rank, sign_extend_to_64,
    to_space, truncate, zero_extend,
};
pub use types::Type;

use crate::ptx::Mnemonic;

/// The function of an opcode, if it is arithmetic between registers and all of its modifiers are
/// known.
pub fn select(mnemonic: &Mnemonic) -> Option<Alu> {
    let (last, modifiers) = mnemonic.modifiers().split_last()?;
    let modifiers: Vec<&str> = modifiers.iter().map(String::as_str).collect();
    let opcode = mnemonic.opcode();
    if opcode == "cvt" {
        return convert::select(&modifiers, last);
    }
    if opcode == "prmt" {
        return logic::permutation(&[&modifiers[..], &[last]].concat());
    }
    let ty = Type::parse(last)?;
    match ty {
        Type::Pred => logic::select_predicate(opcode, &modifiers),
        Type::F32 | Type::F64 => float::select(opcode, &modifiers, ty),
        Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 => half::select(opcode, &modifiers, ty),
        _ => integer::select(opcode, &modifiers, ty)
            .or_else(|| logic::select(opcode, &modifiers, ty))
            .or_else(|| moves::select(opcode, &modifiers, ty)),
    }
    .or_else(|| moves::select(opcode, &modifiers, ty))
}
