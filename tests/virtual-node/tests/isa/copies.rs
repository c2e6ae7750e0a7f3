//! `cp.async`, bulk copies without tensors, and the phases of mbarriers.

use half::bf16;

use super::{bytes_of_words, run, words_of_bytes};

const COPY: &str = include_str!("copy.ptx");
const MBARRIER: &str = include_str!("mbarrier.ptx");
const BULK: &str = include_str!("bulk.ptx");

fn numbered(n_bytes: usize) -> Vec<u8> {
    (0..n_bytes).map(|i| (i * 7 + i / 256) as u8).collect()
}

/// What 32 lanes have in their rows of 16 bytes; `row` makes one from its input.
fn rows(input: &[u8], row: impl Fn(usize, &[u8]) -> Vec<u8>) -> Vec<u8> {
    input.chunks(16).enumerate().flat_map(|(lane, bytes)| row(lane, bytes)).collect()
}

#[test]
fn cp_async() {
    let input = numbered(512);
    let copied = |kernel: &str| run(COPY, kernel, 32, &input, &[0; 512]);
    assert_eq!(copied("copy_cg_16"), input);
    let turned = rows(&input, |_, row| [&row[8..16], &row[..4], &[0xaa; 4]].concat());
    assert_eq!(copied("copy_ca_4_8"), turned);
    let cut = rows(&input, |lane, row| {
        let n_read = lane % 17;
        [&row[..n_read], &vec![0; 16 - n_read]].concat()
    });
    assert_eq!(copied("copy_zero_fill"), cut);
    let shorter = rows(&input, |_, row| [&row[..12], &[0; 4]].concat());
    assert_eq!(copied("copy_zero_fill_constant"), shorter);
    let every_second =
        rows(&input, |lane, row| if lane % 2 == 1 { vec![0; 16] } else { row.to_vec() });
    assert_eq!(copied("copy_ignore_source"), every_second);
    assert_eq!(copied("copy_to_mbarrier"), input);
    let long = numbered(1024);
    assert_eq!(run(COPY, "copy_groups", 32, &long, &[0; 1024]), long);
}

/// The ISA: a phase is over when pending arrivals and expected bytes are both zero;
/// `test_wait.parity` is true for the parity of the phase just over, also before the first.
#[test]
fn mbarrier_phases() {
    let cases: [(&str, &[u32]); 3] = [
        // Before, after one and after two of two arrivals (first token, second token, parities 0
        // and 1), and after a further phase.
        ("phases", &[0, 1, 0, 1, 1, 1, 0, 0, 1]),
        // 128 bytes are expected: none, 64, 128 have come; then a phase without bytes.
        ("transactions", &[0, 0, 1, 1]),
        // Of three one leaves for good and one arrives, which finds two pending; the third ends
        // the phase, and two are enough for the next one.
        ("drops", &[2, 0, 1, 1]),
    ];
    for (kernel, expected) in cases {
        let output = run(MBARRIER, kernel, 1, &[0; 4], &vec![0xee; 4 * expected.len()]);
        assert_eq!(words_of_bytes(&output), expected, "{kernel}");
    }
}

/// Size, then data from byte 256 on.
fn bulk_input(data: &[u8]) -> Vec<u8> {
    let mut input = vec![0; 256];
    input[..4].copy_from_slice(&(data.len() as u32).to_le_bytes());
    input.extend_from_slice(data);
    input
}

#[test]
fn a_stretch_there_and_back() {
    for n_bytes in [16, 48, 4096, 16384] {
        let data = numbered(n_bytes);
        assert_eq!(run(BULK, "stretch", 1, &bulk_input(&data), &vec![0; n_bytes]), data);
    }
}

#[test]
fn reductions_on_the_way() {
    let of_f32 = |values: [f32; 4]| bytes_of_words(&values.map(f32::to_bits));
    let of_bf16 = |values: [f32; 8]| -> Vec<u8> {
        values.iter().flat_map(|value| bf16::from_f32(*value).to_bits().to_le_bytes()).collect()
    };
    let of_s32 = |values: [i32; 4]| bytes_of_words(&values.map(|value| value as u32));
    let cases = [
        (
            "reduce_add_f32",
            of_f32([1.0, -2.0, 0.5, 1e6]),
            of_f32([10.0, 2.0, 0.25, 1.0]),
            of_f32([11.0, 0.0, 0.75, 1_000_001.0]),
        ),
        ("reduce_add_noftz_bf16", of_bf16([1.5; 8]), of_bf16([2.0; 8]), of_bf16([3.5; 8])),
        (
            "reduce_min_s32",
            of_s32([1, -2, 3, i32::MIN]),
            of_s32([0, 5, 3, 7]),
            of_s32([0, -2, 3, i32::MIN]),
        ),
        ("reduce_or_b32", of_s32([1, 2, 4, 8]), of_s32([1, 1, 1, 1]), of_s32([1, 3, 5, 9])),
    ];
    for (kernel, brought, held, expected) in cases {
        assert_eq!(run(BULK, kernel, 1, &bulk_input(&brought), &held), expected, "{kernel}");
    }
}
