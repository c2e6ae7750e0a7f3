//! Copies between registers, packing and unpacking, and conversions of addresses.

use crate::exec::alu::{self, Slot, Type};
use crate::exec::inst::{Op, Space};
use crate::exec::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::ptx::error::{Lowered, Problem};
use crate::ptx::lower::Lowering;
use crate::ptx::lower::scope::Symbol;
use crate::ptx::lower::specials;
use crate::ptx::syntax::{Instruction, Operand};

impl Lowering<'_> {
    /// Lowers a movement that is more than a copy of a register. Tells whether it was.
    pub(super) fn movement(&mut self, instruction: &Instruction) -> Lowered<bool> {
        let [target, sources @ ..] = &instruction.operands[..] else {
            return Err(Problem::OperandCount {
                opcode: instruction.mnemonic.text(),
                found: 0,
                expected: 2,
            });
        };
        match (instruction.mnemonic.opcode(), target, sources) {
            ("mov", Operand::Vector(parts), [source]) => {
                self.unpack(instruction, parts, source)?;
            }
            ("mov", target, [Operand::Vector(parts)]) => self.pack(instruction, target, parts)?,
            ("mov", target, [Operand::Name(name)]) => return self.read_clock(target, name),
            ("mov", ..) => return Ok(false),
            ("cvta", target, [source]) => self.convert_address(instruction, target, source)?,
            ("isspacep", target, [source]) => {
                let space = instruction.mnemonic.modifiers().first().and_then(|part| space(part));
                let space =
                    space.ok_or_else(|| Problem::Opcode { opcode: instruction.mnemonic.text() })?;
                let row = self.source64(source)?;
                let target = self.target_predicate(target)?;
                self.push_alu(&alu::is_in_space(space), [target.0, row.0, 0, 0, 0, 0]);
            }
            ("mapa" | "getctarank", target, sources) => {
                self.cluster_address(instruction, target, sources)?;
            }
            ("createpolicy", target, _) => {
                // Caches are not modelled, so a policy is any number.
                let none = self.constant64(0);
                let target = self.target64(target)?;
                self.push_alu(&alu::or64(), [target.0, none.0, none.0, 0, 0, 0]);
            }
            _ => return Err(Problem::Opcode { opcode: instruction.mnemonic.text() }),
        }
        Ok(true)
    }

    /// File of the whole, from the type of `mov`.
    fn whole(instruction: &Instruction) -> Lowered<Slot> {
        let ty = instruction.mnemonic.parts.last().and_then(|part| Type::parse(part));
        match ty {
            Some(Type::B128) => Err(Problem::Unsupported { what: "a 128-bit register".to_owned() }),
            Some(ty) if ty != Type::Pred => Ok(ty.slot()),
            _ => Err(Problem::Opcode { opcode: instruction.mnemonic.text() }),
        }
    }

    fn unpack(
        &mut self,
        instruction: &Instruction,
        parts: &[Operand],
        source: &Operand,
    ) -> Lowered<()> {
        let slot = Lowering::whole(instruction)?;
        if !matches!(parts.len(), 2 | 4) {
            return Err(Problem::Operand { operand_idx: 0, expected: "two registers or four" });
        }
        let whole = self.source(slot, source)?;
        for (idx, part) in parts.iter().enumerate() {
            if *part == Operand::Sink {
                continue;
            }
            let target = self.target32(part)?;
            let alu = alu::element(slot, parts.len(), idx);
            self.push_alu(&alu, [target.0, whole, 0, 0, 0, 0]);
        }
        Ok(())
    }

    fn pack(
        &mut self,
        instruction: &Instruction,
        target: &Operand,
        parts: &[Operand],
    ) -> Lowered<()> {
        let slot = Lowering::whole(instruction)?;
        let alu = alu::pack(slot, parts.len())
            .ok_or(Problem::Operand { operand_idx: 1, expected: "two registers or four" })?;
        let mut rows = [0; 6];
        for (idx, part) in parts.iter().enumerate() {
            rows[idx + 1] = self.source32(part)?.0;
        }
        let ty = if slot == Slot::R64 { Type::B64 } else { Type::B32 };
        rows[0] = self.target_as(ty, target)?;
        self.push_alu(&alu, rows);
        Ok(())
    }

    fn read_clock(&mut self, target: &Operand, name: &str) -> Lowered<bool> {
        let Some(kind) = specials::clock(name) else { return Ok(false) };
        let is_wide = matches!(name, "%clock64" | "%globaltimer");
        let (mut wide, mut narrow) = (None, None);
        if is_wide {
            wide = Some(self.target64(target)?);
        } else {
            narrow = Some(self.target32(target)?);
        }
        self.emit(Op::Clock { wide, narrow, kind });
        Ok(true)
    }

    fn convert_address(
        &mut self,
        instruction: &Instruction,
        target: &Operand,
        source: &Operand,
    ) -> Lowered<()> {
        let modifiers = instruction.mnemonic.modifiers();
        let to_space = modifiers.first().is_some_and(|part| part == "to");
        let named = modifiers.get(usize::from(to_space)).and_then(|part| space(part));
        let mut space =
            named.ok_or_else(|| Problem::Opcode { opcode: instruction.mnemonic.text() })?;
        // A parameter of a function that was inlined lies in local memory.
        if let Operand::Name(name) | Operand::Offset(name, _) = source
            && let Some(Symbol::Local(_)) = self.symbol(name)
        {
            space = Space::Local;
        }
        let source = self.source64(source)?;
        let target = self.target64(target)?;
        let window = match space {
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            Space::Param => PARAM_WINDOW,
            Space::Global | Space::Generic => 0,
        };
        if to_space && window != 0 {
            self.push_alu(&alu::to_space(), [target.0, source.0, 0, 0, 0, 0]);
        } else {
            let window = self.constant64(window);
            self.push_alu(&alu::or64(), [target.0, source.0, window.0, 0, 0, 0]);
        }
        Ok(())
    }

    /// `mapa d, a, rank` and `getctarank d, a`; with a generic address without `.shared::cluster`.
    fn cluster_address(
        &mut self,
        instruction: &Instruction,
        target: &Operand,
        sources: &[Operand],
    ) -> Lowered<()> {
        let is_shared = instruction.mnemonic.has("shared::cluster");
        let is_wide = instruction.mnemonic.parts.last().is_some_and(|part| part == "u64");
        match (instruction.mnemonic.opcode(), sources) {
            ("mapa", [address, rank]) => {
                let slot = if is_wide { Slot::R64 } else { Slot::R32 };
                let address = self.source(slot, address)?;
                let rank = self.source32(rank)?;
                let ty = if is_wide { Type::B64 } else { Type::B32 };
                let target = self.target_as(ty, target)?;
                self.push_alu(&alu::map_shared(slot), [target, address, rank.0, 0, 0, 0]);
            }
            ("getctarank", [address]) => {
                let slot = if is_shared { Slot::R32 } else { Slot::R64 };
                let address = self.source(slot, address)?;
                let own = self.special("%cluster_ctarank")?;
                let target = self.target32(target)?;
                self.push_alu(&alu::shared_rank(slot), [target.0, address, own.0, 0, 0, 0]);
            }
            _ => return Err(Problem::Opcode { opcode: instruction.mnemonic.text() }),
        }
        Ok(())
    }
}

/// The state space of that name.
pub(super) fn space(name: &str) -> Option<Space> {
    Some(match name {
        "global" | "const" => Space::Global,
        "shared" | "shared::cta" | "shared::cluster" => Space::Shared,
        "local" => Space::Local,
        "param" | "param::entry" | "param::func" => Space::Param,
        _ => return None,
    })
}
