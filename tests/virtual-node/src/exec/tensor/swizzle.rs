//! The swizzles of shared memory that tensor copies write and `wgmma` reads.
//!
//! A swizzle permutes 16-byte chunks: it XORs bits 4 and up of an address with bits 7 and up. The
//! pattern belongs to the address, so it repeats every 256, 512 or 1024 bytes.

/// How chunks of 16 bytes are permuted within a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Pairs of chunks, in spans of 32 bytes.
    Span32,
    /// Four chunks, in spans of 64 bytes.
    Span64,
    /// Eight chunks, in spans of 128 bytes.
    Span128,
}

impl Swizzle {
    /// Bytes within which chunks change places: the longest inner extent of a tile.
    pub fn span_bytes(self) -> usize {
        match self {
            Swizzle::None => 16,
            Swizzle::Span32 => 32,
            Swizzle::Span64 => 64,
            Swizzle::Span128 => 128,
        }
    }

    /// Where a byte lies whose address would be `address` without the swizzle.
    #[inline]
    pub fn apply(self, address: usize) -> usize {
        self.apply_from(address, 0)
    }

    /// The same for a pattern that starts `phase` rows of 128 bytes away from its alignment.
    #[inline]
    pub fn apply_from(self, address: usize, phase: usize) -> usize {
        let mask = self.span_bytes() / 16 - 1;
        address ^ (((address >> 7).wrapping_sub(phase) & mask) << 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 128-byte pattern as the CUDA programming guide draws it: in row r of 8 rows of 128
    /// bytes, chunk c is found at place c ^ r.
    #[test]
    fn a_span_of_128_bytes() {
        for row in 0..16 {
            for chunk in 0..8 {
                let expected = row * 128 + ((chunk ^ (row % 8)) * 16) + 5;
                assert_eq!(Swizzle::Span128.apply(row * 128 + chunk * 16 + 5), expected);
            }
        }
    }

    /// Rows of 64 and 32 bytes: two and four of them share a line of 128 bytes and its XOR.
    #[test]
    fn shorter_spans() {
        for row in 0..16 {
            for chunk in 0..4 {
                let expected = row * 64 + ((chunk ^ (row / 2 % 4)) * 16);
                assert_eq!(Swizzle::Span64.apply(row * 64 + chunk * 16), expected);
            }
            for chunk in 0..2 {
                let expected = row * 32 + ((chunk ^ (row / 4 % 2)) * 16);
                assert_eq!(Swizzle::Span32.apply(row * 32 + chunk * 16), expected);
            }
        }
        assert_eq!(Swizzle::None.apply(0x1234), 0x1234);
    }

    #[test]
    fn a_pattern_that_starts_late() {
        let at = 3 * 128 + 16;
        assert_eq!(Swizzle::Span128.apply_from(at, 3), at, "its first row is not permuted");
        assert_eq!(Swizzle::Span128.apply_from(at + 128, 3), at + 128 - 16);
    }
}
