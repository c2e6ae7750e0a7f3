//! Copies and fills.

use super::api;
use super::ffi::In;
use crate::driver::copy::{self, Copy, End, Fill, Pitch, Shape};
use crate::driver::status::{Answer, Status};
use crate::driver::{context, stream};

/// `CUDA_MEMCPY2D`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Copy2d {
    from: Side2d,
    to: Side2d,
    row_bytes: usize,
    n_rows: usize,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Side2d {
    x_bytes: usize,
    y: usize,
    kind: i32,
    host: u64,
    device: u64,
    array: usize,
    pitch_bytes: usize,
}

/// `CUDA_MEMCPY3D`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Copy3d {
    from: Side3d,
    to: Side3d,
    row_bytes: usize,
    n_rows: usize,
    n_layers: usize,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Side3d {
    x_bytes: usize,
    y: usize,
    z: usize,
    level: usize,
    kind: i32,
    host: u64,
    device: u64,
    array: usize,
    reserved: usize,
    pitch_bytes: usize,
    n_layer_rows: usize,
}

impl Side2d {
    fn decode(self, row_bytes: usize) -> Answer<(End, Pitch)> {
        let side = Side3d {
            x_bytes: self.x_bytes,
            y: self.y,
            z: 0,
            level: 0,
            kind: self.kind,
            host: self.host,
            device: self.device,
            array: self.array,
            reserved: 0,
            pitch_bytes: self.pitch_bytes,
            n_layer_rows: 0,
        };
        side.decode(row_bytes)
    }
}

impl Side3d {
    fn decode(self, row_bytes: usize) -> Answer<(End, Pitch)> {
        let pitch_bytes = if self.pitch_bytes == 0 { row_bytes } else { self.pitch_bytes };
        if pitch_bytes < row_bytes + self.x_bytes {
            return Err(Status::INVALID_VALUE);
        }
        let layer_bytes = pitch_bytes * self.n_layer_rows;
        let offset = self.z * layer_bytes + self.y * pitch_bytes + self.x_bytes;
        let end = match self.kind {
            1 => host_end(self.host + offset as u64),
            2 => End::Device(self.device + offset as u64),
            4 => End::of(self.device + offset as u64),
            // Arrays are textures' memory.
            _ => return Err(Status::NOT_SUPPORTED),
        };
        Ok((end, Pitch { row_bytes: pitch_bytes as u64, layer_bytes: layer_bytes as u64 }))
    }
}

impl Copy2d {
    fn decode(self) -> Answer<Copy> {
        let (to, to_pitch) = self.to.decode(self.row_bytes)?;
        let (from, from_pitch) = self.from.decode(self.row_bytes)?;
        let shape =
            Shape { row_bytes: self.row_bytes as u64, n_rows: self.n_rows as u64, n_layers: 1 };
        Ok(Copy { to, from, shape, to_pitch, from_pitch })
    }
}

impl Copy3d {
    pub(super) fn decode(self) -> Answer<Copy> {
        let (to, to_pitch) = self.to.decode(self.row_bytes)?;
        let (from, from_pitch) = self.from.decode(self.row_bytes)?;
        let shape = Shape {
            row_bytes: self.row_bytes as u64,
            n_rows: self.n_rows as u64,
            n_layers: self.n_layers as u64,
        };
        Ok(Copy { to, from, shape, to_pitch, from_pitch })
    }
}

/// Host memory, whether the driver knows it or not. A device's address here is the program's
/// mistake.
fn host_end(address: u64) -> End {
    End::of(address)
}

fn row(to: End, from: End, n_bytes: usize) -> Copy {
    Copy::row(to, from, n_bytes as u64)
}

fn run(copy: Copy) -> Answer {
    copy::run(copy)
}

fn submit(copy: Copy, stream: usize) -> Answer {
    copy::submit(copy, &*stream::get(stream)?)
}

fn fill(fill: Fill) -> Answer {
    copy::run_fill(fill)
}

fn submit_fill(fill: Fill, stream: usize) -> Answer {
    copy::submit_fill(fill, &*stream::get(stream)?)
}

/// Rows of values.
fn fill_rows(address: u64, pitch_bytes: usize, value: (u32, u64), size: (usize, usize)) -> Fill {
    let (value, value_bytes) = value;
    let (n_columns, n_rows) = (size.0 as u64, size.1 as u64);
    let shape = Shape { row_bytes: n_columns * value_bytes, n_rows, n_layers: 1 };
    Fill { address, value, value_bytes, shape, pitch_bytes: pitch_bytes as u64 }
}

api! {
    fn cuMemcpy(to: u64, from: u64, n_bytes: usize) {
        run(row(End::of(to), End::of(from), n_bytes))
    }

    fn cuMemcpyAsync(to: u64, from: u64, n_bytes: usize, stream: usize) {
        submit(row(End::of(to), End::of(from), n_bytes), stream)
    }

    fn cuMemcpyHtoD_v2(to: u64, from: u64, n_bytes: usize) {
        run(row(End::Device(to), host_end(from), n_bytes))
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, n_bytes: usize, stream: usize) {
        submit(row(End::Device(to), host_end(from), n_bytes), stream)
    }

    fn cuMemcpyDtoH_v2(to: u64, from: u64, n_bytes: usize) {
        run(row(host_end(to), End::Device(from), n_bytes))
    }

    fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, n_bytes: usize, stream: usize) {
        submit(row(host_end(to), End::Device(from), n_bytes), stream)
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, n_bytes: usize) {
        run(row(End::Device(to), End::Device(from), n_bytes))
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, n_bytes: usize, stream: usize) {
        submit(row(End::Device(to), End::Device(from), n_bytes), stream)
    }

    fn cuMemcpyPeer(to: u64, to_context: usize, from: u64, from_context: usize, n_bytes: usize) {
        check_peers(to_context, from_context)?;
        run(row(End::Device(to), End::Device(from), n_bytes))
    }

    fn cuMemcpyPeerAsync(
        to: u64,
        to_context: usize,
        from: u64,
        from_context: usize,
        n_bytes: usize,
        stream: usize,
    ) {
        check_peers(to_context, from_context)?;
        submit(row(End::Device(to), End::Device(from), n_bytes), stream)
    }

    fn cuMemcpy2D_v2(copy: In<Copy2d>) {
        run(copy.get()?.decode()?)
    }

    fn cuMemcpy2DUnaligned_v2(copy: In<Copy2d>) {
        run(copy.get()?.decode()?)
    }

    fn cuMemcpy2DAsync_v2(copy: In<Copy2d>, stream: usize) {
        submit(copy.get()?.decode()?, stream)
    }

    fn cuMemcpy3D_v2(copy: In<Copy3d>) {
        run(copy.get()?.decode()?)
    }

    fn cuMemcpy3DAsync_v2(copy: In<Copy3d>, stream: usize) {
        submit(copy.get()?.decode()?, stream)
    }

    fn cuMemsetD8_v2(address: u64, value: u8, n: usize) {
        fill(Fill::row(address, value.into(), 1, n as u64))
    }

    fn cuMemsetD16_v2(address: u64, value: u16, n: usize) {
        fill(Fill::row(address, value.into(), 2, n as u64))
    }

    fn cuMemsetD32_v2(address: u64, value: u32, n: usize) {
        fill(Fill::row(address, value, 4, n as u64))
    }

    fn cuMemsetD8Async(address: u64, value: u8, n: usize, stream: usize) {
        submit_fill(Fill::row(address, value.into(), 1, n as u64), stream)
    }

    fn cuMemsetD16Async(address: u64, value: u16, n: usize, stream: usize) {
        submit_fill(Fill::row(address, value.into(), 2, n as u64), stream)
    }

    fn cuMemsetD32Async(address: u64, value: u32, n: usize, stream: usize) {
        submit_fill(Fill::row(address, value, 4, n as u64), stream)
    }

    fn cuMemsetD2D8_v2(address: u64, pitch: usize, value: u8, width: usize, height: usize) {
        fill(fill_rows(address, pitch, (value.into(), 1), (width, height)))
    }

    fn cuMemsetD2D16_v2(address: u64, pitch: usize, value: u16, width: usize, height: usize) {
        fill(fill_rows(address, pitch, (value.into(), 2), (width, height)))
    }

    fn cuMemsetD2D32_v2(address: u64, pitch: usize, value: u32, width: usize, height: usize) {
        fill(fill_rows(address, pitch, (value, 4), (width, height)))
    }

    fn cuMemsetD2D8Async(
        address: u64,
        pitch: usize,
        value: u8,
        width: usize,
        height: usize,
        stream: usize,
    ) {
        submit_fill(fill_rows(address, pitch, (value.into(), 1), (width, height)), stream)
    }

    fn cuMemsetD2D16Async(
        address: u64,
        pitch: usize,
        value: u16,
        width: usize,
        height: usize,
        stream: usize,
    ) {
        submit_fill(fill_rows(address, pitch, (value.into(), 2), (width, height)), stream)
    }

    fn cuMemsetD2D32Async(
        address: u64,
        pitch: usize,
        value: u32,
        width: usize,
        height: usize,
        stream: usize,
    ) {
        submit_fill(fill_rows(address, pitch, (value, 4), (width, height)), stream)
    }
}

fn check_peers(to_context: usize, from_context: usize) -> Answer {
    context::get(to_context)?;
    context::get(from_context).map(|_| ())
}
