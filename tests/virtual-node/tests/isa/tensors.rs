//! Tensor copies: boxes in one to five dimensions, over edges, under every swizzle.

use cudarc::driver::sys::{CUtensorMapDataType as DataType, CUtensorMapSwizzle as Swizzle};

use super::{run_with, words_of_bytes};
use crate::gpu::{Arg, Buffer, Gpu, Tensor};

const PTX: &str = include_str!("bulk.ptx");

/// A tensor of u16 whose elements are numbered, and a box in it.
struct Case {
    dims: &'static [u64],
    box_dims: &'static [u32],
    at: &'static [i32],
    swizzle: Swizzle,
}

const CASES: &[Case] = &[
    Case { dims: &[100], box_dims: &[64], at: &[20], swizzle: Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE },
    Case { dims: &[100], box_dims: &[64], at: &[-8], swizzle: Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE },
    Case {
        dims: &[128, 40],
        box_dims: &[64, 16],
        at: &[64, 8],
        swizzle: Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    },
    Case {
        dims: &[72, 40],
        box_dims: &[64, 16],
        at: &[32, 30],
        swizzle: Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    },
    Case {
        dims: &[72, 40],
        box_dims: &[32, 16],
        at: &[-5, -3],
        swizzle: Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
    },
    Case {
        dims: &[72, 40],
        box_dims: &[16, 16],
        at: &[8, 4],
        swizzle: Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
    },
    Case {
        dims: &[16, 6, 5],
        box_dims: &[8, 4, 3],
        at: &[8, 4, 3],
        swizzle: Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
    },
    Case {
        dims: &[16, 6, 5, 4],
        box_dims: &[8, 2, 3, 2],
        at: &[0, 1, 3, -1],
        swizzle: Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
    },
    Case {
        dims: &[64, 3, 3, 3, 3],
        box_dims: &[64, 2, 1, 2, 2],
        at: &[0, 2, 1, 0, 2],
        swizzle: Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    },
];

impl Case {
    fn rank(&self) -> usize {
        self.dims.len()
    }

    fn n_elements(&self) -> usize {
        self.dims.iter().product::<u64>() as usize
    }

    fn box_bytes(&self) -> usize {
        2 * self.box_dims.iter().product::<u32>() as usize
    }

    fn map(&self, at: Buffer) -> Arg {
        let mut strides = vec![2 * self.dims[0]];
        for dim in &self.dims[1..] {
            strides.push(strides[strides.len() - 1] * dim);
        }
        strides.pop();
        let tensor = Tensor {
            data_type: DataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
            at,
            dims: self.dims,
            strides: &strides,
            box_dims: self.box_dims,
            swizzle: self.swizzle,
        };
        Arg::Map(tensor.map())
    }

    /// For each element of the box: its byte in shared memory, and its number in the tensor, if
    /// it lies inside.
    fn elements(&self) -> Vec<(usize, Option<usize>)> {
        let n_elements = self.box_bytes() / 2;
        (0..n_elements)
            .map(|i| {
                let (mut rest, mut number, mut step, mut is_inside) = (i, 0, 1, true);
                for axis in 0..self.rank() {
                    let within = rest % self.box_dims[axis] as usize;
                    rest /= self.box_dims[axis] as usize;
                    let at = i64::from(self.at[axis]) + within as i64;
                    is_inside &= (0..self.dims[axis] as i64).contains(&at);
                    number += at * step;
                    step *= self.dims[axis] as i64;
                }
                (self.place(2 * i), is_inside.then_some(number as usize))
            })
            .collect()
    }

    /// The programming guide: within the pattern, the 16-byte chunk's index is XORed with the
    /// index of the 128-byte line, modulo 2, 4 or 8.
    fn place(&self, byte: usize) -> usize {
        let modulus = match self.swizzle {
            Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE => 1,
            Swizzle::CU_TENSOR_MAP_SWIZZLE_32B => 2,
            Swizzle::CU_TENSOR_MAP_SWIZZLE_64B => 4,
            _ => 8,
        };
        let (line, chunk, within) = (byte / 128, byte / 16 % 8, byte % 16);
        line * 128 + (chunk ^ (line % modulus)) * 16 + within
    }

    /// Bytes to move and coordinates, then data from byte 256 on.
    fn input(&self, data: &[u8]) -> Vec<u8> {
        let mut input = vec![0; 256];
        input[..4].copy_from_slice(&(self.box_bytes() as u32).to_le_bytes());
        for (axis, at) in self.at.iter().enumerate() {
            input[4 + 4 * axis..8 + 4 * axis].copy_from_slice(&at.to_le_bytes());
        }
        input.extend_from_slice(data);
        input
    }
}

fn numbers(n: usize, first: usize) -> Vec<u8> {
    (0..n).flat_map(|i| ((i + first) as u16).to_le_bytes()).collect()
}

#[test]
fn loads() {
    for case in CASES {
        let kernel = format!("load_{}d", case.rank());
        let tensor = numbers(case.n_elements(), 1);
        let more = |gpu: &Gpu| vec![case.map(gpu.upload(&tensor))];
        let output = vec![0xee; case.box_bytes()];
        let output = run_with((PTX, &kernel), 1, &case.input(&[]), &output, more);
        for (at, number) in case.elements() {
            let found = u16::from_le_bytes([output[at], output[at + 1]]);
            let expected = number.map_or(0, |number| number as u16 + 1);
            assert_eq!(found, expected, "{:?} at {:?}: byte {at}", case.dims, case.at);
        }
    }
}

#[test]
fn stores() {
    for case in CASES {
        let kernel = format!("store_{}d", case.rank());
        let mut data = vec![0; case.box_bytes()];
        let mut expected = vec![0u8; 2 * case.n_elements()];
        for (i, (at, number)) in case.elements().into_iter().enumerate() {
            let value = (i as u16 + 1).to_le_bytes();
            data[at..at + 2].copy_from_slice(&value);
            if let Some(number) = number {
                expected[2 * number..2 * number + 2].copy_from_slice(&value);
            }
        }
        let tensor = store(case, &kernel, &data, &vec![0; 2 * case.n_elements()]);
        assert_eq!(tensor, expected, "{:?} at {:?}", case.dims, case.at);
    }
}

/// Runs a kernel that writes to the tensor, and brings the tensor back.
fn store(case: &Case, kernel: &str, data: &[u8], held: &[u8]) -> Vec<u8> {
    let gpu = Gpu::open();
    let module = gpu.load(PTX);
    let (input, tensor) = (gpu.upload(&case.input(data)), gpu.upload(held));
    let mut args = [Arg::Pointer(input), Arg::Pointer(tensor), case.map(tensor)];
    let size = super::Size { grid: (1, 1, 1), n_threads: 1, shared_bytes: 0 };
    gpu.run(&module, kernel, size, &mut args);
    gpu.download(tensor)
}

#[test]
fn a_box_is_added() {
    let gpu = Gpu::open();
    let module = gpu.load(PTX);
    let held: Vec<u8> = (0..64u32).flat_map(u32::to_le_bytes).collect();
    let brought: Vec<u8> = (0..16u32).flat_map(|i| (100 * i).to_le_bytes()).collect();
    let tensor = gpu.upload(&held);
    let map = Tensor {
        data_type: DataType::CU_TENSOR_MAP_DATA_TYPE_UINT32,
        at: tensor,
        dims: &[8, 8],
        strides: &[32],
        box_dims: &[4, 4],
        swizzle: Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
    };
    let mut input = vec![0; 256];
    // 64 bytes, to column 6 and row 2: two of four columns are outside.
    for (i, word) in [64u32, 6, 2].into_iter().enumerate() {
        input[4 * i..4 * i + 4].copy_from_slice(&word.to_le_bytes());
    }
    input.extend(brought);
    let input = gpu.upload(&input);
    let mut args = [Arg::Pointer(input), Arg::Pointer(tensor), Arg::Map(map.map())];
    let size = super::Size { grid: (1, 1, 1), n_threads: 1, shared_bytes: 0 };
    gpu.run(&module, "reduce_add_2d", size, &mut args);
    let mut expected: Vec<u32> = (0..64).collect();
    for row in 0..4 {
        for col in 0..2 {
            expected[(row + 2) * 8 + col + 6] += 100 * (row * 4 + col) as u32;
        }
    }
    assert_eq!(words_of_bytes(&gpu.download(tensor)), expected);
}
