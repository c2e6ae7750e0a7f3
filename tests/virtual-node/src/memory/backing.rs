//! The host memory behind a device's addresses.
//!
//! It is mapped in chunks, each a private view of one file full of poison. So fresh memory is
//! poisoned without a write, a page costs host memory once it is written, and giving pages back
//! to the kernel poisons them again.

use std::ffi::c_void;
use std::sync::OnceLock;

use super::POISON;

/// Bytes that are mapped at once: few enough mappings for eight full devices, and a file that
/// is filled in milliseconds.
const CHUNK_BYTES: u64 = 64 << 20;
const PAGE_BYTES: u64 = 4096;

/// Backing for the addresses of one device.
pub(super) struct Backing {
    /// The host address of the first byte.
    base: u64,
    is_mapped: Vec<bool>,
}

impl Backing {
    /// Reserves host addresses for `n_bytes`, and memory for none of them.
    pub(super) fn new(n_bytes: u64) -> Backing {
        // SAFETY: a new mapping at a place that the kernel chooses touches no memory of ours.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), n_bytes as usize, libc::PROT_NONE, flags, -1, 0)
        };
        assert!(base != libc::MAP_FAILED, "no room for {n_bytes} bytes of addresses");
        let n_chunks = n_bytes.div_ceil(CHUNK_BYTES) as usize;
        Backing { base: base as u64, is_mapped: vec![false; n_chunks] }
    }

    /// Where the byte at `offset` lies on the host.
    pub(super) fn host_address(&self, offset: u64) -> u64 {
        self.base + offset
    }

    /// Makes `n_bytes` from `offset` on usable.
    pub(super) fn map(&mut self, offset: u64, n_bytes: u64) -> Result<(), ()> {
        for chunk_idx in offset / CHUNK_BYTES..(offset + n_bytes).div_ceil(CHUNK_BYTES) {
            if !self.is_mapped[chunk_idx as usize] {
                self.map_chunk(chunk_idx)?;
                self.is_mapped[chunk_idx as usize] = true;
            }
        }
        Ok(())
    }

    fn map_chunk(&self, chunk_idx: u64) -> Result<(), ()> {
        let at = (self.base + chunk_idx * CHUNK_BYTES) as *mut c_void;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the chunk lies in the addresses that `new` reserved, where nothing else is.
        let mapped =
            unsafe { libc::mmap(at, CHUNK_BYTES as usize, protection, flags, poison_file(), 0) };
        if mapped == libc::MAP_FAILED { Err(()) } else { Ok(()) }
    }

    /// Makes `n_bytes` from `offset` on what fresh memory is. They are mapped.
    pub(super) fn poison(&self, offset: u64, n_bytes: u64) {
        let end = offset + n_bytes;
        let first_page = offset.next_multiple_of(PAGE_BYTES);
        let end_page = end / PAGE_BYTES * PAGE_BYTES;
        if first_page >= end_page {
            self.write_poison(offset, n_bytes);
            return;
        }
        self.write_poison(offset, first_page - offset);
        // SAFETY: these whole pages are private views of the poison file that `map` made, and
        // the caller has taken them out of use: what was written to them may go.
        let rc = unsafe {
            let at = (self.base + first_page) as *mut c_void;
            libc::madvise(at, (end_page - first_page) as usize, libc::MADV_DONTNEED)
        };
        assert_eq!(rc, 0, "the kernel takes pages back");
        self.write_poison(end_page, end - end_page);
    }

    fn write_poison(&self, offset: u64, n_bytes: u64) {
        debug_assert_eq!(offset % 4, 0, "the pattern has four bytes");
        let pattern = POISON.to_le_bytes();
        for byte_idx in 0..n_bytes {
            let at = (self.base + offset + byte_idx) as *mut u8;
            // SAFETY: `map` mapped the byte, and nobody else holds it: its allocation is gone.
            unsafe { at.write(pattern[(byte_idx % 4) as usize]) };
        }
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        let n_bytes = self.is_mapped.len() as u64 * CHUNK_BYTES;
        // SAFETY: the addresses are this value's own, and resolved pointers end with it.
        unsafe { libc::munmap(self.base as *mut c_void, n_bytes as usize) };
    }
}

/// Keeps the host from addresses that belong to devices: nothing may be mapped there, so following
/// one is a fault. Whoever asked first in this process has done it for all.
pub(super) fn forbid(address: u64, n_bytes: u64) {
    // SAFETY: with `NOREPLACE` the kernel refuses rather than touch what is mapped there.
    unsafe {
        let flags = libc::MAP_PRIVATE
            | libc::MAP_ANONYMOUS
            | libc::MAP_NORESERVE
            | libc::MAP_FIXED_NOREPLACE;
        libc::mmap(address as *mut c_void, n_bytes as usize, libc::PROT_NONE, flags, -1, 0);
    }
}

/// A file in memory, one chunk of poison.
fn poison_file() -> i32 {
    static FILE: OnceLock<i32> = OnceLock::new();
    *FILE.get_or_init(|| {
        // SAFETY: the name is a C string; the file is new and ours alone.
        let file =
            unsafe { libc::memfd_create(c"virtual-node-poison".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(file >= 0, "the kernel makes a file in memory");
        let part: Vec<u8> = POISON.to_le_bytes().repeat(1 << 18);
        for _ in 0..CHUNK_BYTES / part.len() as u64 {
            // SAFETY: `part` lives, and has as many bytes as are written.
            let n_written = unsafe { libc::write(file, part.as_ptr().cast(), part.len()) };
            assert_eq!(n_written, part.len() as isize, "the file in memory takes a whole chunk");
        }
        file
    })
}

/// Host memory between two pages that nobody may touch; poisoned. Answers its address.
pub(super) fn map_host(n_bytes: u64) -> Option<u64> {
    let n_inner = n_bytes.next_multiple_of(PAGE_BYTES);
    // SAFETY: a new mapping at a place that the kernel chooses; only its own pages are changed.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let n_outer = (n_inner + 2 * PAGE_BYTES) as usize;
        let outer = libc::mmap(std::ptr::null_mut(), n_outer, libc::PROT_NONE, flags, -1, 0);
        if outer == libc::MAP_FAILED {
            return None;
        }
        let inner = outer.byte_add(PAGE_BYTES as usize);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        assert_eq!(libc::mprotect(inner, n_inner as usize, protection), 0, "our own pages");
        let words = std::slice::from_raw_parts_mut(inner.cast::<u32>(), n_inner as usize / 4);
        words.fill(POISON);
        Some(inner as u64)
    }
}

/// The reverse of [`map_host`].
pub(super) fn unmap_host(address: u64, n_bytes: u64) {
    let n_outer = n_bytes.next_multiple_of(PAGE_BYTES) + 2 * PAGE_BYTES;
    // SAFETY: the pages are those of `map_host`, which its caller has given up.
    unsafe { libc::munmap((address - PAGE_BYTES) as *mut c_void, n_outer as usize) };
}
