//! PTX text to decoded kernels: what the executor runs. It knows no memory and no device.
//!
//! The text is cut into tokens, read into functions of statements (`syntax`), and lowered
//! statement by statement into the executor's instructions (`lower`).

pub mod error;
pub mod lower;
pub mod module;
mod parse;
pub mod syntax;
mod token;

pub use error::{Lowered, Problem, PtxError};
pub use lower::Lowering;
pub use module::{Constants, Global, Kernel, Module, Param, RegisterCounts};
pub use syntax::{Instruction, Mnemonic, Operand};

/// Decodes a module.
///
/// # Errors
///
/// Whatever is not understood, with its line: nothing is skipped in the hope that it is not used.
pub fn load(text: &str) -> Result<Module, PtxError> {
    lower::lower(&parse::parse(text)?, text)
}
