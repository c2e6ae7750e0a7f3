//! Device memory carved from a few large allocations, and pinned host memory.
//!
//! Addresses are plain numbers: what lies there, and for how long, is the memory plan's to know.

use std::cell::Cell;
use std::rc::Rc;

use super::context::Context;
use crate::device::DeviceError;

/// What an allocation starts at a multiple of: enough for any access, TMA and cuBLASLt included.
pub const ALIGNMENT: usize = 256;

/// Memory of a device. Never dereferenced by the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// For arguments that a kernel does not look at.
    pub const NULL: DevicePtr = DevicePtr(0);

    /// `n_bytes` further on.
    #[must_use]
    pub fn offset(self, n_bytes: usize) -> DevicePtr {
        DevicePtr(self.0 + n_bytes as u64)
    }

    /// `n` elements of type `T` further on.
    #[must_use]
    pub fn elements<T: Plain>(self, n: usize) -> DevicePtr {
        self.offset(n * size_of::<T>())
    }

    /// Whether the address is a multiple of `n_bytes`.
    pub fn is_aligned(self, n_bytes: usize) -> bool {
        self.0.is_multiple_of(n_bytes as u64)
    }
}

/// A type that is nothing but its bytes: every pattern is a value, and there are no gaps.
///
/// # Safety
/// That must be so.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty),*) => {
        // SAFETY: numbers of fixed size.
        $(unsafe impl Plain for $type {})*
    };
}

plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, half::bf16, half::f16);

/// The bytes of `values`.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: a plain type has no gaps, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of `values`, to be overwritten.
pub fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: a plain type has no gaps and takes any bytes, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// What an arena does about an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taking {
    /// It is one of the driver's, of that length.
    Claim(usize),
    /// It begins a new chunk, of that length.
    NewChunk(usize),
    /// It goes on in the current chunk.
    Chunk,
}

/// Which allocations share a chunk: the arena's decisions, without its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shelf {
    chunk_bytes: usize,
    n_left_bytes: usize,
}

impl Shelf {
    /// With `chunk_bytes` of 0 every allocation is one of the driver's and exactly as long as asked
    /// for, so that a virtual node notices whoever leaves it.
    pub(crate) fn new(chunk_bytes: usize) -> Shelf {
        Shelf { chunk_bytes, n_left_bytes: 0 }
    }

    /// Makes room for `n_bytes`.
    pub(crate) fn take(&mut self, n_bytes: usize) -> Taking {
        if n_bytes > self.chunk_bytes / 2 {
            return Taking::Claim(n_bytes);
        }
        let n_bytes = n_bytes.next_multiple_of(ALIGNMENT);
        let is_new = n_bytes > self.n_left_bytes;
        let n_left_bytes = if is_new { self.chunk_bytes } else { self.n_left_bytes };
        self.n_left_bytes = n_left_bytes - n_bytes;
        if is_new { Taking::NewChunk(self.chunk_bytes) } else { Taking::Chunk }
    }
}

impl Taking {
    /// What is asked of the driver.
    pub(crate) fn claimed_bytes(self) -> Option<usize> {
        match self {
            Taking::Claim(n_bytes) | Taking::NewChunk(n_bytes) => Some(n_bytes),
            Taking::Chunk => None,
        }
    }
}

/// A bump allocator over large allocations of the driver.
pub(super) struct Arena {
    shelf: Cell<Shelf>,
    /// In the current chunk.
    next: Cell<u64>,
    n_claimed_bytes: Cell<usize>,
}

impl Arena {
    /// As [`Shelf::new`].
    pub(super) fn new(chunk_bytes: usize) -> Arena {
        Arena {
            shelf: Cell::new(Shelf::new(chunk_bytes)),
            next: Cell::new(0),
            n_claimed_bytes: Cell::new(0),
        }
    }

    pub(super) fn n_claimed_bytes(&self) -> usize {
        self.n_claimed_bytes.get()
    }

    pub(super) fn alloc(
        &self,
        context: &Context,
        n_bytes: usize,
    ) -> Result<DevicePtr, DeviceError> {
        context.assert_open(n_bytes);
        let mut shelf = self.shelf.get();
        match shelf.take(n_bytes) {
            Taking::Claim(n_bytes) => return self.claim(context, n_bytes).map(DevicePtr),
            Taking::NewChunk(chunk_bytes) => self.next.set(self.claim(context, chunk_bytes)?),
            Taking::Chunk => {}
        }
        self.shelf.set(shelf);
        let address = self.next.get();
        self.next.set(address + n_bytes.next_multiple_of(ALIGNMENT) as u64);
        Ok(DevicePtr(address))
    }

    fn claim(&self, context: &Context, n_bytes: usize) -> Result<u64, DeviceError> {
        let address = context.claim(n_bytes)?;
        assert!(DevicePtr(address).is_aligned(ALIGNMENT), "the driver aligns to {ALIGNMENT}");
        self.n_claimed_bytes.set(self.n_claimed_bytes.get() + n_bytes);
        Ok(address)
    }
}

/// Host memory that copies reach without the processor. The device may write it at any time, so it
/// is only ever copied from and to: nobody gets a reference into it.
pub struct Pinned {
    start: *mut u8,
    n_bytes: usize,
    /// Owns the memory.
    _context: Rc<Context>,
}

impl Pinned {
    pub(super) fn new(context: &Rc<Context>, n_bytes: usize) -> Result<Pinned, DeviceError> {
        let start = context.claim_pinned(n_bytes)?;
        Ok(Pinned { start, n_bytes, _context: Rc::clone(context) })
    }

    /// Length.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Copies `values` to `offset_bytes`. Copies that are under way may see old or new bytes.
    pub fn write<T: Plain>(&self, offset_bytes: usize, values: &[T]) {
        let n_bytes = size_of_val(values);
        let to = self.range(offset_bytes, n_bytes);
        // SAFETY: `range` has seen that it lies inside; `values` cannot overlap memory into which
        // there are no references; plain types may be copied as bytes.
        unsafe { to.copy_from_nonoverlapping(values.as_ptr().cast(), n_bytes) }
    }

    /// Has `write` change the `n_bytes` from `offset_bytes` on, of which no copy may be under way.
    pub fn with<T>(
        &mut self,
        offset_bytes: usize,
        n_bytes: usize,
        write: impl FnOnce(&mut [u8]) -> T,
    ) -> T {
        let range = self.range(offset_bytes, n_bytes);
        // SAFETY: `range` has seen that it lies inside; the driver gave memory that holds bytes,
        // and for as long as this borrow lasts nobody else can ask for them.
        write(unsafe { std::slice::from_raw_parts_mut(range, n_bytes) })
    }

    /// Copies from `offset_bytes` to `values`: what the last finished copy left there.
    pub fn read<T: Plain>(&self, offset_bytes: usize, values: &mut [T]) {
        let n_bytes = size_of_val(values);
        let from = self.range(offset_bytes, n_bytes);
        // SAFETY: as in `write`; any bytes are a value of a plain type.
        unsafe { from.copy_to_nonoverlapping(values.as_mut_ptr().cast(), n_bytes) }
    }

    /// The address of a part of it.
    pub(super) fn range(&self, offset_bytes: usize, n_bytes: usize) -> *mut u8 {
        let end = offset_bytes.checked_add(n_bytes);
        assert!(
            end.is_some_and(|end| end <= self.n_bytes),
            "{offset_bytes} + {n_bytes} bytes of {} pinned ones",
            self.n_bytes
        );
        // SAFETY: inside the allocation, as was just seen.
        unsafe { self.start.add(offset_bytes) }
    }
}
