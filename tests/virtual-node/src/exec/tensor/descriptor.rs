//! The 64-bit descriptors by which `wgmma` finds a matrix in shared memory.
//!
//! Layouts follow the canonical ones of the PTX ISA ("Asynchronous warpgroup-level matrix shared
//! memory layout"). One instruction reads 32 bytes of K from each row of a K-major operand, that
//! is two chunks of 16 bytes, and from an operand that is contiguous along M or N (only 16-bit
//! elements can be) 16 steps of K.

use super::swizzle::Swizzle;

/// Along which dimension neighbouring elements are contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Major {
    /// Along K, the dimension that is summed over.
    K,
    /// Along M for operand A, along N for operand B.
    Mn,
}

/// A descriptor, taken apart. Offsets and the start are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Where the operand starts in shared memory.
    pub start: usize,
    /// "Leading dimension byte offset".
    pub leading: usize,
    /// "Stride dimension byte offset".
    pub stride: usize,
    /// Rows of 128 bytes between an aligned address and the start of the swizzle's pattern.
    pub base_offset: usize,
    /// How 16-byte chunks are permuted.
    pub swizzle: Swizzle,
}

impl Descriptor {
    /// Takes the 64 bits apart: bits 0–13 start, 16–29 leading offset, 32–45 stride offset, all
    /// in units of 16 bytes, 49–51 base offset, 62–63 swizzle.
    pub fn decode(bits: u64) -> Descriptor {
        let field = |shift: u32| ((bits >> shift & 0x3fff) as usize) << 4;
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::Span128,
            2 => Swizzle::Span64,
            _ => Swizzle::Span32,
        };
        Descriptor {
            start: field(0),
            leading: field(16),
            stride: field(32),
            base_offset: (bits >> 49 & 7) as usize,
            swizzle,
        }
    }

    /// Address of the 16-byte chunk `chunk` (0 or 1) of row `mn` of a K-major operand.
    pub fn k_major_chunk(&self, mn: usize, chunk: usize) -> usize {
        let (within, repeat) = (mn % 8, mn / 8);
        let span = self.swizzle.span_bytes();
        let chunk_step = if self.swizzle == Swizzle::None { self.leading } else { 16 };
        self.place(within * span + repeat * self.stride + chunk * chunk_step)
    }

    /// Address of the 16-byte chunk that holds elements `8 × mn_chunk` and up, along M or N, at
    /// position `k` of an operand of 16-bit elements that is contiguous along M or N.
    pub fn mn_major_chunk(&self, mn_chunk: usize, k: usize) -> usize {
        if self.swizzle == Swizzle::None {
            return self.start + mn_chunk * self.stride + k % 8 * 16 + k / 8 * self.leading;
        }
        let span = self.swizzle.span_bytes();
        let n_chunks = span / 16;
        let along_mn = mn_chunk % n_chunks * 16 + mn_chunk / n_chunks * self.leading;
        self.place(along_mn + k % 8 * span + k / 8 * self.stride)
    }

    fn place(&self, offset: usize) -> usize {
        self.swizzle.apply_from(self.start + offset, self.base_offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(swizzle: Swizzle, leading: usize, stride: usize) -> Descriptor {
        Descriptor { start: 0x4000, leading, stride, base_offset: 0, swizzle }
    }

    #[test]
    fn fields() {
        let bits = 0x4000 >> 4 | 0x80 >> 4 << 16 | (0x400u64 >> 4) << 32 | 3 << 49 | 1 << 62;
        let expected = Descriptor { base_offset: 3, ..descriptor(Swizzle::Span128, 0x80, 0x400) };
        assert_eq!(Descriptor::decode(bits), expected);
        assert_eq!(Descriptor::decode(2 << 62).swizzle, Swizzle::Span64);
        assert_eq!(Descriptor::decode(3 << 62).swizzle, Swizzle::Span32);
        assert_eq!(Descriptor::decode(0).swizzle, Swizzle::None);
    }

    /// Without a swizzle, a core matrix is 8 rows of 16 bytes, contiguous: 128 bytes.
    #[test]
    fn core_matrices_without_swizzle() {
        let at = descriptor(Swizzle::None, 0x80, 0x100);
        assert_eq!(at.k_major_chunk(0, 0), 0x4000);
        assert_eq!(at.k_major_chunk(7, 0), 0x4070);
        assert_eq!(at.k_major_chunk(8, 0), 0x4100, "stride: the next 8 rows");
        assert_eq!(at.k_major_chunk(0, 1), 0x4080, "leading: the next 16 bytes of K");
        assert_eq!(at.mn_major_chunk(0, 1), 0x4010);
        assert_eq!(at.mn_major_chunk(0, 8), 0x4080, "leading: the next 8 steps of K");
        assert_eq!(at.mn_major_chunk(1, 0), 0x4100, "stride: the next 8 elements of M");
    }

    /// A K-major tile as a tensor copy with the same swizzle lays it down: rows of one span.
    #[test]
    fn k_major_reads_what_a_tensor_copy_writes() {
        for swizzle in [Swizzle::Span32, Swizzle::Span64, Swizzle::Span128] {
            let span = swizzle.span_bytes();
            let at = descriptor(swizzle, 16, 8 * span);
            for row in 0..64 {
                for chunk in 0..2 {
                    let written = swizzle.apply(0x4000 + row * span + chunk * 16);
                    assert_eq!(at.k_major_chunk(row, chunk), written);
                }
            }
        }
    }

    /// The next K step of a swizzled tile starts 32 bytes on, and the pattern stays put.
    #[test]
    fn stepping_along_k_within_a_span() {
        let first = descriptor(Swizzle::Span128, 16, 1024);
        let next = Descriptor { start: first.start + 32, ..first };
        for row in 0..16 {
            let written = Swizzle::Span128.apply(0x4000 + row * 128 + 32);
            assert_eq!(next.k_major_chunk(row, 0), written);
        }
    }

    /// A tile of 64 (along N) × K as a tensor copy lays it down: one row of 128 bytes for each K.
    #[test]
    fn mn_major_reads_what_a_tensor_copy_writes() {
        let at = descriptor(Swizzle::Span128, 0x2000, 1024);
        for k in 0..16 {
            for chunk in 0..8 {
                let written = Swizzle::Span128.apply(0x4000 + k * 128 + chunk * 16);
                assert_eq!(at.mn_major_chunk(chunk, k), written);
                assert_eq!(at.mn_major_chunk(chunk + 8, k), written + 0x2000);
            }
        }
    }
}
