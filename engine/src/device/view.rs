//! What kernels read and write, wherever it lies: matrices and arrays with a place.
//!
//! The model graph is written over these; only a family's launcher asks for the place. On the host
//! every element is f32, quantized values too: [`Element`] says what a device stores.

use std::ops::Range;

use weights::InputScale;

use super::{DevicePtr, HostView, HostViewMut};

/// Element type of a matrix in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// The residual stream, logits, scales.
    F32,
    /// Partial results, and inputs of projections that are not quantized.
    Bf16,
    /// e4m3: inputs of projections that are.
    F8,
}

impl Element {
    /// What a device stores a projection's input as.
    pub fn of_input(input: InputScale) -> Element {
        match input {
            InputScale::None => Element::Bf16,
            InputScale::Static(_) | InputScale::PerToken => Element::F8,
        }
    }

    /// Bytes of one element.
    pub fn n_bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
            Element::F8 => 1,
        }
    }
}

/// A matrix in device memory: rows of `n_cols` elements, `stride` elements apart.
///
/// Nothing but the stream's order guards the memory behind it: it comes from the rank's arena,
/// which outlives every view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceView {
    /// Row 0, column 0.
    pub first: DevicePtr,
    /// What it holds.
    pub element: Element,
    /// Rows.
    pub n_rows: usize,
    /// Elements of a row.
    pub n_cols: usize,
    /// Elements from one row's first to the next row's.
    pub stride: usize,
}

/// A matrix to read.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// f32 in this machine's memory.
    Host(HostView<'a>),
    /// In the rank's device.
    Device(DeviceView),
}

/// A matrix to write.
#[derive(Debug)]
pub enum ViewMut<'a> {
    /// f32 in this machine's memory.
    Host(HostViewMut<'a>),
    /// In the rank's device.
    Device(DeviceView),
}

/// `n` values of a step to read.
#[derive(Debug)]
pub enum Array<'a, T> {
    /// In this machine's memory.
    Host(&'a [T]),
    /// In the rank's device.
    Device(DeviceArray),
}

/// `n` values of a step to write.
#[derive(Debug)]
pub enum ArrayMut<'a, T> {
    /// In this machine's memory.
    Host(&'a mut [T]),
    /// In the rank's device.
    Device(DeviceArray),
}

/// Consecutive values in device memory; the kernel that takes them knows their type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceArray {
    /// The first.
    pub first: DevicePtr,
    /// How many.
    pub n: usize,
}

impl DeviceView {
    /// Columns `range` of every row.
    pub fn columns(self, range: Range<usize>) -> DeviceView {
        assert!(range.start <= range.end && range.end <= self.n_cols, "{range:?} of {self:?}");
        let first = self.first.offset(range.start * self.element.n_bytes());
        DeviceView { first, n_cols: range.len(), ..self }
    }

    /// Rows `range`.
    pub fn rows(self, range: Range<usize>) -> DeviceView {
        assert!(range.start <= range.end && range.end <= self.n_rows, "{range:?} of {self:?}");
        let first = self.first.offset(range.start * self.stride * self.element.n_bytes());
        DeviceView { first, n_rows: range.len(), ..self }
    }
}

impl<'a> View<'a> {
    /// The whole of `data` as `[n_rows, n_cols]`.
    pub fn new(data: &'a [f32], n_rows: usize, n_cols: usize) -> View<'a> {
        View::Host(HostView::new(data, n_rows, n_cols))
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        match self {
            View::Host(view) => view.n_rows(),
            View::Device(view) => view.n_rows,
        }
    }

    /// Elements of a row.
    pub fn n_cols(&self) -> usize {
        match self {
            View::Host(view) => view.n_cols(),
            View::Device(view) => view.n_cols,
        }
    }

    /// Columns `range` of every row.
    pub fn columns(&self, range: Range<usize>) -> View<'a> {
        match self {
            View::Host(view) => View::Host(view.columns(range)),
            View::Device(view) => View::Device(view.columns(range)),
        }
    }

    /// Rows `range`.
    pub fn rows(&self, range: Range<usize>) -> View<'a> {
        match self {
            View::Host(view) => View::Host(view.rows(range)),
            View::Device(view) => View::Device(view.rows(range)),
        }
    }

    /// For a processor's kernel.
    pub fn host(self) -> HostView<'a> {
        match self {
            View::Host(view) => view,
            View::Device(view) => panic!("{view:?} for a kernel of the host"),
        }
    }

    /// For a device's kernel.
    pub fn device(self) -> DeviceView {
        match self {
            View::Host(view) => panic!("{view:?} for a kernel of the device"),
            View::Device(view) => view,
        }
    }
}

impl<'a> ViewMut<'a> {
    /// The whole of `data` as `[n_rows, n_cols]`.
    pub fn new(data: &'a mut [f32], n_rows: usize, n_cols: usize) -> ViewMut<'a> {
        ViewMut::Host(HostViewMut::new(data, n_rows, n_cols))
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.as_view().n_rows()
    }

    /// Elements of a row.
    pub fn n_cols(&self) -> usize {
        self.as_view().n_cols()
    }

    /// The same matrix to read, while `self` stays borrowed.
    pub fn as_view(&self) -> View<'_> {
        match self {
            ViewMut::Host(view) => View::Host(view.as_view()),
            ViewMut::Device(view) => View::Device(*view),
        }
    }

    /// The same matrix for a shorter while.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        match self {
            ViewMut::Host(view) => ViewMut::Host(view.reborrow()),
            ViewMut::Device(view) => ViewMut::Device(*view),
        }
    }

    /// Columns `range` of every row.
    pub fn columns(self, range: Range<usize>) -> ViewMut<'a> {
        match self {
            ViewMut::Host(view) => ViewMut::Host(view.columns(range)),
            ViewMut::Device(view) => ViewMut::Device(view.columns(range)),
        }
    }

    /// For a processor's kernel.
    pub fn host(self) -> HostViewMut<'a> {
        match self {
            ViewMut::Host(view) => view,
            ViewMut::Device(view) => panic!("{view:?} for a kernel of the host"),
        }
    }

    /// For a device's kernel.
    pub fn device(self) -> DeviceView {
        match self {
            ViewMut::Host(view) => panic!("{view:?} for a kernel of the device"),
            ViewMut::Device(view) => view,
        }
    }
}

impl<T> Clone for Array<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Array<'_, T> {}

impl<'a, T> From<&'a [T]> for Array<'a, T> {
    fn from(values: &'a [T]) -> Array<'a, T> {
        Array::Host(values)
    }
}

impl<'a, T> From<&'a mut [T]> for ArrayMut<'a, T> {
    fn from(values: &'a mut [T]) -> ArrayMut<'a, T> {
        ArrayMut::Host(values)
    }
}

impl<'a, T> Array<'a, T> {
    /// How many values.
    pub fn len(&self) -> usize {
        match self {
            Array::Host(values) => values.len(),
            Array::Device(array) => array.n,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values `range`, each of `size_of::<T>()` bytes.
    pub fn range(self, range: Range<usize>) -> Array<'a, T> {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {}", self.len());
        match self {
            Array::Host(values) => Array::Host(&values[range]),
            Array::Device(array) => Array::Device(DeviceArray {
                first: array.first.offset(range.start * size_of::<T>()),
                n: range.len(),
            }),
        }
    }

    /// For a processor's kernel.
    pub fn host(self) -> &'a [T] {
        match self {
            Array::Host(values) => values,
            Array::Device(array) => panic!("{array:?} for a kernel of the host"),
        }
    }

    /// For a device's kernel.
    pub fn device(self) -> DevicePtr {
        match self {
            Array::Host(values) => panic!("{} values for a kernel of the device", values.len()),
            Array::Device(array) => array.first,
        }
    }
}

impl<'a, T> ArrayMut<'a, T> {
    /// How many values.
    pub fn len(&self) -> usize {
        self.as_array().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same values to read, while `self` stays borrowed.
    pub fn as_array(&self) -> Array<'_, T> {
        match self {
            ArrayMut::Host(values) => Array::Host(values),
            ArrayMut::Device(array) => Array::Device(*array),
        }
    }

    /// The same values for a shorter while.
    pub fn reborrow(&mut self) -> ArrayMut<'_, T> {
        match self {
            ArrayMut::Host(values) => ArrayMut::Host(values),
            ArrayMut::Device(array) => ArrayMut::Device(*array),
        }
    }

    /// For a processor's kernel.
    pub fn host(self) -> &'a mut [T] {
        match self {
            ArrayMut::Host(values) => values,
            ArrayMut::Device(array) => panic!("{array:?} for a kernel of the host"),
        }
    }

    /// For a device's kernel.
    pub fn device(self) -> DevicePtr {
        match self {
            ArrayMut::Host(values) => panic!("{} values for a kernel of the device", values.len()),
            ArrayMut::Device(array) => array.first,
        }
    }
}
