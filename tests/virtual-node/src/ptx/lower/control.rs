//! Branches, calls, barriers, and what does nothing here.

use std::collections::HashMap;

use crate::exec::alu::{self, Type};
use crate::exec::barrier::{BarrierOp, BarrierResult};
use crate::exec::inst::Op;
use crate::ptx::error::{Lowered, Problem};
use crate::ptx::lower::Lowering;
use crate::ptx::lower::scope::{Frame, Symbol};
use crate::ptx::syntax::{Function, Instruction, Operand, Variable, VariableSpace};

/// Calls inside of calls; deeper ones are taken for recursion.
const N_FRAMES_MAX: usize = 24;

impl Lowering<'_> {
    /// Lowers an instruction that steers threads. Tells whether it was one.
    pub(super) fn control(&mut self, instruction: &Instruction) -> Lowered<bool> {
        let mnemonic = &instruction.mnemonic;
        match mnemonic.opcode() {
            "bra" => self.branch(&instruction.operands)?,
            "brx" => self.indexed_branch(&instruction.operands)?,
            "call" => self.call(&instruction.operands)?,
            "ret" => self.ret(),
            "exit" => self.emit(Op::Exit),
            "trap" | "brkpt" => self.emit(Op::Trap),
            "bar" | "barrier" => self.barrier(instruction)?,
            "nanosleep" => self.emit(Op::Sleep),
            // Memory is sequentially consistent here, and caches are not modelled.
            "membar" | "prefetch" | "prefetchu" | "discard" | "applypriority"
                if !mnemonic.has("tensormap") =>
            {
                self.emit(Op::Nop);
            }
            "fence" if !mnemonic.parts[1..].iter().any(|part| part.starts_with("proxy")) => {
                self.emit(Op::Nop);
            }
            // Registers are not scarce, and a grid starts when the one before has ended.
            "setmaxnreg" | "griddepcontrol" | "pmevent" => self.emit(Op::Nop),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn branch(&mut self, operands: &[Operand]) -> Lowered<()> {
        let [Operand::Name(name)] = operands else {
            return Err(Problem::Operand { operand_idx: 0, expected: "a label" });
        };
        let target = self.label(name)? as u32;
        self.emit(Op::Branch { target });
        Ok(())
    }

    fn indexed_branch(&mut self, operands: &[Operand]) -> Lowered<()> {
        let [index, Operand::Name(table)] = operands else {
            return Err(Problem::Operand { operand_idx: 1, expected: "a table of labels" });
        };
        let frame = self.frame();
        let names = frame
            .branch_targets(table)
            .cloned()
            .ok_or_else(|| Problem::Unknown { name: table.clone() })?;
        let index = self.source32(index)?;
        let labels: Lowered<Vec<u32>> =
            names.iter().map(|name| self.label(name).map(|label| label as u32)).collect();
        self.emit(Op::BranchIndexed { index, targets: labels?.into() });
        Ok(())
    }

    fn ret(&mut self) {
        match self.frame().return_label {
            Some(label) => self.emit(Op::Branch { target: label as u32 }),
            None => self.emit(Op::Exit),
        }
    }

    /// `call (result), function, (arguments)`: the function's body, in place.
    fn call(&mut self, operands: &[Operand]) -> Lowered<()> {
        let group = |operand: Option<&Operand>| match operand {
            Some(Operand::Group(names)) => names.clone(),
            _ => Vec::new(),
        };
        let has_result = matches!(operands.first(), Some(Operand::Group(_)));
        let results = if has_result { group(operands.first()) } else { Vec::new() };
        let rest = &operands[usize::from(has_result)..];
        let Some(Operand::Name(name)) = rest.first() else {
            return Err(Problem::Operand { operand_idx: 0, expected: "a function" });
        };
        let arguments = group(rest.get(1));
        let Some(function) = self.module.functions.get(name.as_str()).copied() else {
            return Err(Problem::Unsupported { what: format!("an indirect call of {name}") });
        };
        let Some(body) = &function.body else {
            return self.system_call(name, &results, &arguments);
        };
        if self.frames.len() == N_FRAMES_MAX {
            return Err(Problem::Limit { what: "calls inside of calls", limit: N_FRAMES_MAX });
        }
        let end = self.new_label();
        // Lanes that the guard leaves out go around.
        if let Some(guard) = self.guard.take() {
            self.guard = Some(crate::exec::inst::Guard { negated: !guard.negated, ..guard });
            self.emit(Op::Branch { target: end as u32 });
            self.guard = None;
        }
        let line = self.line;
        let symbols = self.bind(function, &results, &arguments)?;
        self.frames.push(Frame::new(symbols, Some(end)));
        self.body(body)?;
        self.frames.pop();
        self.line = line;
        self.guard = None;
        self.place(end);
        Ok(())
    }

    /// What a function's parameters mean while it is inlined: the caller's variables themselves.
    /// Values passed in registers are shared the same way.
    fn bind(
        &mut self,
        function: &Function,
        results: &[Operand],
        arguments: &[Operand],
    ) -> Lowered<HashMap<String, Symbol>> {
        let mut symbols = HashMap::new();
        let formal = function.returns.iter().chain(&function.params);
        let actual = results.iter().chain(arguments);
        let n_formal = function.returns.len() + function.params.len();
        let n_actual = results.len() + arguments.len();
        if n_formal != n_actual {
            let opcode = format!("call of {}", function.name);
            return Err(Problem::OperandCount { opcode, found: n_actual, expected: n_formal });
        }
        for (formal, actual) in formal.zip(actual) {
            let symbol = self.actual(formal, actual)?;
            symbols.insert(formal.name.clone(), symbol);
        }
        Ok(symbols)
    }

    fn actual(&mut self, formal: &Variable, actual: &Operand) -> Lowered<Symbol> {
        if let Operand::Name(name) = actual
            && let Some(symbol) = self.symbol(name)
        {
            return Ok(symbol);
        }
        if formal.space != VariableSpace::Register {
            return Err(Problem::Operand { operand_idx: 0, expected: "a parameter's name" });
        }
        Ok(match formal.ty.slot() {
            alu::Slot::R64 => Symbol::R64(self.source64(actual)?),
            alu::Slot::R32 => Symbol::R32(self.source32(actual)?),
            alu::Slot::Pred => Symbol::Pred(self.source_predicate(actual)?),
        })
    }

    /// Functions that the machine itself provides.
    fn system_call(
        &mut self,
        name: &str,
        results: &[Operand],
        arguments: &[Operand],
    ) -> Lowered<()> {
        match name {
            "__assertfail" if arguments.len() == 5 => {
                let mut at = [0; 3];
                for (at, argument) in at.iter_mut().zip(arguments) {
                    let Operand::Name(name) = argument else { continue };
                    if let Some(Symbol::Local(offset)) = self.symbol(name) {
                        *at = offset;
                    }
                }
                self.emit(Op::Assert { message: at[0], file: at[1], line: at[2] });
                Ok(())
            }
            // Nothing is printed; it answers that nothing was.
            "vprintf" => {
                if let Some(Operand::Name(result)) = results.first()
                    && let Some(Symbol::Local(at)) = self.symbol(result)
                {
                    let zero = self.constant32(0);
                    self.store_local(at, zero);
                }
                Ok(())
            }
            _ => Err(Problem::Unsupported { what: format!("a call of the external {name}") }),
        }
    }

    fn store_local(&mut self, at: usize, value: crate::exec::inst::R32) {
        use crate::exec::access::Store;
        use crate::exec::inst::{Address, Base, Space};
        self.emit(Op::Store(Box::new(Store {
            space: Space::Local,
            address: Address { base: Base::Absolute, offset: at as i64 },
            element_bytes: 4,
            n_elements: 1,
            is_strong: false,
            rows: [value.0, 0, 0, 0],
        })));
    }

    fn barrier(&mut self, instruction: &Instruction) -> Lowered<()> {
        let mnemonic = &instruction.mnemonic;
        let modifiers: Vec<&str> = mnemonic
            .modifiers()
            .iter()
            .map(String::as_str)
            .filter(|part| !matches!(*part, "cta" | "aligned" | "release" | "relaxed" | "acquire"))
            .collect();
        let operands = &instruction.operands[..];
        let op = match (&modifiers[..], operands) {
            (["warp", "sync"], [members]) => BarrierOp::Warp { members: self.source32(members)? },
            (["cluster", "arrive"], []) => {
                BarrierOp::ClusterArrive { is_relaxed: mnemonic.has("relaxed") }
            }
            (["cluster", "wait"], []) => BarrierOp::ClusterWait,
            (["sync"], [barrier, count @ ..]) => BarrierOp::Sync {
                barrier: self.source32(barrier)?,
                n_threads: self.count(count)?,
                result: None,
            },
            (["arrive"], [barrier, count]) => BarrierOp::Arrive {
                barrier: self.source32(barrier)?,
                n_threads: self.source32(count)?,
            },
            (["red", "popc", "u32"], [target, barrier, count @ .., a]) => BarrierOp::Sync {
                barrier: self.source32(barrier)?,
                n_threads: self.count(count)?,
                result: Some((
                    BarrierResult::Count(self.target32(target)?),
                    self.source_predicate(a)?,
                )),
            },
            (["red", kind @ ("and" | "or"), "pred"], [target, barrier, count @ .., a]) => {
                let target = self.target_as(Type::Pred, target)?;
                let target = crate::exec::inst::Pred(target);
                let result = if *kind == "and" {
                    BarrierResult::All(target)
                } else {
                    BarrierResult::Any(target)
                };
                BarrierOp::Sync {
                    barrier: self.source32(barrier)?,
                    n_threads: self.count(count)?,
                    result: Some((result, self.source_predicate(a)?)),
                }
            }
            _ => return Err(Problem::Opcode { opcode: mnemonic.text() }),
        };
        self.emit(Op::Barrier(Box::new(op)));
        Ok(())
    }

    /// The count of threads of a barrier, if it is given.
    fn count(&mut self, operands: &[Operand]) -> Lowered<Option<crate::exec::inst::R32>> {
        operands.first().map(|count| self.source32(count)).transpose()
    }
}
