//! A body, statement by statement: scopes, labels, declarations.

use crate::exec::alu::{Slot, Type};
use crate::ptx::error::{Lowered, Problem};
use crate::ptx::lower::Lowering;
use crate::ptx::lower::scope::{RegisterRange, Scope, Symbol, labels_of};
use crate::ptx::syntax::{Statement, StatementKind, Variable, VariableSpace};

impl Lowering<'_> {
    /// Lowers a function's statements into its frame, which is the last one.
    pub(super) fn body(&mut self, statements: &[Statement]) -> Lowered<()> {
        self.declare_labels(statements);
        for (idx, statement) in statements.iter().enumerate() {
            self.line = statement.line;
            match &statement.kind {
                StatementKind::Open => {
                    self.frame().scopes.push(Scope::default());
                    self.declare_labels(&statements[idx + 1..]);
                }
                StatementKind::Close => {
                    self.frame().scopes.pop();
                }
                StatementKind::Label(name) => {
                    let label = self.label(name)?;
                    self.place(label);
                }
                StatementKind::Registers { ty, names } => self.declare_registers(*ty, names)?,
                StatementKind::Variable(variable) => self.declare(variable),
                StatementKind::BranchTargets { .. } => {}
                StatementKind::Instruction(instruction) => self.instruction(instruction)?,
            }
        }
        Ok(())
    }

    pub(super) fn frame(&mut self) -> &mut crate::ptx::lower::scope::Frame {
        self.frames.last_mut().expect("a function is being lowered")
    }

    fn declare_labels(&mut self, statements: &[Statement]) {
        let (names, tables) = labels_of(statements);
        for name in names {
            let label = self.new_label();
            self.frame().innermost().labels.insert(name, label);
        }
        self.frame().innermost().branch_targets = tables;
    }

    pub(super) fn new_label(&mut self) -> usize {
        self.labels.push(None);
        self.labels.len() - 1
    }

    /// Puts a label here.
    pub(super) fn place(&mut self, label: usize) {
        self.labels[label] = Some(self.code.len() as u32);
    }

    pub(super) fn label(&self, name: &str) -> Lowered<usize> {
        let frame = self.frames.last().expect("a function is being lowered");
        frame.label(name).ok_or_else(|| Problem::Unknown { name: name.to_owned() })
    }

    fn declare_registers(&mut self, ty: Type, names: &[(String, Option<u32>)]) -> Lowered<()> {
        if ty == Type::B128 {
            return Err(Problem::Unsupported { what: "a 128-bit register".to_owned() });
        }
        for (name, count) in names {
            match count {
                None => {
                    let symbol = match ty.slot() {
                        Slot::R32 => Symbol::R32(self.new_r32()),
                        Slot::R64 => Symbol::R64(self.new_r64()),
                        Slot::Pred => Symbol::Pred(self.new_predicate()),
                    };
                    self.frame().innermost().symbols.insert(name.clone(), symbol);
                }
                Some(count) => {
                    let (file, range): (&mut usize, fn(u16) -> RegisterRange) = match ty.slot() {
                        Slot::R32 => (&mut self.counts.n_r32, RegisterRange::R32),
                        Slot::R64 => (&mut self.counts.n_r64, RegisterRange::R64),
                        Slot::Pred => (&mut self.counts.n_predicates, RegisterRange::Pred),
                    };
                    let first = *file as u16;
                    *file += *count as usize;
                    if *file > super::N_ROWS_MAX {
                        let limit = super::N_ROWS_MAX;
                        return Err(Problem::Limit { what: "registers", limit });
                    }
                    let range = (range(first), *count);
                    self.frame().innermost().ranges.insert(name.clone(), range);
                }
            }
        }
        Ok(())
    }

    /// Places a variable of a function's body.
    fn declare(&mut self, variable: &Variable) {
        let symbol = match variable.space {
            VariableSpace::Shared => self.place_shared(variable),
            _ => Symbol::Local(self.place_local(variable)),
        };
        self.frame().innermost().symbols.insert(variable.name.clone(), symbol);
    }

    /// Places a variable in the block's shared memory.
    pub(super) fn place_shared(&mut self, variable: &Variable) -> Symbol {
        if variable.is_unsized || (variable.is_external && variable.n_bytes == 0) {
            self.dynamic_align = self.dynamic_align.max(variable.align);
            return Symbol::DynamicShared;
        }
        let offset = self.static_shared_bytes.next_multiple_of(variable.align);
        self.static_shared_bytes = offset + variable.n_bytes;
        Symbol::Shared(offset)
    }

    /// Places a variable in each thread's local memory.
    pub(super) fn place_local(&mut self, variable: &Variable) -> usize {
        let offset = self.local_bytes.next_multiple_of(variable.align);
        self.local_bytes = offset + variable.n_bytes;
        offset
    }

    /// What a name stands for here.
    pub(super) fn symbol(&mut self, name: &str) -> Option<Symbol> {
        let frame = self.frames.last().expect("a function is being lowered");
        if let Some(symbol) = frame.symbol(name).or_else(|| self.module.symbol(name)) {
            return Some(symbol);
        }
        // A shared variable of the module is placed at its first use, for the whole kernel: its
        // name is put where all of its functions would look last.
        let known = self.frames[0].scopes[0].symbols.get(name).copied();
        if known.is_some() && self.module.shared.contains_key(name) {
            return known;
        }
        let variable = *self.module.shared.get(name)?;
        let symbol = self.place_shared(variable);
        self.frames[0].scopes[0].symbols.insert(name.to_owned(), symbol);
        Some(symbol)
    }
}
