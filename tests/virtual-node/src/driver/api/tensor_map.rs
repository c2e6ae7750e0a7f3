//! Tensor maps, whose rules and form are the executor's.

use super::api;
use super::ffi::{In, Out};
use crate::driver::complain;
use crate::driver::status::Status;
use crate::exec::tensor::tensor_map::{MAP_BYTES, Request, encode};

/// Dimensions that a tensor map may have.
const RANK_MAX: u32 = 5;

api! {
    fn cuTensorMapEncodeTiled(
        map: Out<[u8; MAP_BYTES]>,
        data_type: u32,
        rank: u32,
        address: u64,
        dims: In<u64>,
        strides: In<u64>,
        box_dims: In<u32>,
        element_strides: In<u32>,
        interleave: u32,
        swizzle: u32,
        l2_promotion: u32,
        fill: u32,
    ) {
        if !(1..=RANK_MAX).contains(&rank) {
            return Err(Status::INVALID_VALUE);
        }
        let rank = rank as usize;
        let request = Request {
            data_type,
            address,
            dims: &dims.slice(rank)?,
            strides: &strides.slice(rank - 1)?,
            box_dims: &box_dims.slice(rank)?,
            element_strides: &element_strides.slice(rank)?,
            interleave,
            swizzle,
            l2_promotion,
            fill,
        };
        let encoded = encode(&request).map_err(|reason| {
            complain(format_args!("{reason}"));
            Status::INVALID_VALUE
        })?;
        map.put(encoded)
    }

    fn cuTensorMapEncodeIm2col(_map: Out<u8>) {
        complain(format_args!("tensor maps are tiled here, not im2col"));
        Err(Status::NOT_SUPPORTED)
    }
}
