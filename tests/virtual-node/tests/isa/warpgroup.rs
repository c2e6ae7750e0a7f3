//! `wgmma`: operands in every layout that the ISA calls canonical, and in registers.
//!
//! The layouts are written down as the ISA has them, in the notation of CuTe: a coordinate goes
//! through shapes and strides, then a swizzle permutes the address.

use super::formats::Format::{self, Bf16, E4m3, E5m2, F16, F32, S8, S32, Tf32};
use super::multiply::{A_BYTE_K32, A_K16, A_TF32_K8, Rule};
use super::{bytes_of_words, run, small, words_of_bytes};

const PTX: &str = include_str!("wgmma.ptx");

const TILE_BYTES: usize = 49152;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Major {
    K,
    /// Contiguous along M or N.
    Mn,
}

/// A canonical layout: bits of the swizzle (0 to 3) and the contiguous dimension.
#[derive(Clone, Copy, Debug)]
struct Layout {
    swizzle_bits: u32,
    major: Major,
}

impl Layout {
    /// Leading and stride offsets in bytes, for an operand packed without gaps.
    fn offsets(self) -> (usize, usize) {
        let span = 16 << self.swizzle_bits;
        match (self.major, self.swizzle_bits) {
            (_, 0) => (128, 256),
            (Major::K, _) => (16, 8 * span),
            (Major::Mn, _) => (16 * span, 8 * span),
        }
    }

    /// Bytes of an operand of `mn` rows.
    fn bytes(self, mn: usize) -> usize {
        let span = 16 << self.swizzle_bits;
        let padded = match self.major {
            Major::K => mn * span.max(32),
            Major::Mn => mn.next_multiple_of(span / 2) * 32,
        };
        padded.next_multiple_of(1024)
    }

    /// The byte of element (mn, k) of an operand that starts at `start`. With T elements in 16
    /// bytes and all numbers in elements, the ISA's layouts are
    ///
    /// - K-major: none `((8,m),(T,2)):((1T,SBO),(1,LBO))`, spans of S = 2T, 4T, 8T
    ///   `((8,m),(T,2)):((S,SBO),(1,T))`;
    /// - MN-major: none `((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))`, spans
    ///   `((T,S/T,m),(8,k)):((1,T,LBO),(S,SBO))`.
    fn byte(self, start: usize, mn: usize, k: usize, element_bytes: usize) -> usize {
        let t = 16 / element_bytes;
        let (leading, stride) = self.offsets();
        let (lbo, sbo) = (leading / element_bytes, stride / element_bytes);
        let span = t << self.swizzle_bits;
        let offset = match (self.major, self.swizzle_bits) {
            (Major::K, 0) => at(mn, &[(8, t), (64, sbo)]) + at(k, &[(t, 1), (2, lbo)]),
            (Major::K, _) => at(mn, &[(8, span), (64, sbo)]) + at(k, &[(t, 1), (2, t)]),
            (Major::Mn, 0) => at(mn, &[(t, 1), (1, t), (64, sbo)]) + at(k, &[(8, t), (2, lbo)]),
            (Major::Mn, _) => {
                at(mn, &[(t, 1), (span / t, t), (64, lbo)]) + at(k, &[(8, span), (2, sbo)])
            }
        };
        swizzled(start + offset * element_bytes, self.swizzle_bits)
    }

    fn descriptor(self, start: usize) -> u64 {
        let (leading, stride) = self.offsets();
        let kind = [0, 3, 2, 1][self.swizzle_bits as usize];
        let field = |bytes: usize| (bytes >> 4) as u64;
        field(start) | field(leading) << 16 | field(stride) << 32 | kind << 62
    }

    /// Where the second step of K starts: further along the span if it is long enough, else in
    /// an operand of its own.
    fn second(self, start: usize, mn: usize) -> usize {
        let within = self.major == Major::K && self.swizzle_bits >= 2;
        start + if within { 32 } else { self.bytes(mn) }
    }
}

/// A coordinate through modes of (size, stride), the first the fastest.
fn at(mut coordinate: usize, modes: &[(usize, usize)]) -> usize {
    let mut offset = 0;
    for (size, stride) in modes {
        offset += coordinate % size * stride;
        coordinate /= size;
    }
    offset
}

/// `Swizzle<bits, 4, 3>`.
fn swizzled(address: usize, bits: u32) -> usize {
    address ^ ((address >> 7 & ((1 << bits) - 1)) << 4)
}

#[derive(Clone, Copy, Debug)]
enum Left {
    Shared(Layout),
    Registers(Rule),
}

struct Case {
    kernel: &'static str,
    n: usize,
    a: (Format, Left),
    b: (Format, Layout),
    d: Format,
}

const fn along_k(swizzle_bits: u32) -> Layout {
    Layout { swizzle_bits, major: Major::K }
}

const fn along_mn(swizzle_bits: u32) -> Layout {
    Layout { swizzle_bits, major: Major::Mn }
}

/// Each kernel with one or more layouts.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |kernel, n, a, b, d| cases.push(Case { kernel, n, a, b, d });
    use Left::{Registers, Shared};
    for bits in 0..4 {
        let (k, mn) = (along_k(bits), along_mn(bits));
        let other = along_k((bits + 1) % 4);
        add("n64_bf16", 64, (Bf16, Shared(k)), (Bf16, other), F32);
        add("n128_e4m3", 128, (E4m3, Shared(k)), (E4m3, k), F32);
        add("n16_tf32", 16, (Tf32, Shared(other)), (Tf32, k), F32);
        add("n64_bf16_turned_a", 64, (Bf16, Shared(mn)), (Bf16, k), F32);
        add("n64_bf16_turned_b", 64, (Bf16, Shared(k)), (Bf16, mn), F32);
        add("n128_f16_turned_both", 128, (F16, Shared(mn)), (F16, mn), F32);
        add("n64_bf16_registers_turned_b", 64, (Bf16, Registers(A_K16)), (Bf16, mn), F32);
    }
    let plain = along_k(3);
    add("n8_bf16", 8, (Bf16, Shared(plain)), (Bf16, plain), F32);
    add("n256_bf16", 256, (Bf16, Shared(plain)), (Bf16, plain), F32);
    add("n24_f16", 24, (F16, Shared(plain)), (F16, plain), F32);
    add("n32_f16_f16", 32, (F16, Shared(plain)), (F16, plain), F16);
    add("n64_e5m2_e4m3_f16", 64, (E5m2, Shared(plain)), (E4m3, plain), F16);
    add("n32_s8", 32, (S8, Shared(plain)), (S8, plain), S32);
    add("n64_bf16_registers", 64, (Bf16, Registers(A_K16)), (Bf16, plain), F32);
    add("n32_e4m3_registers", 32, (E4m3, Registers(A_BYTE_K32)), (E4m3, plain), F32);
    add("n16_tf32_registers", 16, (Tf32, Registers(A_TF32_K8)), (Tf32, plain), F32);
    add("n8_f16_negated", 8, (F16, Shared(plain)), (F16, plain), F32);
    cases
}

/// Element (row, k) of A and (k, col) of B, K counted over both steps.
fn a(row: usize, k: usize) -> f64 {
    small(5, row, k)
}

fn b(k: usize, col: usize) -> f64 {
    small(6, k, col)
}

impl Case {
    fn k(&self) -> usize {
        32 / self.b.0.bytes()
    }

    fn input(&self) -> Vec<u8> {
        let mut tile = vec![0; TILE_BYTES];
        let mut descriptors = [0u64; 4];
        let mut registers = Vec::new();
        let b_start = match self.a.1 {
            Left::Shared(layout) => layout.second(0, 64) + layout.bytes(64),
            Left::Registers(_) => 0,
        };
        let b_start = b_start.next_multiple_of(1024);
        for step in 0..2 {
            let value = |row, k| a(row, k + step * self.k());
            match self.a.1 {
                Left::Shared(layout) => {
                    let start = if step == 0 { 0 } else { layout.second(0, 64) };
                    descriptors[2 * step] = layout.descriptor(start);
                    self.lay(&mut tile, (layout, start), (self.a.0, 64), value);
                }
                Left::Registers(rule) => {
                    for thread in 0..128 {
                        let lane = thread % 32;
                        let of_warp = |row, k| value(row + thread / 32 * 16, k);
                        let n = 16 / self.a.0.bytes();
                        registers.extend(super::multiply::pack(lane, n, self.a.0, rule, of_warp));
                    }
                }
            }
            let layout = self.b.1;
            let start = if step == 0 { b_start } else { layout.second(b_start, self.n) };
            descriptors[2 * step + 1] = layout.descriptor(start);
            let value = |col, k| b(k + step * self.k(), col);
            self.lay(&mut tile, (layout, start), (self.b.0, self.n), value);
        }
        let mut input: Vec<u8> = descriptors.iter().flat_map(|word| word.to_le_bytes()).collect();
        input.resize(1024, 0);
        input.extend(tile);
        registers.resize(1024, 0);
        input.extend(bytes_of_words(&registers));
        input
    }

    /// Writes an operand of `mn` rows into the tile.
    fn lay(
        &self,
        tile: &mut [u8],
        (layout, start): (Layout, usize),
        (format, mn): (Format, usize),
        value: impl Fn(usize, usize) -> f64,
    ) {
        let n_bytes = format.bytes();
        for row in 0..mn {
            for k in 0..self.k() {
                let at = layout.byte(start, row, k, n_bytes);
                let bits = format.encode(value(row, k)).to_le_bytes();
                tile[at..at + n_bytes].copy_from_slice(&bits[..n_bytes]);
            }
        }
    }

    /// The figure of fragment D: thread t of the warpgroup holds rows 16 (t / 32) + t % 32 / 4
    /// and that + 8, columns 8 (i / 4) + 2 (t % 4) + i % 2.
    fn expected(&self, thread: usize) -> Vec<u32> {
        let n_per_register = 4 / self.d.bytes();
        let mut words = vec![0; self.n / 2 / n_per_register];
        let sign = if self.kernel.ends_with("negated") { -1.0 } else { 1.0 };
        for i in 0..self.n / 2 {
            let row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
            let col = 8 * (i / 4) + 2 * (thread % 4) + i % 2;
            let sum: f64 = (0..2 * self.k()).map(|k| sign * a(row, k) * b(k, col)).sum();
            let shift = 16 * (i % n_per_register);
            words[i / n_per_register] |= self.d.encode(sum + 0.0) << shift;
        }
        words
    }
}

#[test]
fn every_layout_and_type() {
    for case in cases() {
        let n_words = case.n / 2 / (4 / case.d.bytes());
        let output = run(PTX, case.kernel, 128, &case.input(), &vec![0xee; 128 * 4 * n_words]);
        for (thread, words) in words_of_bytes(&output).chunks(n_words).enumerate() {
            let n_per_register = 4 / case.d.bytes();
            // −0 is as good as 0; two f16 in a register are two values.
            let same = |(found, expected): (&u32, &u32)| {
                (0..n_per_register).all(|part| {
                    let value = |word: &u32| case.d.decode(word >> (16 * part));
                    value(found) == value(expected)
                })
            };
            let expected = case.expected(thread);
            assert!(
                words.iter().zip(&expected).all(same),
                "{} A {:?} B {:?} thread {thread}: {words:x?} instead of {expected:x?}",
                case.kernel,
                case.a,
                case.b,
            );
        }
    }
}
