//! Which name means what, where.

use std::collections::HashMap;

use crate::exec::inst::{Pred, R32, R64};
use crate::ptx::syntax::{Function, Source, Statement, StatementKind, Variable, VariableSpace};

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Symbol {
    R32(R32),
    R64(R64),
    Pred(Pred),
    /// Offset into the block's shared memory.
    Shared(usize),
    /// The beginning of dynamic shared memory.
    DynamicShared,
    /// Offset into the thread's local memory. Parameters of called functions lie there, too.
    Local(usize),
    /// Offset into the kernel's parameters.
    Param(usize),
    /// Index into the module's globals.
    Global(usize),
}

/// Names of the whole module.
pub(super) struct ModuleScope<'a> {
    pub(super) globals: Vec<&'a Variable>,
    symbols: HashMap<&'a str, Symbol>,
    /// Shared variables outside of functions: each kernel that uses one places it.
    pub(super) shared: HashMap<&'a str, &'a Variable>,
    pub(super) functions: HashMap<&'a str, &'a Function>,
}

impl<'a> ModuleScope<'a> {
    pub(super) fn new(source: &'a Source) -> ModuleScope<'a> {
        let mut scope = ModuleScope {
            globals: Vec::new(),
            symbols: HashMap::new(),
            shared: HashMap::new(),
            functions: HashMap::new(),
        };
        for variable in &source.variables {
            if variable.space == VariableSpace::Shared {
                scope.shared.insert(&variable.name, variable);
            } else {
                scope.symbols.insert(&variable.name, Symbol::Global(scope.globals.len()));
                scope.globals.push(variable);
            }
        }
        for function in &source.functions {
            // A declaration does not hide the definition.
            let is_known = scope
                .functions
                .get(function.name.as_str())
                .is_some_and(|known| known.body.is_some());
            if !is_known {
                scope.functions.insert(&function.name, function);
            }
        }
        scope
    }

    pub(super) fn symbol(&self, name: &str) -> Option<Symbol> {
        self.symbols.get(name).copied()
    }
}

/// A function that is being lowered: names of its callers are not seen in it.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) scopes: Vec<Scope>,
    /// Where `ret` goes; none in the kernel itself, where it ends the thread.
    pub(super) return_label: Option<usize>,
}

/// Names between two braces.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub(super) symbols: HashMap<String, Symbol>,
    /// Registers that were declared by the number: `%r<100>`.
    pub(super) ranges: HashMap<String, (RegisterRange, u32)>,
    pub(super) labels: HashMap<String, usize>,
    pub(super) branch_targets: HashMap<String, Vec<String>>,
}

/// First row of registers that were declared by the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RegisterRange {
    R32(u16),
    R64(u16),
    Pred(u16),
}

impl Frame {
    pub(super) fn new(symbols: HashMap<String, Symbol>, return_label: Option<usize>) -> Frame {
        let scope = Scope { symbols, ..Scope::default() };
        Frame { scopes: vec![scope], return_label }
    }

    pub(super) fn innermost(&mut self) -> &mut Scope {
        self.scopes.last_mut().expect("a frame has its function's scope")
    }

    pub(super) fn symbol(&self, name: &str) -> Option<Symbol> {
        self.scopes.iter().rev().find_map(|scope| scope.symbol(name))
    }

    pub(super) fn label(&self, name: &str) -> Option<usize> {
        self.scopes.iter().rev().find_map(|scope| scope.labels.get(name).copied())
    }

    pub(super) fn branch_targets(&self, name: &str) -> Option<&Vec<String>> {
        self.scopes.iter().rev().find_map(|scope| scope.branch_targets.get(name))
    }
}

impl Scope {
    fn symbol(&self, name: &str) -> Option<Symbol> {
        if let Some(symbol) = self.symbols.get(name) {
            return Some(*symbol);
        }
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        // `%rd1` may be number 1 of `%rd`; `%r10` number 10 of `%r` or 0 of `%r1`.
        for n_digits in (1..=digits).rev() {
            let (stem, number) = name.split_at(name.len() - n_digits);
            let Some((range, count)) = self.ranges.get(stem) else { continue };
            let Ok(number) = number.parse::<u32>() else { continue };
            if number < *count {
                let offset = number as u16;
                return Some(match range {
                    RegisterRange::R32(first) => Symbol::R32(R32(first + offset)),
                    RegisterRange::R64(first) => Symbol::R64(R64(first + offset)),
                    RegisterRange::Pred(first) => Symbol::Pred(Pred(first + offset)),
                });
            }
        }
        None
    }
}

/// Labels and branch tables of the scope whose statements begin here, inner scopes left out.
pub(super) fn labels_of(statements: &[Statement]) -> (Vec<String>, HashMap<String, Vec<String>>) {
    let mut depth = 0;
    let mut names = Vec::new();
    let mut tables = HashMap::new();
    for statement in statements {
        match &statement.kind {
            StatementKind::Open => depth += 1,
            StatementKind::Close if depth == 0 => break,
            StatementKind::Close => depth -= 1,
            StatementKind::Label(name) if depth == 0 => names.push(name.clone()),
            StatementKind::BranchTargets { name, labels } if depth == 0 => {
                tables.insert(name.clone(), labels.clone());
            }
            _ => {}
        }
    }
    (names, tables)
}
