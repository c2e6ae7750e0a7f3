//! The shape of an instruction as it is written: opcode, modifiers and operands, nothing resolved.

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
