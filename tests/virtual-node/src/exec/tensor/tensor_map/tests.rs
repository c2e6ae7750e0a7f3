//! The driver's rules one by one, and boxes at the edges of tensors.

use super::*;

/// A bf16 matrix of 100 rows × 72 columns, rows 160 bytes apart, in boxes of 8 × 64.
fn matrix() -> Request<'static> {
    Request {
        data_type: 9,
        address: 0x1000,
        dims: &[72, 100],
        strides: &[160],
        box_dims: &[64, 8],
        element_strides: &[1, 1],
        interleave: 0,
        swizzle: 3,
        l2_promotion: 2,
        fill: 0,
    }
}

fn decoded(request: &Request<'_>) -> TensorMap {
    let map = encode(request).expect("a legal request");
    TensorMap::decode(&map).expect("what was encoded")
}

#[test]
fn a_map_comes_back() {
    let expected = TensorMap {
        address: 0x1000,
        rank: 2,
        element_bytes: 2,
        element_type: 10,
        dims: [72, 100, 1, 1, 1],
        strides: [2, 160, 2, 2, 2],
        box_dims: [64, 8, 1, 1, 1],
        steps: [1; 5],
        swizzle: Swizzle::Span128,
        fill: 0,
    };
    assert_eq!(decoded(&matrix()), expected);
    assert_eq!(expected.box_bytes(), 1024);
}

#[test]
fn rules_of_the_driver() {
    let good = matrix();
    let cases: &[(Request<'_>, Reason)] = &[
        (Request { data_type: 13, ..good }, Reason::DataType { data_type: 13 }),
        (
            Request { strides: &[], ..good },
            Reason::Rank { n_dims: 2, n_strides: 0, n_box: 2, n_steps: 2 },
        ),
        (Request { address: 0x1008, ..good }, Reason::Address { address: 0x1008 }),
        (Request { dims: &[0, 100], ..good }, Reason::Dim { axis: 0, size: 0 }),
        (
            Request { dims: &[72, (1 << 32) + 1], ..good },
            Reason::Dim { axis: 1, size: (1 << 32) + 1 },
        ),
        (Request { strides: &[168], ..good }, Reason::Stride { axis: 1, stride: 168 }),
        (Request { strides: &[1 << 40], ..good }, Reason::Stride { axis: 1, stride: 1 << 40 }),
        (Request { box_dims: &[64, 257], ..good }, Reason::Box { axis: 1, size: 257 }),
        (Request { box_dims: &[64, 0], ..good }, Reason::Box { axis: 1, size: 0 }),
        (Request { box_dims: &[12, 8], ..good }, Reason::RowBytes { n_bytes: 24 }),
        (Request { element_strides: &[1, 9], ..good }, Reason::ElementStride { axis: 1, step: 9 }),
        (Request { interleave: 1, ..good }, Reason::Interleave { interleave: 1 }),
        (
            Request { box_dims: &[72, 8], ..good },
            Reason::SwizzleSpan { n_bytes: 144, span_bytes: 128 },
        ),
        (Request { swizzle: 1, ..good }, Reason::SwizzleSpan { n_bytes: 128, span_bytes: 32 }),
        (Request { swizzle: 4, ..good }, Reason::Swizzle { swizzle: 4 }),
        (Request { l2_promotion: 4, ..good }, Reason::Promotion { l2_promotion: 4 }),
        (Request { data_type: 0, fill: 1, ..good }, Reason::Fill { fill: 1, data_type: 0 }),
    ];
    for (request, reason) in cases {
        assert_eq!(encode(request), Err(*reason), "{request:?}");
    }
    assert!(encode(&Request { fill: 1, ..good }).is_ok(), "NaN fills a bf16 tensor");
    assert!(encode(&Request { swizzle: 0, box_dims: &[256, 8], ..good }).is_ok());
}

#[test]
fn a_box_inside() {
    let rows = decoded(&matrix()).rows(&[8, 2]).expect("two coordinates");
    assert_eq!(rows.len(), 8);
    let inside = Inside { skip: 0, address: 0x1000 + 5 * 160 + 16, n_bytes: 128 };
    assert_eq!(rows[3], Row { offset: 3 * 128, n_bytes: 128, inside: Some(inside) });
}

#[test]
fn a_box_over_each_edge() {
    let map = decoded(&matrix());
    let right = map.rows(&[64, 0]).expect("two coordinates")[0];
    assert_eq!(right.inside, Some(Inside { skip: 0, address: 0x1080, n_bytes: 16 }));
    let left = map.rows(&[-3, 0]).expect("two coordinates")[0];
    assert_eq!(left.inside, Some(Inside { skip: 6, address: 0x1000, n_bytes: 122 }));
    let top = map.rows(&[0, -2]).expect("two coordinates");
    assert!(top[1].inside.is_none() && top[2].inside.is_some());
    let bottom = map.rows(&[0, 99]).expect("two coordinates");
    assert!(bottom[0].inside.is_some() && bottom[1].inside.is_none());
    assert!(map.rows(&[72, 0]).expect("two coordinates").iter().all(|row| row.inside.is_none()));
}

#[test]
fn five_dimensions_with_steps() {
    let request = Request {
        data_type: 7,
        address: 0,
        dims: &[8, 6, 5, 4, 3],
        strides: &[32, 192, 960, 3840],
        box_dims: &[4, 3, 2, 1, 2],
        element_strides: &[1, 2, 1, 1, 1],
        swizzle: 0,
        ..matrix()
    };
    let map = decoded(&request);
    assert_eq!(map.box_dims, [4, 2, 2, 1, 2], "every second of three");
    let rows = map.rows(&[4, 1, 3, 2, 1]).expect("five coordinates");
    assert_eq!(rows.len(), 8);
    let address = |row: usize| rows[row].inside.map(|inside| inside.address);
    let first = 16 + 32 + 3 * 192 + 2 * 960 + 3840;
    assert_eq!(address(0), Some(first));
    assert_eq!(address(1), Some(first + 2 * 32));
    assert_eq!(address(2), Some(first + 192));
    assert_eq!(address(4), Some(first + 3840));
    let error = MapError::Rank { rank: 5, n_coordinates: 2 };
    assert_eq!(map.rows(&[0, 0]), Err(error));
}

#[test]
fn a_map_written_by_a_kernel() {
    let mut map = [0; MAP_BYTES];
    let unset = MapError::Unset { field: Field::Rank, axis: 0 };
    assert_eq!(TensorMap::decode(&map), Err(unset));
    for (field, axis, value) in [
        (Field::Address, 0, 0x2000),
        (Field::Rank, 0, 1),
        (Field::BoxDim, 0, 64),
        (Field::BoxDim, 1, 16),
        (Field::Dim, 0, 256),
        (Field::Dim, 1, 32),
        (Field::ElementStride, 0, 1),
        (Field::ElementStride, 1, 1),
        (Field::ElementType, 0, 10),
        (Field::Swizzle, 0, 3),
    ] {
        replace(&mut map, field, axis, value).expect("a legal value");
    }
    let unset = MapError::Unset { field: Field::Stride, axis: 0 };
    assert_eq!(TensorMap::decode(&map), Err(unset), "a stride is missing");
    replace(&mut map, Field::Stride, 0, 512).expect("a legal value");
    let expected = Request {
        address: 0x2000,
        dims: &[256, 32],
        strides: &[512],
        box_dims: &[64, 16],
        ..matrix()
    };
    assert_eq!(TensorMap::decode(&map), Ok(decoded(&expected)));
    let value = MapError::Value { field: Field::BoxDim, axis: 5, value: 1 };
    assert_eq!(replace(&mut map, Field::BoxDim, 5, 1), Err(value));
}
