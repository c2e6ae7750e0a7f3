//! The shape of an instruction as it is written: opcode, modifiers and operands, nothing resolved.

use crate::exec::alu::Type;

/// An instruction with its guard.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    pub guard: Option<Guard>,
    pub mnemonic: Mnemonic,
    pub operands: Vec<Operand>,
    /// From 1.
    pub line: u32,
}

/// `@p` or `@!p`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    pub predicate: String,
    pub negated: bool,
}

/// An opcode with its modifiers: `["ld", "global", "nc", "v4", "f32"]`. A modifier with a scope
/// stays whole: `shared::cluster`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mnemonic {
    pub parts: Vec<String>,
}

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A register, variable, label or special register.
    Name(String),
    /// A variable and a byte offset outside of brackets: `mov.u64 %rd1, table+8`.
    Offset(String, i64),
    /// An integer, in two's complement.
    Integer(i64),
    /// The bits of a `0f` literal.
    Single(u32),
    /// The bits of a `0d` literal, or of a decimal one.
    Double(u64),
    /// `_`
    Sink,
    /// `!p`
    Not(String),
    /// `d|p`
    Pair(Box<Operand>, Box<Operand>),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `[a+8]`, or `[map, {x, y}]` with more than one part. The base of a part may be
    /// [`Operand::Offset`].
    Memory(Vec<Operand>),
    /// `(a, b)` of a call.
    Group(Vec<Operand>),
}

impl Mnemonic {
    /// The opcode without modifiers.
    pub fn opcode(&self) -> &str {
        &self.parts[0]
    }

    /// What follows the opcode.
    pub fn modifiers(&self) -> &[String] {
        &self.parts[1..]
    }

    pub fn has(&self, modifier: &str) -> bool {
        self.modifiers().iter().any(|part| part == modifier)
    }

    /// The whole, as it was written.
    pub fn text(&self) -> String {
        self.parts.join(".")
    }
}

/// A module as written.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub variables: Vec<Variable>,
    pub functions: Vec<Function>,
}

/// An `.entry` or `.func`.
#[derive(Debug)]
pub(super) struct Function {
    pub name: String,
    pub is_entry: bool,
    pub returns: Vec<Variable>,
    pub params: Vec<Variable>,
    pub limits: LaunchLimits,
    /// None for what is only declared.
    pub body: Option<Vec<Statement>>,
}

/// Performance-tuning directives of an entry.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct LaunchLimits {
    pub max_threads: Option<[u32; 3]>,
    pub required_threads: Option<[u32; 3]>,
    pub min_blocks_per_sm: Option<u32>,
    pub max_registers: Option<u32>,
    pub required_cluster: Option<[u32; 3]>,
}

/// State spaces that variables are declared in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VariableSpace {
    Global,
    Const,
    Shared,
    Local,
    Param,
    /// A parameter of a function that is passed in a register.
    Register,
}

/// A declared variable.
#[derive(Debug, Clone)]
pub(super) struct Variable {
    pub space: VariableSpace,
    pub name: String,
    /// Type of an element.
    pub ty: Type,
    pub align: usize,
    pub n_bytes: usize,
    /// `name[]` of external shared memory.
    pub is_unsized: bool,
    pub is_external: bool,
    pub initial: Vec<u8>,
    /// Byte offset in `initial`, name of the variable whose address stands there, bytes to add.
    pub addresses: Vec<(usize, String, i64)>,
    pub line: u32,
}

/// A statement of a body, with its line.
#[derive(Debug)]
pub(super) struct Statement {
    pub kind: StatementKind,
    pub line: u32,
}

#[derive(Debug)]
pub(super) enum StatementKind {
    Open,
    Close,
    Label(String),
    /// `.reg .b32 %r<5>` declares `%r0` to `%r4`; without a count the name alone.
    Registers {
        ty: Type,
        names: Vec<(String, Option<u32>)>,
    },
    Variable(Variable),
    /// `name: .branchtargets a, b;`
    BranchTargets {
        name: String,
        labels: Vec<String>,
    },
    Instruction(Instruction),
}
