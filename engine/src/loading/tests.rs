//! What is placed arrives where it was placed: cut, padded and converted, through a ring that is
//! shorter than it.

use std::cell::Cell;

use half::bf16;
use weights::{Bytes, InputScale};

use super::ring::N_PIECES;
use super::schedule::{WINDOW_BYTES, piece_bytes};
use super::*;
use crate::device::cuda::Plain;
use crate::device::cuda::testing::TestDevice;
use crate::kernels::testing::{Rng, StoredMatrix, store};

/// Stages `copies`; how many bytes were said to be sent.
fn staged(device: &TestDevice, copies: &[Copying]) -> u64 {
    let n_sent = Cell::new(0);
    let progress = |n_bytes| n_sent.set(n_sent.get() + n_bytes);
    stage(&device.exec, Meeting::new(1).seat(0), copies, &progress).expect("it is sent");
    n_sent.get()
}

/// Poisoned memory for a matrix, with some more behind it.
fn room(device: &TestDevice, element: Element, n_rows: usize, n_cols: usize) -> DeviceView {
    let first = device.poisoned::<u8>(n_rows * n_cols * element.n_bytes() + 64);
    DeviceView { first, element, n_rows, n_cols, stride: n_cols }
}

/// What lies in a view, after which nothing was written.
fn read<T: Plain + Default + PartialEq>(device: &TestDevice, view: &DeviceView) -> Vec<T> {
    let n = view.n_rows * view.n_cols;
    let beyond = view.first.elements::<T>(n);
    assert!(device.download::<u8>(beyond, 64).iter().all(|&byte| byte == 0xFF), "{view:?}");
    device.download::<T>(view.first, n)
}

/// A whole number of rows that follow each other, as most of a file's matrices are.
fn plain_matrix(bytes: &'static [u8], n_cols: usize) -> Matrix {
    Matrix {
        bytes: Bytes::Static(bytes),
        offset: 0,
        dtype: Dtype::F8E4m3,
        n_rows: bytes.len() / n_cols,
        n_cols,
        row_stride: n_cols,
    }
}

/// Bytes of which no two pieces' are alike.
fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i ^ (i >> 8) ^ (i >> 17)) as u8).collect()
}

#[test]
fn more_bytes_than_the_ring_holds_arrive_in_order() {
    let device = TestDevice::open(5);
    let bytes = pattern((N_PIECES + 1) * piece_bytes(1) + 12_345);
    let to = device.poisoned::<u8>(bytes.len() + 64);
    let n_sent = staged(&device, &[Copying::Bytes { to, bytes: bytes.clone() }]);
    assert_eq!(n_sent, bytes.len() as u64);
    assert!(device.download::<u8>(to, bytes.len()) == bytes, "a piece lies elsewhere");
    assert_eq!(device.download::<u8>(to.offset(bytes.len()), 64), [0xFF; 64]);
}

#[test]
fn rows_that_follow_each_other_travel_together_and_those_added_are_zero() {
    const N_COLS: usize = 4096;
    let device = TestDevice::open(5);
    let n_rows = 2 * piece_bytes(1) / N_COLS + 900;
    let bytes: &'static [u8] = pattern(n_rows * N_COLS).leak();
    let to = room(&device, Element::F8, n_rows + 13, N_COLS);
    let matrix = plain_matrix(bytes, N_COLS);
    let n_sent = staged(&device, &[Copying::Matrix(MatrixCopy { matrix, to, col_begin: 0 })]);
    assert_eq!(n_sent, ((n_rows + 13) * N_COLS) as u64);
    let got = read::<u8>(&device, &to);
    assert!(got[..bytes.len()] == *bytes, "a row lies elsewhere");
    assert!(got[bytes.len()..].iter().all(|&byte| byte == 0), "what was added is zero");
}

#[test]
fn a_cut_matrix_of_any_type_lies_between_zeroes() {
    const N_ROWS: usize = 3;
    const N_COLS: usize = 5;
    const COL_BEGIN: usize = 7;
    let device = TestDevice::open(5);
    let numbers = Rng::new(3).numbers(N_ROWS * N_COLS);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4m3] {
        let StoredMatrix { matrix, values } = StoredMatrix::new(dtype, N_COLS, &numbers);
        let to = room(&device, Element::Bf16, 4, 16);
        staged(&device, &[Copying::Matrix(MatrixCopy { matrix, to, col_begin: COL_BEGIN })]);
        let got = read::<bf16>(&device, &to);
        for (i, got) in got.iter().enumerate() {
            let (row, col) = (i / 16, (i % 16).wrapping_sub(COL_BEGIN));
            let is_stored = row < N_ROWS && col < N_COLS;
            // Every stored value is an f32, so this rounds once.
            let value = if is_stored { values[row * N_COLS + col] as f32 } else { 0.0 };
            assert_eq!(got.to_bits(), bf16::from_f32(value).to_bits(), "{dtype:?}, {row}, {i}");
        }
    }
    let StoredMatrix { matrix, .. } = StoredMatrix::new(Dtype::F8E4m3, N_COLS, &numbers);
    let to = room(&device, Element::F8, 4, 16);
    staged(&device, &[Copying::Matrix(MatrixCopy { matrix, to, col_begin: COL_BEGIN })]);
    for (i, got) in read::<u8>(&device, &to).into_iter().enumerate() {
        let (row, col) = (i / 16, (i % 16).wrapping_sub(COL_BEGIN));
        let expected = match row < N_ROWS && col < N_COLS {
            true => store(Dtype::F8E4m3, numbers[row * N_COLS + col]).0[0],
            false => 0,
        };
        assert_eq!(got, expected, "row {row}, column {}", i % 16);
    }
}

#[test]
fn ranks_get_their_rows_and_columns_of_what_they_read_in_turn() {
    const N_RANKS: usize = 3;
    const N_COLS: usize = 3 * 1000;
    // More windows than there are places for them, the last of which is shorter.
    let n_rows = (N_RANKS * 2 + 1) * WINDOW_BYTES / N_COLS + 5;
    let bytes: &'static [u8] = pattern(2 * n_rows * N_COLS).leak();
    let meeting = Meeting::new(N_RANKS);
    let share = N_COLS / N_RANKS;
    let run = |rank_idx: usize| {
        let device = TestDevice::open(rank_idx);
        // The first tensor is cut by columns, the second, which follows it, by rows.
        let columns = Matrix {
            offset: rank_idx * share,
            n_rows,
            n_cols: share,
            row_stride: N_COLS,
            ..plain_matrix(bytes, N_COLS)
        };
        let n_own = n_rows / N_RANKS;
        let offset = (n_rows + rank_idx * n_own) * N_COLS;
        let rows = Matrix { offset, n_rows: n_own, ..plain_matrix(bytes, N_COLS) };
        // Columns lie between zeroes, as those of a width that was rounded up.
        let between = room(&device, Element::F8, n_rows, share + 24);
        let own = room(&device, Element::F8, n_own, N_COLS);
        let copies = [
            Copying::Matrix(MatrixCopy { matrix: rows, to: own, col_begin: 0 }),
            Copying::Matrix(MatrixCopy { matrix: columns, to: between, col_begin: 8 }),
        ];
        stage(&device.exec, meeting.seat(rank_idx), &copies, &|_| {}).expect("it is sent");
        assert!(read::<u8>(&device, &own) == bytes[offset..offset + n_own * N_COLS]);
        let got = read::<u8>(&device, &between);
        for (row_idx, got) in got.chunks_exact(share + 24).enumerate() {
            let begin = row_idx * N_COLS + rank_idx * share;
            assert!(got[8..8 + share] == bytes[begin..begin + share], "rank {rank_idx}, {row_idx}");
            assert!(got[..8].iter().chain(&got[8 + share..]).all(|&byte| byte == 0));
        }
    };
    std::thread::scope(|scope| (0..N_RANKS).for_each(|idx| drop(scope.spawn(move || run(idx)))));
}

#[test]
fn windows_of_narrow_rows_follow_those_of_wide_ones() {
    const N_RANKS: usize = 2;
    // Rows of both, of which a window holds whole ones: so its bytes are not as many for both.
    const WIDTHS: [usize; 3] = [3 * 4096, 2 * 1000, 2 * 7000];
    let n_rows = WIDTHS.map(|n_cols| (N_RANKS * 2 + 1) * WINDOW_BYTES / n_cols + 3);
    let n_bytes: usize = WIDTHS.iter().zip(n_rows).map(|(n_cols, n_rows)| n_cols * n_rows).sum();
    let bytes: &'static [u8] = pattern(n_bytes).leak();
    let meeting = Meeting::new(N_RANKS);
    let run = |rank_idx: usize| {
        let device = TestDevice::open(rank_idx);
        let mut begin = 0;
        let cut = WIDTHS.into_iter().zip(n_rows).map(|(n_cols, n_rows)| {
            let share = n_cols / N_RANKS;
            let offset = begin + rank_idx * share;
            begin += n_rows * n_cols;
            let whole = plain_matrix(bytes, n_cols);
            let matrix = Matrix { offset, n_rows, n_cols: share, ..whole };
            let to = room(&device, Element::F8, n_rows, share);
            Copying::Matrix(MatrixCopy { matrix, to, col_begin: 0 })
        });
        let copies: Vec<Copying> = cut.collect();
        stage(&device.exec, meeting.seat(rank_idx), &copies, &|_| {}).expect("it is sent");
        for copying in &copies {
            let Copying::Matrix(MatrixCopy { matrix, to, .. }) = copying else { unreachable!() };
            let Matrix { offset, n_cols, row_stride, .. } = *matrix;
            for (row_idx, got) in read::<u8>(&device, to).chunks_exact(n_cols).enumerate() {
                let expected = &bytes[offset + row_idx * row_stride..][..n_cols];
                assert!(got == expected, "rank {rank_idx}, {n_cols} columns, row {row_idx}");
            }
        }
    };
    std::thread::scope(|scope| (0..N_RANKS).for_each(|idx| drop(scope.spawn(move || run(idx)))));
}

#[test]
fn weights_that_are_nowhere_are_counted_and_not_read() {
    let device = TestDevice::open(5);
    let mut matrix = plain_matrix(&[0; 32], 16);
    matrix.bytes = Bytes::Absent { n_bytes: 32 };
    let to = room(&device, Element::F8, 2, 16);
    assert_eq!(staged(&device, &[Copying::Matrix(MatrixCopy { matrix, to, col_begin: 0 })]), 32);
    assert_eq!(staged(&device, &[]), 0);
}

#[test]
fn a_file_that_is_too_short_is_no_zeroes() {
    // Checked when a checkpoint is opened; whoever gets past that must not get zeroes for weights.
    let device = TestDevice::open(5);
    let mut matrix = plain_matrix(&[1; 32], 16);
    matrix.n_rows = 3;
    let to = room(&device, Element::F8, 3, 16);
    let copies = [Copying::Matrix(MatrixCopy { matrix, to, col_begin: 0 })];
    let sent = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| staged(&device, &copies)));
    assert!(sent.is_err(), "48 bytes were sent of 32");
}

/// A part of a projection, of ones.
fn part(n_rows: usize, n_cols: usize, scale: WeightScale, input: InputScale) -> LinearWeights {
    let bytes = vec![0x38; n_rows * n_cols].leak();
    LinearWeights { matrix: Matrix { n_rows, ..plain_matrix(bytes, n_cols) }, scale, input }
}

fn placed(parts: Vec<LinearWeights>, purpose: Use, from: u64) -> (Projection, Placement) {
    let mut placer = Placer::on_device(DevicePtr(from), DevicePtr::NULL);
    let projection = placer.projection(parts, purpose).expect("a device takes it");
    (projection, placer.placement())
}

/// Where matrices go: address, rows and the column that they begin at.
fn matrices(placement: &Placement) -> Vec<(u64, usize, usize)> {
    let of = |copying: &Copying| match copying {
        Copying::Matrix(copy) => Some((copy.to.first.0, copy.to.n_rows, copy.col_begin)),
        Copying::Bytes { .. } => None,
    };
    placement.copies.iter().filter_map(of).collect()
}

/// Bytes that were placed at an address, as f32.
fn floats(placement: &Placement, at: DevicePtr) -> Vec<f32> {
    let find = |copying: &Copying| match copying {
        Copying::Bytes { to, bytes } if *to == at => Some(bytes.clone()),
        _ => None,
    };
    let bytes = placement.copies.iter().find_map(find).expect("something was placed there");
    bytes.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect()
}

#[test]
fn parts_stand_one_below_another_with_factors_of_their_own() {
    let input = InputScale::Static(0.5);
    let parts = |scales: [WeightScale; 3]| {
        let heights = [24, 8, 8];
        heights.into_iter().zip(scales).map(|(n, scale)| part(n, 16, scale, input)).collect()
    };
    let whole = [2.0, 4.0, 8.0].map(WeightScale::PerTensor);
    let (projection, placement) = placed(parts(whole), Use::First, 0x1000);
    let device = projection.device.expect("it was placed");
    assert_eq!((device.matrix.n_rows, device.matrix.n_cols), (32 + 16 + 16, 16));
    assert_eq!((device.shape.n_outputs, device.shape.is_scaled), (64, false));
    assert_eq!(device.deferred, WeightFactors::PerPart([1.0, 2.0, 4.0]));
    let expected = [(0x1000, 32, 0), (0x1000 + 32 * 16, 16, 0), (0x1000 + 48 * 16, 16, 0)];
    assert_eq!(matrices(&placement), expected);
    // One that has a factor a row makes all have them; rows that were added have none.
    let rows = WeightScale::PerRow(vec![3.0; 8].into());
    let mixed = [WeightScale::PerTensor(2.0), rows, WeightScale::One];
    let (projection, placement) = placed(parts(mixed), Use::First, 0);
    let WeightFactors::PerRow(at) = projection.device.expect("it was placed").deferred else {
        panic!("factors of rows");
    };
    let expected = [vec![1.0; 32], vec![1.5; 8], vec![0.0; 8], vec![0.5; 16]].concat();
    assert_eq!(floats(&placement, at), expected);
}

#[test]
fn a_second_projection_is_cut_by_columns_and_scaled_by_the_product() {
    let whole = WeightScale::PerTensor(4.0);
    let purpose = Use::Second { n_cols: 48, col_begin: 16 };
    let parts = vec![part(16, 24, whole, InputScale::Static(0.5))];
    let (projection, placement) = placed(parts, purpose, 0);
    let device = projection.device.expect("it was placed");
    assert_eq!((device.matrix.n_rows, device.matrix.n_cols), (16, 48));
    assert_eq!(matrices(&placement), [(0, 16, 16)]);
    assert!(device.shape.is_scaled && device.deferred == WeightFactors::None);
    let factors = [device.weight_scale, device.input_scale].map(|at| floats(&placement, at));
    assert_eq!(factors, [[4.0], [0.5]]);
}

#[test]
fn the_walk_from_zero_is_the_walk_from_any_address() {
    let walk = |from| {
        let parts = vec![part(24, 16, WeightScale::One, InputScale::Static(0.5)); 2];
        let mut placer = Placer::on_device(DevicePtr(from), DevicePtr(from));
        placer.vector(vec![1.0; 3].into());
        placer.projection(parts, Use::First).expect("a device takes it");
        placer.placement()
    };
    let (plan, taken) = (walk(0), walk(0x70_0000));
    assert_eq!(plan.weights.n_bytes(), taken.weights.n_bytes());
    // Three floats in a place of their own, then two parts of 32 rows.
    assert_eq!(plan.weights.n_bytes(), ALIGNMENT + 2 * 32 * 16);
    let shifted = |(at, n_rows, col): (u64, usize, usize)| (at + 0x70_0000, n_rows, col);
    let expected: Vec<_> = matrices(&plan).into_iter().map(shifted).collect();
    assert_eq!(matrices(&taken), expected);
}

#[test]
fn what_a_device_cannot_do_is_said() {
    let refused = |part: LinearWeights, purpose| {
        let mut placer = Placer::on_device(DevicePtr::NULL, DevicePtr::NULL);
        placer.projection(vec![part], purpose).map(drop).expect_err("it cannot do that")
    };
    let mut plain = part(16, 16, WeightScale::One, InputScale::PerToken);
    plain.matrix.dtype = Dtype::Bf16;
    let error = refused(plain, Use::First);
    assert_eq!(error, Unsupported::NotFp8 { dtype: Dtype::Bf16 });
    for head in [
        part(16, 16, WeightScale::One, InputScale::Static(1.0)),
        part(16, 16, WeightScale::PerTensor(2.0), InputScale::None),
    ] {
        assert_eq!(refused(head, Use::Head), Unsupported::QuantizedHead);
    }
}
