//! Memory for vectors: a 64-byte load that straddles two cache lines costs two.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, and of the widest vector.
const LINE_BYTES: usize = 64;

/// What a large page of memory holds, where systems that we run on have them.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// From this many bytes on, memory that is written and read all over lies in large pages.
const N_BYTES_LARGE: usize = LARGE_PAGE_BYTES / 4;

/// A fixed number of f32, zero at first, from a cache line's beginning on.
pub struct Aligned {
    /// As many as asked for, and room to move their beginning.
    data: Vec<f32>,
    begin: usize,
    n: usize,
}

impl Aligned {
    /// `n` zeroes. Many lie in large pages, the last of which may be larger than what they need.
    pub fn new(n: usize) -> Aligned {
        if n * size_of::<f32>() < N_BYTES_LARGE {
            return Aligned::at_multiple(n, LINE_BYTES);
        }
        let mut memory = Aligned::at_multiple(n, LARGE_PAGE_BYTES);
        ask_for_huge_pages(&mut memory.data);
        memory
    }

    /// Bytes of memory that `n` take at most.
    pub(crate) fn n_bytes_taken(n: usize) -> usize {
        match n * size_of::<f32>() {
            n_bytes if n_bytes < N_BYTES_LARGE => n_bytes,
            n_bytes => n_bytes.next_multiple_of(LARGE_PAGE_BYTES),
        }
    }

    fn at_multiple(n: usize, n_bytes: usize) -> Aligned {
        let data = vec![0.0f32; n + n_bytes / size_of::<f32>()];
        // The vector never grows, so it never moves.
        let begin = data.as_ptr().align_offset(n_bytes).min(data.len() - n);
        Aligned { data, begin, n }
    }
}

/// Asks for large pages where small ones would each cost the processor a search for where they lie,
/// and end what it reads ahead. No harm where the system has no others.
#[cfg(target_os = "linux")]
pub(super) fn ask_for_huge_pages<T>(memory: &mut [T]) {
    const SYSTEM_PAGE_BYTES: usize = 4096;
    let n_bytes = size_of_val(memory);
    let begin = memory.as_mut_ptr().cast::<u8>();
    let n_skipped = begin.align_offset(SYSTEM_PAGE_BYTES).min(n_bytes);
    let n_bytes = (n_bytes - n_skipped) / SYSTEM_PAGE_BYTES * SYSTEM_PAGE_BYTES;
    // SAFETY: whole pages of the slice; this advice changes nothing that a program can see of them.
    unsafe { libc::madvise(begin.add(n_skipped).cast(), n_bytes, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
pub(super) fn ask_for_huge_pages<T>(_memory: &mut [T]) {}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[self.begin..self.begin + self.n]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.begin..self.begin + self.n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_begins_at_a_line() {
        for n in [0, 1, 15, 16, 1000] {
            let mut memory = Aligned::new(n);
            assert_eq!((memory.len(), memory.as_ptr().addr() % LINE_BYTES), (n, 0));
            memory.fill(1.0);
        }
    }

    #[test]
    fn much_memory_begins_at_a_large_page_and_takes_whole_ones() {
        const LARGE: usize = LARGE_PAGE_BYTES / size_of::<f32>();
        for (n, n_large_pages) in [(LARGE / 4, 1), (LARGE, 1), (LARGE + 1, 2), (3 * LARGE, 3)] {
            let memory = Aligned::new(n);
            assert_eq!((memory.len(), memory.as_ptr().addr() % LARGE_PAGE_BYTES), (n, 0));
            assert_eq!(Aligned::n_bytes_taken(n), n_large_pages * LARGE_PAGE_BYTES);
        }
        assert_eq!(Aligned::n_bytes_taken(LARGE / 4 - 1), LARGE_PAGE_BYTES / 4 - 4);
    }
}
