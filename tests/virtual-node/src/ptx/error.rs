//! Why a PTX text was refused: always with the line that was not understood.

use thiserror::Error;

/// A refusal of a whole module.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("PTX line {line}: {problem}: `{text}`")]
pub struct PtxError {
    /// From 1.
    pub line: u32,
    /// The statement, or as much of it as was read.
    pub text: String,
    pub problem: Problem,
}

/// What is wrong with a statement.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    #[error("unexpected {found}, where {expected} should stand")]
    Syntax { found: String, expected: &'static str },
    #[error("unknown directive {name}")]
    Directive { name: String },
    #[error("{what} is not supported")]
    Unsupported { what: String },
    #[error("unknown opcode or modifier {opcode}")]
    Opcode { opcode: String },
    #[error("{name} is not declared here")]
    Unknown { name: String },
    #[error("operand {operand_idx} should be {expected}")]
    Operand { operand_idx: usize, expected: &'static str },
    #[error("{opcode} has {found} operands instead of {expected}")]
    OperandCount { opcode: String, found: usize, expected: usize },
    #[error("{type_name} is no type")]
    Type { type_name: String },
    #[error("more than {limit} {what}")]
    Limit { what: &'static str, limit: usize },
}

/// A problem whose place the caller knows.
pub type Lowered<T> = Result<T, Problem>;
