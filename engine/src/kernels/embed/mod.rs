//! Rows of the embedding table, for the tokens that this rank holds.

mod cpu;
mod cuda;

use scheduler::TokenId;

use crate::device::{Array, DeviceError, DevicePtr, Exec, Table, ViewMut};

/// `out[t] = table[tokens[t] - vocab_begin]`, or zeroes for a token that another rank holds.
pub struct Args<'a> {
    /// `[T]`
    pub tokens: Array<'a, TokenId>,
    /// On a device `[n_slots]` of what each slot sampled last, for tokens that only it knows.
    pub last_tokens: DevicePtr,
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
        Exec::Cpu(cpu) => {
            cpu::embed(cpu, args);
            Ok(())
        }
        Exec::Cuda(gpu) => cuda::launch(&gpu.exec, &args.launch()),
    }
}

impl Args<'_> {
    fn launch(self) -> cuda::Launch {
        let Table::Device(table) = *self.table else {
            panic!("{:?} for a kernel of the device", self.table)
        };
        cuda::Launch {
            n_tokens: self.tokens.len(),
            tokens: self.tokens.device(),
            last_tokens: self.last_tokens,
            table: table.first,
            vocab_begin: self.vocab_begin,
            n_entries: table.n_rows,
            hidden: table.n_cols,
            out: self.out.device().first,
        }
    }

    fn check(&self) {
        let shape = (self.out.n_rows(), self.out.n_cols());
        assert_eq!(shape, (self.tokens.len(), self.table.n_cols()), "out is [T, hidden]");
    }
}

#[cfg(test)]
mod tests;
