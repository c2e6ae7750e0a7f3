//! An H100 as a device: its context, memory, streams, graphs and the kernels it carries.
//!
//! It knows no model and no kernel by name. All memory is claimed at boot and given back with the
//! executor; a step allocates nothing and waits for nothing that is not written in it.
//!
//! An executor belongs to the thread that opened it: the driver's calls go to the thread's current
//! device.

mod artifact;
mod blas;
mod context;
mod driver;
mod launch;
mod memory;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::rc::Rc;

pub use blas::{Algorithm, Operands, Pick, Product, ProductShape, ProductTypes, WORKSPACE_BYTES};
pub use context::DeviceInfo;
pub use launch::{Kernel, LaunchConfig, Param};
pub use memory::{ALIGNMENT, DevicePtr, Pinned, Plain, bytes_of, bytes_of_mut};
pub use stream::{Event, Graph, Stream};

use blas::Blas;
use context::Context;
use launch::Kernels;
use memory::Arena;
pub(crate) use memory::Shelf;

use super::DeviceError;

/// What small allocations share. At most this much is claimed and not used.
pub(crate) const CHUNK_BYTES: usize = 64 << 20;

/// One GPU of a rank. Fields are dropped in this order, the context last.
pub struct CudaExec {
    kernels: Kernels,
    blas: Blas,
    stream: Stream,
    arena: Arena,
    context: Rc<Context>,
}

/// Free and total bytes of device `ordinal`, before anybody opens it for good.
///
/// # Errors
/// As [`CudaExec::open`].
pub fn memory_bytes(ordinal: usize) -> Result<(usize, usize), DeviceError> {
    // On a thread of its own: opening makes the device current where it happens.
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| Context::open(ordinal)?.memory_bytes());
        asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl CudaExec {
    /// Opens device `ordinal` on this thread and loads the kernels.
    ///
    /// # Errors
    /// A missing library or device, one that is no H100, or what the driver says.
    pub fn open(ordinal: usize) -> Result<CudaExec, DeviceError> {
        CudaExec::build(ordinal, CHUNK_BYTES)
    }

    /// The same, but every allocation is one of the driver's, exactly as long as asked for: a
    /// kernel that leaves it is noticed where the node notices such things.
    pub fn open_guarded(ordinal: usize) -> Result<CudaExec, DeviceError> {
        CudaExec::build(ordinal, 0)
    }

    fn build(ordinal: usize, chunk_bytes: usize) -> Result<CudaExec, DeviceError> {
        let context = Rc::new(Context::open(ordinal)?);
        let kernels = Kernels::load(context.info.shared_bytes_max)?;
        let stream = Stream::new(&context)?;
        let arena = Arena::new(chunk_bytes);
        let blas = Blas::open(arena.alloc(&context, WORKSPACE_BYTES)?)?;
        Ok(CudaExec { kernels, blas, stream, arena, context })
    }

    /// What the device says of itself.
    pub fn info(&self) -> &DeviceInfo {
        &self.context.info
    }

    /// The stream that steps run on.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Another stream, for copies beside the steps.
    pub fn new_stream(&self) -> Result<Stream, DeviceError> {
        Stream::new(&self.context)
    }

    /// An event that no stream has recorded.
    pub fn new_event(&self) -> Result<Event, DeviceError> {
        Event::new(&self.context)
    }

    /// One that knows when the stream passed it.
    pub fn new_timed_event(&self) -> Result<Event, DeviceError> {
        Event::timed(&self.context)
    }

    /// Memory of the device for as long as the executor lives; at boot only. What lies in it is
    /// not defined. Starts at a multiple of [`ALIGNMENT`].
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], with what is free.
    ///
    /// # Panics
    /// After [`CudaExec::seal`], or for no bytes at all.
    pub fn alloc(&self, n_bytes: usize) -> Result<DevicePtr, DeviceError> {
        self.arena.alloc(&self.context, n_bytes)
    }

    /// Pinned host memory for as long as the executor lives; at boot only.
    ///
    /// # Panics
    /// After [`CudaExec::seal`], or for no bytes at all.
    pub fn alloc_pinned(&self, n_bytes: usize) -> Result<Pinned, DeviceError> {
        Pinned::new(&self.context, n_bytes)
    }

    /// Boot is over: whoever allocates from here on is wrong.
    pub fn seal(&self) {
        self.context.seal();
    }

    /// Bytes that the arena has claimed from the driver.
    pub fn n_claimed_bytes(&self) -> usize {
        self.arena.n_claimed_bytes()
    }

    /// Free and total bytes of the device, whoever holds the rest.
    pub fn memory_bytes(&self) -> Result<(usize, usize), DeviceError> {
        self.context.memory_bytes()
    }

    /// Copies to the device and waits until it is there. For boot and tests.
    pub fn upload<T: Plain>(&self, to: DevicePtr, values: &[T]) -> Result<(), DeviceError> {
        self.stream.upload(to, bytes_of(values))
    }

    /// Waits for the stream, then copies from the device. For boot and tests.
    pub fn download<T: Plain>(&self, from: DevicePtr, values: &mut [T]) -> Result<(), DeviceError> {
        self.stream.download(from, bytes_of_mut(values))
    }

    /// Zeroes, when its turn in the stream comes.
    pub fn zero(&self, to: DevicePtr, n_bytes: usize) -> Result<(), DeviceError> {
        self.stream.fill(to, 0, n_bytes)
    }

    /// Waits until all that was submitted has run.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.stream.synchronize()
    }

    /// Lets kernels of this device reach memory of device `peer`.
    ///
    /// # Errors
    /// [`DeviceError::NoPeerAccess`] where the two are not connected so.
    pub fn enable_peer(&self, peer: usize) -> Result<(), DeviceError> {
        self.context.enable_peer(peer)
    }

    /// Puts `n_bytes` of the L2 cache aside for what is to be evicted last, or as much as the
    /// device allows; gives back how much that is.
    ///
    /// # Errors
    /// What the driver has against it.
    pub fn set_aside(&self, n_bytes: usize) -> Result<usize, DeviceError> {
        self.context.set_aside(n_bytes)
    }

    /// Describes a matrix product, and how it is computed; at boot only.
    ///
    /// # Errors
    /// What cuBLASLt has against the shape.
    pub fn plan_product(
        &self,
        shape: ProductShape,
        n_tokens: usize,
        pick: Pick,
    ) -> Result<Product, DeviceError> {
        self.blas.plan(shape, n_tokens, pick)
    }

    /// Submits a matrix product to the stream of steps.
    ///
    /// # Errors
    /// What cuBLASLt says.
    pub fn submit_product(
        &self,
        product: &Product,
        operands: Operands,
        n_tokens: usize,
    ) -> Result<(), DeviceError> {
        self.blas.submit(&self.stream, product, operands, n_tokens)
    }

    /// Submits a kernel to the stream of steps.
    ///
    /// # Errors
    /// [`DeviceError::NoKernel`], or what the driver has against the launch. What a kernel does
    /// wrong while it runs comes out at a later call.
    ///
    /// # Safety
    /// `params` are what the kernel's signature says, and what they point to is what its
    /// documentation asks for.
    pub unsafe fn launch(
        &self,
        kernel: Kernel,
        config: LaunchConfig,
        params: &[Param<'_>],
    ) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise is the callee's.
        unsafe { self.kernels.launch(&self.stream, kernel, config, params) }
    }
}
