//! Tensor maps that a kernel writes: `tensormap.replace` and `tensormap.cp_fenceproxy`.

use super::TensorFault;
use super::bulk::read_map;
use super::operands::{address, constant, operand, unsupported};
use super::tensor_map::{Field, MAP_BYTES, replace};
use crate::exec::SHARED_WINDOW;
use crate::exec::WarpCx;
use crate::exec::context::Place;
use crate::exec::fault::{Cause, Flow, Trap};
use crate::exec::inst::{Address, R32, R64};
use crate::ptx::{Instruction, Lowered, Lowering};

/// `tensormap.replace`.
#[derive(Clone, Debug, PartialEq)]
pub struct Replace {
    field: Field,
    axis: usize,
    map: Address,
    is_shared: bool,
    value: Value,
}

/// The register of a field's new value: sizes have 32 bits, addresses and strides 64.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Narrow(R32),
    Wide(R64),
}

/// `tensormap.cp_fenceproxy`: a map goes from shared to device memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    to: Address,
    from: Address,
}

/// Decodes `tensormap.replace.tile.FIELD{.SPACE}.b1024.TYPE [map], {axis,} value`.
pub(super) fn decode_replace(cx: &mut Lowering<'_>, inst: &Instruction) -> Lowered<Replace> {
    let mnemonic = &inst.mnemonic;
    let field = mnemonic.modifiers().iter().find_map(|part| Field::parse(part));
    let Some(field) = field.filter(|_| mnemonic.has("tile")) else {
        return unsupported(mnemonic);
    };
    let has_axis = inst.operands.len() == 3;
    let axis = if has_axis { constant(cx, inst, 1)? as usize } else { 0 };
    let value = operand(inst, 1 + usize::from(has_axis))?;
    let value = if mnemonic.has("b64") {
        Value::Wide(cx.source64(value)?)
    } else {
        Value::Narrow(cx.source32(value)?)
    };
    let is_shared = mnemonic.has("shared::cta");
    Ok(Replace { field, axis, map: address(cx, inst, 0)?, is_shared, value })
}

/// Decodes `tensormap.cp_fenceproxy.global.shared::cta… [to], [from], 128`.
pub(super) fn decode_publish(cx: &mut Lowering<'_>, inst: &Instruction) -> Lowered<Publish> {
    Ok(Publish { to: address(cx, inst, 0)?, from: address(cx, inst, 1)? })
}

/// Sets the field in the map of each active lane.
pub(super) fn execute_replace(op: &Replace, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    let maps = cx.addresses(&op.map);
    for lane in cx.lanes() {
        let at = if op.is_shared { maps[lane] | SHARED_WINDOW } else { maps[lane] };
        let mut map = read_map(cx, lane, at)?;
        let value = match op.value {
            Value::Narrow(row) => u64::from(cx.warp.registers.r32(row)[lane]),
            Value::Wide(row) => cx.warp.registers.r64(row)[lane],
        };
        replace(&mut map, op.field, op.axis, value)
            .map_err(|error| Cause::from(TensorFault::from(error)).at(lane))?;
        write_map(cx, lane, at, &map)?;
    }
    Ok(Flow::Next)
}

/// Copies the map, once for the warp.
pub(super) fn execute_publish(op: &Publish, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    let (to, from) = (cx.addresses(&op.to), cx.addresses(&op.from));
    if let Some(lane) = cx.lanes().next() {
        let map = read_map(cx, lane, from[lane] | SHARED_WINDOW)?;
        write_map(cx, lane, to[lane], &map)?;
    }
    Ok(Flow::Next)
}

fn write_map(
    cx: &mut WarpCx<'_>,
    lane: usize,
    address: u64,
    map: &[u8; MAP_BYTES],
) -> Result<(), Trap> {
    if let Place::Param(address) = Place::of(address) {
        return Err(Cause::ReadOnly { address }.at(lane));
    }
    for half in [0, MAP_BYTES / 2] {
        let at = cx.generic(lane, address + half as u64, MAP_BYTES / 2)?;
        // SAFETY: `generic` gave 64 bytes, which may be written as they are no parameters.
        unsafe { at.as_ptr().copy_from_nonoverlapping(map[half..].as_ptr(), MAP_BYTES / 2) };
    }
    Ok(())
}
