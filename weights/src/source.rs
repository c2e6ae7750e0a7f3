//! Where a checkpoint's bytes come from: a mapped file, or bytes that are part of the program.

use std::fmt;
use std::sync::Arc;

/// Read-only bytes, cheap to clone.
#[derive(Clone)]
pub enum Bytes {
    /// A mapped file.
    Mapped(Arc<memmap2::Mmap>),
    /// Part of the program.
    Static(&'static [u8]),
}

impl Bytes {
    /// All of them.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.as_slice().len())
    }
}
