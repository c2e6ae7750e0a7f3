//! Rows of the embedding table, for the tokens that this rank holds.

mod cpu;
mod cuda;

use scheduler::TokenId;

use crate::device::{Array, DeviceError, Exec, Table, View, ViewMut};

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

/// `out[i] = x[rows[i]]`.
pub struct PickArgs<'a> {
    /// `[T, hidden]`
    pub x: View<'a>,
    /// `[n]`, each below T.
    pub rows: Array<'a, u32>,
    /// `[n, hidden]`
    pub out: ViewMut<'a>,
}

/// Copies the rows that are wanted one below another.
pub fn pick(exec: &mut Exec, args: PickArgs<'_>) -> Result<(), DeviceError> {
    let shape = (args.out.n_rows(), args.out.n_cols());
    assert_eq!(shape, (args.rows.len(), args.x.n_cols()), "out is [n, hidden]");
    match exec {
        Exec::Cpu(_) => cpu::pick(args),
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
