//! Operands: what an instruction asks for, from what is written.

use crate::exec::alu::{self, Alu, Slot, Type};
use crate::exec::inst::{Address, Base, Op, Pred, R32, R64, Space};
use crate::ptx::error::{Lowered, Problem};
use crate::ptx::lower::scope::Symbol;
use crate::ptx::lower::{Lowering, Row};
use crate::ptx::syntax::Operand;

fn wrong(expected: &'static str) -> Problem {
    Problem::Operand { operand_idx: 0, expected }
}

impl Lowering<'_> {
    /// A constant of 32 bits.
    pub fn constant32(&mut self, value: u32) -> R32 {
        if let Some(row) = self.pool.r32.get(&value) {
            return *row;
        }
        let row = self.new_r32();
        self.pool.r32.insert(value, row);
        self.constants.r32.push((row, value));
        row
    }

    /// A constant of 64 bits.
    pub fn constant64(&mut self, value: u64) -> R64 {
        if let Some(row) = self.pool.r64.get(&value) {
            return *row;
        }
        let row = self.new_r64();
        self.pool.r64.insert(value, row);
        self.constants.r64.push((row, value));
        row
    }

    /// A predicate that is always so.
    pub fn constant_predicate(&mut self, value: bool) -> Pred {
        if let Some(row) = self.pool.predicates.get(&value) {
            return *row;
        }
        let row = self.new_predicate();
        self.pool.predicates.insert(value, row);
        self.constants.predicates.push((row, value));
        row
    }

    /// A source of up to 32 bits: register, special register, constant, address of a variable.
    pub fn source32(&mut self, operand: &Operand) -> Lowered<R32> {
        match operand {
            Operand::Integer(value) => Ok(self.constant32(*value as u32)),
            Operand::Single(bits) => Ok(self.constant32(*bits)),
            Operand::Double(bits) => Ok(self.constant32((f64::from_bits(*bits) as f32).to_bits())),
            Operand::Name(name) => self.name32(name, 0),
            Operand::Offset(name, offset) => self.name32(name, *offset),
            Operand::Sink => Ok(self.constant32(0)),
            _ => Err(wrong("a value of up to 32 bits")),
        }
    }

    fn name32(&mut self, name: &str, offset: i64) -> Lowered<R32> {
        match self.symbol(name) {
            Some(Symbol::R32(row)) if offset == 0 => Ok(row),
            Some(Symbol::R64(row)) if offset == 0 => {
                let narrow = self.new_r32();
                self.emit_converted(alu::truncate(), narrow.0, row.0);
                Ok(narrow)
            }
            Some(Symbol::Shared(at) | Symbol::Local(at) | Symbol::Param(at)) => {
                Ok(self.constant32((at as i64 + offset) as u32))
            }
            Some(Symbol::DynamicShared) => {
                let row = self.new_r32();
                self.dynamic_rows.push((Row::R32(row), offset));
                Ok(row)
            }
            Some(_) => Err(wrong("a value of up to 32 bits")),
            None if name.starts_with('%') => self.special(name),
            None => Err(Problem::Unknown { name: name.to_owned() }),
        }
    }

    /// A source of 64 bits.
    pub fn source64(&mut self, operand: &Operand) -> Lowered<R64> {
        match operand {
            Operand::Integer(value) => Ok(self.constant64(*value as u64)),
            Operand::Double(bits) => Ok(self.constant64(*bits)),
            Operand::Single(bits) => {
                Ok(self.constant64(f64::from(f32::from_bits(*bits)).to_bits()))
            }
            Operand::Name(name) => self.name64(name, 0),
            Operand::Offset(name, offset) => self.name64(name, *offset),
            Operand::Sink => Ok(self.constant64(0)),
            _ => Err(wrong("a value of 64 bits")),
        }
    }

    fn name64(&mut self, name: &str, offset: i64) -> Lowered<R64> {
        match self.symbol(name) {
            Some(Symbol::R64(row)) if offset == 0 => Ok(row),
            Some(Symbol::Shared(at) | Symbol::Local(at) | Symbol::Param(at)) => {
                Ok(self.constant64((at as i64 + offset) as u64))
            }
            Some(Symbol::DynamicShared) => {
                let row = self.new_r64();
                self.dynamic_rows.push((Row::R64(row), offset));
                Ok(row)
            }
            Some(Symbol::Global(idx)) => Ok(self.global_address(idx, offset)),
            Some(_) => Err(wrong("a value of 64 bits")),
            // Special registers of 32 bits may be read into wider ones.
            None if name.starts_with('%') => {
                let narrow = self.special(name)?;
                let wide = self.new_r64();
                self.emit_converted(alu::zero_extend(4), wide.0, narrow.0);
                Ok(wide)
            }
            None => Err(Problem::Unknown { name: name.to_owned() }),
        }
    }

    fn global_address(&mut self, idx: usize, offset: i64) -> R64 {
        if let Some(row) = self.pool.globals.get(&(idx, offset)) {
            return *row;
        }
        let row = self.new_r64();
        self.pool.globals.insert((idx, offset), row);
        self.constants.globals.push((row, idx, offset));
        row
    }

    /// A predicate, negated ones (`!p`) and constants included.
    pub fn source_predicate(&mut self, operand: &Operand) -> Lowered<Pred> {
        match operand {
            Operand::Name(name) => self.named_predicate(name),
            Operand::Integer(value) => Ok(self.constant_predicate(*value != 0)),
            Operand::Not(name) => {
                let row = self.named_predicate(name)?;
                let negated = self.new_predicate();
                self.emit_converted(alu::not_predicate(), negated.0, row.0);
                Ok(negated)
            }
            _ => Err(wrong("a predicate")),
        }
    }

    pub(super) fn named_predicate(&mut self, name: &str) -> Lowered<Pred> {
        match self.symbol(name) {
            Some(Symbol::Pred(row)) => Ok(row),
            Some(_) => Err(wrong("a predicate")),
            None => Err(Problem::Unknown { name: name.to_owned() }),
        }
    }

    /// A source for an instruction's function.
    pub(super) fn source(&mut self, slot: Slot, operand: &Operand) -> Lowered<u16> {
        match slot {
            Slot::R32 => self.source32(operand).map(|row| row.0),
            Slot::R64 => self.source64(operand).map(|row| row.0),
            Slot::Pred => self.source_predicate(operand).map(|row| row.0),
        }
    }

    /// A destination of up to 32 bits, or a row nobody reads for `_`. A wider register gets the
    /// value zero-extended.
    pub fn target32(&mut self, operand: &Operand) -> Lowered<R32> {
        self.target_as(Type::B32, operand).map(R32)
    }

    /// A destination of 64 bits.
    pub fn target64(&mut self, operand: &Operand) -> Lowered<R64> {
        self.target_as(Type::B64, operand).map(R64)
    }

    /// A predicate that is set, or one nobody reads for `_`.
    pub fn target_predicate(&mut self, operand: &Operand) -> Lowered<Pred> {
        self.target_as(Type::Pred, operand).map(Pred)
    }

    /// A destination for a value of a type, in the file that holds the type. A wider register
    /// gets it extended, after the instruction.
    pub(super) fn target_as(&mut self, ty: Type, operand: &Operand) -> Lowered<u16> {
        let slot = ty.slot();
        let name = match operand {
            Operand::Sink => return Ok(self.new_row(slot)),
            Operand::Name(name) => name,
            _ => return Err(wrong("a register")),
        };
        match (slot, self.symbol(name)) {
            (Slot::R32, Some(Symbol::R32(row))) => Ok(row.0),
            (Slot::R64, Some(Symbol::R64(row))) => Ok(row.0),
            (Slot::Pred, Some(Symbol::Pred(row))) => Ok(row.0),
            (Slot::R32, Some(Symbol::R64(row))) => {
                let narrow = self.new_r32();
                let extend = if ty.is_signed() {
                    alu::sign_extend_to_64(ty.n_bytes())
                } else {
                    alu::zero_extend(ty.n_bytes())
                };
                self.after.push(Op::Alu { run: extend.run, rows: [row.0, narrow.0, 0, 0, 0, 0] });
                Ok(narrow.0)
            }
            (_, None) => Err(Problem::Unknown { name: name.clone() }),
            _ => Err(wrong("a register of the instruction's type")),
        }
    }

    /// A conversion of a source, in front of the instruction.
    pub(super) fn emit_converted(&mut self, alu: Alu, target: u16, source: u16) {
        self.emit_always(Op::Alu { run: alu.run, rows: [target, source, 0, 0, 0, 0] });
    }

    /// A memory operand with one part: `[a+8]`.
    pub fn address(&mut self, operand: &Operand) -> Lowered<Address> {
        self.place_of(operand).map(|(address, _)| address)
    }

    /// A memory operand with one part, and the space that its variable lies in, if it names one.
    pub(super) fn place_of(&mut self, operand: &Operand) -> Lowered<(Address, Option<Space>)> {
        let part = match operand {
            Operand::Memory(parts) if parts.len() == 1 => &parts[0],
            other => other,
        };
        let (name, offset) = match part {
            Operand::Name(name) => (name, 0),
            Operand::Offset(name, offset) => (name, *offset),
            Operand::Integer(value) => {
                return Ok((Address { base: Base::Absolute, offset: *value }, None));
            }
            _ => return Err(wrong("an address")),
        };
        let absolute = |at: usize, space| {
            Ok((Address { base: Base::Absolute, offset: at as i64 + offset }, Some(space)))
        };
        match self.symbol(name) {
            Some(Symbol::R64(row)) => Ok((Address { base: Base::Wide(row), offset }, None)),
            Some(Symbol::R32(row)) => Ok((Address { base: Base::Narrow(row), offset }, None)),
            Some(Symbol::Shared(at)) => absolute(at, Space::Shared),
            Some(Symbol::Local(at)) => absolute(at, Space::Local),
            Some(Symbol::Param(at)) => absolute(at, Space::Param),
            Some(Symbol::DynamicShared) => {
                let row = self.name32(name, 0)?;
                Ok((Address { base: Base::Narrow(row), offset }, Some(Space::Shared)))
            }
            Some(Symbol::Global(idx)) => {
                let row = self.global_address(idx, offset);
                Ok((Address { base: Base::Wide(row), offset: 0 }, Some(Space::Global)))
            }
            Some(Symbol::Pred(_)) => Err(wrong("an address")),
            None => Err(Problem::Unknown { name: name.clone() }),
        }
    }

    /// A constant integer.
    pub fn constant(&mut self, operand: &Operand) -> Lowered<i64> {
        match operand {
            Operand::Integer(value) => Ok(*value),
            _ => Err(wrong("a constant")),
        }
    }

    /// The parts of `{a, b}`; of anything else, itself.
    pub fn elements<'o>(&self, operand: &'o Operand) -> &'o [Operand] {
        match operand {
            Operand::Vector(elements) => elements,
            other => std::slice::from_ref(other),
        }
    }
}
