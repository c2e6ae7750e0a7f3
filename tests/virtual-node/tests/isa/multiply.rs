//! `mma.sync`: every shape and type, with operands packed by the ISA's fragment tables.

use super::formats::Format::{self, Bf16, E4m3, E5m2, F16, F32, S8, S32, Tf32, U8};
use super::{bytes_of_words, run, small, words_of_bytes};

const PTX: &str = include_str!("mma.ptx");

/// Row and column of element i of a lane whose groupID and threadID_in_group are g and t.
pub(crate) type Rule = fn(i: usize, g: usize, t: usize) -> (usize, usize);

struct Case {
    kernel: &'static str,
    k: usize,
    a: (Format, Rule),
    b: (Format, Rule),
    d: Format,
}

/// The tables "Matrix fragments for mma.m16n8k…": a_i and b_i for 16-bit elements, K = 8 and 16.
const A_K8: Rule = |i, g, t| (if i < 2 { g } else { g + 8 }, t * 2 + (i & 1));
const B_K8: Rule = |i, g, t| (t * 2 + i, g);
pub(crate) const A_K16: Rule = |i, g, t| {
    let row = if i < 2 || (4..6).contains(&i) { g } else { g + 8 };
    (row, if i < 4 { t * 2 + (i & 1) } else { t * 2 + (i & 1) + 8 })
};
const B_K16: Rule = |i, g, t| (if i < 2 { t * 2 + (i & 1) } else { t * 2 + (i & 1) + 8 }, g);

/// For tf32, K = 4 and 8.
const A_TF32_K4: Rule = |i, g, t| (if i == 0 { g } else { g + 8 }, t);
const B_TF32_K4: Rule = |_, g, t| (t, g);
pub(crate) const A_TF32_K8: Rule =
    |i, g, t| (if i == 0 || i == 2 { g } else { g + 8 }, if i < 2 { t } else { t + 4 });
const B_TF32_K8: Rule = |i, g, t| (if i == 0 { t } else { t + 4 }, g);

/// For 8-bit elements, K = 16 and 32.
const A_BYTE_K16: Rule = |i, g, t| (if i < 4 { g } else { g + 8 }, t * 4 + (i & 3));
const B_BYTE_K16: Rule = |i, g, t| (t * 4 + (i & 3), g);
pub(crate) const A_BYTE_K32: Rule = |i, g, t| {
    let row = if i < 4 || (8..12).contains(&i) { g } else { g + 8 };
    (row, if i < 8 { t * 4 + (i & 3) } else { t * 4 + (i & 3) + 16 })
};
const B_BYTE_K32: Rule = |i, g, t| (if i < 4 { t * 4 + (i & 3) } else { t * 4 + (i & 3) + 16 }, g);

/// Accumulators.
const C: Rule = |i, g, t| (if i < 2 { g } else { g + 8 }, t * 2 + (i & 1));

const CASES: &[Case] = &[
    Case { kernel: "m16n8k8_f16", k: 8, a: (F16, A_K8), b: (F16, B_K8), d: F32 },
    Case { kernel: "m16n8k16_f16", k: 16, a: (F16, A_K16), b: (F16, B_K16), d: F32 },
    Case { kernel: "m16n8k16_f16_f16", k: 16, a: (F16, A_K16), b: (F16, B_K16), d: F16 },
    Case { kernel: "m16n8k8_bf16", k: 8, a: (Bf16, A_K8), b: (Bf16, B_K8), d: F32 },
    Case { kernel: "m16n8k16_bf16", k: 16, a: (Bf16, A_K16), b: (Bf16, B_K16), d: F32 },
    Case { kernel: "m16n8k4_tf32", k: 4, a: (Tf32, A_TF32_K4), b: (Tf32, B_TF32_K4), d: F32 },
    Case { kernel: "m16n8k8_tf32", k: 8, a: (Tf32, A_TF32_K8), b: (Tf32, B_TF32_K8), d: F32 },
    Case { kernel: "m16n8k32_e4m3", k: 32, a: (E4m3, A_BYTE_K32), b: (E4m3, B_BYTE_K32), d: F32 },
    Case {
        kernel: "m16n8k32_e4m3_e5m2",
        k: 32,
        a: (E4m3, A_BYTE_K32),
        b: (E5m2, B_BYTE_K32),
        d: F32,
    },
    Case { kernel: "m16n8k16_s8", k: 16, a: (S8, A_BYTE_K16), b: (S8, B_BYTE_K16), d: S32 },
    Case { kernel: "m16n8k32_u8_s8", k: 32, a: (U8, A_BYTE_K32), b: (S8, B_BYTE_K32), d: S32 },
];

/// Registers of a lane: elements in order, the first in the lowest bits.
pub(crate) fn pack(
    lane: usize,
    n_elements: usize,
    format: Format,
    rule: Rule,
    value: impl Fn(usize, usize) -> f64,
) -> Vec<u32> {
    let n_per_register = 4 / format.bytes();
    let mut registers = vec![0; n_elements / n_per_register];
    for i in 0..n_elements {
        let (row, col) = rule(i, lane / 4, lane % 4);
        let shift = 8 * format.bytes() * (i % n_per_register);
        registers[i / n_per_register] |= format.encode(value(row, col)) << shift;
    }
    registers
}

/// Unsigned elements have no sign to lose.
fn element(format: Format, seed: usize, row: usize, col: usize) -> f64 {
    let value = small(seed, row, col);
    if format == U8 { value + 200.0 } else { value }
}

#[test]
fn every_shape_multiplies_by_the_tables() {
    for case in CASES {
        let a = |row, col| element(case.a.0, 1, row, col);
        let b = |row, col| element(case.b.0, 2, row, col);
        let c = |row, col| small(3, row, col);
        let mut input = Vec::new();
        for lane in 0..32 {
            input.extend(pack(lane, case.k / 2, case.a.0, case.a.1, a));
            input.extend(pack(lane, case.k / 4, case.b.0, case.b.1, b));
            input.extend(pack(lane, 4, case.d, C, c));
        }
        let n_d = case.d.bytes();
        let output = run(PTX, case.kernel, 32, &bytes_of_words(&input), &vec![0; 32 * 4 * n_d]);
        let words = words_of_bytes(&output);
        for lane in 0..32 {
            let sum =
                |row, col| c(row, col) + (0..case.k).map(|k| a(row, k) * b(k, col)).sum::<f64>();
            let expected = pack(lane, 4, case.d, C, sum);
            assert_eq!(words[lane * n_d..][..n_d], expected, "{} lane {lane}", case.kernel);
        }
    }
}

#[test]
fn integer_sums_stop_at_the_ends_with_satfinite() {
    let mut input = Vec::new();
    for lane in 0..32 {
        input.extend(pack(lane, 16, S8, A_BYTE_K32, |_, _| 100.0));
        input.extend(pack(
            lane,
            8,
            S8,
            B_BYTE_K32,
            |_, col| if col % 2 == 0 { 100.0 } else { -100.0 },
        ));
        input.extend([i32::MAX as u32 - 5, i32::MIN as u32 + 5, 0, 0]);
    }
    let output = run(PTX, "m16n8k32_s8_satfinite", 32, &bytes_of_words(&input), &vec![0; 32 * 16]);
    let expected = [i32::MAX, i32::MIN, 320_000, -320_000].map(|sum| sum as u32);
    for (lane, words) in words_of_bytes(&output).chunks(4).enumerate() {
        assert_eq!(words, expected, "lane {lane}");
    }
}

/// m8n8k4: `a: row = lane >> 2, col = lane % 4`, `b: row = lane % 4, col = lane >> 2`, `c: row =
/// lane >> 2, col = 2 (lane % 4) + i`. m16n8k8 has the tables of tf32.
#[test]
fn doubles() {
    let values = |rule: Rule, n: usize, lane: usize, seed: usize| {
        (0..n)
            .map(move |i| rule(i, lane / 4, lane % 4))
            .map(move |(row, col)| small(seed, row, col))
    };
    let a_m8: Rule = |_, g, t| (g, t);
    let c_m8: Rule = |i, g, t| (g, t * 2 + i);
    let cases: [(&str, usize, Rule, usize, Rule, Rule, usize); 2] = [
        ("m8n8k4_f64", 4, a_m8, 1, B_TF32_K4, c_m8, 2),
        ("m16n8k8_f64", 8, A_TF32_K8, 4, B_TF32_K8, C, 4),
    ];
    for (kernel, k, a_rule, n_a, b_rule, c_rule, n_c) in cases {
        let mut input = Vec::new();
        for lane in 0..32 {
            input.extend(values(a_rule, n_a, lane, 1));
            input.extend(values(b_rule, k / 4, lane, 2));
            input.extend(values(c_rule, n_c, lane, 3));
        }
        let input: Vec<u8> = input.iter().flat_map(|value| value.to_le_bytes()).collect();
        let output = run(PTX, kernel, 32, &input, &vec![0; 32 * 8 * n_c]);
        for lane in 0..32 {
            for i in 0..n_c {
                let (row, col) = c_rule(i, lane / 4, lane % 4);
                let dot: f64 = (0..k).map(|k| small(1, row, k) * small(2, k, col)).sum();
                let at = 8 * (lane * n_c + i);
                let found = f64::from_le_bytes(output[at..at + 8].try_into().expect("8 bytes"));
                assert_eq!(found, small(3, row, col) + dot, "{kernel} lane {lane} c{i}");
            }
        }
    }
}
