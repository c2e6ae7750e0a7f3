//! Tensor maps: the 128 opaque bytes that describe a tensor in device memory to the copy engine.
//!
//! `encode` holds the rules of `cuTensorMapEncodeTiled`; `TensorMap` is the map as copies read it.
//! A kernel may also write a map field by field with `tensormap.replace`, starting from zeros.

mod encode;
mod fields;

pub use encode::{Reason, Request, encode};
use fields::get;
pub use fields::{Field, MAP_BYTES, MapError, replace};

use super::swizzle::Swizzle;

/// Most dimensions of a tensor.
pub const RANK_MAX: usize = 5;

/// A map as copies read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// First byte of the tensor.
    pub address: u64,
    /// Dimensions that count.
    pub rank: usize,
    /// Bytes of an element.
    pub element_bytes: usize,
    /// Its type, by the ISA's table of `.elemtype`.
    pub element_type: u8,
    /// Elements along each dimension.
    pub dims: [u64; RANK_MAX],
    /// Bytes between neighbours along each dimension, the first included.
    pub strides: [u64; RANK_MAX],
    /// Elements that a copy takes along each dimension.
    pub box_dims: [usize; RANK_MAX],
    /// Distance between the elements it takes.
    pub steps: [u64; RANK_MAX],
    /// How shared memory is permuted.
    pub swizzle: Swizzle,
    /// What stands for elements outside of the tensor.
    pub fill: u8,
}

/// One contiguous row of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// First byte within the box, as it lies in shared memory before the swizzle.
    pub offset: usize,
    /// Bytes of the row.
    pub n_bytes: usize,
    /// The part that lies inside of the tensor, if any does.
    pub inside: Option<Inside>,
}

/// The part of a row that lies inside of the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside {
    /// Bytes of the row before it.
    pub skip: usize,
    /// Its first byte in device memory.
    pub address: u64,
    /// Its bytes.
    pub n_bytes: usize,
}

impl TensorMap {
    /// Reads a map; a field that was never set is an error.
    pub fn decode(map: &[u8; MAP_BYTES]) -> Result<TensorMap, MapError> {
        let checked = |field, axis, legal: fn(u64) -> bool| {
            let value = get(map, field, axis)?;
            if legal(value) { Ok(value) } else { Err(MapError::Value { field, axis, value }) }
        };
        let rank = checked(Field::Rank, 0, |rank| rank < RANK_MAX as u64)? as usize + 1;
        let ptx_type = checked(Field::ElementType, 0, |n| ptx_type_bytes(n as u8).is_some())?;
        let swizzle = checked(Field::Swizzle, 0, |n| swizzle_of(n as u32).is_some())?;
        checked(Field::Interleave, 0, |layout| layout == 0)?;
        let element_bytes = ptx_type_bytes(ptx_type as u8).expect("checked above");
        let mut decoded = TensorMap {
            address: checked(Field::Address, 0, |address| address.is_multiple_of(16))?,
            rank,
            element_bytes,
            element_type: ptx_type as u8,
            dims: [1; RANK_MAX],
            strides: [element_bytes as u64; RANK_MAX],
            box_dims: [1; RANK_MAX],
            steps: [1; RANK_MAX],
            swizzle: swizzle_of(swizzle as u32).expect("checked above"),
            fill: if checked(Field::Fill, 0, |fill| fill < 2)? == 0 { 0 } else { 0xff },
        };
        for axis in 0..rank {
            decoded.dims[axis] = checked(Field::Dim, axis, |size| size > 0)?;
            let step = checked(Field::ElementStride, axis, |step| (1..=8).contains(&step))?;
            // Without an interleave, the hardware takes neighbours along the first dimension.
            decoded.steps[axis] = if axis == 0 { 1 } else { step };
            let size = checked(Field::BoxDim, axis, |size| (1..=256).contains(&size))?;
            decoded.box_dims[axis] = size.div_ceil(decoded.steps[axis]) as usize;
        }
        for axis in 1..rank {
            let legal = |stride: u64| stride.is_multiple_of(16) && stride < 1 << 40;
            decoded.strides[axis] = checked(Field::Stride, axis - 1, legal)?;
        }
        let n_bytes = decoded.box_dims[0] * element_bytes;
        let fits = decoded.swizzle == Swizzle::None || n_bytes <= decoded.swizzle.span_bytes();
        if !n_bytes.is_multiple_of(16) || !fits {
            let value = decoded.box_dims[0] as u64;
            return Err(MapError::Value { field: Field::BoxDim, axis: 0, value });
        }
        Ok(decoded)
    }

    /// Bytes of a box in shared memory: what a copy adds to its barrier, wherever the box lies.
    pub fn box_bytes(&self) -> usize {
        self.box_dims.iter().product::<usize>() * self.element_bytes
    }

    /// The rows of the box at these coordinates, of which there is one for each dimension.
    pub fn rows(&self, coordinates: &[i32]) -> Result<Vec<Row>, MapError> {
        if coordinates.len() != self.rank {
            let n_coordinates = coordinates.len();
            return Err(MapError::Rank { rank: self.rank, n_coordinates });
        }
        let n_rows: usize = self.box_dims[1..].iter().product();
        Ok((0..n_rows).map(|row_idx| self.row(row_idx, coordinates)).collect())
    }

    fn row(&self, row_idx: usize, coordinates: &[i32]) -> Row {
        let n_bytes = self.box_dims[0] * self.element_bytes;
        let mut address = self.address;
        let mut is_inside = true;
        let mut rest = row_idx;
        for (axis, &start) in coordinates.iter().enumerate().skip(1) {
            let within = (rest % self.box_dims[axis]) as u64 * self.steps[axis];
            rest /= self.box_dims[axis];
            let at = i64::from(start) + within as i64;
            is_inside &= at >= 0 && (at as u64) < self.dims[axis];
            address = address.wrapping_add((at as u64).wrapping_mul(self.strides[axis]));
        }
        let start = i64::from(coordinates[0]);
        let first = start.max(0);
        let end = (start + self.box_dims[0] as i64).min(self.dims[0] as i64);
        let inside = (is_inside && first < end).then(|| Inside {
            skip: (first - start) as usize * self.element_bytes,
            address: address + first as u64 * self.element_bytes as u64,
            n_bytes: (end - first) as usize * self.element_bytes,
        });
        Row { offset: row_idx * n_bytes, n_bytes, inside }
    }
}
/// Bytes of an element by the number that PTX has for its type.
fn ptx_type_bytes(ptx_type: u8) -> Option<usize> {
    Some(match ptx_type {
        0 => 1,
        1 | 6 | 10 => 2,
        2 | 3 | 7 => 4,
        4 | 5 | 9 => 8,
        _ => return None,
    })
}

fn swizzle_of(number: u32) -> Option<Swizzle> {
    Some(match number {
        0 => Swizzle::None,
        1 => Swizzle::Span32,
        2 => Swizzle::Span64,
        3 => Swizzle::Span128,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
