//! From statements to the executor's instructions: names become rows of register files, labels
//! positions, and calls the body of what is called.

mod compare;
mod control;
mod instruction;
mod memory;
mod moves;
mod operands;
mod scope;
mod specials;
mod statements;
mod warp;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use scope::{Frame, ModuleScope, Symbol};

use crate::exec::alu::Slot;
use crate::exec::inst::{Base, Guard, Inst, Op, Pred, R32, R64, Space};
use crate::exec::special::Special;
use crate::ptx::error::{Lowered, Problem, PtxError};
use crate::ptx::module::{Constants, Global, Kernel, Module, Param, RegisterCounts};
use crate::ptx::syntax::{Function, Source, Variable, VariableSpace};

/// Rows that an instruction can name.
const N_ROWS_MAX: usize = 1 << 16;

/// A kernel that is being lowered. Operands are asked for by what they must be; where a register
/// is wider or narrower than that, the conversion is put in.
pub struct Lowering<'a> {
    module: &'a ModuleScope<'a>,
    /// Functions that are being inlined into each other, the kernel first.
    frames: Vec<Frame>,
    code: Vec<Inst>,
    counts: RegisterCounts,
    constants: Constants,
    pool: ConstantPool,
    /// Positions of labels; branches name labels until the end.
    labels: Vec<Option<u32>>,
    static_shared_bytes: usize,
    /// Alignment that external shared memory asks for.
    dynamic_align: usize,
    /// Rows that hold the address of dynamic shared memory, and bytes to add: known at the end.
    dynamic_rows: Vec<(Row, i64)>,
    local_bytes: usize,
    /// The carry of `.cc` instructions.
    carry: Option<Pred>,
    /// Of the instruction that is being lowered.
    guard: Option<Guard>,
    line: u32,
    /// Conversions of its results, which follow it.
    after: Vec<Op>,
}

/// A row of a register file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    R32(R32),
    R64(R64),
}

/// Constants that have a row already.
#[derive(Debug, Default)]
struct ConstantPool {
    r32: HashMap<u32, R32>,
    r64: HashMap<u64, R64>,
    predicates: HashMap<bool, Pred>,
    special: HashMap<Special, R32>,
    globals: HashMap<(usize, i64), R64>,
}

/// Lowers a whole module.
pub(super) fn lower(source: &Source, text: &str) -> Result<Module, PtxError> {
    let lines: Arc<[String]> = text.lines().map(|line| line.trim().to_owned()).collect();
    let scope = ModuleScope::new(source);
    let globals = globals(&scope).map_err(|(line, problem)| at_line(&lines, line, problem))?;
    let mut kernels = Vec::new();
    for function in source.functions.iter().filter(|function| function.is_entry) {
        kernels.push(Arc::new(kernel(&scope, function, &lines)?));
    }
    Ok(Module { kernels, globals })
}

fn at_line(lines: &[String], line: u32, problem: Problem) -> PtxError {
    let text = lines.get(line.saturating_sub(1) as usize).cloned().unwrap_or_default();
    PtxError { line, text, problem }
}

/// Variables in device memory, with the places where they hold each other's addresses.
fn globals(scope: &ModuleScope<'_>) -> Result<Vec<Global>, (u32, Problem)> {
    let mut globals = Vec::new();
    for variable in &scope.globals {
        let mut addresses = Vec::new();
        for (at, name, offset) in &variable.addresses {
            let Some(Symbol::Global(idx)) = scope.symbol(name) else {
                return Err((variable.line, Problem::Unknown { name: name.clone() }));
            };
            addresses.push((*at, idx, *offset));
        }
        globals.push(Global {
            name: variable.name.clone(),
            n_bytes: variable.n_bytes,
            align: variable.align,
            initial: variable.initial.clone(),
            addresses,
            constant: variable.space == VariableSpace::Const,
        });
    }
    Ok(globals)
}

fn kernel(
    scope: &ModuleScope<'_>,
    function: &Function,
    lines: &Arc<[String]>,
) -> Result<Kernel, PtxError> {
    let mut lowering = Lowering::new(scope);
    let (params, symbols, n_param_bytes) = layout(&function.params);
    lowering.frames.push(Frame::new(symbols, None));
    let body = function.body.as_deref().unwrap_or_default();
    let lowered = lowering.body(body).and_then(|()| lowering.finish());
    lowered.map_err(|problem| at_line(lines, lowering.line, problem))?;
    let shared_end = lowering.static_shared_bytes.next_multiple_of(lowering.dynamic_align);
    let limits = function.limits;
    let most_threads = limits.required_threads.or(limits.max_threads);
    Ok(Kernel {
        name: function.name.clone(),
        params,
        n_param_bytes,
        narrow_params: narrow_params(&lowering.code),
        static_shared_bytes: lowering.static_shared_bytes,
        dynamic_shared_offset: shared_end,
        local_bytes: lowering.local_bytes.next_multiple_of(16),
        max_threads: most_threads.map(|shape| shape.iter().product()),
        required_block: limits.required_threads,
        required_cluster: limits.required_cluster,
        min_blocks_per_sm: limits.min_blocks_per_sm,
        max_registers: limits.max_registers,
        code: lowering.code,
        n_registers: lowering.counts,
        constants: lowering.constants,
        source: lines.clone(),
    })
}

/// Where the code reads a parameter's eight bytes in smaller pieces, and nowhere as a whole.
fn narrow_params(code: &[Inst]) -> Vec<usize> {
    let (mut narrow, mut wide) = (BTreeSet::new(), BTreeSet::new());
    for inst in code {
        let Op::Load(load) = &inst.op else { continue };
        if load.space != Space::Param || load.address.base != Base::Absolute {
            continue;
        }
        let element_bytes = usize::from(load.element_bytes);
        let read = if element_bytes < size_of::<u64>() { &mut narrow } else { &mut wide };
        let Ok(first) = usize::try_from(load.address.offset) else { continue };
        let n_bytes = element_bytes * usize::from(load.n_elements);
        read.extend((first..first + n_bytes).map(|at| at / size_of::<u64>() * size_of::<u64>()));
    }
    narrow.difference(&wide).copied().collect()
}

/// Where the parameters of a kernel lie.
fn layout(variables: &[Variable]) -> (Vec<Param>, HashMap<String, Symbol>, usize) {
    let mut params = Vec::new();
    let mut symbols = HashMap::new();
    let mut n_bytes = 0usize;
    for variable in variables {
        let offset = n_bytes.next_multiple_of(variable.align);
        params.push(Param { offset, size: variable.n_bytes, align: variable.align });
        symbols.insert(variable.name.clone(), Symbol::Param(offset));
        n_bytes = offset + variable.n_bytes;
    }
    (params, symbols, n_bytes)
}

impl<'a> Lowering<'a> {
    fn new(module: &'a ModuleScope<'a>) -> Lowering<'a> {
        Lowering {
            module,
            frames: Vec::new(),
            code: Vec::new(),
            counts: RegisterCounts::default(),
            constants: Constants::default(),
            pool: ConstantPool::default(),
            labels: Vec::new(),
            static_shared_bytes: 0,
            dynamic_align: 16,
            dynamic_rows: Vec::new(),
            local_bytes: 0,
            carry: None,
            guard: None,
            line: 0,
            after: Vec::new(),
        }
    }

    /// A row that nothing else uses.
    pub fn new_r32(&mut self) -> R32 {
        self.counts.n_r32 += 1;
        R32((self.counts.n_r32 - 1) as u16)
    }

    /// A row that nothing else uses.
    pub fn new_r64(&mut self) -> R64 {
        self.counts.n_r64 += 1;
        R64((self.counts.n_r64 - 1) as u16)
    }

    /// A predicate that nothing else uses.
    pub fn new_predicate(&mut self) -> Pred {
        self.counts.n_predicates += 1;
        Pred((self.counts.n_predicates - 1) as u16)
    }

    /// A row of a file that nothing else uses.
    fn new_row(&mut self, slot: Slot) -> u16 {
        match slot {
            Slot::R32 => self.new_r32().0,
            Slot::R64 => self.new_r64().0,
            Slot::Pred => self.new_predicate().0,
        }
    }

    /// Appends an instruction under the guard of the one that is being lowered.
    pub(super) fn emit(&mut self, op: Op) {
        let (guard, line) = (self.guard, self.line);
        self.code.push(Inst { op, guard, n_flops: 0, line });
    }

    /// Appends an instruction that all active lanes run.
    fn emit_always(&mut self, op: Op) {
        self.code.push(Inst { op, guard: None, n_flops: 0, line: self.line });
    }

    /// Ends the kernel, places dynamic shared memory, and resolves branches.
    fn finish(&mut self) -> Lowered<()> {
        self.guard = None;
        self.emit(Op::Exit);
        let most = self.counts.n_r32.max(self.counts.n_r64).max(self.counts.n_predicates);
        if most > N_ROWS_MAX {
            return Err(Problem::Limit { what: "registers", limit: N_ROWS_MAX });
        }
        let start = self.static_shared_bytes.next_multiple_of(self.dynamic_align) as i64;
        for (row, offset) in std::mem::take(&mut self.dynamic_rows) {
            match row {
                Row::R32(row) => self.constants.r32.push((row, (start + offset) as u32)),
                Row::R64(row) => self.constants.r64.push((row, (start + offset) as u64)),
            }
        }
        for inst in &mut self.code {
            let targets = match &mut inst.op {
                Op::Branch { target } => std::slice::from_mut(target),
                Op::BranchIndexed { targets, .. } => &mut targets[..],
                _ => continue,
            };
            for target in targets {
                *target = self.labels[*target as usize].expect("a scope's labels are all placed");
            }
        }
        Ok(())
    }
}
