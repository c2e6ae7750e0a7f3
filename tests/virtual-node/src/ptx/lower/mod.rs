//! From statements to the executor's instructions: names become rows of register files.

use std::marker::PhantomData;

use crate::exec::inst::{Address, Pred, R32, R64};
use crate::ptx::error::Lowered;
use crate::ptx::syntax::Operand;

/// A function that is being lowered. Operands are asked for by what they must be; where a
/// register is wider or narrower than that, the conversion is put in.
#[derive(Debug)]
pub struct Lowering<'a> {
    _module: PhantomData<&'a ()>,
}

impl Lowering<'_> {
    /// A source of up to 32 bits: register, special register, constant, address of a variable.
    pub fn source32(&mut self, _operand: &Operand) -> Lowered<R32> {
        Ok(R32(0))
    }

    /// A source of 64 bits.
    pub fn source64(&mut self, _operand: &Operand) -> Lowered<R64> {
        Ok(R64(0))
    }

    /// A predicate, negated ones (`!p`) and constants included.
    pub fn source_predicate(&mut self, _operand: &Operand) -> Lowered<Pred> {
        Ok(Pred(0))
    }

    /// A destination of up to 32 bits, or a row nobody reads for `_`.
    pub fn target32(&mut self, _operand: &Operand) -> Lowered<R32> {
        Ok(R32(0))
    }

    pub fn target64(&mut self, _operand: &Operand) -> Lowered<R64> {
        Ok(R64(0))
    }

    pub fn target_predicate(&mut self, _operand: &Operand) -> Lowered<Pred> {
        Ok(Pred(0))
    }

    /// A memory operand with one part: `[a+8]`.
    pub fn address(&mut self, _operand: &Operand) -> Lowered<Address> {
        Ok(Address { base: crate::exec::inst::Base::Absolute, offset: 0 })
    }

    /// A constant integer.
    pub fn constant(&mut self, _operand: &Operand) -> Lowered<i64> {
        Ok(0)
    }
}
