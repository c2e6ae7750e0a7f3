//! Memory that a step writes, wherever it lies, taken at boot.

use super::{Aligned, Array, ArrayMut, DeviceArray, DevicePtr, DeviceView, Element, View, ViewMut};

/// A run of memory that different matrices use in turn.
pub enum Buffer {
    /// f32, on cache lines' boundaries: a vector that straddles two lines costs two loads.
    Host(Aligned),
    /// A piece of the rank's arena.
    Device {
        /// Its first byte.
        first: DevicePtr,
        /// How many it has.
        n_bytes: usize,
    },
}

impl Buffer {
    /// Room for `n` numbers in this machine's memory.
    pub fn host(n: usize) -> Buffer {
        Buffer::Host(Aligned::new(n))
    }

    /// Its beginning as a matrix, which a device stores as `element` and the host as f32.
    pub fn view(&self, element: Element, n_rows: usize, n_cols: usize) -> View<'_> {
        match self {
            Buffer::Host(data) => View::new(&data[..n_rows * n_cols], n_rows, n_cols),
            Buffer::Device { .. } => View::Device(self.device_view(element, n_rows, n_cols)),
        }
    }

    /// The same, to be written.
    pub fn view_mut(&mut self, element: Element, n_rows: usize, n_cols: usize) -> ViewMut<'_> {
        match self {
            Buffer::Host(data) => ViewMut::new(&mut data[..n_rows * n_cols], n_rows, n_cols),
            Buffer::Device { .. } => ViewMut::Device(self.device_view(element, n_rows, n_cols)),
        }
    }

    /// Its first `n` f32.
    pub fn array(&self, n: usize) -> Array<'_, f32> {
        match self {
            Buffer::Host(data) => Array::Host(&data[..n]),
            Buffer::Device { .. } => Array::Device(self.device_array(n)),
        }
    }

    /// The same, to be written.
    pub fn array_mut(&mut self, n: usize) -> ArrayMut<'_, f32> {
        match self {
            Buffer::Host(data) => ArrayMut::Host(&mut data[..n]),
            Buffer::Device { .. } => ArrayMut::Device(self.device_array(n)),
        }
    }

    fn device_view(&self, element: Element, n_rows: usize, n_cols: usize) -> DeviceView {
        let first = self.claim(n_rows * n_cols * element.n_bytes());
        DeviceView { first, element, n_rows, n_cols, stride: n_cols }
    }

    fn device_array(&self, n: usize) -> DeviceArray {
        DeviceArray { first: self.claim(n * size_of::<f32>()), n }
    }

    fn claim(&self, n_wanted: usize) -> DevicePtr {
        let Buffer::Device { first, n_bytes } = *self else {
            unreachable!("callers have matched the place")
        };
        assert!(n_wanted <= n_bytes, "{n_wanted} bytes of a buffer of {n_bytes}");
        first
    }
}
