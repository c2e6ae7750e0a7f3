//! From mapped files to the device, through a ring of pinned memory: while one piece travels, the
//! next is read from the file, converted and padded.

use half::bf16;
use weights::{Dtype, Matrix};

use super::{Copying, MatrixCopy};
use crate::device::cuda::{CudaExec, DevicePtr, Event, Pinned};
use crate::device::{DeviceError, DeviceView, Element};

/// Bytes of a piece: long enough that the link is busy, short enough that the first is soon there.
pub(super) const PIECE_BYTES: usize = 8 << 20;

/// Bytes after which the filler repeats itself.
const FILLER_BLOCK_BYTES: usize = 64 << 10;

/// Pieces under way: one is filled while the others travel.
pub(super) const N_PIECES: usize = 3;

/// Pinned memory that is filled and sent in turn.
struct Ring<'a> {
    exec: &'a CudaExec,
    pieces: Vec<Piece>,
    turn: usize,
    /// A row on its way into pinned memory, where it must be converted or padded.
    row: Vec<u8>,
    /// The same as f32.
    wide: Vec<f32>,
}

struct Piece {
    memory: Pinned,
    sent: Event,
}

/// Copies everything, and waits until it is there. `progress` hears of bytes as they are sent.
///
/// # Errors
/// What the device says.
pub(crate) fn stage(
    exec: &CudaExec,
    copies: &[Copying],
    progress: &dyn Fn(u64),
) -> Result<(), DeviceError> {
    let n_bytes_max = copies.iter().map(Copying::n_bytes).max().unwrap_or(0);
    if n_bytes_max == 0 {
        return Ok(());
    }
    let piece_bytes = copies.iter().map(Copying::least_piece).max().unwrap_or(0);
    let piece_bytes = n_bytes_max.min(PIECE_BYTES).max(piece_bytes);
    let piece = || Ok(Piece { memory: exec.alloc_pinned(piece_bytes)?, sent: exec.new_event()? });
    let pieces = (0..N_PIECES).map(|_| piece()).collect::<Result<Vec<Piece>, DeviceError>>()?;
    let mut ring = Ring { exec, pieces, turn: 0, row: Vec::new(), wide: Vec::new() };
    if copies.iter().any(Copying::is_absent) {
        let filler = filler(piece_bytes);
        ring.pieces.iter().for_each(|piece| piece.memory.write(0, &filler));
    }
    for copying in copies {
        match copying {
            Copying::Matrix(copy) => ring.matrix(copy, progress)?,
            Copying::Bytes { to, bytes } => ring.bytes(*to, bytes, progress)?,
        }
    }
    exec.synchronize()
}

/// What stands in for weights that are nowhere, so that steps of a model without data may be timed:
/// numbers of both signs, none of which is broken in any type. As e4m3 they are from an eighth to
/// two, as bf16 and f16 smaller than two.
fn filler(n_bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9u32;
    let byte = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        0x20 | (state >> 24) as u8 & 0x9F
    };
    let block: Vec<u8> = (0..FILLER_BLOCK_BYTES).map(byte).collect();
    let mut bytes = block.repeat(n_bytes.div_ceil(FILLER_BLOCK_BYTES));
    bytes.truncate(n_bytes);
    bytes
}

impl Copying {
    /// Whether there is nothing to be read.
    fn is_absent(&self) -> bool {
        match self {
            Copying::Matrix(MatrixCopy { matrix, .. }) => matrix.bytes.is_absent(),
            Copying::Bytes { .. } => false,
        }
    }

    /// On the device.
    fn n_bytes(&self) -> usize {
        match self {
            Copying::Matrix(MatrixCopy { to, .. }) => to.n_rows * row_bytes(to),
            Copying::Bytes { bytes, .. } => bytes.len(),
        }
    }

    /// Rows travel whole.
    fn least_piece(&self) -> usize {
        match self {
            Copying::Matrix(MatrixCopy { to, .. }) => row_bytes(to),
            Copying::Bytes { .. } => 0,
        }
    }
}

impl Ring<'_> {
    fn bytes(
        &mut self,
        to: DevicePtr,
        bytes: &[u8],
        progress: &dyn Fn(u64),
    ) -> Result<(), DeviceError> {
        let piece_bytes = self.pieces[0].memory.n_bytes();
        for (piece_idx, bytes) in bytes.chunks(piece_bytes).enumerate() {
            self.next_piece()?.memory.write(0, bytes);
            self.send(to.offset(piece_idx * piece_bytes), bytes.len())?;
            progress(bytes.len() as u64);
        }
        Ok(())
    }

    fn matrix(&mut self, copy: &MatrixCopy, progress: &dyn Fn(u64)) -> Result<(), DeviceError> {
        let MatrixCopy { matrix, to, .. } = copy;
        let row_bytes = row_bytes(to);
        if matrix.is_hole() {
            let n_bytes = to.n_rows * row_bytes;
            self.exec.zero(to.first, n_bytes)?;
            progress(n_bytes as u64);
            return Ok(());
        }
        let n_rows_max = self.pieces[0].memory.n_bytes() / row_bytes;
        let is_plain = is_plain(matrix, to);
        let mut begin = 0;
        while begin < to.n_rows {
            let end = (begin + n_rows_max).min(to.n_rows);
            self.next_piece()?;
            if matrix.bytes.is_absent() {
                // Nothing is read: what is sent is the filler, or what went this way before.
            } else if is_plain && end <= matrix.n_rows {
                let first = matrix.offset + begin * row_bytes;
                let bytes = &matrix.bytes.as_slice()[first..first + (end - begin) * row_bytes];
                self.pieces[self.turn].memory.write(0, bytes);
            } else {
                for row_idx in begin..end {
                    self.write_row(copy, row_idx, (row_idx - begin) * row_bytes);
                }
            }
            let n_bytes = (end - begin) * row_bytes;
            self.send(to.first.offset(begin * row_bytes), n_bytes)?;
            progress(n_bytes as u64);
            begin = end;
        }
        Ok(())
    }

    /// Writes one row, with its zeroes, `offset` bytes into the current piece.
    fn write_row(&mut self, copy: &MatrixCopy, row_idx: usize, offset: usize) {
        let MatrixCopy { matrix, to, col_begin } = copy;
        self.row.clear();
        self.row.resize(row_bytes(to), 0);
        if row_idx < matrix.n_rows {
            let n_bytes = to.element.n_bytes();
            let columns = col_begin * n_bytes..(col_begin + matrix.n_cols) * n_bytes;
            let out = &mut self.row[columns];
            convert(matrix.dtype, matrix.row(row_idx), to.element, out, &mut self.wide);
        }
        self.pieces[self.turn].memory.write(offset, &self.row);
    }

    /// Waits until the next piece has been sent, and makes it the current one.
    fn next_piece(&mut self) -> Result<&Piece, DeviceError> {
        self.turn = (self.turn + 1) % self.pieces.len();
        let piece = &self.pieces[self.turn];
        piece.sent.synchronize()?;
        Ok(piece)
    }

    /// Sends the current piece's first `n_bytes`.
    fn send(&mut self, to: DevicePtr, n_bytes: usize) -> Result<(), DeviceError> {
        let Piece { memory, sent } = &self.pieces[self.turn];
        self.exec.stream().copy_in(to, memory, 0, n_bytes)?;
        self.exec.stream().record(sent)
    }
}

fn row_bytes(to: &DeviceView) -> usize {
    to.n_cols * to.element.n_bytes()
}

/// Whether the stored bytes are those of the device: then rows travel together.
fn is_plain(matrix: &Matrix, to: &DeviceView) -> bool {
    let is_same = matches!(
        (matrix.dtype, to.element),
        (Dtype::F8E4m3, Element::F8) | (Dtype::Bf16, Element::Bf16)
    );
    is_same && matrix.n_cols == to.n_cols && matrix.row_stride == row_bytes(to)
}

/// Widens or rounds a row: widening is exact, bf16 rounds to nearest even.
fn convert(from: Dtype, row: &[u8], to: Element, out: &mut [u8], wide: &mut Vec<f32>) {
    match (from, to) {
        (Dtype::F8E4m3, Element::F8) | (Dtype::Bf16, Element::Bf16) => out.copy_from_slice(row),
        (_, Element::Bf16) => {
            wide.clear();
            wide.resize(row.len() / from.n_bytes(), 0.0);
            weights::decode(from, row, wide);
            for (&x, out) in wide.iter().zip(out.as_chunks_mut().0) {
                *out = bf16::from_f32(x).to_le_bytes();
            }
        }
        (from, to) => unreachable!("{from:?} is never placed as {to:?}"),
    }
}

#[cfg(test)]
mod tests {
    use weights::e4m3_to_f32;

    use super::*;

    #[test]
    fn what_stands_in_for_weights_is_finite_in_every_type() {
        let bytes = filler(3 * FILLER_BLOCK_BYTES / 2);
        assert_eq!(bytes.len(), 3 * FILLER_BLOCK_BYTES / 2);
        let is_between = |x: f32| (0.125..2.0).contains(&x.abs());
        assert!(bytes.iter().all(|&code| is_between(e4m3_to_f32(code))));
        let halves = || bytes.as_chunks().0.iter().map(|&half| u16::from_ne_bytes(half));
        assert!(halves().all(|bits| bf16::from_bits(bits).to_f32().abs() < 2.0));
        assert!(halves().all(|bits| half::f16::from_bits(bits).to_f32().abs() < 2.0));
        let n_negative = bytes.iter().filter(|&&code| code & 0x80 != 0).count();
        assert!((bytes.len() / 3..bytes.len() * 2 / 3).contains(&n_negative), "{n_negative}");
    }
}
