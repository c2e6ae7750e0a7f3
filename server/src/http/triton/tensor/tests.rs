//! The binary form against whatever a client may send.

use proptest::prelude::*;
use serde_json::json;

use super::super::hostile::{in_proportion, n_reserved, next};
use super::*;

const TYPES: [DataType; 6] = [
    DataType::Bytes,
    DataType::Bool,
    DataType::Int32,
    DataType::Int64,
    DataType::Uint64,
    DataType::Fp32,
];

/// What whoever wants to hurt the server would send: lengths that are right, nearly right, or
/// enormous, cut off anywhere.
fn hostile(state: &mut u64, bytes: &mut Vec<u8>) -> u64 {
    bytes.clear();
    let n_strings = next(state) % 5;
    for _ in 0..n_strings {
        let n = next(state) % 9;
        let told = match next(state) % 6 {
            0 => u32::MAX,
            1 => (n as u32).wrapping_sub(1),
            2 => next(state) as u32,
            _ => n as u32,
        };
        bytes.extend_from_slice(&told.to_le_bytes());
        bytes.extend((0..n).map(|_| next(state) as u8));
    }
    if next(state).is_multiple_of(3) {
        bytes.truncate(next(state) as usize % (bytes.len() + 1));
    }
    match next(state) % 4 {
        0 => next(state),
        1 => bytes.len() as u64 / 4,
        _ => n_strings,
    }
}

#[test]
fn a_million_hostile_tensors_take_no_more_than_they_are() {
    let mut state = 20_261_122;
    let mut bytes = Vec::new();
    let mut n_read = 0;
    for case in 0..1_000_000_u64 {
        let n = hostile(&mut state, &mut bytes);
        let data_type = TYPES[(case % 6) as usize];
        let read = in_proportion(bytes.len(), case, || data_type.read(&bytes, n));
        let Ok(data) = read else { continue };
        n_read += 1;
        assert_eq!(data.len() as u64, n, "case {case}: {bytes:?}");
        // A string of four bytes costs its length's four, a `Vec` of 24, and room to grow.
        let n_most = 64 + 16 * bytes.len();
        assert!(n_reserved(&data) <= n_most, "case {case}: {} bytes", n_reserved(&data));
        let mut written = Vec::new();
        data.write(&mut written);
        if data_type != DataType::Bool {
            assert_eq!(written, bytes, "case {case}: read and written back");
        }
    }
    assert!(n_read > 100_000, "only {n_read} of the cases were tensors");
}

proptest! {
    #[test]
    fn what_is_written_is_read(texts in prop::collection::vec(any::<Vec<u8>>(), 0..9)) {
        let data = Data::Bytes(texts);
        let mut bytes = Vec::new();
        data.write(&mut bytes);
        prop_assert_eq!(DataType::Bytes.read(&bytes, data.len() as u64), Ok(data));
    }

    #[test]
    fn no_bytes_break_the_reader(
        bytes in any::<Vec<u8>>(),
        n in any::<u64>(),
        type_idx in 0..6_usize,
    ) {
        if let Ok(data) = TYPES[type_idx].read(&bytes, n) {
            prop_assert_eq!(data.len() as u64, n);
        }
    }
}

#[test]
fn json_is_read_by_type() {
    let wrong = |data_type: DataType, value: Value| data_type.read_json(&value).err();
    assert_eq!(DataType::Int32.read_json(&json!([[1], [2]])), Ok(Data::Int32(vec![1, 2])));
    assert_eq!(DataType::Fp32.read_json(&json!(3)), Ok(Data::Fp32(vec![3.0])));
    assert_eq!(wrong(DataType::Bytes, json!([1])), Some(Problem::NotText));
    for (data_type, value) in [
        (DataType::Int32, json!(1_i64 << 31)),
        (DataType::Uint64, json!(-1)),
        (DataType::Bool, json!(1)),
        (DataType::Fp32, json!("1")),
    ] {
        let complaint = wrong(data_type, value.clone());
        assert!(matches!(complaint, Some(Problem::Unparsed { .. })), "{value}: {complaint:?}");
    }
}

#[test]
fn a_shape_that_no_memory_holds_has_no_number_of_values() {
    assert_eq!(n_values(&[2, 3]), Some(6));
    assert_eq!(n_values(&[]), Some(1));
    assert_eq!(n_values(&[1 << 40, 1 << 40]), None);
}
