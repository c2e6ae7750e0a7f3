//! From files to the device: each rank goes through the schedule, reads its own, fills windows when
//! it is its turn, and takes its columns of the others'.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use weights::{Dtype, Matrix, Reader};

use super::meeting::LoadingSeat;
use super::ring::Ring;
use super::schedule::{Piece, Region, Schedule, Source, Taker, Want, n_readers, piece_bytes};
use super::{Copying, LoadingError, MatrixCopy};
use crate::device::cuda::CudaExec;
use crate::device::{DeviceError, DeviceView, Element};

/// Bytes that one of a rank's threads reads at least.
const READ_BYTES_MIN: usize = 1 << 20;

/// What a rank does while it loads.
struct Stager<'a> {
    seat: &'a LoadingSeat<'a>,
    copies: &'a [Copying],
    ring: Ring<'a>,
    readers: Option<ThreadPool>,
    /// Of the file that this rank reads its own from.
    reader: Option<Reader>,
    /// Up to where all ranks together had the system fetch the region that is read.
    fetched_end: usize,
    /// A row as f32.
    wide: Vec<f32>,
}

/// Copies everything, and waits until it is there. `progress` hears of bytes as they are sent.
///
/// # Errors
/// What the device says, what cannot be read, or that another rank gave up.
pub(crate) fn stage(
    exec: &CudaExec,
    seat: LoadingSeat<'_>,
    copies: &[Copying],
    progress: &dyn Fn(u64),
) -> Result<(), LoadingError> {
    let schedule = seat.agree(wants(copies))?;
    let n_bytes_max = copies.iter().map(Copying::n_bytes).max().unwrap_or(0);
    if n_bytes_max > 0 {
        // Rows travel whole.
        let row_bytes_max = copies.iter().map(Copying::row_bytes).max().unwrap_or(0);
        let piece_bytes = n_bytes_max.min(piece_bytes(seat.n_ranks())).max(row_bytes_max);
        let ring = Ring::new(exec, piece_bytes, progress)?;
        let readers = readers(seat.n_ranks())?;
        let (reader, wide) = (None, Vec::new());
        let mut stager =
            Stager { seat: &seat, copies, ring, readers, reader, fetched_end: 0, wide };
        stager.run(&schedule)?;
        stager.ring.flush()?;
        exec.synchronize()?;
    }
    seat.finish();
    Ok(())
}

/// Threads beside the rank's own that read, if there are processor cores for them.
fn readers(n_ranks: usize) -> Result<Option<ThreadPool>, DeviceError> {
    let n_threads = n_readers(n_ranks);
    if n_threads == 1 {
        return Ok(None);
    }
    let pool = ThreadPoolBuilder::new().num_threads(n_threads).build();
    let failed = |error| DeviceError::Threads { n_threads, source: std::io::Error::other(error) };
    pool.map(Some).map_err(failed)
}

fn wants(copies: &[Copying]) -> Vec<Want> {
    let of = |(copy_idx, copying): (usize, &Copying)| {
        let Copying::Matrix(MatrixCopy { matrix, to, .. }) = copying else { return None };
        (!matrix.bytes.is_absent()).then(|| Want {
            copy_idx,
            bytes: matrix.bytes.clone(),
            span: matrix.span(),
            row_stride: matrix.row_stride,
            is_plain: is_plain(matrix, to),
        })
    };
    copies.iter().enumerate().filter_map(of).collect()
}

impl Copying {
    /// On the device.
    fn n_bytes(&self) -> usize {
        match self {
            Copying::Matrix(MatrixCopy { to, .. }) => to.n_rows * row_bytes(to),
            Copying::Bytes { bytes, .. } => bytes.len(),
        }
    }

    fn row_bytes(&self) -> usize {
        match self {
            Copying::Matrix(MatrixCopy { to, .. }) => row_bytes(to),
            Copying::Bytes { .. } => 0,
        }
    }
}

impl Stager<'_> {
    fn run(&mut self, schedule: &Schedule) -> Result<(), LoadingError> {
        self.without_files()?;
        let rank_idx = self.seat.rank_idx();
        for region in schedule.regions.iter().filter(|region| region.source == Source::Hole) {
            for copy_idx in region.copies_of(rank_idx) {
                let MatrixCopy { matrix, to, .. } = matrix_copy(&self.copies[copy_idx]);
                self.ring.zero(to.first, matrix.n_rows * row_bytes(to))?;
            }
        }
        let is_window = |piece: &&Piece| piece.window_idx.is_some();
        let mut to_fill = schedule.reads_of(rank_idx).filter(is_window).peekable();
        for piece in &schedule.pieces {
            let region = &schedule.regions[piece.region_idx];
            if !region.is_for(rank_idx) {
                continue;
            }
            self.fetch(region, piece);
            let Some(window_idx) = piece.window_idx else {
                self.own(region, &piece.span)?;
                continue;
            };
            let is_due = |next: &&Piece| {
                next.window_idx <= Some(window_idx)
                    || next.window_idx.is_some_and(|idx| self.seat.can_fill(idx))
            };
            while let Some(next) = to_fill.next_if(is_due) {
                self.fill(&schedule.regions[next.region_idx], next)?;
            }
            self.take(region, piece, window_idx)?;
        }
        Ok(())
    }

    /// What is no file's: weights that are nowhere, and numbers that we made.
    fn without_files(&mut self) -> Result<(), LoadingError> {
        let is_absent = |copying: &&Copying| match copying {
            Copying::Matrix(copy) => copy.matrix.bytes.is_absent(),
            Copying::Bytes { .. } => false,
        };
        let copies = self.copies;
        if copies.iter().any(|copying| is_absent(&copying)) {
            self.ring.fill();
        }
        for copying in copies {
            match copying {
                Copying::Matrix(copy) if is_absent(&copying) => {
                    self.ring.put_anything(copy.to.first, copying.n_bytes())?;
                }
                Copying::Matrix(MatrixCopy { matrix, to, .. }) => {
                    // Rows that were added.
                    let n_rows = to.n_rows - matrix.n_rows;
                    let first = to.first.offset(matrix.n_rows * row_bytes(to));
                    self.ring.zero(first, n_rows * row_bytes(to))?;
                }
                Copying::Bytes { to, bytes } => {
                    let n_bytes = self.ring.piece_bytes();
                    for (idx, bytes) in bytes.chunks(n_bytes).enumerate() {
                        self.ring.put(to.offset(idx * n_bytes), bytes.len(), |out| {
                            out.copy_from_slice(bytes);
                            Ok(())
                        })?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Has the system fetch what comes next, on as many threads as read.
    fn fetch(&mut self, region: &Region, piece: &Piece) {
        if piece.span.start == region.span.start {
            self.fetched_end = piece.span.start;
        }
        let rank_idx = self.seat.rank_idx();
        for part in region.fetches(rank_idx, piece.span.start, &mut self.fetched_end) {
            let Some(readers) = &self.readers else {
                region.bytes.fetch(part);
                continue;
            };
            readers.install(|| {
                let begins = part.clone().into_par_iter().step_by(READ_BYTES_MIN);
                begins.for_each(|begin| {
                    region.bytes.fetch(begin..(begin + READ_BYTES_MIN).min(part.end));
                });
            });
        }
    }

    /// Reads rows that are this rank's alone to where the device copies from.
    fn own(&mut self, region: &Region, span: &Range<usize>) -> Result<(), LoadingError> {
        let Taker { copy_idx, .. } = region.takers[0];
        let to = matrix_copy(&self.copies[copy_idx]).to.first;
        let to = to.offset(span.start - region.span.start);
        let Stager { ring, readers, reader, .. } = self;
        if !reader.as_ref().is_some_and(|reader| reader.is_of(&region.bytes)) {
            *reader = None;
        }
        let reader = reader.get_or_insert_with(|| region.bytes.reader());
        ring.put(to, span.len(), |out| read(readers.as_ref(), reader, span.start, out))
    }

    /// Reads a window. All ranks' windows follow each other in the file, so they read it as one.
    fn fill(&self, region: &Region, piece: &Piece) -> Result<(), LoadingError> {
        let window_idx = piece.window_idx.expect("it is a window");
        let n_takers = region.ranks().len();
        self.seat.fill(window_idx, piece.span.len(), n_takers, |out| {
            Ok(region.bytes.read_at(piece.span.start, out)?)
        })
    }

    /// Takes this rank's columns of a window.
    fn take(
        &mut self,
        region: &Region,
        piece: &Piece,
        window_idx: usize,
    ) -> Result<(), LoadingError> {
        let Stager { seat, copies, ring, wide, .. } = self;
        let rank_idx = seat.rank_idx();
        seat.take(window_idx, |window| {
            // Where a longer one was before, its end is still there.
            let window = Window { bytes: &window[..piece.span.len()], begin: piece.span.start };
            for copy_idx in region.copies_of(rank_idx) {
                let copy = matrix_copy(&copies[copy_idx]);
                take_rows(ring, wide, copy, &window)?;
            }
            Ok(())
        })
    }
}

/// Whole rows of a region.
struct Window<'a> {
    bytes: &'a [u8],
    /// Where they begin in the file.
    begin: usize,
}

/// Takes a copy's part of every row of a window.
fn take_rows(
    ring: &mut Ring<'_>,
    wide: &mut Vec<f32>,
    copy: &MatrixCopy,
    window: &Window<'_>,
) -> Result<(), LoadingError> {
    let MatrixCopy { matrix, to, .. } = copy;
    let stride = matrix.row_stride;
    let row_at = |at: usize| at.saturating_sub(matrix.offset).div_ceil(stride).min(matrix.n_rows);
    let rows = row_at(window.begin)..row_at(window.begin + window.bytes.len());
    let row_bytes = row_bytes(to);
    let n_rows_max = ring.piece_bytes() / row_bytes;
    for begin in rows.clone().step_by(n_rows_max) {
        let end = (begin + n_rows_max).min(rows.end);
        let first = to.first.offset(begin * row_bytes);
        ring.put(first, (end - begin) * row_bytes, |out| {
            for (row_idx, out) in (begin..end).zip(out.chunks_exact_mut(row_bytes)) {
                let at = matrix.offset + row_idx * stride - window.begin;
                let row = &window.bytes[at..at + matrix.n_cols * matrix.dtype.n_bytes()];
                write_row(copy, row, out, wide);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Writes one row, with its zeroes.
fn write_row(copy: &MatrixCopy, row: &[u8], out: &mut [u8], wide: &mut Vec<f32>) {
    let MatrixCopy { matrix, to, col_begin } = copy;
    let n_bytes = to.element.n_bytes();
    let (before, rest) = out.split_at_mut(col_begin * n_bytes);
    let (columns, after) = rest.split_at_mut(matrix.n_cols * n_bytes);
    before.fill(0);
    after.fill(0);
    convert(matrix.dtype, row, to.element, columns, wide);
}

/// Reads on as many threads as are worth it.
fn read(
    readers: Option<&ThreadPool>,
    reader: &Reader,
    offset: usize,
    out: &mut [u8],
) -> Result<(), LoadingError> {
    let Some(readers) = readers else { return Ok(reader.read_at(offset, out)?) };
    let n_bytes = out.len().div_ceil(readers.current_num_threads()).max(READ_BYTES_MIN);
    readers.install(|| {
        let parts = out.par_chunks_mut(n_bytes).enumerate();
        parts.try_for_each(|(idx, part)| reader.read_at(offset + idx * n_bytes, part))
    })?;
    Ok(())
}

fn matrix_copy(copying: &Copying) -> &MatrixCopy {
    match copying {
        Copying::Matrix(copy) => copy,
        Copying::Bytes { .. } => unreachable!("only matrices are in files"),
    }
}

fn row_bytes(to: &DeviceView) -> usize {
    to.n_cols * to.element.n_bytes()
}

/// Whether the stored bytes are those of the device, one row after the other.
fn is_plain(matrix: &Matrix, to: &DeviceView) -> bool {
    let is_same = matches!(
        (matrix.dtype, to.element),
        (Dtype::F8E4m3, Element::F8) | (Dtype::Bf16, Element::Bf16)
    );
    is_same && matrix.n_cols == to.n_cols && matrix.is_contiguous()
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
