//! `ldmatrix`, `stmatrix`, `movmatrix`: which lane holds which element of 8 × 8 matrices.

use super::{bytes_of_words, run, words_of_bytes};

const PTX: &str = include_str!("matrix.ptx");

/// The ISA: thread T holds row T / 4 and, in one register, columns 2 (T % 4) and the next; with
/// `.trans` rows and columns change places.
fn register(lane: usize, matrix: usize, transposed: bool) -> u32 {
    let element = |minor: usize| {
        let (row, col) = (lane / 4, 2 * (lane % 4) + minor);
        let (row, col) = if transposed { (col, row) } else { (row, col) };
        // Each element tells its place.
        (matrix * 64 + row * 8 + col) as u32
    };
    element(0) | element(1) << 16
}

/// Four matrices one after another, a row of 16 bytes for each of 32 lanes.
fn image() -> Vec<u8> {
    (0..256u16).flat_map(u16::to_le_bytes).collect()
}

const FORMS: [(&str, usize, bool); 6] = [
    ("x1", 1, false),
    ("x2", 2, false),
    ("x4", 4, false),
    ("x1_trans", 1, true),
    ("x2_trans", 2, true),
    ("x4_trans", 4, true),
];

#[test]
fn ldmatrix() {
    for (form, n, transposed) in FORMS {
        let kernel = format!("ldmatrix_{form}");
        let output = words_of_bytes(&run(PTX, &kernel, 32, &image(), &vec![0; 128 * n]));
        for lane in 0..32 {
            for matrix in 0..n {
                let expected = register(lane, matrix, transposed);
                assert_eq!(output[lane * n + matrix], expected, "{form} {lane} {matrix}");
            }
        }
    }
}

#[test]
fn stmatrix() {
    for (form, n, transposed) in FORMS {
        let input: Vec<u32> = (0..32 * n).map(|i| register(i / n, i % n, transposed)).collect();
        let kernel = format!("stmatrix_{form}");
        let output = run(PTX, &kernel, 32, &bytes_of_words(&input), &[0; 512]);
        assert_eq!(output[..128 * n], image()[..128 * n], "{form}");
        assert!(output[128 * n..].iter().all(|byte| *byte == 0), "{form} writes too much");
    }
}

#[test]
fn movmatrix() {
    let input: Vec<u32> = (0..32).map(|lane| register(lane, 0, false)).collect();
    let output = words_of_bytes(&run(PTX, "movmatrix", 32, &bytes_of_words(&input), &[0; 128]));
    let expected: Vec<u32> = (0..32).map(|lane| register(lane, 0, true)).collect();
    assert_eq!(output, expected);
}
