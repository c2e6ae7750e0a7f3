//! The fields of a tensor map, which `tensormap.replace` sets one by one.
//!
//! The real layout is not documented, so this one is ours; it notes which fields were set.

use thiserror::Error;

use super::RANK_MAX;

/// Bytes of a map.
pub const MAP_BYTES: usize = 128;

/// A field that `tensormap.replace` sets; those below `Rank` have a value for each dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Elements along a dimension.
    Dim,
    /// Bytes between neighbours along dimension `axis + 1`.
    Stride,
    /// Elements of a box along a dimension.
    BoxDim,
    /// Every how-manieth element is copied along a dimension.
    ElementStride,
    /// Rank − 1.
    Rank,
    /// First byte of the tensor.
    Address,
    /// The type, by the ISA's table.
    ElementType,
    /// Always 0 here.
    Interleave,
    /// 0 to 3: none, 32, 64, 128 bytes.
    Swizzle,
    /// 0: zeros, 1: NaN.
    Fill,
}

impl Field {
    /// Reads the PTX's name of a field, without the dot.
    pub fn parse(name: &str) -> Option<Field> {
        Some(match name {
            "global_address" => Field::Address,
            "rank" => Field::Rank,
            "box_dim" => Field::BoxDim,
            "global_dim" => Field::Dim,
            "global_stride" => Field::Stride,
            "element_stride" => Field::ElementStride,
            "elemtype" => Field::ElementType,
            "interleave_layout" => Field::Interleave,
            "swizzle_mode" => Field::Swizzle,
            "fill_mode" => Field::Fill,
            _ => return None,
        })
    }

    /// First byte in the map, and bytes of one value.
    fn place(self) -> (usize, usize) {
        match self {
            Field::Address => (0, 8),
            Field::Dim => (8, 8),
            Field::Stride => (48, 8),
            Field::BoxDim => (80, 2),
            Field::ElementStride => (90, 1),
            Field::ElementType => (95, 1),
            Field::Rank => (96, 1),
            Field::Interleave => (97, 1),
            Field::Swizzle => (98, 1),
            Field::Fill => (99, 1),
        }
    }

    /// Values of the field.
    fn n_values(self) -> usize {
        match self {
            Field::Dim | Field::BoxDim | Field::ElementStride => RANK_MAX,
            Field::Stride => RANK_MAX - 1,
            _ => 1,
        }
    }

    /// The bit that notes that value `axis` was set.
    fn bit(self, axis: usize) -> u32 {
        let first = match self {
            Field::Dim => 0,
            Field::Stride => 5,
            Field::BoxDim => 9,
            Field::ElementStride => 14,
            Field::Rank => 19,
            Field::Address => 20,
            Field::ElementType => 21,
            Field::Interleave => 22,
            Field::Swizzle => 23,
            Field::Fill => 24,
        };
        1 << (first + axis)
    }
}

/// Where the bits lie that note which fields were set.
const SET_BITS: usize = 100;

/// What is wrong with a map that an instruction was given.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MapError {
    /// The memory holds no map, or one that is not finished.
    #[error("no tensor map: {field:?} {axis} was never set")]
    Unset {
        /// The first field that is missing.
        field: Field,
        /// Its dimension.
        axis: usize,
    },
    /// A value that the field cannot take.
    #[error("tensor map: {field:?} {axis} cannot be {value}")]
    Value {
        /// The field.
        field: Field,
        /// Its dimension.
        axis: usize,
        /// The value.
        value: u64,
    },
    /// Fewer or more coordinates than the tensor has dimensions.
    #[error("a tensor of rank {rank} with {n_coordinates} coordinates")]
    Rank {
        /// Of the map.
        rank: usize,
        /// Of the instruction.
        n_coordinates: usize,
    },
}

/// Sets value `axis` of a field.
pub fn replace(
    map: &mut [u8; MAP_BYTES],
    field: Field,
    axis: usize,
    value: u64,
) -> Result<(), MapError> {
    let (first, n_bytes) = field.place();
    let fits = n_bytes == 8 || value >> (8 * n_bytes) == 0;
    if axis >= field.n_values() || !fits {
        return Err(MapError::Value { field, axis, value });
    }
    let at = first + axis * n_bytes;
    map[at..at + n_bytes].copy_from_slice(&value.to_le_bytes()[..n_bytes]);
    let set = set_bits(map) | field.bit(axis);
    map[SET_BITS..SET_BITS + 4].copy_from_slice(&set.to_le_bytes());
    Ok(())
}

fn set_bits(map: &[u8; MAP_BYTES]) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|i| map[SET_BITS + i]))
}

/// Value `axis` of a field. Sizes and addresses must have been set; the rest is 0 by default, as
/// compilers rely on.
pub(super) fn get(map: &[u8; MAP_BYTES], field: Field, axis: usize) -> Result<u64, MapError> {
    let has_default =
        matches!(field, Field::ElementType | Field::Interleave | Field::Swizzle | Field::Fill);
    if !has_default && set_bits(map) & field.bit(axis) == 0 {
        return Err(MapError::Unset { field, axis });
    }
    let (first, n_bytes) = field.place();
    let at = first + axis * n_bytes;
    let mut value = [0; 8];
    value[..n_bytes].copy_from_slice(&map[at..at + n_bytes]);
    Ok(u64::from_le_bytes(value))
}
