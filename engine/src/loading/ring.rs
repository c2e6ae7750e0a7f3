//! Pinned memory on the way to a device: a few pieces that are filled and sent in turn, so that
//! while one travels the next is filled.

use crate::device::DeviceError;
use crate::device::cuda::{CudaExec, DevicePtr, Event, Pinned};

use super::LoadingError;

/// Pieces under way: one is filled while the others travel.
pub(super) const N_PIECES: usize = 3;

/// Bytes after which the filler repeats itself.
const FILLER_BLOCK_BYTES: usize = 64 << 10;

/// Pinned memory that is filled and sent in turn. Runs that follow each other on the device are
/// sent together.
pub(super) struct Ring<'a> {
    exec: &'a CudaExec,
    progress: &'a dyn Fn(u64),
    pieces: Vec<Piece>,
    turn: usize,
    /// Where the current piece's bytes go.
    to: DevicePtr,
    /// Bytes of the current piece that are written and not sent.
    n_filled: usize,
}

struct Piece {
    memory: Pinned,
    sent: Event,
}

impl<'a> Ring<'a> {
    /// `progress` hears of bytes as they are sent.
    pub(super) fn new(
        exec: &'a CudaExec,
        piece_bytes: usize,
        progress: &'a dyn Fn(u64),
    ) -> Result<Ring<'a>, DeviceError> {
        let piece =
            || Ok(Piece { memory: exec.alloc_pinned(piece_bytes)?, sent: exec.new_event()? });
        let pieces = (0..N_PIECES).map(|_| piece()).collect::<Result<Vec<Piece>, DeviceError>>()?;
        Ok(Ring { exec, progress, pieces, turn: 0, to: DevicePtr::NULL, n_filled: 0 })
    }

    /// Bytes that travel together at most.
    pub(super) fn piece_bytes(&self) -> usize {
        self.pieces[0].memory.n_bytes()
    }

    /// Has `write` make `n_bytes` that go to `to`.
    pub(super) fn put(
        &mut self,
        to: DevicePtr,
        n_bytes: usize,
        write: impl FnOnce(&mut [u8]) -> Result<(), LoadingError>,
    ) -> Result<(), LoadingError> {
        let follows = self.n_filled > 0 && self.to.offset(self.n_filled) == to;
        if !follows || self.n_filled + n_bytes > self.piece_bytes() {
            self.flush()?;
            self.to = to;
        }
        let piece = &mut self.pieces[self.turn];
        if self.n_filled == 0 {
            piece.sent.synchronize()?;
        }
        piece.memory.with(self.n_filled, n_bytes, write)?;
        self.n_filled += n_bytes;
        Ok(())
    }

    /// Sends what was written.
    pub(super) fn flush(&mut self) -> Result<(), DeviceError> {
        if self.n_filled == 0 {
            return Ok(());
        }
        let Piece { memory, sent } = &self.pieces[self.turn];
        self.exec.stream().copy_in(self.to, memory, 0, self.n_filled)?;
        self.exec.stream().record(sent)?;
        (self.progress)(self.n_filled as u64);
        self.n_filled = 0;
        self.turn = (self.turn + 1) % self.pieces.len();
        Ok(())
    }

    /// Sends as many bytes as there are copies of `n_bytes` to `to`, whatever lies in the pieces:
    /// the filler, or what went this way before.
    pub(super) fn put_anything(
        &mut self,
        to: DevicePtr,
        n_bytes: usize,
    ) -> Result<(), LoadingError> {
        for begin in (0..n_bytes).step_by(self.piece_bytes()) {
            let n_bytes = (n_bytes - begin).min(self.piece_bytes());
            self.put(to.offset(begin), n_bytes, |_| Ok(()))?;
        }
        Ok(())
    }

    /// Writes zeroes to the device.
    pub(super) fn zero(&mut self, to: DevicePtr, n_bytes: usize) -> Result<(), DeviceError> {
        if n_bytes > 0 {
            self.exec.zero(to, n_bytes)?;
            (self.progress)(n_bytes as u64);
        }
        Ok(())
    }

    /// Writes the filler into all pieces.
    pub(super) fn fill(&self) {
        let filler = filler(self.piece_bytes());
        self.pieces.iter().for_each(|piece| piece.memory.write(0, &filler));
    }
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

#[cfg(test)]
mod tests {
    use half::bf16;
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
