//! How C arguments become values: the one place where pointers of callers are followed.
//!
//! An [`Out`], [`In`] or [`Text`] exists only as an argument of an entry point, and there it is
//! what the C caller gave. CUDA's contract is that such a pointer is null or good for what the
//! function's documentation says; that is what every `SAFETY` here rests on.

use std::ffi::{CStr, c_char};

use crate::driver::cubin;
use crate::driver::image::Kind;
use crate::driver::status::{Answer, Status};

/// Where a caller wants an answer.
#[repr(transparent)]
pub(super) struct Out<T>(*mut T);

/// Where a caller left values.
#[repr(transparent)]
pub(super) struct In<T>(*const T);

/// A caller's text.
#[repr(transparent)]
pub(super) struct Text(*const c_char);

impl<T> Out<T> {
    /// Writes an answer that the caller must want.
    pub(super) fn put(&self, value: T) -> Answer {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: see the module: not null, so good for one value.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    pub(super) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Writes an answer that the caller may not want.
    pub(super) fn offer(&self, value: T) {
        let _ = self.put(value);
    }
}

impl<T: Copy> Out<T> {
    /// Writes the first values, as many as there is room for.
    pub(super) fn put_all(&self, values: &[T], n_room: usize) -> Answer {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        for (at, value) in values.iter().take(n_room).enumerate() {
            // SAFETY: see the module: the caller said that there is room for `n_room`.
            unsafe { self.0.add(at).write_unaligned(*value) };
        }
        Ok(())
    }

    /// What stands there before the answer.
    pub(super) fn get(&self) -> Answer<T> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: see the module: not null, so good for one value, which the caller set.
        Ok(unsafe { self.0.read_unaligned() })
    }
}

impl Out<c_char> {
    /// Writes a text and its zero, cut to the room that there is.
    pub(super) fn put_text(&self, text: &str, n_room: i32) -> Answer {
        let n_room = usize::try_from(n_room).map_err(|_| Status::INVALID_VALUE)?;
        let Some(n_text) = n_room.checked_sub(1) else {
            return Err(Status::INVALID_VALUE);
        };
        let bytes = text.bytes().take(n_text).chain([0]).map(|byte| byte as c_char);
        self.put_all(&bytes.collect::<Vec<_>>(), n_room)
    }
}

impl<T: Copy> In<T> {
    /// The value.
    pub(super) fn get(&self) -> Answer<T> {
        Ok(self.slice(1)?[0])
    }

    /// The values. None are none, wherever they are.
    pub(super) fn slice(&self, n: usize) -> Answer<Vec<T>> {
        if n == 0 {
            return Ok(Vec::new());
        }
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: see the module: the caller said that there are `n`.
        Ok((0..n).map(|at| unsafe { self.0.add(at).read_unaligned() }).collect())
    }

    /// The value at a position that the caller's contract covers.
    pub(super) fn at(&self, at: usize) -> Answer<T> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: see the module.
        Ok(unsafe { self.0.add(at).read_unaligned() })
    }

    pub(super) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The same place, holding something else.
    pub(super) fn cast<U>(&self) -> In<U> {
        In(self.0.cast())
    }
}

/// What lies at an address that a caller left within other values.
pub(super) fn at_address<T>(address: usize) -> In<T> {
    In(address as *const T)
}

/// As [`at_address`], to be written.
pub(super) fn out_at_address<T>(address: usize) -> Out<T> {
    Out(address as *mut T)
}

impl Text {
    /// The text, if it is one.
    pub(super) fn get(&self) -> Answer<String> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: see the module: a C string of the caller's.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(str::to_owned).map_err(|_| Status::INVALID_VALUE)
    }
}

/// An image of a module: its size follows from what it holds.
#[repr(transparent)]
pub(super) struct Image(*const u8);

impl Image {
    /// All of the image.
    pub(super) fn read(&self) -> Answer<Vec<u8>> {
        let bytes = In(self.0);
        let first: [u8; 4] = In(self.0.cast()).get()?;
        match Kind::of(first) {
            Kind::Cubin => {
                // SAFETY: see the module: an image holds what its own header says.
                let n_bytes = cubin::n_bytes(|at| unsafe { self.0.add(at).read() })?;
                bytes.slice(n_bytes)
            }
            Kind::Fatbin => bytes.slice(first.len()),
            // SAFETY: see the module: PTX ends with a zero.
            Kind::Ptx => Ok(unsafe { CStr::from_ptr(self.0.cast()) }.to_bytes().to_vec()),
        }
    }
}
