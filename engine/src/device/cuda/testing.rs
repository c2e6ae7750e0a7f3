//! For tests of kernels: a device whose every allocation is guarded, and typed copies.
//!
//! Without a GPU these are devices of the virtual node, whose libraries Cargo puts on the path of
//! this package's tests.

use super::{CudaExec, DevicePtr, Plain};

/// A device and what a test does with it. Failures are the test's.
pub(crate) struct TestDevice {
    /// The device itself.
    pub(crate) exec: CudaExec,
}

impl TestDevice {
    /// Opens device `ordinal`, on this thread.
    pub(crate) fn open(ordinal: usize) -> TestDevice {
        let exec = CudaExec::open_guarded(ordinal).expect("the node has the device");
        TestDevice { exec }
    }

    /// New memory with `values` in it.
    pub(crate) fn upload<T: Plain>(&self, values: &[T]) -> DevicePtr {
        let ptr = self.exec.alloc(size_of_val(values).max(1)).expect("there is room");
        self.exec.upload(ptr, values).expect("it is copied");
        ptr
    }

    /// New memory for `n` values, every byte of it `0xFF`: NaN as f32, bf16 or e4m3.
    pub(crate) fn poisoned<T: Plain>(&self, n: usize) -> DevicePtr {
        let n_bytes = (n * size_of::<T>()).max(1);
        let ptr = self.exec.alloc(n_bytes).expect("there is room");
        self.exec.stream().fill(ptr, 0xFF, n_bytes).expect("it is filled");
        ptr
    }

    /// What `n` values are when all that was submitted has run.
    pub(crate) fn download<T: Plain + Default>(&self, ptr: DevicePtr, n: usize) -> Vec<T> {
        let mut values = vec![T::default(); n];
        self.exec.download(ptr, &mut values).expect("what was launched runs and is copied");
        values
    }
}
