//! Row-major f32 matrices in this machine's memory, borrowed: what its kernels read and write.
//!
//! A view is a pointer with a shape, because two tiles of one matrix interleave in memory: neither
//! is a slice, yet both may be written at once. Elements are only ever reached row by row.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

/// A matrix to read: rows of `n_cols` elements, `stride` elements apart.
#[derive(Clone, Copy)]
pub struct HostView<'a> {
    first: NonNull<f32>,
    n_rows: usize,
    n_cols: usize,
    stride: usize,
    owner: PhantomData<&'a [f32]>,
}

/// A matrix to write: rows of `n_cols` elements, `stride` elements apart, no other view on them.
pub struct HostViewMut<'a> {
    first: NonNull<f32>,
    n_rows: usize,
    n_cols: usize,
    stride: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `HostView` is a `&[f32]` per row, and shared slices may go to other threads.
unsafe impl Send for HostView<'_> {}
// SAFETY: as above: nothing can be written through it.
unsafe impl Sync for HostView<'_> {}
// SAFETY: a `HostViewMut` is a `&mut [f32]` per row, which may go to another thread.
unsafe impl Send for HostViewMut<'_> {}
// SAFETY: through `&HostViewMut` rows can only be read.
unsafe impl Sync for HostViewMut<'_> {}

impl<'a> HostView<'a> {
    /// The whole of `data` as `[n_rows, n_cols]`.
    pub fn new(data: &'a [f32], n_rows: usize, n_cols: usize) -> HostView<'a> {
        assert_eq!(data.len(), n_rows * n_cols, "data of [{n_rows}, {n_cols}]");
        let first = NonNull::from(data).cast();
        HostView { first, n_rows, n_cols, stride: n_cols, owner: PhantomData }
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Elements of a row.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Elements from one row's first to the next row's.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row `row_idx`.
    pub fn row(&self, row_idx: usize) -> &'a [f32] {
        assert!(row_idx < self.n_rows, "row {row_idx} of {}", self.n_rows);
        // SAFETY: the constructor's slice, borrowed for 'a, holds `n_cols` elements from
        // `row_idx * stride` on; narrowing only ever shrinks the ranges.
        unsafe {
            let begin = self.first.add(row_idx * self.stride);
            std::slice::from_raw_parts(begin.as_ptr(), self.n_cols)
        }
    }

    /// Columns `range` of every row.
    pub fn columns(&self, range: Range<usize>) -> HostView<'a> {
        check_range(&range, self.n_cols);
        HostView {
            first: offset(self.first, self.n_rows, range.start),
            n_cols: range.len(),
            ..*self
        }
    }

    /// Rows `range`.
    pub fn rows(&self, range: Range<usize>) -> HostView<'a> {
        check_range(&range, self.n_rows);
        let first = offset(self.first, range.len(), range.start * self.stride);
        HostView { first, n_rows: range.len(), ..*self }
    }
}

impl<'a> HostViewMut<'a> {
    /// The whole of `data` as `[n_rows, n_cols]`.
    pub fn new(data: &'a mut [f32], n_rows: usize, n_cols: usize) -> HostViewMut<'a> {
        assert_eq!(data.len(), n_rows * n_cols, "data of [{n_rows}, {n_cols}]");
        let first = NonNull::from(data).cast();
        HostViewMut { first, n_rows, n_cols, stride: n_cols, owner: PhantomData }
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Elements of a row.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Elements from one row's first to the next row's.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// All elements, where rows follow each other without gaps.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        assert_eq!(self.stride, self.n_cols, "rows follow each other without gaps");
        // SAFETY: the constructor's slice holds `n_rows` rows of `stride` elements from `first`
        // on, and the exclusive borrow of `self` makes this the only reference to them.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.n_rows * self.n_cols) }
    }

    /// Row `row_idx`, to read.
    pub fn row(&self, row_idx: usize) -> &[f32] {
        self.as_view().row(row_idx)
    }

    /// Row `row_idx`, to write.
    pub fn row_mut(&mut self, row_idx: usize) -> &mut [f32] {
        assert!(row_idx < self.n_rows, "row {row_idx} of {}", self.n_rows);
        // SAFETY: as in `HostView::row`; the exclusive borrow of `self` makes this the only
        // reference to the row, since tiles of one matrix are disjoint.
        unsafe {
            let begin = self.first.add(row_idx * self.stride);
            std::slice::from_raw_parts_mut(begin.as_ptr(), self.n_cols)
        }
    }

    /// The same matrix to read, while `self` stays borrowed.
    pub fn as_view(&self) -> HostView<'_> {
        let HostViewMut { first, n_rows, n_cols, stride, .. } = *self;
        HostView { first, n_rows, n_cols, stride, owner: PhantomData }
    }

    /// The same matrix for a shorter while.
    pub fn reborrow(&mut self) -> HostViewMut<'_> {
        HostViewMut { owner: PhantomData, ..*self }
    }

    /// Columns `range` of every row.
    pub fn columns(self, range: Range<usize>) -> HostViewMut<'a> {
        check_range(&range, self.n_cols);
        HostViewMut {
            first: offset(self.first, self.n_rows, range.start),
            n_cols: range.len(),
            ..self
        }
    }

    /// Rows `range`.
    pub fn rows(self, range: Range<usize>) -> HostViewMut<'a> {
        check_range(&range, self.n_rows);
        let first = offset(self.first, range.len(), range.start * self.stride);
        HostViewMut { first, n_rows: range.len(), ..self }
    }

    /// Sets every element.
    pub fn fill(&mut self, value: f32) {
        for row_idx in 0..self.n_rows {
            self.row_mut(row_idx).fill(value);
        }
    }
}

/// A matrix to write, cut into tiles of which each may go to another thread.
pub(crate) struct Tiles<'a> {
    whole: HostViewMut<'a>,
    tile_rows: usize,
    tile_cols: usize,
}

impl<'a> Tiles<'a> {
    /// Tiles of at most `[tile_rows, tile_cols]`.
    pub(crate) fn new(whole: HostViewMut<'a>, tile_rows: usize, tile_cols: usize) -> Tiles<'a> {
        assert!(tile_rows > 0 && tile_cols > 0, "tiles of [{tile_rows}, {tile_cols}]");
        Tiles { whole, tile_rows, tile_cols }
    }

    /// How many there are.
    pub(crate) fn n_tiles(&self) -> usize {
        self.n_row_tiles() * self.whole.n_cols.div_ceil(self.tile_cols)
    }

    fn n_row_tiles(&self) -> usize {
        self.whole.n_rows.div_ceil(self.tile_rows)
    }

    /// First row and first column of a tile, and the tile. Those of the same columns follow each
    /// other.
    ///
    /// # Safety
    /// Nobody else has a tile of this number.
    pub(crate) unsafe fn tile(&self, tile_idx: usize) -> (usize, usize, HostViewMut<'_>) {
        let HostViewMut { first, n_rows, n_cols, stride, owner } = self.whole;
        let row_idx = tile_idx % self.n_row_tiles() * self.tile_rows;
        let col_idx = tile_idx / self.n_row_tiles() * self.tile_cols;
        // Tiles of different numbers share no element, so each is the only view on its own.
        let whole = HostViewMut { first, n_rows, n_cols, stride, owner };
        let rows = whole.rows(row_idx..n_rows.min(row_idx + self.tile_rows));
        (row_idx, col_idx, rows.columns(col_idx..n_cols.min(col_idx + self.tile_cols)))
    }
}

impl fmt::Debug for HostView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View[{}, {}]", self.n_rows, self.n_cols)
    }
}

impl fmt::Debug for HostViewMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ViewMut[{}, {}]", self.n_rows, self.n_cols)
    }
}

fn check_range(range: &Range<usize>, n: usize) {
    assert!(range.start <= range.end && range.end <= n, "{range:?} of {n}");
}

/// `first + n`, or `first` where no row is left: the sum could lie beyond the allocation.
fn offset(first: NonNull<f32>, n_rows: usize, n: usize) -> NonNull<f32> {
    if n_rows == 0 {
        return first;
    }
    // SAFETY: callers have checked that `n` is the first element of a row of theirs, or one past
    // a row's last where no column is left: inside the allocation or at its end.
    unsafe { first.add(n) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(n: usize) -> Vec<f32> {
        (0..n).map(|i| i as f32).collect()
    }

    #[test]
    fn narrowing_keeps_the_stride() {
        let data = counted(20);
        let view = HostView::new(&data, 4, 5).rows(1..4).columns(2..4);
        assert_eq!((view.n_rows(), view.n_cols(), view.stride()), (3, 2, 5));
        assert_eq!(view.row(0), [7.0, 8.0]);
        assert_eq!(view.row(2), [17.0, 18.0]);
        assert_eq!(view.rows(3..3).n_rows(), 0);
        assert!(view.columns(2..2).row(2).is_empty());
    }

    #[test]
    fn tiles_of_a_matrix_are_written_apart() {
        let mut data = vec![0.0; 15];
        let tiles = Tiles::new(HostViewMut::new(&mut data, 3, 5), 2, 3);
        assert_eq!(tiles.n_tiles(), 4);
        let mut places = Vec::new();
        for tile_idx in [3, 0, 2, 1] {
            // SAFETY: each number comes once.
            let (row_idx, col_idx, mut tile) = unsafe { tiles.tile(tile_idx) };
            tile.fill(tile_idx as f32);
            assert_eq!(tile.as_view().row(0), tile.row(0));
            places.push((row_idx, col_idx, tile.n_rows(), tile.n_cols()));
        }
        assert_eq!(places, [(2, 3, 1, 2), (0, 0, 2, 3), (0, 3, 2, 2), (2, 0, 1, 3)]);
        let expected = [[0., 0., 0., 2., 2.], [0., 0., 0., 2., 2.], [1., 1., 1., 3., 3.]];
        assert_eq!(data, expected.as_flattened());
    }

    #[test]
    fn ranges_beyond_the_matrix_are_refused() {
        let data = counted(6);
        let view = HostView::new(&data, 2, 3);
        assert!(std::panic::catch_unwind(|| view.row(2)).is_err());
        assert!(std::panic::catch_unwind(|| view.columns(1..4)).is_err());
        assert!(std::panic::catch_unwind(|| view.rows(2..3)).is_err());
    }
}
