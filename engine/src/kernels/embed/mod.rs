//! Rows of the embedding table, for the tokens that this rank holds.

mod cpu;
mod cuda;

use scheduler::TokenId;

use crate::device::{Array, DeviceError, Exec, Table, ViewMut};

/// `out[t] = table[tokens[t] - vocab_begin]`, or zeroes for a token that another rank holds.
pub struct Args<'a> {
    /// `[T]`
    pub tokens: Array<'a, TokenId>,
    /// `[n, hidden]`: vocabulary entries `vocab_begin ..`.
    pub table: &'a Table,
    /// The table's first vocabulary entry.
    pub vocab_begin: usize,
    /// `[T, hidden]`
    pub out: ViewMut<'a>,
}

/// Looks tokens up.
pub fn embed(exec: &mut Exec, args: Args<'_>) -> Result<(), DeviceError> {
    args.check();
    match exec {
        Exec::Cpu(cpu) => cpu::embed(cpu, args),
    }
    Ok(())
}

impl Args<'_> {
    fn check(&self) {
        let shape = (self.out.n_rows(), self.out.n_cols());
        assert_eq!(shape, (self.tokens.len(), self.table.n_cols()), "out is [T, hidden]");
    }
}

#[cfg(test)]
mod tests;
