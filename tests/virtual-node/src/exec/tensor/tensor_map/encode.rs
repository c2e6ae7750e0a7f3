//! The rules of `cuTensorMapEncodeTiled`, and how an encoded map is written.

use thiserror::Error;

use super::super::swizzle::Swizzle;
use super::fields::{Field, MAP_BYTES, replace};
use super::{RANK_MAX, swizzle_of};

/// Most elements of a box along one dimension.
const BOX_MAX: u32 = 256;

/// What `cuTensorMapEncodeTiled` is given, with the driver's numbers for its enumerations.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `CUtensorMapDataType`.
    pub data_type: u32,
    /// First byte of the tensor.
    pub address: u64,
    /// Elements along each dimension, the contiguous one first; their number is the rank.
    pub dims: &'a [u64],
    /// Bytes between neighbours along each dimension but the first.
    pub strides: &'a [u64],
    /// Elements of a copy along each dimension.
    pub box_dims: &'a [u32],
    /// Every how-manieth element is copied along each dimension.
    pub element_strides: &'a [u32],
    /// `CUtensorMapInterleave`.
    pub interleave: u32,
    /// `CUtensorMapSwizzle`.
    pub swizzle: u32,
    /// `CUtensorMapL2promotion`.
    pub l2_promotion: u32,
    /// `CUtensorMapFloatOOBfill`.
    pub fill: u32,
}

/// Which rule a request breaks.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Reason {
    /// A type that no map has, or that flushes or rounds on the way, which is not modelled.
    #[error("tensor map: data type {data_type} is unknown, or flushes or rounds")]
    DataType {
        /// `CUtensorMapDataType`.
        data_type: u32,
    },
    /// The rank, or an array that does not go with it.
    #[error("tensor map: {n_dims} dims, {n_strides} strides, {n_box} box and {n_steps} steps")]
    Rank {
        /// Dimensions.
        n_dims: usize,
        /// Strides, of which there is one less.
        n_strides: usize,
        /// Box dimensions.
        n_box: usize,
        /// Element strides.
        n_steps: usize,
    },
    /// The address must be a multiple of 16.
    #[error("tensor map: address {address:#x} is no multiple of 16")]
    Address {
        /// The address.
        address: u64,
    },
    /// Each dimension has 1 to 2³² elements.
    #[error("tensor map: dimension {axis} has {size} elements")]
    Dim {
        /// The dimension.
        axis: usize,
        /// Its size.
        size: u64,
    },
    /// Each stride is a multiple of 16 and less than 2⁴⁰.
    #[error("tensor map: stride {stride} of dimension {axis} is no multiple of 16 below 2^40")]
    Stride {
        /// The dimension.
        axis: usize,
        /// Its stride in bytes.
        stride: u64,
    },
    /// Each box dimension is 1 to 256.
    #[error("tensor map: a box of {size} along dimension {axis}, not 1 to 256")]
    Box {
        /// The dimension.
        axis: usize,
        /// Elements.
        size: u32,
    },
    /// The innermost row of a box is a multiple of 16 bytes.
    #[error("tensor map: rows of {n_bytes} bytes, no multiple of 16")]
    RowBytes {
        /// Bytes of a row.
        n_bytes: usize,
    },
    /// Each element stride is 1 to 8.
    #[error("tensor map: element stride {step} along dimension {axis}, not 1 to 8")]
    ElementStride {
        /// The dimension.
        axis: usize,
        /// The stride.
        step: u32,
    },
    /// An interleaved layout: legal on an H100, not modelled here.
    #[error("tensor map: interleave {interleave} is not modelled")]
    Interleave {
        /// `CUtensorMapInterleave`.
        interleave: u32,
    },
    /// A row of the box must fit the swizzle's span.
    #[error("tensor map: rows of {n_bytes} bytes under a swizzle of {span_bytes}")]
    SwizzleSpan {
        /// Bytes of a row.
        n_bytes: usize,
        /// Bytes that the swizzle spans.
        span_bytes: usize,
    },
    /// A swizzle that an H100 does not have.
    #[error("tensor map: unknown swizzle {swizzle}")]
    Swizzle {
        /// `CUtensorMapSwizzle`.
        swizzle: u32,
    },
    /// Not one of the promotions.
    #[error("tensor map: unknown L2 promotion {l2_promotion}")]
    Promotion {
        /// `CUtensorMapL2promotion`.
        l2_promotion: u32,
    },
    /// NaN is a fill for floats alone.
    #[error("tensor map: fill {fill} with data type {data_type}")]
    Fill {
        /// `CUtensorMapFloatOOBfill`.
        fill: u32,
        /// `CUtensorMapDataType`.
        data_type: u32,
    },
}

/// Checks a request as the driver would and writes the map.
pub fn encode(request: &Request<'_>) -> Result<[u8; MAP_BYTES], Reason> {
    let element = DriverType::of(request.data_type)?;
    check_shape(request)?;
    check_box(request, element)?;
    let mut map = [0; MAP_BYTES];
    let mut set = |field, axis, value| {
        replace(&mut map, field, axis, value).expect("checked values fit their fields");
    };
    set(Field::Address, 0, request.address);
    set(Field::Rank, 0, request.dims.len() as u64 - 1);
    for axis in 0..request.dims.len() {
        set(Field::Dim, axis, request.dims[axis]);
        set(Field::BoxDim, axis, u64::from(request.box_dims[axis]));
        set(Field::ElementStride, axis, u64::from(request.element_strides[axis]));
    }
    for (axis, stride) in request.strides.iter().enumerate() {
        set(Field::Stride, axis, *stride);
    }
    set(Field::ElementType, 0, u64::from(element.ptx_type));
    set(Field::Interleave, 0, u64::from(request.interleave));
    set(Field::Swizzle, 0, u64::from(request.swizzle));
    set(Field::Fill, 0, u64::from(request.fill));
    Ok(map)
}

fn check_shape(request: &Request<'_>) -> Result<(), Reason> {
    let rank = request.dims.len();
    let (n_strides, n_box) = (request.strides.len(), request.box_dims.len());
    let n_steps = request.element_strides.len();
    let lengths_agree = n_strides + 1 == rank && n_box == rank && n_steps == rank;
    if rank == 0 || rank > RANK_MAX || !lengths_agree {
        return Err(Reason::Rank { n_dims: rank, n_strides, n_box, n_steps });
    }
    if request.interleave != 0 {
        return Err(Reason::Interleave { interleave: request.interleave });
    }
    if !request.address.is_multiple_of(16) {
        return Err(Reason::Address { address: request.address });
    }
    for (axis, &size) in request.dims.iter().enumerate() {
        if size == 0 || size > 1 << 32 {
            return Err(Reason::Dim { axis, size });
        }
    }
    for (axis, &stride) in request.strides.iter().enumerate() {
        if !stride.is_multiple_of(16) || stride >= 1 << 40 {
            return Err(Reason::Stride { axis: axis + 1, stride });
        }
    }
    Ok(())
}

fn check_box(request: &Request<'_>, element: DriverType) -> Result<(), Reason> {
    for (axis, &size) in request.box_dims.iter().enumerate() {
        if size == 0 || size > BOX_MAX {
            return Err(Reason::Box { axis, size });
        }
    }
    for (axis, &step) in request.element_strides.iter().enumerate() {
        if step == 0 || step > 8 {
            return Err(Reason::ElementStride { axis, step });
        }
    }
    let n_bytes = request.box_dims[0] as usize * element.bytes;
    if !n_bytes.is_multiple_of(16) {
        return Err(Reason::RowBytes { n_bytes });
    }
    let swizzle =
        swizzle_of(request.swizzle).ok_or(Reason::Swizzle { swizzle: request.swizzle })?;
    let span_bytes = swizzle.span_bytes();
    if swizzle != Swizzle::None && n_bytes > span_bytes {
        return Err(Reason::SwizzleSpan { n_bytes, span_bytes });
    }
    if request.l2_promotion > 3 {
        return Err(Reason::Promotion { l2_promotion: request.l2_promotion });
    }
    if request.fill > 1 || (request.fill == 1 && !element.is_float) {
        return Err(Reason::Fill { fill: request.fill, data_type: request.data_type });
    }
    Ok(())
}

/// A type of the driver's enumeration.
#[derive(Clone, Copy)]
struct DriverType {
    bytes: usize,
    is_float: bool,
    /// The number that `tensormap.replace…elemtype` has for it.
    ptx_type: u8,
}

impl DriverType {
    fn of(data_type: u32) -> Result<DriverType, Reason> {
        let (bytes, is_float, ptx_type) = match data_type {
            0 => (1, false, 0),
            1 => (2, false, 1),
            2 => (4, false, 2),
            3 => (4, false, 3),
            4 => (8, false, 4),
            5 => (8, false, 5),
            6 => (2, true, 6),
            7 => (4, true, 7),
            8 => (8, true, 9),
            9 => (2, true, 10),
            _ => return Err(Reason::DataType { data_type }),
        };
        Ok(DriverType { bytes, is_float, ptx_type })
    }
}
