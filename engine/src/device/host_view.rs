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
        // reference to the row, since splitting consumes a view and hands out disjoint parts.
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

    /// Columns before `col_idx`, and the rest.
    pub fn split_columns(self, col_idx: usize) -> (HostViewMut<'a>, HostViewMut<'a>) {
        let HostViewMut { first, n_rows, n_cols, stride, owner } = self;
        // The parts share no element, so each is the only view on its own.
        let left = HostViewMut { first, n_rows, n_cols, stride, owner };
        let right = HostViewMut { first, n_rows, n_cols, stride, owner };
        (left.columns(0..col_idx), right.columns(col_idx..n_cols))
    }

    /// Rows before `row_idx`, and the rest.
    pub fn split_rows(self, row_idx: usize) -> (HostViewMut<'a>, HostViewMut<'a>) {
        let HostViewMut { first, n_rows, n_cols, stride, owner } = self;
        let upper = HostViewMut { first, n_rows, n_cols, stride, owner };
        let lower = HostViewMut { first, n_rows, n_cols, stride, owner };
        (upper.rows(0..row_idx), lower.rows(row_idx..n_rows))
    }

    /// Sets every element.
    pub fn fill(&mut self, value: f32) {
        for row_idx in 0..self.n_rows {
            self.row_mut(row_idx).fill(value);
        }
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
    fn parts_of_a_matrix_are_written_apart() {
        let mut data = vec![0.0; 12];
        let (mut left, right) = HostViewMut::new(&mut data, 3, 4).split_columns(1);
        let (mut upper, mut lower) = right.split_rows(2);
        left.fill(1.0);
        upper.fill(2.0);
        lower.reborrow().row_mut(0).copy_from_slice(&[3.0, 4.0, 5.0]);
        assert_eq!(lower.as_view().row(0), lower.row(0));
        assert_eq!(data, [1.0, 2.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0, 1.0, 3.0, 4.0, 5.0]);
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
