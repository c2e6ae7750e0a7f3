//! Memory for vectors: a 64-byte load that straddles two cache lines costs two.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, and of the widest vector.
const LINE_BYTES: usize = 64;

/// A fixed number of f32, zero at first, from a cache line's beginning on.
pub struct Aligned {
    /// As many as asked for, and room to move their beginning.
    data: Vec<f32>,
    begin: usize,
    n: usize,
}

impl Aligned {
    /// `n` zeroes.
    pub fn new(n: usize) -> Aligned {
        let data = vec![0.0f32; n + LINE_BYTES / size_of::<f32>()];
        // The vector never grows, so it never moves.
        let begin = data.as_ptr().align_offset(LINE_BYTES).min(data.len() - n);
        Aligned { data, begin, n }
    }
}

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
}
