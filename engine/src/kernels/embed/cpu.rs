//! A copy that widens.

use crate::device::simd::{widen, widened_factor};
use crate::device::{CpuExec, Grid, Table};

use super::Args;

pub(super) fn embed(exec: &CpuExec, args: Args<'_>) {
    let Args { tokens, table, vocab_begin, out, .. } = args;
    let (tokens, out) = (tokens.host(), out.host());
    let Table::Host(table) = table else { panic!("{table:?} for a kernel of the host") };
    let simd = exec.simd();
    let factor = widened_factor(table.dtype);
    let grid = Grid { tile_rows: 1, tile_cols: out.n_cols(), work: out.n_rows() * out.n_cols() };
    exec.for_each_tile(out, grid, |mut tile, _| {
        let row = tile.out.row_mut(0);
        let entry = tokens[tile.row_idx].idx().checked_sub(vocab_begin);
        let Some(entry) = entry.filter(|&entry| entry < table.n_rows) else {
            return row.fill(0.0);
        };
        widen(simd, table.dtype, table.row(entry), row);
        if factor != 1.0 {
            row.iter_mut().for_each(|x| *x *= factor);
        }
    });
}
